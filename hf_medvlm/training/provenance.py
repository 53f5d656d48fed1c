"""Where a run's data comes from, in the words of `run.json`: what the card counts and the guard of a push asks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_medvlm.data.counting import count_values
from hf_medvlm.data.files import load_json
from hf_medvlm.data.load import Splits
from hf_medvlm.sharing.model_card import UNDESCRIBED
from hf_medvlm.training.folders import RUN_FILE
from hf_medvlm.training.words import trained_words

STARTS = ("model_name_or_path", "vision_tower", "text_encoder", "pretrain_mm_mlp_adapter")
"""The options that name a model to start from, or a part of one."""


def provenance(splits: Splits, args: SimpleNamespace, processor: Any = None) -> dict[str, Any]:
    """Data set, sources and licences of a run, those of the run that it starts from among them.

    Args:
        processor: where it was made here, `tokenizer_words` says what its tokenizer learnt of the reports.
    """
    licences, sources = (count_values(splits.studies.values(), name) for name in ("licence", "source"))
    start = getattr(getattr(args, "model", None), "model_name_or_path", None)
    unstated = sum(count for licence, count in licences.items() if not licence.strip())
    folders = [Path(part.strip()) for part in str(start or "").split(",") if part.strip()]
    before = [_described(folder) for folder in folders]
    # a folder here whose tokenizer nobody has described: an earlier version's run, or a copy of who knows what
    words = [
        earlier.get("tokenizer_words", UNDESCRIBED) if folder.is_dir() else None
        for folder, earlier in zip(folders, before, strict=True)
    ]
    if start is None and getattr(processor, "tokenizer", None) is not None:
        words = [trained_words(splits.train)]
    return {
        "dataset": splits.name,
        "licences": _together(licences, (run.get("licences") for run in before)),
        "sources": _together(sources, (run.get("sources") for run in before)),
        "studies_without_licence": unstated + sum(run.get("studies_without_licence") or 0 for run in before),
        "started_from": _local_starts(getattr(args, "model", None)),
        "tokenizer_words": UNDESCRIBED if UNDESCRIBED in words else next(filter(None, words), None),
    }


def _local_starts(options: Any) -> list[str]:
    """The files and folders of this machine that a run started from, as they were named."""
    named = [str(getattr(options, name, None) or "") for name in STARTS]
    parts = [part.strip() for text in named for part in text.split(",") if part.strip()]
    here = [part for part in parts if Path(part).exists()]
    return sorted({*here, *(text for text in named if any(part in text.split(",") for part in here))})


def _together(texts_of_run: Iterable[str], earlier: Iterable[list[str] | None]) -> list[str]:
    return sorted({text for texts in (texts_of_run, *earlier) for text in texts or () if text.strip()})


def _described(folder: Path) -> dict[str, Any]:
    """`run.json` of the run that a folder or a checkpoint in it belongs to; empty where there is none."""
    for place in (folder, folder.parent):
        if (place / RUN_FILE).is_file():
            return load_json(place / RUN_FILE, dict, "it says what data the model saw")
    return {}
