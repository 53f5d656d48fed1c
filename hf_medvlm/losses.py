"""Contrastive and alignment losses: pure functions of tensors. They hold no model, no parameter and no state.

*n* marks embeddings that the caller has L2-normalised; `logit_scale` is the exponentiated scale, 1 / temperature.
Shapes: B pairs, P patches, T tokens, D joint width. Golden values of the public implementations are in
`tests/test_losses.py`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = [  # the losses that people and papers name; the functions they are made of are public too
    "consistency",
    "filip",
    "gloria_local",
    "info_nce",
    "mgca_local",
    "sigmoid_pairs",
    "sparsity",
    "token_alignment",
    "token_losses",
]

# ------------------------------------------------------------------------------------------- gathering


class _Gather(torch.autograd.Function):
    """All-gather of equal shapes along dim 0 whose backward sums the gradients that every process has for our rows."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_grad(rows: Tensor) -> Tensor:
    """Rows of all processes, in rank order, through which gradients flow back to the process that each row came from.

    Every process that computes the same loss of the gathered rows has world-size times its share of the gradient,
    which the mean of DistributedDataParallel makes right.

    Args:
        rows: (N, ...), of any size; a process whose other dimensions are smaller than another's is padded with zeros.
            Without processes they come back as they are.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    shape = torch.tensor(rows.shape, device=rows.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    counts = [int(shape[0]) for shape in shapes]
    largest = torch.stack(shapes).amax(0).tolist()
    margins = [(0, most - size) for size, most in zip(rows.shape, largest, strict=True)]
    gathered = _Gather.apply(F.pad(rows, [edge for margin in reversed(margins) for edge in margin]))
    return torch.cat([part[:count] for part, count in zip(gathered.split(largest[0]), counts, strict=True)])


# ------------------------------------------------------------------------------------------- whole images and reports


def duplicate_targets(pair_ids: Tensor) -> Tensor:
    """(B, B) bool, which images and texts match: rows with the same id (the same report or study) match each other.

    Without it a repeated "No acute process" is pushed away from its own image as a false negative.
    """
    return pair_ids[:, None] == pair_ids[None, :]


def _matching_entropy(logits: Tensor, targets: Tensor | None) -> Tensor:
    """Mean cross-entropy of the rows, whose match is on the diagonal or, with `targets`, spread evenly."""
    if targets is None:
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    weights = targets.to(logits.dtype)
    return F.cross_entropy(logits, weights / weights.sum(1, keepdim=True))


def info_nce(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    *,
    image_weight: float = 0.5,
    text_weight: float = 0.5,
    targets: Tensor | None = None,
) -> Tensor:
    """Pull each image to its own report and away from the others of the batch, and each report to its image.

    Args:
        image_embeds: (B, D) n. text_embeds: (C, D) n; C is B without `targets`. logit_scale: ().
        image_weight: weight of the image-to-text direction; text_weight: of text-to-image.
        targets: (B, C) bool or weights, which texts match which image (`duplicate_targets`); each row has a match. The
            probability is shared among the matches of a row (multi-positive).

    Raises:
        ValueError: a single pair.

    Ref: Radford et al. 2021 (arXiv 2103.00020), figure 3, with weights 0.5 and 0.5; ConVIRT (arXiv 2010.00747) sums,
        with 1 and 1.
    """
    if len(image_embeds) == len(text_embeds) == 1:
        raise ValueError("a contrastive loss needs at least two pairs; this batch has one")
    logits = logit_scale * image_embeds @ text_embeds.mT
    back = None if targets is None else targets.mT
    return image_weight * _matching_entropy(logits, targets) + text_weight * _matching_entropy(logits.mT, back)


def sigmoid_pairs(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    targets: Tensor | None = None,
) -> Tensor:
    """Judge every pair of the batch on its own: match or not. Summed over the pairs, divided by the images.

    Args:
        image_embeds: (B, D) n. text_embeds: (C, D) n. logit_scale, logit_bias: (); the paper starts at 10 and -10.
        targets: (B, C) bool, the pairs that match; without it the diagonal.

    Ref: Zhai et al. 2023, SigLIP (arXiv 2303.15343), algorithm 1; open_clip's `SigLipLoss`.
    """
    logits = logit_scale * image_embeds @ text_embeds.mT + logit_bias
    if targets is None:
        targets = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return -F.logsigmoid(torch.where(targets, logits, -logits)).sum() / len(logits)


# ------------------------------------------------------------------------------------------- patches and tokens


def filip_similarity(
    patch_embeds: Tensor, token_embeds: Tensor, attention_mask: Tensor, patch_mask: Tensor | None = None
) -> Tensor:
    """(B, C) similarity of images with texts: half the mean over patches of their best token, half that over tokens.

    Args:
        patch_embeds: (B, P, D). token_embeds: (C, T, D). Normalised inside.
        attention_mask: (C, T), 1 for a valid token. patch_mask: (B, P), 1 for a valid patch; all are, without it.
    """
    patches, tokens = F.normalize(patch_embeds, dim=-1), F.normalize(token_embeds, dim=-1)
    valid_tokens = attention_mask.bool()
    valid_patches = torch.ones_like(patches[..., 0], dtype=torch.bool) if patch_mask is None else patch_mask.bool()
    none = float("-inf")

    def row(image: Tensor, valid: Tensor) -> Tensor:
        scores = torch.einsum("pd,ctd->cpt", image, tokens)
        best_token = scores.masked_fill(~valid_tokens[:, None], none).amax(2)  # (C, P)
        best_patch = scores.masked_fill(~valid[None, :, None], none).amax(1)  # (C, T)
        return (_masked_mean(best_token, valid[None]) + _masked_mean(best_patch, valid_tokens)) / 2

    # image by image, recomputed in backward: B x C x P x T similarities are never held at once
    rows = zip(patches, valid_patches, strict=True)
    return torch.stack([checkpoint(row, image, valid, use_reentrant=False) for image, valid in rows])


def _masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the last dimension of the valid values."""
    return values.masked_fill(~valid, 0.0).sum(-1) / valid.sum(-1)


def filip(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    attention_mask: Tensor,
    logit_scale: Tensor | float,
    *,
    targets: Tensor | None = None,
    patch_mask: Tensor | None = None,
) -> Tensor:
    """InfoNCE, both ways, over the late-interaction similarity of all patches and tokens.

    Args:
        patch_embeds: (B, P, D). token_embeds: (B, T, D). Normalised inside. attention_mask: (B, T). patch_mask: (B, P).
        targets: as in `info_nce`.

    Ref: Yao et al. 2021, FILIP (arXiv 2111.07783), equations 3 to 6, here one similarity of both halves as in
        patch-ib-cxr.
    """
    logits = logit_scale * filip_similarity(patch_embeds, token_embeds, attention_mask, patch_mask)
    back = None if targets is None else targets.mT
    return (_matching_entropy(logits, targets) + _matching_entropy(logits.mT, back)) / 2


def patch_evidence(
    patch_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor | float, *, targets: Tensor | None = None
) -> Tensor:
    """(B, P) nats that each patch, on its own, tells of its image's report: log p(report | patch) / p(report).

    A patch that could stand in any image is at 0, one that only few reports of the batch explain lies above. The
    estimate is InfoNCE's bound with the patch as the query; its mean is what to raise. It teaches the patches alone: no
    gradient goes to the texts and the scale.

    Args:
        patch_embeds: (B, P, D) n. text_embeds: (B, D) n. targets: as in `info_nce`; all matching texts are the report.

    Ref: Oord et al. 2018, CPC (arXiv 1807.03748), section 2.3 and appendix A.1, for the bound; asked of single patches
        here.
    """
    if targets is None:
        targets = torch.eye(len(text_embeds), dtype=torch.bool, device=text_embeds.device)
    prior = targets.float().mean(1).log()  # (B,)
    texts, scale = text_embeds.detach(), torch.as_tensor(logit_scale).detach()

    def row(image: Tensor, matches: Tensor) -> Tensor:
        scores = (scale * image @ texts.mT).log_softmax(-1)  # (P, B)
        return scores.masked_fill(~matches, float("-inf")).logsumexp(-1)

    rows = zip(patch_embeds, targets, strict=True)  # one by one, as in `filip_similarity`
    return (
        torch.stack([checkpoint(row, image, matches, use_reentrant=False) for image, matches in rows]) - prior[:, None]
    )


def token_alignment(aligned: Tensor, token_embeds: Tensor, attention_mask: Tensor, kind: str = "cosine") -> Tensor:
    """How far each valid token is from what it gathered from the patches; mean over the valid tokens of the batch.

    Args:
        aligned: (B, T, D), patches attended to by each token. token_embeds: (B, T, D). attention_mask: (B, T).
        kind: "cosine" for 1 - cos, "mse" for the mean squared difference.

    Raises:
        ValueError: another kind.

    Ref: fedemarchits/patch-ib-cxr @ 7b9e4ce, `models/losses.py`.
    """
    return (token_distance(aligned, token_embeds, kind) * attention_mask).sum() / attention_mask.sum()


def token_distance(aligned: Tensor, token_embeds: Tensor, kind: str) -> Tensor:
    """(B, T) distances that `token_alignment` averages."""
    if kind == "cosine":
        return 1 - F.cosine_similarity(aligned, token_embeds, dim=-1)
    if kind == "mse":
        return (aligned - token_embeds).square().mean(-1)
    raise ValueError(f"kind must be 'cosine' or 'mse', got {kind!r:.100}")


def gloria_local(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    lengths: Tensor,
    temperatures: tuple[float, float, float] = (4.0, 5.0, 10.0),
    *,
    aggregate: str = "sum",
) -> tuple[Tensor, Tensor]:
    """GLoRIA's local loss: each word looks at the image, and a report fits an image as well as its words found what
    they say.

    Args:
        patch_embeds: (B, P, D). token_embeds: (B, T, D). Neither normalised.
        lengths: (B,), words of each report, from position 0 on.
        temperatures: of the attention, of the words' sum, of the final logits.
        aggregate: "sum" (published: long reports score higher) or "mean" of the words.

    Returns:
        Image-to-text and text-to-image cross-entropies; the published total is their sum.

    Ref: Huang et al. 2021, GLoRIA (ICCV), section 3.3.2; marshuang80/gloria `gloria_loss.py`.
    """
    attend, sharpen, scale = temperatures
    regions = patch_embeds.mT.contiguous()  # (B, D, P)
    columns = []
    # the published order of operations throughout: another one moves the float32 gradient by 5e-6
    for words, length in zip(token_embeds, lengths.tolist(), strict=True):
        queries = words[:length].mT.expand(len(regions), -1, -1).contiguous()  # (B, D, t)
        weights = torch.bmm(regions.mT.contiguous(), queries).softmax(-1).mT.contiguous()  # (B, t, P): over words first
        weights = (weights * attend).softmax(-1)
        context = torch.bmm(regions, weights.mT.contiguous()).mT.contiguous()  # (B, t, D)
        queries = queries.mT.contiguous()
        lengths_product = queries.norm(2, -1) * context.norm(2, -1)
        fit = ((queries * context).sum(-1) / lengths_product.clamp(min=1e-8) * sharpen).exp()  # (B, t)
        columns.append((fit.sum(1) if aggregate == "sum" else fit.mean(1)).log())
    logits = torch.stack(columns, dim=1) * scale  # (B images, B texts)
    return _matching_entropy(logits, None), _matching_entropy(logits.mT, None)


def mgca_local(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    attention_mask: Tensor,
    *,
    token_weights: Tensor | None = None,
    patch_weights: Tensor | None = None,
    normalize_attended_patches: bool = True,
    temperature: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """MGCA's token-wise alignment within each pair: each word finds itself again in what it gathers from the patches,
    and each patch in what it gathers from the words, among the other words and patches of the same study.

    Args:
        patch_embeds: (B, P, D) n. token_embeds: (B, T, D) n. attention_mask: (B, T); padding stays as a negative, as
            published.
        token_weights: (B, T), each row summing to 1 and 0 on padding (published: the clipped attention of the class
            token); without it every valid token counts the same. patch_weights: (B, P), in the same way.
        normalize_attended_patches: whether the words that a patch gathered are normalised: the published ResNet is,
            the ViT not.

    Returns:
        The word side and the patch side; the published loss is their sum.

    Ref: Wang et al. 2022, MGCA (arXiv 2210.06044), equations 3 to 6; HKU-MedAI/MGCA @ 680fe4a6.
    """
    valid = attention_mask.bool()
    if token_weights is None:
        token_weights = attention_mask / attention_mask.sum(1, keepdim=True)
    if patch_weights is None:
        patch_weights = patch_embeds.new_full(patch_embeds.shape[:2], 1 / patch_embeds.shape[1])
    scores = token_embeds @ patch_embeds.mT / temperature  # (B, T, P)
    seen = F.normalize(scores.softmax(-1) @ patch_embeds, dim=-1)  # (B, T, D)
    read = scores.mT.masked_fill(~valid[:, None], float("-inf")).softmax(-1) @ token_embeds  # (B, P, D)
    read = F.normalize(read, dim=-1) if normalize_attended_patches else read

    def find_again(rows: Tensor, attended: Tensor, weights: Tensor) -> Tensor:
        logits = rows @ attended.mT / temperature  # (B, N, N)
        places = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
        both = [F.cross_entropy(side, places, reduction="none") for side in (logits, logits.mT)]
        return ((both[0] + both[1]) / 2 * weights).sum() / len(logits)

    return find_again(token_embeds, seen, token_weights), find_again(patch_embeds, read, patch_weights)


# ------------------------------------------------------------------------------------------- which patches to keep


def sparsity(importance_logits: Tensor, target: float) -> Tensor:
    """Squared distance of the share of kept patches (logit > 0) from `target`, with the mean sigmoid's gradient.

    Args:
        importance_logits: (B, P).

    Ref: fedemarchits/patch-ib-cxr @ 7b9e4ce, `models/losses.py`.
    """
    soft = importance_logits.sigmoid()
    kept = (importance_logits > 0).to(soft.dtype) + soft - soft.detach()
    return (kept.mean() - target).square()


def consistency(
    image_embeds: Tensor,
    masked_image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    include_negatives: bool = False,
) -> Tensor:
    """Mean squared difference of the scaled similarities with the text, of the masked image against the full one.

    Args:
        image_embeds, masked_image_embeds, text_embeds: (B, D) n.
        include_negatives: over the whole (B, B) matrix, not the B matching pairs alone.

    Ref: fedemarchits/patch-ib-cxr @ 7b9e4ce, `models/losses.py`.
    """
    if include_negatives:
        full, masked = image_embeds @ text_embeds.mT, masked_image_embeds @ text_embeds.mT
    else:
        full, masked = (image_embeds * text_embeds).sum(-1), (masked_image_embeds * text_embeds).sum(-1)
    return (logit_scale * (full - masked)).square().mean()


def token_losses(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Summed next-token cross-entropy and the number of supervised tokens, for each study.

    Args:
        logits: (B, T, vocabulary); position t predicts token t + 1.
        labels: (B, T), `ignore_index` where nothing is supervised.

    Returns:
        nll (B,), float32; tokens (B,), int64.
    """
    targets = labels[:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        targets.flatten(),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view_as(targets).sum(1), (targets != ignore_index).sum(1)
