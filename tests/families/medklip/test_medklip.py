"""MedKLIP: golden outputs, both layouts, what is asked for, each loss against its formula, and what is refused."""

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, ResNetConfig

from hf_medvlm.families.medklip.descriptions import (
    DESCRIPTIONS,
    bert_embeddings,
    describe,
    hashed_embeddings,
    position_prompts,
    text_embeddings,
)
from hf_medvlm.families.medklip.model import MedKlipConfig, MedKlipModel
from hf_medvlm.families.medklip.published import to_published
from hf_medvlm.labels import MEDKLIP_ENTITIES, MEDKLIP_POSITIONS
from hf_medvlm.models.positions import detr_positions
from hf_medvlm.training.parts import parts_of, set_trainable

MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
EXCLUDED = "eumonia infiltrate mass nodule emphysema thicken hernia".split()  # MedKLIP's `exclude_class`
NAMES = ["effusion", "edema", "mass"]


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "medklip"
    if not folder.is_dir():
        pytest.skip("golden values are not here")
    sys.path.insert(0, str(folder.parent))
    from golden_fill import fill_state_dict

    keys = json.loads((folder / "keys.json").read_text())["keys"]
    return fill_state_dict(keys), load_file(folder / "expected.safetensors")


@pytest.fixture(scope="module")
def published(golden, tmp_path_factory):
    """The golden weights in a file as MedKLIP's training script writes it."""
    path = tmp_path_factory.mktemp("published") / "checkpoint_final.pth"
    named = {f"module.{key}": value for key, value in golden[0].items()}
    torch.save({"model": named, "optimizer": {"state": {}}, "config": {"d_model": 256}, "epoch": 99}, path)
    return path


def tiny(**options) -> MedKlipModel:
    torch.manual_seed(0)
    model = MedKlipModel.tiny(**({"dropout": 0.0} | options))
    model.set_entity_embeddings(hashed_embeddings([describe(name) for name in NAMES]), NAMES)
    model.set_position_embeddings(hashed_embeddings(position_prompts()), MEDKLIP_POSITIONS)
    return model


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {
        "pixel_values": torch.randn(4, 3, 32, 32),
        "labels": torch.tensor([[1, 0, -1], [1, 1, 0], [0, -1, -1], [-1, 1, 1]]),
        "position_index": torch.randint(0, 51, (4, 3, 8)),
    }


def test_golden_outputs_and_losses(golden, published):
    weights, expected = golden
    model = MedKlipModel.from_published(published)
    model.set_entity_embeddings(expected["disease_book"], MEDKLIP_ENTITIES)
    model.set_position_embeddings(expected["ana_book"])
    pixels = (expected["pixel_u8"].float() / 255 - MEAN) / STD
    with torch.no_grad():
        patches = model.get_image_features(pixels)
        output = model(pixels, expected["labels"], expected["position_index"])
        hidden = expected["labels"].clone()
        hidden[:, [MEDKLIP_ENTITIES.index(name) for name in EXCLUDED]] = -1
        without = model(pixels, hidden, expected["position_index"])
        no_positions = model(pixels, expected["labels"])
    torch.testing.assert_close(patches[:1], expected["image_features_first"], rtol=0, atol=2e-5)
    torch.testing.assert_close(output.logits, expected["logits"], rtol=0, atol=2e-5)
    torch.testing.assert_close(output.logits.softmax(-1)[..., 1], expected["prob_exist"], rtol=0, atol=2e-5)
    torch.testing.assert_close(output.location_maps, expected["attention_mean_4_layers"], rtol=0, atol=2e-6)
    for result, name in ((output, "losses_total_ce_cl"), (without, "losses_exclude_class")):
        terms = torch.stack([result.loss, result.loss_terms["existence"], result.loss_terms["position"]])
        torch.testing.assert_close(terms, expected[name], rtol=1e-5, atol=0)
    torch.testing.assert_close(no_positions.loss, expected["losses_no_cl"][0], rtol=1e-5, atol=0)
    back = to_published(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], value) for key, value in weights.items())


def test_any_sizes_survive_the_published_layout_and_back(tmp_path):
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[2, 1], layer_type="bottleneck")
    model = MedKlipModel(
        MedKlipConfig(backbone_config=backbone, d_model=16, text_size=40, ffn_dim=24, decoder_layers=3)
    ).eval()
    torch.save(to_published(model), tmp_path / "weights.pth")
    again = MedKlipModel.from_published(tmp_path)
    for one in (model, again):
        one.set_entity_embeddings(hashed_embeddings(["a mass", "fluid"], 40))
    pixels = torch.randn(2, 3, 48, 32)
    assert again.config.decoder_layers == 3 and again.config.ffn_dim == 24
    assert torch.equal(again(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize(
    "keys, message",
    [
        (["encoder.encoder.conv1.weight", "projector.model.0.weight"], "a BioViL image model checkpoint"),
        (["visual.trunk.x", "text.transformer.y"], "BiomedCLIP"),
        (["something"], "an unknown checkpoint"),
    ],
)
def test_a_checkpoint_of_another_kind_is_named(keys, message, tmp_path):
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        MedKlipModel.from_published(tmp_path / "x.pth")


def test_missing_and_unexpected_keys_are_refused(golden, tmp_path):
    weights = dict(golden[0])
    weights["decoder.extra.weight"] = weights.pop("res_l2.bias")
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="(?s)1 missing: patch_projection.2.bias.*1 unexpected: decoder.extra.weight"):
        MedKlipModel.from_published(tmp_path / "x.pth")


def test_what_is_asked_for_is_saved_with_the_model(tmp_path, batch):
    model = tiny().eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.config.entities == NAMES and tuple(again.config.positions) == MEDKLIP_POSITIONS
    assert torch.equal(again.entity_embeddings, model.entity_embeddings)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    torch.testing.assert_close(again(**batch).loss, model(**batch).loss)


def test_new_entities_are_queried_without_changing_the_model(batch):
    model = tiny().eval()
    before = model(batch["pixel_values"]).logits
    asked = hashed_embeddings(["a broken rib", "a raised diaphragm"])
    output = model(batch["pixel_values"], entity_embeddings=asked)
    assert output.logits.shape == (4, 2, 2) and output.location_maps.shape == (4, 2, 16)
    torch.testing.assert_close(output.location_maps.sum(-1), torch.ones(4, 2))
    assert torch.equal(model(batch["pixel_values"]).logits, before)
    model.set_entity_embeddings(asked)
    assert torch.equal(model(batch["pixel_values"]).logits, output.logits)


def test_grad_cam_is_its_formula_and_leaves_no_gradient(batch):
    model = tiny(patch_positions=False).eval()
    with torch.no_grad():
        maps = model.saliency(batch["pixel_values"], [2, 0])
    assert maps.shape == (4, 2, 4, 4) and all(p.grad is None for p in model.parameters())
    hidden = model.backbone(batch["pixel_values"][1:2]).last_hidden_state.detach().requires_grad_()
    logits = model.classifier(model.query(model.patch_projection(hidden.flatten(2).mT))[0])
    (logits[0, 2, 1] - logits[0, 2, 0]).backward()
    weights = hidden.grad[0].mean((1, 2))
    expected = sum(weight * channel for weight, channel in zip(weights, hidden[0].detach(), strict=True)).clamp(min=0)
    torch.testing.assert_close(maps[1, 0], expected, rtol=1e-4, atol=1e-6)


def test_patches_know_where_they_are_only_when_asked(batch):
    with torch.no_grad():
        plain, placed = (tiny(patch_positions=on).eval() for on in (False, True))
        placed.load_state_dict(plain.state_dict())
        moved = (model.get_image_features(batch["pixel_values"]) for model in (plain, placed))
        difference = -torch.sub(*moved)
    torch.testing.assert_close(
        difference, detr_positions(4, 4, difference.shape[-1]).expand_as(difference), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("existence", ["cross_entropy", "bce"])
@pytest.mark.parametrize("temperature", [None, 0.2])
def test_losses_are_their_formulas_written_out(existence, temperature, batch):
    model = tiny(
        existence_loss=existence, position_temperature=temperature, position_weight=0.5, semantic_weight=2.0
    ).eval()
    with torch.no_grad():
        output = model(**batch)
        features = model.query(model.get_image_features(batch["pixel_values"]))[0]
        placed, meant = model.position_projection(features), model.semantic_projection(features)
    losses = {"existence": [], "position": [], "semantic": []}
    for b, row in enumerate(batch["labels"].tolist()):
        for e, state in enumerate(row):
            if state >= 0:
                absent, present = output.logits[b, e].tolist()
                if existence == "bce":
                    right, wrong = (present, absent) if state else (absent, present)
                    losses["existence"].append((math.log1p(math.exp(-right)) + math.log1p(math.exp(wrong))) / 2)
                else:
                    chosen = present if state else absent
                    losses["existence"].append(math.log(math.exp(absent) + math.exp(present)) - chosen)
            if state == 1:
                places = model.position_embeddings[batch["position_index"][b, e]]
                dots = places @ placed[b, e]
                if temperature:
                    dots = dots / places.norm(dim=-1) / placed[b, e].norm() / temperature
                losses["position"].append(float(dots.logsumexp(0) - dots[0]))
                text = model.entity_embeddings[e]
                losses["semantic"].append(1 - float(text @ meant[b, e] / text.norm() / meant[b, e].norm()))
    weights = {"existence": 1.0, "position": 0.5, "semantic": 2.0}
    for name, values in losses.items():
        expected = weights[name] * sum(values) / len(values)
        assert output.loss_terms[name].item() == pytest.approx(expected, rel=1e-4), name
    assert output.loss.item() == pytest.approx(sum(term.item() for term in output.loss_terms.values()), rel=1e-6)


def test_a_batch_in_which_nothing_is_known_has_loss_and_gradient_zero(batch):
    model = tiny().train()
    output = model(**(batch | {"labels": torch.full((4, 3), -1)}))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_study_does_not_depend_on_its_neighbours_in_training_either(batch):
    """With batch statistics it would, and accumulated micro-batches would not be one batch."""
    for model in (tiny(), MedKlipModel(MedKlipConfig(backbone_config=small_resnet(), dropout=0.0))):
        model.set_entity_embeddings(hashed_embeddings(["fluid"]))
        model.train()
        both, alone = model(batch["pixel_values"]).logits, model(batch["pixel_values"][:1]).logits
        torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)


def test_running_statistics_and_a_frozen_backbone_stay(batch):
    model = MedKlipModel(MedKlipConfig(backbone_config=small_resnet(), position_weight=0.0))
    set_trainable(model, parts_of(model), ("connector",))
    model.set_entity_embeddings(hashed_embeddings(["fluid", "air", "a mass"]))
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model.train()(**batch).loss.backward()
    assert not model.backbone.training and all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert model.position_projection.weight.grad is None and model.classifier.weight.grad is not None


def small_resnet() -> ResNetConfig:
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


def test_bad_input_is_refused_with_a_way_out(batch):
    model = MedKlipModel.tiny()
    with pytest.raises(ValueError, match="no entities yet .* call set_entity_embeddings"):
        model(batch["pixel_values"])
    with pytest.raises(ValueError, match="list of entities is empty"):
        model.set_entity_embeddings(torch.zeros(0, 768))
    with pytest.raises(ValueError, match=r"\(number, 768\), got \(3, 5\)"):
        model.set_entity_embeddings(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="2 names for 3 positions"):
        model.set_position_embeddings(torch.zeros(3, 768), ["a", "b"])
    model = tiny()
    with pytest.raises(ValueError, match=r"labels must be \(4, 3\).*got \(4, 2\)"):
        model(batch["pixel_values"], labels=batch["labels"][:, :2])
    with pytest.raises(ValueError, match="position_index must be"):
        model(**(batch | {"position_index": batch["position_index"][:, :1]}))
    with pytest.raises(ValueError, match='norm must be "batch" or "group"'):
        MedKlipConfig(norm="layer")
    with pytest.raises(ValueError, match="4 heads"):
        MedKlipConfig(d_model=30)
    with pytest.raises(ValueError, match="layout has batch norms"):
        to_published(model)


def test_every_entity_is_described_and_likes_come_out_alike():
    assert set(DESCRIPTIONS) == set(MEDKLIP_ENTITIES)
    embeddings = hashed_embeddings([describe(name) for name in MEDKLIP_ENTITIES])
    cosines = embeddings @ embeddings.T / embeddings.shape[1]
    torch.testing.assert_close(cosines.diagonal(), torch.ones(75))

    def alike(one: str, other: str) -> float:
        return cosines[MEDKLIP_ENTITIES.index(one), MEDKLIP_ENTITIES.index(other)].item()

    assert alike("nodule", "mass") > 0.5 > alike("nodule", "cardiomegaly")
    assert alike("consolidation", "opacity") > alike("consolidation", "fracture")
    assert torch.equal(embeddings[:2], hashed_embeddings([describe(name) for name in MEDKLIP_ENTITIES[:2]]))
    with pytest.raises(ValueError, match="holds no word"):
        hashed_embeddings(["of the 12"])


def test_a_bert_embeds_by_its_class_token_cut_at_max_length(tmp_path):
    from transformers import BertConfig, BertModel

    from hf_medvlm.models.tiny import train_tokenizer

    texts = [describe(name) for name in NAMES]
    tokenizer = train_tokenizer(texts, vocab_size=200)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    embedded = bert_embeddings(texts, str(tmp_path), max_length=8, batch=2)
    for text, row in zip(texts, embedded, strict=True):
        tokens = tokenizer(text, truncation=True, max_length=8, return_tensors="pt")
        torch.testing.assert_close(row, model(**tokens).last_hidden_state[0, 0], rtol=1e-4, atol=1e-5)
    assert torch.equal(text_embeddings(texts, str(tmp_path)), bert_embeddings(texts, str(tmp_path)))
    with pytest.raises(ValueError, match="no text"):
        bert_embeddings([], str(tmp_path))
