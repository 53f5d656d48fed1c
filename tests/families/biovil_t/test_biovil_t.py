"""BioViL-T and CXR-BERT: equal to hi-ml-multimodal's outputs, and sound where public code has no training."""

import copy
import json
import math

import pytest
import torch
from families import build
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor, ResNetConfig

from hf_medvlm.families.biovil_t.config import BioViLTConfig
from hf_medvlm.families.biovil_t.cxr_bert import CXRBertConfig, CXRBertModel
from hf_medvlm.families.biovil_t.model import BioViLTModel
from hf_medvlm.families.biovil_t.published import to_published
from hf_medvlm.families.biovil_t.temporal import TemporalPooler
from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.losses import duplicate_targets, patch_evidence
from hf_medvlm.models.positions import detr_positions
from hf_medvlm.training.parts import parts_of, set_trainable

TINY = {
    "backbone_config": ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"),
    "pooler_dim": 16,
    "pooler_layers": 1,
    "pooler_heads": 2,
    "projection_size": 8,
}


@pytest.fixture(scope="module")
def family(splits):
    return build("biovil_t", splits)


@pytest.fixture
def batch(family, splits):
    return family.collator(False)(splits.train[:8])


@pytest.fixture(scope="module")
def golden(shared):
    import sys

    sys.path.insert(0, str(shared / "golden"))
    folder = shared / "golden" / "biovil_t"
    if not folder.is_dir():
        pytest.skip("no golden outputs of BioViL-T")
    return folder


def fill(keys) -> dict[str, torch.Tensor]:
    from golden_fill import fill_state_dict

    return fill_state_dict(keys)


@pytest.fixture(scope="module")
def published(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "biovil_t_image_model_proj_size_128.pt"
    torch.save(fill(json.loads((golden / "keys_resnet18_multi_image.json").read_text())), path)
    return path


# -- the published models ----------------------------------------------------------------------------------------------


def test_single_pairs_and_a_mixed_batch_equal_the_reference(golden, published):
    model = BioViLTModel.from_published(published)
    pixels, wanted = (
        load_file(golden / "inputs_448.safetensors"),
        load_file(golden / "expected_resnet18_multi_image.safetensors"),
    )
    current, previous = ((pixels[f"{name}_u8"].float() / 255).repeat(1, 3, 1, 1) for name in ("current", "previous"))
    with torch.no_grad():
        single, pair = model.get_image_features(current), model.get_image_features(current, previous)
        mixed = model.get_image_features(current, previous, torch.tensor([True, False]))
    for name in ("img_embedding", "projected_patch_embeddings", "projected_global_embedding"):
        torch.testing.assert_close(single[name], wanted[f"single.{name}"], atol=2e-5, rtol=0)
        torch.testing.assert_close(pair[name], wanted[f"pair.{name}"], atol=2e-5, rtol=0)
        rows = torch.stack((wanted[f"pair.{name}"][0], wanted[f"single.{name}"][1]))
        torch.testing.assert_close(mixed[name], rows, atol=2e-5, rtol=0)
    for kind, features in (("single", single), ("pair", pair)):
        first = wanted[f"{kind}.patch_embeddings_first_image"]
        torch.testing.assert_close(features.patch_embeddings[:1], first, atol=2e-5, rtol=0)
    unit = normalize(pair.projected_patch_embeddings, dim=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(unit, wanted["pair.normalized_patch_embeddings_bhwd"], atol=2e-5, rtol=0)


def test_cxr_bert_equals_the_reference(golden, tmp_path):
    spec, wanted = (
        json.loads((golden / "keys_cxrbert_tiny.json").read_text()),
        load_file(golden / "expected_cxrbert_tiny.safetensors"),
    )
    weights = fill(spec["keys"]) | {"bert.embeddings.position_ids": torch.arange(40)[None]}
    for target, source in spec["tied"].items():
        weights[target] = weights[source]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "cxr-bert", **spec["config"]}))
    model = CXRBertModel.from_published(tmp_path)
    with torch.no_grad():
        output = model(wanted["input_ids"], wanted["attention_mask"])
        unit = model.get_projected_text_embeddings(wanted["input_ids"], wanted["attention_mask"])
    for name in ("last_hidden_state", "logits", "cls_projected_embedding"):
        torch.testing.assert_close(output[name], wanted[name], atol=2e-5, rtol=0)
    torch.testing.assert_close(unit, wanted["cls_projected_embedding_normalized"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18_multi_image", "resnet50_multi_image", "biovil_resnet50"])
def test_published_weights_survive_the_way_there_and_back(golden, tmp_path, name):
    weights = fill(json.loads((golden / f"keys_{name}.json").read_text()))
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "image.pt")
    model = BioViLTModel.from_published(tmp_path / "image.pt")
    assert model.config.temporal == ("multi" in name)
    back = to_published(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], value) for key, value in weights.items())


def test_a_checkpoint_without_fc_and_with_new_heads(published, tmp_path):
    weights = {key: value for key, value in torch.load(published, weights_only=True).items() if ".fc." not in key}
    torch.save(weights, tmp_path / "image.pt")
    model = BioViLTModel.from_published(tmp_path, progression_findings=["Edema"])
    assert model.progression_head.out_features == 3 and not model.training
    back = to_published(model)
    assert back["encoder.encoder.fc.weight"].shape == (1000, 512)
    assert all(torch.equal(back[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        (["cls_projection_head.dense_to_hidden.weight"], "a CXR-BERT text model checkpoint, not a BioViL"),
        (["res_features.0.weight", "disease_embedding_layer.weight"], "MedKLIP"),
        (["a.b"], "unknown checkpoint"),
    ],
)
def test_another_kind_of_checkpoint_is_named(tmp_path, keys, match):
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "image.pt")
    with pytest.raises(ValueError, match=match):
        BioViLTModel.from_published(tmp_path / "image.pt")


def test_missing_and_unexpected_keys_are_listed(published, tmp_path):
    weights = torch.load(published, weights_only=True)
    weights["encoder.vit_pooler.extra"] = weights.pop("encoder.vit_pooler.norm_post.bias")
    torch.save(weights, tmp_path / "image.pt")
    with pytest.raises(ValueError, match=r"(?s)1 missing: vit_pooler.norm_post.bias.*1 unexpected: vit_pooler.extra"):
        BioViLTModel.from_published(tmp_path / "image.pt")


def test_folders_without_an_image_model_and_texts_without_a_configuration(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        BioViLTModel.from_published(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no config.json beside it"):
        CXRBertModel.from_published(tmp_path)


def test_the_whole_folder_loads_with_its_text_side(published, family, tmp_path):
    text = CXRBertModel(CXRBertConfig(**family.model.config.text_config.to_dict() | {"projection_size": 128}))
    text.save_pretrained(tmp_path)
    torch.save(torch.load(published, weights_only=True), tmp_path / published.name)
    model = BioViLTModel.from_published(tmp_path)
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        wanted = text.eval().get_projected_text_embeddings(ids)
        assert torch.equal(model.get_projected_text_embeddings(ids), wanted)


# -- the temporal pooler -----------------------------------------------------------------------------------------------


def test_positions_are_detrs():
    height, width, dim = 3, 5, 8
    grid = detr_positions(height, width, dim).view(height, width, dim)
    for y in range(height):
        for x in range(width):
            for half, place, size in ((0, y, height), (dim // 2, x, width)):
                for i in range(dim // 2):
                    angle = (place + 1) / (size + 1e-6) * 2 * math.pi / 10000 ** (2 * (i // 2) / (dim // 2))
                    wanted = math.sin(angle) if i % 2 == 0 else math.cos(angle)
                    assert grid[y, x, half + i].item() == pytest.approx(wanted, abs=1e-5)


def test_no_buffer_holds_the_positions_and_a_saved_model_is_the_same(family, batch, tmp_path):
    assert not any("pos" in name for name, _ in family.model.vit_pooler.named_buffers())
    model = BioViLTModel(BioViLTConfig(**TINY, norm="batch", fc_classes=5)).eval()
    model.fc_weight.normal_()
    model.backbone.embedder.embedder.normalization.running_var.uniform_(0.5, 2)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.fc_weight, model.fc_weight)
    pixels = batch["pixel_values"], batch["previous_pixel_values"]
    with torch.no_grad():
        assert torch.equal(
            loaded.get_image_features(*pixels).patch_embeddings, model.get_image_features(*pixels).patch_embeddings
        )


def test_stochastic_depth_leaves_out_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    pooler = TemporalPooler(dim=8, layers=1, heads=2, drop=0.0, drop_path=0.5).train()
    branch = torch.ones(4000, 2, 8)
    kept = pooler.blocks[0]._skip(branch)
    assert set(kept.flatten(1).unique(dim=1).unique().tolist()) == {0.0, 2.0}
    assert (kept.flatten(1).std(1) == 0).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dim", [10, 12])
def test_a_width_that_cannot_be_split(dim):
    with pytest.raises(ValueError, match="multiple of 4 and of its 8 heads"):
        TemporalPooler(dim=dim, heads=8)


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_prior_that_is_not_there_changes_nothing(family, batch):
    model, noise = family.model.eval(), torch.rand_like(batch["previous_pixel_values"])
    has = batch["has_previous"]
    assert has.any() and not has.all()
    noisy = torch.where(has[:, None, None, None], batch["previous_pixel_values"], noise)
    with torch.no_grad():
        features = model.get_image_features(batch["pixel_values"], batch["previous_pixel_values"], has)
        same = model.get_image_features(batch["pixel_values"], noisy, has)
        alone = model.get_image_features(batch["pixel_values"])
    assert torch.equal(features.patch_embeddings, same.patch_embeddings)
    torch.testing.assert_close(features.patch_embeddings[~has], alone.patch_embeddings[~has])
    assert (features.patch_embeddings[has] - alone.patch_embeddings[has]).abs().max() > 0.01


@pytest.mark.parametrize("having", [True, False])
def test_every_parameter_gets_a_gradient_whoever_has_a_prior(family, batch, having):
    model = copy.deepcopy(family.model).train()
    model(**batch | {"has_previous": torch.full((8,), having)}).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_losses_are_means_over_what_is_labelled(family, batch):
    model = copy.deepcopy(family.model).eval()
    torch.manual_seed(0)
    for head in (model.progression_head, model.findings_head):
        torch.nn.init.normal_(head.weight, std=0.1)  # far from saturation, where the obvious formula loses its digits
    with torch.no_grad():
        output = model(**batch)
    total = count = 0
    for logits, labels in zip(output.progression_logits, batch["progression"], strict=True):
        for row, label in zip(logits, labels.tolist(), strict=True):
            if label != IGNORE_INDEX:
                total, count = total - row.log_softmax(0)[label], count + 1
    weights = model.config.progression_weight, model.config.findings_weight
    torch.testing.assert_close(output.loss_terms["progression"], weights[0] * total / count)
    known = batch["findings"] != IGNORE_INDEX
    probability = output.finding_logits.sigmoid()
    wanted = -torch.where(batch["findings"] == 1, probability, 1 - probability)[known].log().mean()
    torch.testing.assert_close(output.loss_terms["findings"], weights[1] * wanted)
    assert output.loss == pytest.approx(sum(output.loss_terms.values()).item())


def test_batch_norms_keep_their_statistics_and_frozen_parts_their_weights(batch, tmp_path):
    config = BioViLTConfig(**TINY, progression_findings=["a", "b", "c", "d"])
    BioViLTModel(config).save_pretrained(tmp_path)
    for model in (BioViLTModel(config), BioViLTModel.from_pretrained(tmp_path)):
        set_trainable(model, parts_of(model), ("connector",))
        model.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        names = ("pixel_values", "previous_pixel_values", "has_previous", "progression", "pair_ids")
        model(**{name: batch[name] for name in names}).loss.backward()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {"backbone_to_vit", "missing_previous_emb", "vit_pooler", "progression_head"}


def test_a_fresh_network_does_not_see_the_grey_level(family, batch):
    model, pixels = family.model.eval(), batch["pixel_values"]
    with torch.no_grad():
        wanted, brighter = (model.get_image_features(x).img_embedding for x in (pixels, 0.4 * pixels + 0.3))
    torch.testing.assert_close(brighter, wanted, rtol=1e-3, atol=1e-4)


def test_the_last_stage_of_a_fresh_network_tells_a_place_nothing_of_the_others(family):
    """With group norms before it alone: a far corner that changes leaves what the last stage makes of the other."""
    stage = family.model.backbone.encoder.stages[-1].eval()
    torch.manual_seed(0)
    grid = torch.randn(1, stage.layers[0].layer[0].convolution.in_channels, 24, 24)
    other = grid.clone()
    other[..., 20:, 20:] += 5
    with torch.no_grad():
        stages, wanted = family.model.projector[:3].eval(), stage(grid)
        changed = stage(other)
        assert torch.equal(changed[..., :4, :4], wanted[..., :4, :4]) and not torch.equal(changed, wanted)
        rows = torch.randn(1, stages[0].in_channels, 6, 6)
        assert torch.equal(stages(rows)[..., :3], stages(rows[..., :3]))


def test_evidence_is_taught_to_patches_and_leaves_the_texts_alone(family, batch):
    model = BioViLTModel(copy.deepcopy(family.model.config)).train()
    names = ("global_weight", "local_weight", "progression_weight", "findings_weight")
    for name in names:
        setattr(model.config, name, 0.0)
    model.config.evidence_weight = 0.7
    output = model(**batch)
    rows = output.representations
    told = patch_evidence(
        rows["patch_embeds"].flatten(2).mT,
        rows["text_embeds"],
        rows["logit_scale"],
        targets=duplicate_targets(batch["pair_ids"]),
    )
    torch.testing.assert_close(output.loss_terms["evidence"], -0.7 * told.mean())
    output.loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.startswith("projector") for name in reached)
    assert not any(name.startswith(("text_model", "logit_scale")) for name in reached)


def test_group_norm_has_no_published_layout(family):
    with pytest.raises(ValueError, match='norm="group"'):
        to_published(family.model)


def test_patch_positions_are_added_and_have_no_published_layout(batch):
    torch.manual_seed(0)
    plain, placed = (BioViLTModel(BioViLTConfig(**TINY, patch_positions=on)).eval() for on in (False, True))
    placed.load_state_dict(plain.state_dict())
    with torch.no_grad():
        one, other = (m.get_image_features(batch["pixel_values"]).patch_embeddings for m in (plain, placed))
    width = plain.config.pooler_dim
    added = (other - one)[:, :width].flatten(2).mT
    expected = detr_positions(*one.shape[2:], width).expand_as(added)
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no positions"):
        to_published(placed)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"previous_pixel_values": torch.zeros(8, 3, 16, 16)}, "differ in size"),
        ({"has_previous": torch.ones(7, dtype=torch.bool)}, r"has_previous must be \(8,\)"),
    ],
)
def test_sizes_that_do_not_fit(family, batch, change, match):
    names = ("pixel_values", "previous_pixel_values", "has_previous")
    with pytest.raises(ValueError, match=match):
        family.model.get_image_features(**{name: batch[name] for name in names} | change)


def test_biovil_takes_no_previous_image_and_an_image_model_no_text(batch):
    biovil = BioViLTModel(BioViLTConfig(**TINY, temporal=False)).eval()
    assert biovil.get_image_features(batch["pixel_values"]).img_embedding.shape == (8, 32)
    with pytest.raises(ValueError, match="takes no previous image"):
        biovil.get_image_features(batch["pixel_values"], batch["previous_pixel_values"])
    with pytest.raises(ValueError, match="no text side"):
        biovil.get_text_features(batch["input_ids"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"norm": "layer"}, '"batch" or "group"'),
        ({"text_config": CXRBertConfig(projection_size=9)}, "8 numbers but texts to 9"),
    ],
)
def test_configurations_that_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        BioViLTConfig(**TINY | options)


def test_the_processor_comes_back_with_its_crop(family, tmp_path):
    processor = family.collator(False).processor
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).image_processor.crop_size == processor.image_processor.crop_size
