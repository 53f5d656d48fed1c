"""Metrics, each an `evaluate.Metric` that needs no download, keeps nothing on disk and names its protocol."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

MODULES = {
    "bleu": "text",
    "sacrebleu": "text",
    "rouge": "text",
    "meteor": "text",
    "cider": "text",
    "retrieval": "retrieval",
    "findings": "findings",
    "grounding": "grounding",
    "audit": "audit",
    "chexbert": "clinical.chexbert",
    "sembscore": "clinical.chexbert",
    "bertscore": "clinical.bertscore",
    "bertscore_idf": "clinical.bertscore",
    "radgraph": "clinical.radgraph",
    "radcliq": "clinical.radcliq",
    "ratescore": "clinical.ratescore",
    "judge_green": "clinical.judge",
    "judge_radfact": "clinical.judge",
    "temporal_f1": "clinical.wordlists",
    "bleu2_rexrank": "clinical.wordlists",
}


def load(name: str, **options: object) -> evaluate.Metric:
    """The metric called `name`, kept in memory; `options` are its own (each metric's class says which).

    Every module of this folder holds one `evaluate.Metric` called `Metric`, so that `evaluate.load(<path>, name)` gives
    the same one.

    Raises:
        ValueError: no metric has that name; the message lists those there are.
    """
    if name not in MODULES:
        raise ValueError(f"there is no metric {name!r:.100}; there are {', '.join(MODULES)}")
    module = importlib.import_module(f"{__name__}.{MODULES[name]}")
    return module.Metric(config_name=name, keep_in_memory=True, **options)
