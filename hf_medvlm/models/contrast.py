"""What contrastive models share: rows gathered over all processes, and a check that a batch can teach."""

from __future__ import annotations

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
