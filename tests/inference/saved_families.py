"""Tiny models of every family of tests/families.py, saved as a run saves them, for the tests of inference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from families import Family, build

from hf_medvlm.data.load import Splits
from hf_medvlm.data.study import Study


def save_family(name: str, splits: Splits, folder: Path) -> Family:
    """Write the family's model, processor and `inference.json` into `folder`."""
    family = build(name, splits)
    collator = family.evaluation.collator
    family.model.save_pretrained(folder)
    getattr(collator, "processor", None or getattr(collator, "image_processor", None)).save_pretrained(folder)
    family.evaluation.write_settings(folder)
    return family


def without_texts(studies: list[Study]) -> list[Study]:
    """The same images, and nothing that is said of them."""
    bare = {"findings": "", "impression": "", "report": "", "labels": {}, "boxes": (), "extra": {}, "progression": {}}
    return [replace(study, **bare) for study in studies]
