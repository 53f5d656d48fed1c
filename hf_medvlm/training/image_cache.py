"""`--image_cache`: the collators of a run read prepared pictures, which one process a machine has made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_medvlm.collators.geometry import Preparation
from hf_medvlm.data.cache import Again, ImageCache, LongestSide, Shrinking, general_cache
from hf_medvlm.data.cache_building import Built, build_cache
from hf_medvlm.data.load import Splits
from hf_medvlm.training.arguments import MedVLMArguments
from hf_medvlm.training.checks import OK, Checks
from hf_medvlm.training.legacy import say
from hf_medvlm.training.machines import once_a_machine


def use_image_cache(collators: Sequence[Any], splits: Splits, training: MedVLMArguments) -> None:
    """Let collators read from the cache folder of `--image_cache`; does nothing where there is none.

    The pictures have the size that the collators' image processor makes, to the bit. Where `prepare_data.py --cache`
    has put larger ones into the folder, they are made from those, and not from the files.

    Raises:
        ValueError: the image processor prepares pictures in a way of its own, and the folder holds no larger ones; or
            those are smaller than what the model looks at.
        OSError: the disk is full.
    """
    if not training.image_cache:
        return
    folder = splits.image_folder
    for how in layers(collators[0], training.image_cache, folder):
        work = partial(_build, training.image_cache, folder, collators[0], splits, how)
        built = once_a_machine(training, f"pictures {how.key} of {folder}", work)
        if training.process_index == 0:
            new = max(each.new for each in built)
            print(f"Image cache {training.image_cache}: {built[0].pictures} pictures {how.key}, {new} new", flush=True)
            if built[0].broken:
                path, reason = next(iter(built[0].broken.items()))
                say(f"--image_cache: {len(built[0].broken)} images have no picture; the first: {path}: {reason}")
    for collator in collators:
        collator.image_folder = ImageCache(
            training.image_cache, folder, layers(collator, training.image_cache, folder)[-1]
        )


def _build(cache: str, folder: Path, collator: Any, splits: Splits, how: Shrinking) -> Built:
    return build_cache(cache, folder, paths_of(collator, splits), how)


def check_image_cache(checks: Checks, collator: Any, splits: Splits, training: MedVLMArguments) -> None:
    """Say what the cache folder holds, and what a run would put into it."""
    if not training.image_cache:
        return
    folder = splits.image_folder
    wanted = set(paths_of(collator, splits))
    for how in layers(collator, training.image_cache, folder):
        there = len(wanted & set(ImageCache(training.image_cache, folder, how)))
        across, along = how.resized(4000, 5000)
        state = f"{there} of {len(wanted)} pictures {how.key} are in {training.image_cache}"
        missing = (len(wanted) - there) * across * along / 1e9
        checks.add(OK, "image cache", state + (f"; the others will take about {missing:.2f} GB" if missing else ""))


def layers(collator: Any, cache: str | Path, folder: Path) -> list[Shrinking]:
    """How the pictures that a collator reads are made, one after the other: the last are those it reads."""
    processor = getattr(collator, "image_processor", None) or collator.processor.image_processor
    way = None if hasattr(collator, "pictures") else Preparation.of(processor)
    general = general_cache(cache, folder)
    if way is None and general is None:
        raise ValueError(
            f"--image_cache {cache}: {type(processor).__name__} chooses the size by the picture, so that larger ones "
            "are needed: prepare_data.py --cache makes them (--size says their longer side)"
        )
    if way is None or general is None:
        return [each for each in (way, general) if each is not None]
    _check_size(way, general, cache)
    return [general, Again(way, ImageCache(cache, folder, general))]


def _check_size(way: Preparation, general: LongestSide, cache: str | Path) -> None:
    """The shorter side of a radiograph of 5 to 4 must suffice."""
    across, along = way.resized(general.size * 4 // 5, general.size)
    if max(across, along) > general.size:
        raise ValueError(
            f"--image_cache {cache} holds pictures of {general.size} pixels, but the model looks at {across} x {along};"
            " name another folder, or prepare larger ones with prepare_data.py --cache --size"
        )


def paths_of(collator: Any, splits: Splits) -> Iterator[str]:
    """The images that a run reads: all of a conversation, of other studies the frontal one."""
    every = hasattr(collator, "pictures") or hasattr(collator, "options")
    for studies in splits.studies.values():
        for study in studies:
            if every:
                yield from (image.path for image in study.images)
            elif study.frontal:
                yield study.frontal.path
