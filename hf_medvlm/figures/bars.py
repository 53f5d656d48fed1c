"""Bars: every score beside its trivial baselines, and AUC and F1 of each finding with the number of cases behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_medvlm.figures.results import Run, is_number
from hf_medvlm.figures.style import INK, MUTED, PALETTE, plain, sheet

ROW_INCHES = 0.24


def best_baselines(run: Run) -> dict[str, dict[str, float]]:
    """Score -> {baseline: value}, the undefined ones left out."""
    return {
        name: {b: values[name] for b, values in run.baselines.items() if is_number(values.get(name))}
        for name in run.metrics
    }


def findings_table(run: Run) -> dict[str, dict[str, Any]]:
    """Finding -> {auc, ap, f1, n, ...} from `figures["per_finding"]`, and AUCs that stand only among the scores."""
    table = {name: dict(row) for name, row in (run.figures.get("per_finding") or {}).items()}
    for key, value in run.metrics.items():
        metric, _, finding = key.partition("/")
        if finding:
            table.setdefault(finding, {}).setdefault(metric, value)
    return table


def draw_scores(run: Run, path: Path) -> bool:
    """Scores on [0, 1] as bars with their intervals; each trivial baseline is a mark on the bar of its score."""
    shown = {k: v for k, v in run.metrics.items() if is_number(v) and run.in_unit_range(k) and "/" not in k}
    if not shown:
        return False
    names = list(reversed(shown))
    baselines = best_baselines(run)
    with sheet(path, height=1.3 + ROW_INCHES * len(names)) as (axes,):
        axes.barh(range(len(names)), [shown[k] for k in names], color=PALETTE[0], height=0.6, label="this run")
        for place, name in enumerate(names):
            if name in run.intervals:
                axes.plot(run.intervals[name], [place, place], color=INK, linewidth=1.6, solid_capstyle="butt")
        for baseline, marker, colour in zip(run.baselines, "Dsov^<>*", PALETTE[1:] + PALETTE, strict=False):
            points = [(baselines[n][baseline], i) for i, n in enumerate(names) if baseline in baselines[n]]
            if points:
                scores, places = zip(*points, strict=True)
                label = plain(baseline.replace("_", " "))
                look: dict[str, Any] = {"marker": marker, "color": colour, "edgecolor": "white", "zorder": 3}
                axes.scatter(scores, places, s=34, label=label, **look)
        axes.set(yticks=range(len(names)), yticklabels=[plain(n) for n in names], xlim=(0, 1), ylim=(-0.6, len(names)))
        axes.set(title=f"Scores on {run.split} and trivial baselines", xlabel="score (fraction); line: interval")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.55 / (ROW_INCHES * len(names) + 0.6)), ncols=3)
    return True


def draw_findings_auc(run: Run, path: Path) -> bool:
    """Area under the ROC curve of each finding; chance is 0.5."""
    return _draw_findings(run, path, "auc", "area under the ROC curve (chance 0.5)", chance=0.5)


def draw_findings_f1(run: Run, path: Path) -> bool:
    """F1 of each finding."""
    return _draw_findings(run, path, "f1", "F1 (fraction)", chance=None)


def _draw_findings(run: Run, path: Path, key: str, label: str, chance: float | None) -> bool:
    table = {name: row for name, row in findings_table(run).items() if key in row}
    if not table:
        return False
    # The worst at the foot; what is undefined below it, as a name without a bar.
    names = sorted(table, key=lambda name: (is_number(table[name][key]), table[name][key] or 0))
    with sheet(path, height=1.1 + ROW_INCHES * len(names)) as (axes,):
        for place, name in enumerate(names):
            value, interval = table[name][key], run.intervals.get(f"{key}/{name}")
            if is_number(value):
                axes.barh(place, value, color=PALETTE[0], height=0.62)
                if interval:
                    axes.plot(interval, [place, place], color=INK, linewidth=1.6)
                axes.text(1.01, place, f"{value:.2f}", va="center", fontsize=8)
            else:
                axes.text(0.01, place, "undefined: one class only", va="center", fontsize=8, color=MUTED)
        if chance is not None:
            axes.axvline(chance, color=PALETTE[1], linestyle="--", linewidth=1.2)
        cases = {name: f" (n = {table[name]['n']})" if "n" in table[name] else "" for name in names}
        axes.set(yticks=range(len(names)), yticklabels=[plain(n, 34) + cases[n] for n in names])
        axes.set(title=f"Findings on {run.split}", xlabel=label, xlim=(0, 1), ylim=(-0.7, len(names) - 0.3))
        axes.grid(axis="y", visible=False)
    return True
