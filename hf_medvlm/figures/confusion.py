"""Confusion matrices: two by two for each finding, or one over several classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_medvlm.figures.results import Run
from hf_medvlm.figures.style import plain, sheet

MOST_PANELS = 24
COLUMNS = 4


def confusion_matrices(run: Run) -> dict[str, dict[str, Any]]:
    """Title -> {labels: [...], matrix: rows are the reference, columns the prediction}.

    `figures["confusion"]` is one such object, or title -> such an object, or finding -> {tp, fp, fn, tn}.
    """
    saved = run.figures.get("confusion") or {}
    if "matrix" in saved:
        return {"": saved}
    return {name: cell if "matrix" in cell else _two_by_two(cell) for name, cell in saved.items()}


def _two_by_two(counts: dict[str, int]) -> dict[str, Any]:
    rows = [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]]
    return {"labels": ["absent", "present"], "matrix": rows}


def draw_confusion(run: Run, path: Path) -> bool:
    """Counts of studies, shaded by their share of the row, so that a rare class is as readable as a common one."""
    matrices = dict(list(confusion_matrices(run).items())[:MOST_PANELS])
    if not matrices:
        return False
    columns = min(COLUMNS, len(matrices))
    rows = -(-len(matrices) // columns)
    size = 2.1 if len(next(iter(matrices.values()))["labels"]) == 2 else 3.4
    with sheet(path, rows, columns, width=size * columns + 0.6, height=size * rows + 0.5) as panels:
        for place, (axes, (title, counts)) in enumerate(zip(panels, matrices.items(), strict=False)):
            labels = [plain(label, 18) for label in counts["labels"]]
            shares = [[count / max(sum(row), 1) for count in row] for row in counts["matrix"]]
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for i, row in enumerate(counts["matrix"]):
                for j, count in enumerate(row):
                    colour = "white" if shares[i][j] > 0.55 else "black"
                    axes.text(j, i, f"{count:g}", ha="center", va="center", color=colour)
            axes.set_title(plain(title, 26) or "Confusion", fontsize=8.5)
            axes.set(xticks=range(len(labels)), yticks=range(len(labels)), xticklabels=labels)
            axes.set_yticklabels(labels if place % columns == 0 else [])
            axes.grid(visible=False)
            if place >= len(matrices) - columns:
                axes.set_xlabel("predicted")
            if place % columns == 0:
                axes.set_ylabel("reference (studies)")
        for axes in panels[len(matrices) :]:
            axes.set_axis_off()
    return True
