"""How training went: loss and its named terms, learning rate, what else was logged, and the scores on validation."""

from __future__ import annotations

from pathlib import Path

from hf_medvlm.figures.results import Run
from hf_medvlm.figures.style import line_styles, plain, sheet

SPEED = ("runtime", "samples_per_second", "steps_per_second", "tokens_per_second", "epoch")
NOT_DRAWN = ("loss", "learning_rate", "train_runtime", "train_loss", "total_flos")
MOST_LINES = 8
FRACTIONS = "score (fraction)"


def loss_series(run: Run) -> dict[str, tuple[list[float], list[float]]]:
    """Training loss, its terms (logged as `loss/<name>`) and the validation loss, by the name they are shown under."""
    names = {"loss": "training", "eval_loss": "validation"}
    names |= {key: key.removeprefix("loss/") for key in run.logged() if key.startswith("loss/")}
    series = {shown: run.series(key) for key, shown in names.items()}
    return {name: points for name, points in series.items() if points[0]}


def validation_series(run: Run) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Scores measured on validation while training: group -> name -> (steps, values); one score a finding left out."""
    groups: dict[str, dict[str, tuple[list[float], list[float]]]] = {title: {} for title in run.groups()}
    for key in run.logged():
        name = key.removeprefix("eval_")
        if not key.startswith("eval_") or name == "loss" or "/" in name or name.endswith(SPEED):
            continue
        steps, values = run.series(key)
        if steps:
            title = run.fact(name).group if run.in_unit_range(name) else name
            groups.setdefault(title, {})[name] = (steps, values)
    return {title: series for title, series in groups.items() if series}


def schedule_series(run: Run) -> dict[str, tuple[list[float], list[float]]]:
    """What else was logged in training: temperature, gradient norm, throughput, peak memory."""
    keys = [k for k in run.logged() if not k.startswith(("eval_", "loss/", "train_", "test_")) and k not in NOT_DRAWN]
    series = {key: run.series(key) for key in keys}
    return {key: points for key, points in series.items() if len(points[0]) > 1}


def group_axis(title: str, run: Run) -> str:
    """What the vertical axis of a group of scores holds: fractions, or the one unbounded score that names it."""
    return title if title in run.metrics or title not in run.groups() else FRACTIONS


def draw_loss(run: Run, path: Path) -> bool:
    """Loss, its named terms and the validation loss against the optimisation step."""
    series = loss_series(run)
    if not series:
        return False
    with sheet(path) as (axes,):
        _draw_lines(axes, series)
        axes.set(title="Loss", xlabel="optimisation step", ylabel="loss (nats)")
    return True


def draw_learning_rate(run: Run, path: Path) -> bool:
    """The learning rate against the optimisation step."""
    steps, values = run.series("learning_rate")
    if not steps:
        return False
    with sheet(path, height=2.8) as (axes,):
        _draw_lines(axes, {"learning rate": (steps, values)})
        axes.set(title="Learning rate", xlabel="optimisation step", ylabel="learning rate", ylim=(0, None))
    return True


def draw_schedule(run: Run, path: Path) -> bool:
    """One panel for each further quantity that training logged."""
    return _draw_panels({name: {name: points} for name, points in schedule_series(run).items()}, path, run)


def draw_validation(run: Run, path: Path) -> bool:
    """One panel for each group of scores, at most `MOST_LINES` lines in each."""
    return _draw_panels(validation_series(run), path, run)


def draw_named_curves(run: Run, path: Path) -> bool:
    """Curves that an evaluation left under `figures["curves"]`: title -> {x, y: {name: values}, x_label, y_label}."""
    curves = run.figures.get("curves") or {}
    if not curves:
        return False
    with sheet(path, rows=len(curves), height=3.0 * len(curves)) as panels:
        for axes, (title, curve) in zip(panels, curves.items(), strict=True):
            _draw_lines(axes, {name: (curve["x"], values) for name, values in curve["y"].items()})
            axes.set(title=plain(title), xlabel=plain(curve["x_label"]), ylabel=plain(curve["y_label"]))
    return True


def _draw_panels(groups: dict[str, dict[str, tuple[list[float], list[float]]]], path: Path, run: Run) -> bool:
    if not groups:
        return False
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    with sheet(path, rows, columns, width=4.6 * columns, height=2.9 * rows) as panels:
        for axes, (title, series) in zip(panels, groups.items(), strict=False):
            _draw_lines(axes, dict(list(series.items())[:MOST_LINES]))
            heading = title if len(series) > 1 or title in series else f"{title}: {next(iter(series))}"
            axes.set(title=plain(heading), xlabel="optimisation step", ylabel=plain(group_axis(title, run)))
            if group_axis(title, run) == FRACTIONS:
                axes.set_ylim(0, 1)
        for axes in panels[len(groups) :]:
            axes.set_axis_off()
    return True


def _draw_lines(axes, series: dict[str, tuple[list[float], list[float]]]) -> None:
    """Lines with names; a dot for each point where there are few."""
    for (name, (x, y)), look in zip(series.items(), line_styles(len(series)), strict=True):
        axes.plot(x, y, label=plain(name), marker="o" if len(x) < 20 else None, markersize=3, linewidth=1.4, **look)
    if len(series) > 1:
        axes.legend()
