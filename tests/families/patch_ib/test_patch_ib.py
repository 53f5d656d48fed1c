"""The patch bottleneck: what is dropped is gone, what is not chosen is not seen, and each variant learns."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, SwinConfig, ViTConfig

from hf_medvlm.families.patch_ib.config import PatchIBConfig, variant_options
from hf_medvlm.families.patch_ib.model import PatchIBModel
from hf_medvlm.models.heads import gumbel_mask, threshold_mask, top_k_mask
from hf_medvlm.models.loading import load_strictly

GOLDEN = Path(__file__).parents[2] / "golden" / "losses" / "patch_ib.safetensors"
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
VIT = ViTConfig(**SMALL, num_hidden_layers=4, image_size=32, patch_size=8)
BERT = BertConfig(**SMALL, num_hidden_layers=1, vocab_size=50)


def build(variant: str, **options) -> PatchIBModel:
    torch.manual_seed(0)
    towers = {"vision_config": VIT, "text_config": BERT, "projection_size": 16}
    return PatchIBModel(PatchIBConfig(**(towers | variant_options(variant, 4) | options)))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {
        "pixel_values": torch.randn(4, 3, 32, 32),
        "input_ids": torch.randint(5, 50, (4, 7)) * mask,
        "attention_mask": mask,
        "pair_ids": torch.tensor([3, 8, 3, 9]),
    }


@pytest.mark.parametrize("variant", "ABCDEFGH")
def test_every_variant_learns_with_all_its_parameters(variant, batch):
    model = build(variant).train()
    model.set_step(10)
    output = model(**batch)
    output.loss.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle and torch.isfinite(output.loss)
    assert sum(output.loss_terms.values()).item() == pytest.approx(output.loss.item(), rel=1e-5)
    assert output.salience.shape == output.kept.shape == (4, 4, 4)
    assert 0 <= output.salience.min() and output.salience.max() <= 1
    assert set(output.kept.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("variant", "ABCDEFGH")
def test_every_variant_comes_back_and_does_not_mind_padding(variant, batch, tmp_path):
    model = build(variant).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    trained_on = load_strictly(PatchIBModel, tmp_path, **variant_options(variant, 4)).eval()  # with a recipe's options
    assert isinstance(again, PatchIBModel) and trained_on.config.variant == variant
    assert torch.equal(again(**batch).loss, model(**batch).loss)
    assert torch.equal(trained_on(**batch).loss, model(**batch).loss)
    pad = torch.zeros(4, 9, dtype=torch.long)
    longer = {name: torch.cat([batch[name], pad], 1) for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**(batch | longer)).loss, model(**batch).loss)


def lengths_seen(model: PatchIBModel, batch: dict) -> list[int]:
    """The number of tokens that each block of the vision tower was given, in the order of the calls."""
    seen = []
    for layer in model.vision_tower.layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    model.eval()(**batch)
    return seen


def test_a_hard_drop_takes_the_tokens_out_of_the_sequence(batch):
    assert lengths_seen(build("E", keep=0.25, keep_start=None), batch) == [17, 17, 5, 5]
    # F and G run the whole image once more for the embedding that knows no text
    assert lengths_seen(build("F", keep=0.25), batch) == [17, 17, 17, 17, 5, 5]
    assert lengths_seen(build("G", keep_start=None), batch) == [17, 17, 17, 17, 13, 13, 9]


def test_a_hard_drop_saves_the_flops_of_what_it_drops(batch):
    def flops(model: PatchIBModel) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval().get_image_features(batch["pixel_values"])
        return counter.get_total_flops()

    whole, dropped = flops(build("A")), flops(build("E", keep=0.25, keep_start=None, drop_layers=[1]))
    assert dropped < 0.6 * whole  # three of four blocks over 5 of 17 tokens; here the patch embedding is a fifth


def test_the_class_token_sees_only_what_was_kept(batch):
    """Slow twin: run the tower over the whole sequence with the dropped tokens hidden from attention."""
    model = build("E", keep=0.25, keep_start=None).eval()
    output = model(**batch)
    tower, layer = model.vision_tower, model.config.drop_layers[0]
    hidden = tower.embeddings(batch["pixel_values"])
    for block in tower.layers[:layer]:
        hidden = block(hidden)
    valid = torch.cat([torch.ones(4, 1), output.kept.flatten(1)], 1).bool()
    hidden_away = torch.zeros(4, 1, 1, 17).masked_fill(~valid[:, None, None], float("-inf"))
    for block in tower.layers[layer:]:
        hidden = block(hidden, hidden_away)
    slow = model.vision_projection(tower.layernorm(hidden)[:, 0])
    torch.testing.assert_close(torch.nn.functional.normalize(slow, dim=-1), output.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.get_image_features(batch["pixel_values"]), slow, atol=1e-5, rtol=1e-5)
    best = output.salience.flatten(1).topk(4).indices
    assert torch.equal(torch.zeros(4, 16).scatter(1, best, 1.0), output.kept.flatten(1))


def test_adaptive_dropping_keeps_what_fits_and_neighbours_change_nothing(batch):
    model = build("F", adaptive=True, sparsity_weight=5.0, sparsity_target=0.5).eval()
    with torch.no_grad():
        for parameter in model.probes.parameters():
            parameter.mul_(3)
    output = model(**batch)
    counts = output.kept.flatten(1).sum(1)
    assert len(counts.unique()) > 1, "the test needs rows that keep different numbers"
    for row in range(4):
        alone = model(**{name: value[row : row + 1] for name, value in batch.items()})
        expected = output.representations["masked_image_embeds"][row : row + 1]
        torch.testing.assert_close(alone.representations["masked_image_embeds"], expected, atol=1e-5, rtol=1e-4)
    fits = output.salience > 0.5
    assert torch.equal(fits[counts > 1], output.kept[counts > 1].bool())


@pytest.mark.parametrize("variant", "FGH")
def test_what_retrieval_uses_does_not_depend_on_the_report(variant, batch):
    model = build(variant).eval()
    first = model(**batch)
    other = model(**(batch | {"input_ids": batch["input_ids"].roll(1, 0), "attention_mask": torch.ones(4, 7)}))
    torch.testing.assert_close(other.image_embeds, first.image_embeds)
    assert not torch.allclose(
        other.representations["masked_image_embeds"], first.representations["masked_image_embeds"]
    )


def test_the_share_kept_is_annealed_in_training_alone():
    model = build("E", keep=0.25, keep_start=0.75, anneal_steps=100).train()
    counts = []
    for step in (0, 50, 100, 500):
        model.set_step(step)
        counts.append(model.kept_count(16))
    assert counts == [12, 8, 4, 4]
    model.set_step(0)
    assert model.eval().kept_count(16) == 4


def test_masks_are_hard_forward_and_soft_backward():
    torch.manual_seed(0)
    logits = torch.randn(3, 8, requires_grad=True)
    for mask in (threshold_mask(logits), top_k_mask(logits, 3), gumbel_mask(logits, 0.5)):
        assert set(mask.detach().round(decimals=5).unique().tolist()) <= {0.0, 1.0}
        (gradient,) = torch.autograd.grad(mask.sum(), logits)
        assert (gradient > 0).all()
    soft = logits.sigmoid()
    (gradient,) = torch.autograd.grad(top_k_mask(logits, 3).sum(), logits)
    torch.testing.assert_close(gradient, soft * (1 - soft))
    share = torch.stack([gumbel_mask(torch.full((1, 4000), 1.0), 0.7)]).mean()
    assert share == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.03)


def test_evidence_teaches_the_importance_what_a_patch_shows():
    """Images of noise in which one patch, anywhere, shows one of four patterns that the text names: it is kept."""
    torch.manual_seed(0)
    model = build("E", keep=1 / 16, keep_start=0.5, anneal_steps=100, evidence_weight=1.0, sparsity_weight=0.0)
    patterns, optimizer = torch.randn(4, 3, 8, 8), torch.optim.AdamW(model.parameters(), lr=3e-3)

    def draw(count: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        pixels, kind, place = torch.randn(count, 3, 32, 32) / 2, torch.arange(count) % 4, torch.randint(16, (count,))
        for i in range(count):
            top, left = 8 * (place[i] // 4), 8 * (place[i] % 4)
            pixels[i, :, top : top + 8, left : left + 8] = patterns[kind[i]]
        ids = torch.stack([torch.tensor([5, 10 + k, 6]) for k in kind.tolist()])
        return {
            "pixel_values": pixels,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pair_ids": kind,
        }, place

    model.train()
    for step in range(200):
        model.set_step(step)
        model(**draw(32)[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    inputs, place = draw(64)
    output = model.eval()(**inputs)
    assert (output.kept.flatten(1).argmax(1) == place).float().mean() > 0.9
    importance = output.representations["importance"].max(1).values  # in nats: one of four kinds, told for certain
    assert importance.mean().item() == pytest.approx(math.log(4), abs=0.4)


def test_evidence_reads_the_texts_without_shaping_them(batch):
    model = build("E", evidence_weight=1.0).train()
    rows = model(**batch).representations
    terms = model.loss_terms_of(rows)
    (terms["evidence"] + terms["importance"]).backward()
    taught = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert taught == {"evidence", "mask_head", "vision_tower"}


def test_top_k_equals_the_published_mask():
    tensors = load_file(GOLDEN)
    torch.testing.assert_close(top_k_mask(tensors["importance_logits"], 5), tensors["topk5_mask"])


@pytest.mark.parametrize(
    ("variant", "options", "match"),
    [
        ("E", {"keep": 0.0}, "above 0 and at most 1, got 0.0"),
        ("E", {"keep": 1.5}, "at most 1, got 1.5"),
        ("E", {"drop_layers": [4]}, "between 1 and 3, got .4."),
        ("G", {"drop_layers": [2]}, "2 drop layer"),
        ("G", {"keep": 0.5, "keep_start": 0.5}, "2 share"),
        ("C", {"mask": "soft"}, "mask must be one of"),
        ("A", {"alignment": "mse"}, "belongs to the variants B, C and D"),
        ("E", {"adaptive": True}, "in variant F; not in E"),
        ("D", {"evidence_weight": 1.0}, "importance of variant E, not of D"),
        ("E", {"vision_config": SwinConfig()}, "form no grid of tokens to drop"),
    ],
)
def test_settings_that_cannot_be_are_refused(variant, options, match):
    with pytest.raises(ValueError, match=match):
        build(variant, **options)


def test_a_share_that_keeps_no_patch_is_refused(batch):
    with pytest.raises(ValueError, match="keep=0.01 of 16 patches keeps none"):
        build("E", keep=0.01, keep_start=None).eval()(**batch)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="one letter of ABCDEFGH, got 'Z'"):
        variant_options("Z", 12)
