"""`Objective`: what a model is trained for, kept apart from the model, so that any class of transformers trains.

An objective counts what its loss is a mean over (`count`) and computes the loss of a batch (`__call__`). The trainer
sums the counts over the micro-batches and processes of one optimizer step and hands the totals back as `denominators`:
loss and gradient are then those of the global batch, however it was cut up. The evaluation is given the same objective.

    objective = TokenObjective()
    trainer = MedVLMTrainer(model=model, objective=objective, ...)
    output = objective(model, batch)                     # output.loss, output.loss_terms, output.per_study
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_medvlm.labels import IGNORE_INDEX
from hf_medvlm.losses import token_losses
from hf_medvlm.models.contrast import check_contrast, gather_rows

Batch = Mapping[str, Tensor]
Counts = Mapping[str, Tensor]


@dataclass
class ObjectiveOutput:
    """What an objective says of one batch of B studies."""

    loss: Tensor
    """(), with gradient: the batch's share of the loss of the global batch where `denominators` were given."""
    loss_terms: dict[str, Tensor] = field(default_factory=dict)
    """name -> (), detached: the weighted terms that sum to `loss`."""
    per_study: dict[str, Tensor] = field(default_factory=dict)
    """name -> (B,), detached: losses of each study, and what they are sums over."""
    outputs: Any = None
    """What the model's `forward` returned."""


class Objective(Protocol):
    """The interface. An objective holds no parameters and changes nothing in the model."""

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """name -> (): how many items of a batch the loss is a mean over. Empty: each batch weighs the same."""

    def __call__(self, model: nn.Module, batch: Batch, denominators: Counts | None = None) -> ObjectiveOutput:
        """The loss of a batch.

        Args:
            model: the model, or its wrapper (DDP, ZeRO); only its `forward` is called.
            batch: what the collator gave, on the model's device.
            denominators: `count` summed over the global batch; by default this batch's own counts.
        """


@dataclass
class TokenObjective:
    """Next-token cross-entropy, a mean over the supervised tokens of the global batch. Fits every model that writes.

    Args:
        label_smoothing: share of the target's weight that is spread over the whole vocabulary (BLIP was trained so).

    The model's `forward` takes the batch without `labels` and returns `logits` (B, T', vocabulary); where T' is more
    than the T of `labels` (GIT puts image tokens in front), the last T belong to the text. Cross-entropy is computed
    in float32.
    """

    label_smoothing: float = 0.0

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """`tokens`: the supervised tokens; the first token of a row is never predicted."""
        return {"tokens": (batch["labels"][:, 1:] != IGNORE_INDEX).sum()}

    def __call__(self, model: nn.Module, batch: Batch, denominators: Counts | None = None) -> ObjectiveOutput:
        """As `Objective`; `per_study` holds `nll` (summed, in nats) and `tokens`."""
        labels = batch["labels"]
        # A cache would let the samples of a packed row see one another (transformers falls back to a causal mask).
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False)
        nll, tokens = token_losses(outputs.logits[:, -labels.shape[1] :], labels, self.label_smoothing)
        return mean_over_tokens(nll, tokens, outputs, denominators)


def mean_over_tokens(nll: Tensor, tokens: Tensor, outputs: Any, denominators: Counts | None) -> ObjectiveOutput:
    """The mean of `nll` (B,), in nats, over `tokens` (B,), or over those of the global batch."""
    total = tokens.sum() if denominators is None else denominators["tokens"]
    loss = nll.sum() / total.clamp(min=1)
    terms, per_study = {"cross_entropy": loss.detach()}, {"nll": nll.detach(), "tokens": tokens}
    return ObjectiveOutput(loss=loss, loss_terms=terms, per_study=per_study, outputs=outputs)


@dataclass
class FindingsObjective:
    """Findings told present or absent, and whatever else a model learns from them (MedKLIP: where they are).

    The model's `forward(**batch)` returns `loss_sums`, name -> (unit, weighted sum ()), where the unit is "labelled"
    for a sum over all labelled entries and "present" for one over the present entries. Batches hold `labels` (B, E):
    1 present, 0 absent, below 0 not known.
    """

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """`labelled` and `present` entries."""
        labels = batch["labels"]
        return {"labelled": (labels >= 0).sum(), "present": (labels == 1).sum()}

    def __call__(self, model: nn.Module, batch: Batch, denominators: Counts | None = None) -> ObjectiveOutput:
        """As `Objective`."""
        outputs = model(**batch)
        totals = self.count(batch) if denominators is None else denominators
        terms = {name: total / totals[unit].clamp(min=1) for name, (unit, total) in outputs.loss_sums.items()}
        return ObjectiveOutput(
            loss=reduce(torch.add, terms.values()),
            loss_terms={name: term.detach() for name, term in terms.items()},
            outputs=outputs,
        )


@dataclass
class ContrastiveObjective:
    """Images told from one another by their texts. The loss of a batch needs all its rows at once.

    It has therefore two halves: `rows`, what the loss is a function of, and `terms`, that function. A plain call takes
    the rows of all processes; `ContrastiveTrainer` puts its cache between the halves, so that accumulated micro-batches
    are one contrastive batch too (GradCache).

    The model's `forward`, without `pair_ids`, returns `representations`: rows (B, ...) and scalars (). Its
    `loss_terms_of(rows)` gives the named terms and reads no parameter.
    """

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing: the loss of a contrastive batch is no sum over the pairs of its parts."""
        return {}

    def rows(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], Any]:
        """The representations of a batch beside the identities of its pairs, and what `forward` returned."""
        outputs = model(**{name: value for name, value in batch.items() if name != "pair_ids"})
        return {**outputs.representations, "pair_ids": batch["pair_ids"]}, outputs

    def terms(self, model: nn.Module, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """name -> (), the weighted terms of the loss of all `rows`."""
        bare: Any = getattr(model, "module", model)
        return bare.loss_terms_of(rows)

    def __call__(self, model: nn.Module, batch: Batch, denominators: Counts | None = None) -> ObjectiveOutput:
        """As `Objective`, over the rows of all processes in training.

        Raises:
            ValueError: in training, a single pair, or one and the same text throughout.
        """
        rows, outputs = self.rows(model, batch)
        if model.training:
            rows = gather_rows(rows)
            check_contrast(rows["pair_ids"])
        terms = self.terms(model, rows)
        return ObjectiveOutput(
            loss=reduce(torch.add, terms.values()),
            loss_terms={name: term.detach() for name, term in terms.items()},
            outputs=outputs,
        )
