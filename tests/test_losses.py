"""Losses against the public implementations' values, and against slow twins written here."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_medvlm import losses

GOLDEN = Path(__file__).parent / "golden" / "losses"


def close(value, expected, rtol=1e-5, atol=0.0):
    torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(expected), rtol=rtol, atol=atol)


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return F.normalize(torch.randn(6, 8), dim=-1), F.normalize(torch.randn(6, 8), dim=-1)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "losses.safetensors") | load_file(GOLDEN / "patch_ib.safetensors")


@pytest.fixture(scope="module")
def values() -> dict[str, float]:
    return json.loads((GOLDEN / "values.json").read_text()) | json.loads((GOLDEN / "patch_ib_values.json").read_text())


def test_global_losses_equal_open_clips_mgcas_and_glorias(tensors, values):
    image, text = tensors["clip.image_features"], tensors["clip.text_features"]
    for scale in (1.0, 1 / 0.07, 100.0):
        close(losses.info_nce(image, text, scale), values[f"clip.loss_scale_{scale:.4f}"])
    close(losses.sigmoid_pairs(image, text, 10.0, -10.0), values["siglip.loss_scale10_bias-10"])
    image, text = (F.normalize(tensors[f"mgca.{name}_feat"], dim=-1) for name in ("img", "report"))
    both = losses.info_nce(image, text, 1 / 0.07, image_weight=1.0, text_weight=1.0)
    close(both, values["convirt.info_nce_sum_both"])
    close(both, values["mgca.vit_base.ita"])
    close(losses.info_nce(image, text, 1 / 0.07, image_weight=1.0, text_weight=0.0), values["infonce.i2t"])
    close(losses.info_nce(image, text, 1 / 0.07, image_weight=0.0, text_weight=1.0), values["infonce.t2i"])
    image, text = (F.normalize(tensors[f"gloria.{name}_global"], dim=-1) for name in ("img", "txt"))
    close(losses.info_nce(image, text, 10.0, image_weight=1.0, text_weight=0.0), values["gloria.global_i2t"])


def test_gloria_local_equals_the_published_values_and_gradients(tensors, values):
    image = tensors["gloria.img_local"].clone().requires_grad_()
    words = tensors["gloria.words"].clone().requires_grad_()
    patches, lengths = image.flatten(2).mT, tensors["gloria.cap_lens"]
    i2t, t2i = losses.gloria_local(patches, words.mT, lengths)
    close(i2t, values["gloria.local_i2t"])
    close(t2i, values["gloria.local_t2i"])
    (i2t + t2i).backward()
    close(image.grad, tensors["gloria.grad_img_local"], rtol=0, atol=1e-6)
    close(words.grad, tensors["gloria.grad_words"], rtol=0, atol=1e-6)
    i2t, t2i = losses.gloria_local(patches, words.mT, lengths, aggregate="mean")
    close(i2t, values["gloria.local_i2t_aggmean"])
    close(t2i, values["gloria.local_t2i_aggmean"])


def test_mgca_local_equals_the_published_values(tensors, values):
    def clipped(weights: torch.Tensor) -> torch.Tensor:
        rows = []
        for row in weights:
            low, high = torch.quantile(row[row > 0], torch.tensor([0.1, 0.9]))
            rows.append(torch.where(row > 0, row.clamp(low, high), row))
        rows = torch.stack(rows)
        return rows / rows.sum(1, keepdim=True)

    patches, words = (F.normalize(tensors[f"mgca.{name}_feat"], dim=-1) for name in ("patch", "word"))
    mask = (torch.arange(words.shape[1]) < tensors["mgca.word_lengths"][:, None]).float()
    word_weights = clipped(tensors["mgca.word_attn"])
    word, patch = losses.mgca_local(patches, words, mask, token_weights=word_weights)
    close(word, values["mgca.resnet_50.local_word_only"])
    close(word + patch, values["mgca.resnet_50.local"])
    attention = clipped(tensors["mgca.vit_attention_map"][:, :, 0, 1:].mean(1))
    word, patch = losses.mgca_local(
        patches,
        words,
        mask,
        token_weights=word_weights,
        patch_weights=attention,
        normalize_attended_patches=False,
    )
    close(word + patch, values["mgca.vit_base.local"])


def test_patch_bottleneck_losses_equal_the_published_values(tensors, values):
    image, masked, text = (tensors[name] for name in ("image_embeds", "masked_image_embeds", "text_embeds"))
    scale = tensors["log_logit_scale"].clamp(max=4.6).exp()
    close(losses.info_nce(image, text, scale), values["contrastive_w05"])
    weighted = losses.info_nce(image, text, scale, image_weight=0.3, text_weight=0.7)
    close(weighted, values["contrastive_w03_07"])
    logits = tensors["importance_logits"].clone().requires_grad_()
    close(losses.sparsity(logits, 0.5), values["sparsity_target_0.5"])
    loss = losses.sparsity(logits, 0.25)
    loss.backward()
    close(loss, values["sparsity_target_0.25"])
    close(logits.grad, tensors["sparsity_0.25_grad"], rtol=0, atol=1e-6)
    tokens, mask, aligned = (tensors[name] for name in ("token_features", "attention_mask", "aligned_features"))
    close(losses.token_alignment(aligned, tokens, mask, "mse"), values["local_mse_aligned"])
    close(losses.token_alignment(aligned, tokens, mask), values["local_cosine_aligned"])
    close(losses.filip(tensors["patch_features"], tokens, mask, scale), values["filip"])
    close(losses.consistency(image, masked, text, scale), values["consistency_positives"])
    close(losses.consistency(image, masked, text, scale, include_negatives=True), values["consistency_all"])


def test_multi_positive_targets_share_the_probability_among_duplicates(pairs):
    image, text = pairs
    text = text.clone()
    text[4] = text[1]
    ids = torch.tensor([0, 1, 2, 3, 1, 5])
    targets = losses.duplicate_targets(ids)
    logits = 10 * image @ text.T
    slow = 0.0
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix.log_softmax(1)):
            matches = [j for j in range(6) if ids[j] == ids[i]]
            slow -= sum(row[j] for j in matches) / len(matches) / 6 / 2
    close(losses.info_nce(image, text, 10.0, targets=targets), slow)
    without = losses.duplicate_targets(torch.arange(6))
    close(losses.info_nce(image, text, 10.0, targets=without), losses.info_nce(image, text, 10.0))


def test_sigmoid_pairs_judges_each_pair_alone(pairs):
    image, text = pairs
    ids = torch.tensor([0, 1, 2, 3, 1, 5])
    slow = 0.0
    for i in range(6):
        for j in range(6):
            sign = 1.0 if ids[i] == ids[j] else -1.0
            slow -= F.logsigmoid(sign * (7 * image[i] @ text[j] - 3)) / 6
    close(losses.sigmoid_pairs(image, text, 7.0, -3.0, targets=losses.duplicate_targets(ids)), slow)


def test_more_text_padding_changes_no_local_loss():
    torch.manual_seed(0)
    patches, tokens = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    longer, longer_mask = torch.cat([tokens, torch.randn(3, 6, 8)], 1), F.pad(mask, (0, 6))
    close(losses.filip(patches, longer, longer_mask, 5.0), losses.filip(patches, tokens, mask, 5.0))
    kind = {"kind": "mse"}
    aligned = torch.cat([tokens.flip(0), torch.randn(3, 6, 8)], 1)
    close(
        losses.token_alignment(aligned, longer, longer_mask, **kind),
        losses.token_alignment(aligned[:, :4], tokens, mask, **kind),
    )
    close(
        torch.stack(losses.gloria_local(patches, longer, mask.sum(1))),
        torch.stack(losses.gloria_local(patches, tokens, mask.sum(1))),
    )


def test_filip_equals_a_loop_over_patches_and_tokens():
    torch.manual_seed(0)
    patches, tokens = torch.randn(3, 5, 8, requires_grad=True), torch.randn(3, 4, 8)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    slow = torch.empty(3, 3)
    for i in range(3):
        for j in range(3):
            words = tokens[j][: int(mask[j].sum())]
            cosines = F.cosine_similarity(patches[i][:, None], words[None], dim=-1)
            slow[i, j] = (cosines.amax(1).mean() + cosines.amax(0).mean()) / 2
    close(losses.filip_similarity(patches, tokens, mask), slow, rtol=1e-5, atol=1e-6)
    losses.filip(patches, tokens, mask, 5.0).backward()
    assert patches.grad.abs().sum() > 0


def test_patch_evidence_equals_a_loop_over_patches():
    torch.manual_seed(0)
    patches, texts = F.normalize(torch.randn(3, 5, 8), dim=-1), F.normalize(torch.randn(3, 8), dim=-1)
    reports = [0, 1, 0]  # the first and the third say the same
    slow = torch.empty(3, 5)
    for i in range(3):
        same = [j for j in range(3) if reports[j] == reports[i]]
        for p in range(5):
            fits = [math.exp(4.0 * float(patches[i, p] @ text)) for text in texts]
            slow[i, p] = math.log(sum(fits[j] for j in same) / sum(fits)) - math.log(len(same) / 3)
    targets = losses.duplicate_targets(torch.tensor(reports))
    close(losses.patch_evidence(patches, texts, 4.0, targets=targets), slow, rtol=1e-5, atol=1e-6)
    each_its_own = losses.duplicate_targets(torch.arange(3))
    close(losses.patch_evidence(patches, texts, 4.0), losses.patch_evidence(patches, texts, 4.0, targets=each_its_own))
    nothing = torch.zeros(3, 5, 8)  # a patch that fits every text alike tells nothing
    close(losses.patch_evidence(nothing, texts, 4.0, targets=targets), torch.zeros(3, 5), rtol=0, atol=1e-6)


def test_an_unknown_alignment_is_refused():
    with pytest.raises(ValueError, match="'cosine' or 'mse', got 'l1'"):
        losses.token_alignment(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1), kind="l1")


def test_without_processes_gathering_changes_nothing(pairs):
    assert losses.gather_with_grad(pairs[0]) is pairs[0]


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="a contrastive loss needs at least two pairs"):
        losses.info_nce(torch.ones(1, 1), torch.ones(1, 1), 10.0)
