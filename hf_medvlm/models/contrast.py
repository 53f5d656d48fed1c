"""What contrastive models share: rows gathered over all processes, a check that a batch can teach, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hf_medvlm import losses


def gather_rows(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all processes, with gradient; scalars are every process's own."""
    return {name: losses.gather_with_grad(value) if value.dim() else value for name, value in rows.items()}


def check_contrast(pair_ids: Tensor) -> None:
    """Refuse pairs (B,) of which no two differ.

    Raises:
        ValueError: a single pair, or one and the same text throughout.
    """
    if len(pair_ids) < 2:
        raise ValueError(
            "a contrastive loss needs at least two pairs: of one it is 0 whatever the weights. Raise "
            "--per_device_train_batch_size (or --contrastive_batch_size, which counts all accumulated pairs)"
        )
    if (pair_ids == pair_ids[0]).all():
        raise ValueError(
            f"all {len(pair_ids)} texts are the same, so there is nothing to contrast. Look at --text_columns, "
            "or raise the batch size if reports repeat themselves"
        )


def add_loss(
    output: Any, rows: dict[str, Tensor], terms_of: Callable[[dict[str, Tensor]], dict[str, Tensor]], training: bool
) -> None:
    """Set `loss` and `loss_terms` of a model's output.

    Args:
        rows: with `pair_ids` (B,), equal for rows whose reports are the same.
        terms_of: the terms of the loss of such rows.
        training: the loss is that of the rows of all processes.

    Raises:
        ValueError: in training, as `check_contrast`.
    """
    if training:
        rows = gather_rows(rows)
        check_contrast(rows["pair_ids"])
    if len(rows["pair_ids"]) > 1:
        terms = terms_of(rows)
        output.loss = reduce(torch.add, terms.values())
        output.loss_terms = {name: term.detach() for name, term in terms.items()}
    else:  # evaluation's last batch may hold a single pair: nothing to contrast it with
        output.loss = rows["image_embeds"].new_zeros(())
