"""What metrics are given, and what is read of a finished run."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import made_run
import numpy as np

from fuzzing import mutate
from fuzzing.pool import Made, Reader

TEXTS = ["The heart is enlarged.", "No pleural effusion.", "Clear lungs, no pneumothorax."]
METRICS: dict[str, dict[str, Any]] = {
    **{
        name: {"predictions": TEXTS, "references": TEXTS[::-1]}
        for name in ("bleu", "rouge", "meteor", "cider", "sacrebleu")
    },
    "findings": {"predictions": [{"Edema": 0.3}, {"Edema": 0.9}], "references": [{"Edema": 0}, {"Edema": 1}]},
    "retrieval": {
        "predictions": [[1.0, 0.0], [0.0, 1.0]],
        "references": [[1.0, 0.1], [0.1, 1.0]],
        "groups": ["a", "b"],
    },
    "grounding": {"predictions": [[[0.1, 0.9], [0.2, 0.3]]], "references": [[[0, 0, 1, 1]]]},
}


def make_metric(rng: Random, folder: Path) -> Made:
    name = rng.choice(list(METRICS))
    inputs, what = mutate.json_value(METRICS[name], rng)
    if rng.random() < 0.2 and isinstance(inputs, dict):
        for key, value in inputs.items():
            try:
                inputs[key] = np.asarray(value) if rng.random() < 0.7 else tuple(value)
            except (ValueError, TypeError):
                pass
    return Made(
        (name, inputs if isinstance(inputs, dict) else {"predictions": inputs, "references": inputs}), f"{name}: {what}"
    )


def read_metric(made: Made) -> Any:
    from hf_medvlm import metrics

    name, inputs = made.target
    return metrics.load(name).compute(**{str(key): value for key, value in inputs.items()})


def justify_metric(made: Made, result: Any) -> str | None:
    """Every score is a number: a share within [0, 1], or NaN where it is undefined."""
    name, inputs = made.target
    sides = [inputs.get("predictions"), inputs.get("references")]
    if any(isinstance(side, str) for side in sides) or any(side is None for side in sides):
        return None
    if len(sides[0]) != len(sides[1]):
        return None
    for key, value in (result or {}).items():
        values = value if isinstance(value, (list, tuple)) else [value]
        for one in values:
            if isinstance(one, (str, dict)) or one is None:
                continue
            if not isinstance(one, (int, float)) or math.isinf(one):
                return None
            if name in ("bleu", "rouge", "meteor") and key not in (
                "translation_length",
                "reference_length",
                "length_ratio",
            ):
                if not (math.isnan(one) or -1e-9 <= one <= 1 + 1e-9):
                    return None
    return "as many of each, every score a number or undefined" if result else None


# ---------------------------------------------------------------- results


@cache
def _seed() -> Path:
    return made_run.make_run(Path(tempfile.mkdtemp(prefix="fuzz-run-")) / "run", studies=4, pixels=24)


def prepare() -> None:
    """Make the seed before the workers are forked, and load what draws."""
    from hf_medvlm.figures.report import write_report

    write_report(_seed())


def make_results(rng: Random, folder: Path) -> Made:
    place = folder / "run"
    shutil.copytree(_seed(), place)
    info = json.loads((place / "run.json").read_text())
    path = place / rng.choice(
        ["run.json", "test_results.json", "predictions.jsonl", "trainer_state.json", "eval_results.json"]
    )
    if rng.random() < 0.05:
        what = mutate.special(path, rng)
    else:
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in path.read_text().splitlines()]
            content, what = mutate.json_text(records, rng, lines=True)
        else:
            document = info if path.name == "run.json" else json.loads(path.read_text())
            content, what = mutate.json_text(document, rng)
        path.write_bytes(content)
    use = rng.choice(["page", "card", "figures", "compare", "load"])
    shown = f"{folder.name}/{place.name}"  # a comparison names its runs so
    return Made((place, use), f"{path.name} -> {use}: {what}", [path.name, str(place), shown])


def read_results(made: Made) -> Any:
    place, use = made.target
    if use == "page":
        from hf_medvlm.figures.report import write_report

        return write_report(place).read_text(encoding="utf-8")
    if use == "card":
        from hf_medvlm.sharing.hub import write_model_card

        return write_model_card(place).read_text(encoding="utf-8")
    if use == "figures":
        from hf_medvlm.figures import draw_all

        return [path.stat().st_size for path in draw_all(place)] or ["nothing to draw"]
    if use == "compare":
        from hf_medvlm.figures.comparison import compare_runs, table

        return table(compare_runs([place, _seed()], resamples=20))
    from hf_medvlm.figures.results import load_run

    return load_run(place)


def justify_results(made: Made, result: Any) -> str | None:
    place, use = made.target
    if not result:
        return None
    if use in ("page", "card") and ("<script>alert" in result or "\ud800" in result):
        return None
    return f"{use}: what the file holds is shown, each value of its kind"


READERS = [
    Reader("metrics", make_metric, read_metric, justify_metric),
    Reader("results of a run", make_results, read_results, justify_results),
]
