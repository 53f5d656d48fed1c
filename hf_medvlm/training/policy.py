"""`PolicyObjective`: a model learns from what its own texts were worth. GRPO's loss, and the advantages that it takes.

Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), GRPO, as TRL computes it: token losses are a mean over all tokens
of the global batch (TRL's `loss_type="dapo"`, its default). With the worth of the greedy text as the baseline it is
self-critical sequence training (Rennie et al. 2017, arXiv 1612.00563).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.training.encode_once import encode_once
from hf_medvlm.training.objective import Batch, Counts, ObjectiveOutput

SPREAD = 1e-4  # added to the deviation of a group, as in TRL
OF_THE_LOSS = ("labels", "advantages", "sampled_log_probs", "reference_log_probs", "study", "supervised")


def group_advantages(rewards: Tensor, baseline: Tensor | None = None) -> Tensor:
    """How much better each text is than the others of its study.

    Args:
        rewards: (S, G), G texts of each of S studies.
        baseline: (S,), the worth of each study's greedy text; without it a group's own mean, and its deviation as unit.

    Returns:
        (S, G): `reward - baseline`, or `(reward - mean) / (deviation + 1e-4)` with the unbiased deviation of the group.
    """
    if baseline is not None:
        return rewards - baseline[:, None]
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + SPREAD)


def chosen_log_probs(logits: Tensor, labels: Tensor, temperature: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each supervised token, as it was sampled.

    Args:
        logits: (R, T, vocabulary); position t predicts token t + 1. labels: (R, T), -100 where nothing is supervised.
        temperature: one number, or (R, 1, 1).

    Returns:
        (R, T - 1) float32, 0 where nothing is supervised; (R, T - 1) bool, where something is.
    """
    targets = labels[:, 1:]
    mask = targets != IGNORE_INDEX
    log_probs = (logits[:, :-1].float() / temperature).log_softmax(-1)
    chosen = log_probs.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return chosen.masked_fill(~mask, 0.0), mask


def per_text(batch: Batch) -> Batch:
    """A batch (see `PolicyObjective`) with one row a text of all that it holds, and `study` (R,), the study of each."""
    if "study" in batch:
        return batch
    texts, studies = len(batch["labels"]), min(map(len, batch.values()))
    study = torch.arange(studies, device=batch["labels"].device).repeat_interleave(texts // studies)
    return {name: value if len(value) == texts else value[study] for name, value in batch.items()} | {"study": study}


def informative(batch: Batch) -> Batch:
    """`per_text`, without the texts whose advantages are all 0, which have no gradient; with the first one where all
    are, so that every process runs the model."""
    batch = per_text(batch)
    kept = batch["advantages"].ne(0) | _supervised(batch)
    kept[0] |= ~kept.any()
    return {name: value[kept] for name, value in batch.items()}


def _supervised(batch: Batch) -> Tensor:
    return batch.get("supervised", torch.zeros_like(batch["advantages"], dtype=torch.bool))


@dataclass
class PolicyObjective:
    """The clipped policy gradient, and the distance to the start model: a mean over the tokens sampled for a step.

    Args:
        temperature: at which the texts were sampled.
        kl_weight: weight of the divergence from the start model, by Schulman's estimator `exp(d) - d - 1`, where d is
            the start model's log-probability of a token less the model's own.
        clip: ratios of the probability now and at sampling are clipped to 1 +- `clip`.
        supervised_weight: weight of the negative log-likelihood of the texts that are marked as `supervised`, whose
            tokens count in the mean (a mixed objective, as in Paulus et al. 2017, arXiv 1705.04304).

    A batch holds what `forward` takes, one row a text, or one row a study where all its texts share it (pixels); and
    `labels` (R, T), `advantages` (R,), `sampled_log_probs` (R, T - 1) and, with a
    `kl_weight`, `reference_log_probs`; with reports to learn from `supervised` (R,), which texts they are (their
    advantages are 0). The vision tower encodes a picture once for all texts of its study.
    """

    temperature: float = 1.0
    kl_weight: float = 0.0
    clip: float = 0.2
    supervised_weight: float = 0.0

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """`tokens`: the sampled tokens, and those of reports that are learnt from."""
        return {"tokens": (batch["labels"][:, 1:] != IGNORE_INDEX).sum()}

    def log_probs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability of each sampled token and the mask of sampled tokens, (R, T - 1) each."""
        batch = per_text(batch)
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name not in OF_THE_LOSS}
        with encode_once(model, batch["study"]):
            logits = model(**inputs, use_cache=False).logits[:, -labels.shape[1] :]
        temperature: float | Tensor = self.temperature
        if "supervised" in batch:
            temperature = torch.where(batch["supervised"], 1.0, self.temperature)[:, None, None]
        return chosen_log_probs(logits, labels, temperature)

    def __call__(self, model: nn.Module, batch: Batch, denominators: Counts | None = None) -> ObjectiveOutput:
        """As `Objective`; `per_study` holds, of each text, `tokens` and its sums of `clipped` ratios and `kl`.

        Texts worth as much as the others of their study have no gradient, and without a `kl_weight` are left out.
        """
        if denominators is None:
            denominators = self.count(batch)
        if not self.kl_weight:
            batch = informative(batch)
        log_probs, mask = self.log_probs(model, batch)
        advantages = batch["advantages"][:, None].to(log_probs.dtype)
        ratio = torch.exp(log_probs - batch["sampled_log_probs"])
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = -torch.min(ratio * advantages, clipped * advantages)
        total = denominators["tokens"].clamp(min=1)
        terms = {"policy": (policy * mask).sum() / total}
        beyond = ((ratio > 1 + self.clip) & (advantages > 0)) | ((ratio < 1 - self.clip) & (advantages < 0))
        supervised = _supervised(batch)[:, None]
        if self.supervised_weight:
            terms["supervised"] = -self.supervised_weight * (log_probs * supervised).sum() / total
        sampled = mask & ~supervised
        sums = {"tokens": sampled.sum(1), "clipped": (beyond & sampled).sum(1)}
        if self.kl_weight:
            distance = batch["reference_log_probs"] - log_probs
            kl = (distance.exp() - distance - 1) * sampled
            terms["kl"] = self.kl_weight * kl.sum() / total
            sums["kl"] = kl.detach().sum(1)
        return ObjectiveOutput(
            loss=sum(terms.values(), log_probs.new_zeros(())),
            loss_terms={name: term.detach() for name, term in terms.items()},
            per_study=sums,
        )
