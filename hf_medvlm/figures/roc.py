"""ROC curves, one small panel a finding, those with the most points of measurement first."""

from __future__ import annotations

from pathlib import Path

from hf_medvlm.figures.bars import findings_table
from hf_medvlm.figures.results import Run, is_number
from hf_medvlm.figures.style import MUTED, PALETTE, plain, sheet

MOST_PANELS = 24
COLUMNS = 4
RATES = (("fpr", "false_positive_rate"), ("tpr", "true_positive_rate"))


def roc_curves(run: Run) -> dict[str, dict]:
    """Finding -> {fpr, tpr, auc}, findings without a curve (one class only) left out.

    `figures["roc"]` names the rates in full, as `metrics.findings.roc_curve` does, or in short; an area that does not
    stand with its curve is looked up in the findings' table.
    """
    table, curves = findings_table(run), {}
    for name, curve in (run.figures.get("roc") or {}).items():
        fpr, tpr = (curve.get(short) or curve.get(full) for short, full in RATES)
        if fpr and tpr:
            area = curve.get("auc", table.get(name, {}).get("auc"))
            curves[name] = {"fpr": fpr, "tpr": tpr, "auc": area if is_number(area) else None}
    return curves


def draw_roc(run: Run, path: Path) -> bool:
    """True against false positive rate; the diagonal is chance. At most `MOST_PANELS` findings, the finest curves."""
    curves = roc_curves(run)
    if not curves:
        return False
    finest = sorted(curves, key=lambda name: -len(curves[name]["fpr"]))[:MOST_PANELS]
    names = [name for name in curves if name in finest]
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    with sheet(path, rows, columns, width=2.2 * columns + 0.4, height=2.3 * rows + 0.2) as panels:
        for place, (axes, name) in enumerate(zip(panels, names, strict=False)):
            curve = curves[name]
            axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=0.9)
            axes.plot(curve["fpr"], curve["tpr"], color=PALETTE[0], linewidth=1.5)
            axes.fill_between(curve["fpr"], curve["tpr"], color=PALETTE[0], alpha=0.10, linewidth=0)
            axes.set_title(plain(name, 26), fontsize=8.5)
            if curve["auc"] is not None:
                axes.text(0.96, 0.06, f"AUC {curve['auc']:.2f}", ha="right", fontsize=8.5)
            axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            if place >= len(names) - columns:
                axes.set_xlabel("false positive rate")
            if place % columns == 0:
                axes.set_ylabel("true positive rate")
        for axes in panels[len(names) :]:
            axes.set_axis_off()
    return True
