"""Figures and the report page, drawn from what a run saved and from nothing else: no model, no training.

`draw_all(output_dir)` writes `figures/*.png`, `write_report(output_dir)` writes `report.html`.
"""

from __future__ import annotations

from pathlib import Path

from hf_medvlm.figures.bars import draw_findings_auc, draw_findings_f1, draw_scores
from hf_medvlm.figures.confusion import draw_confusion
from hf_medvlm.figures.curves import draw_learning_rate, draw_loss, draw_named_curves, draw_schedule, draw_validation
from hf_medvlm.figures.examples import draw_examples
from hf_medvlm.figures.heatmaps import draw_heat_maps
from hf_medvlm.figures.report import write_report
from hf_medvlm.figures.results import load_run
from hf_medvlm.figures.roc import draw_roc

__all__ = ["SHOW_STUDIES", "draw_all", "write_report"]

DRAWINGS = {
    "loss_curve.png": draw_loss,
    "learning_rate.png": draw_learning_rate,
    "schedule.png": draw_schedule,
    "metric_curves.png": draw_validation,
    "scores.png": draw_scores,
    "auc_per_entity.png": draw_findings_auc,
    "f1_per_finding.png": draw_findings_f1,
    "roc_curve.png": draw_roc,
    "confusion_matrix.png": draw_confusion,
    "heat_maps.png": draw_heat_maps,
    "examples.png": draw_examples,
    "curves.png": draw_named_curves,
}
"""File name -> function of (run, path) that draws it and says whether the run held anything to draw."""

SHOW_STUDIES = ("heat_maps.png", "examples.png")
"""Those that show pictures or texts of studies, and thus must stay where the data may be."""


def draw_all(output_dir: str | Path) -> list[Path]:
    """Draw every figure that the files in `output_dir` hold the data for, into its `figures/` folder.

    Returns:
        The files written. A figure left from an earlier time, whose data is gone, is removed.

    Raises:
        ValueError: `output_dir` holds no run.
    """
    run = load_run(output_dir)
    written = []
    for name, draw in DRAWINGS.items():
        path = run.folder / "figures" / name
        if draw(run, path):
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written
