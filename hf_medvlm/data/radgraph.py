"""RadGraph's annotations -> the (entity, position, state) triplets of `findings.extract_triplets`.

Reads what the `radgraph` package returns (Delbrouck et al. 2024; PyPI `radgraph`, the project's extra `radgraph`) and
the JSON files of RadGraph (Jain et al. 2021, arXiv 2106.14463), with either form of label. Runs the package's model
only where `run_radgraph` is called; its weights come from the Hub.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from hf_medvlm.data.files import load_json
from hf_medvlm.data.study import Study
from hf_medvlm.errors import clipped
from hf_medvlm.language.findings import Triplet, positions_of, term_of
from hf_medvlm.language.negation import ABSENT, PRESENT, UNCERTAIN

logger = logging.getLogger(__name__)

OBSERVATIONS = {
    "OBS-DP": PRESENT,
    "OBS-DA": ABSENT,
    "OBS-U": UNCERTAIN,
    "Observation::definitely present": PRESENT,
    "Observation::definitely absent": ABSENT,
    "Observation::uncertain": UNCERTAIN,
}
ANATOMY = ("ANAT-DP", "Anatomy::definitely present", "Anatomy::definitely absent", "Anatomy::uncertain")
UNKNOWN_ENTITY = "excluded_obs"
"""MedKLIP's entity for observations outside its list."""


def run_radgraph(texts: Sequence[str], model: str = "modern-radgraph-xl") -> list[list[Triplet]]:
    """The triplets of each text by RadGraph's own model, downloaded from the Hub at its first use.

    Raises:
        ImportError: the package is not installed; the message says how to.
    """
    try:
        from radgraph import RadGraph
    except ImportError as error:
        raise ImportError(
            "the radgraph package is needed for this: pip install 'hf_medvlm[radgraph]', or use "
            "hf_medvlm.language.findings.extract_triplets, which needs nothing"
        ) from error
    by_number = triplets_from_radgraph(RadGraph(model=model)(list(texts)))
    return [by_number[str(number)] for number in range(len(texts))]


def annotate(studies: Sequence[Study]) -> list[Study]:
    """The same studies with `triplets` from RadGraph's model (see `run_radgraph`)."""
    triplets = run_radgraph([study.text() for study in studies])
    return [replace(study, triplets=tuple(of_study)) for study, of_study in zip(studies, triplets, strict=True)]


def read_radgraph(path: str | Path) -> dict[str, list[Triplet]]:
    """The triplets of every report of a saved JSON file, by the file's own keys.

    Raises:
        ValueError: no JSON, or no annotations; the message names the file, the report and the key.
    """
    try:
        annotations = load_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; it is no JSON of RadGraph's") from error
    return triplets_from_radgraph(annotations, source=str(path))


def attach_triplets(studies: Sequence[Study], triplets: Mapping[str, Sequence[Triplet]]) -> list[Study]:
    """All studies; those whose report is among the keys of `triplets` get them.

    A key is a study id, or the path of a report named after it (`p18/p18004941/s50000014.txt`).

    Raises:
        ValueError: not one of the reports belongs to a study.
    """
    by_id = {PurePosixPath(key).name.removesuffix(".txt"): value for key, value in triplets.items()}
    attached, count = [], 0
    for study in studies:
        annotated = by_id.get(study.study_id, by_id.get(f"s{study.study_id}"))
        count += annotated is not None
        attached.append(study if annotated is None else replace(study, triplets=tuple(annotated)))
    if not count:
        first = next(iter(triplets), "none")
        raise ValueError(f"none of the reports of the RadGraph file (the first: {first}) is in the corpus")
    logger.info("RadGraph: %d of %d studies have triplets", count, len(attached))
    return attached


def triplets_from_radgraph(annotations: Mapping[str, Any], source: str = "RadGraph") -> dict[str, list[Triplet]]:
    """Report key -> triplets, in the order of the text, each once.

    An observation takes each anatomy that it is `located_at`, with the words that modify that anatomy ("left",
    "lower"); "unspecified" where there is none. Observations that only modify others ("small") say nothing by
    themselves and are left out; the rest, where MedKLIP has no word for them, are "excluded_obs". RadGraph's test set,
    which has two annotators a report, is read by the first.

    Args:
        annotations: what the package returns, or the content of a JSON file.
        source: named in errors.

    Raises:
        ValueError: something is not as it should be; the message names the source, the report and the key.
    """
    if not isinstance(annotations, Mapping):
        raise ValueError(f"{source}: expected an object of reports, got {type(annotations).__name__}")
    by_report = {}
    for key, report in annotations.items():
        if isinstance(report, Mapping) and "labeler_1" in report:
            report = report["labeler_1"]
        if not isinstance(report, Mapping) or not isinstance(report.get("entities"), Mapping):
            raise ValueError(f"{source}: report {key!r:.100} has no object 'entities'")
        try:
            by_report[key] = list(dict.fromkeys(_triplets(report["entities"])))
        except ValueError as error:
            raise ValueError(f"{source}: report {key!r:.100}: {error}") from error
    return by_report


def _triplets(entities: Mapping[str, Any]) -> Iterator[Triplet]:
    for key, entity in entities.items():
        _check(key, entity, entities)
    modifiers: dict[str, list[str]] = {key: [] for key in entities}  # of anatomy, by anatomy
    for key, entity in entities.items():
        for kind, target in entity["relations"]:
            if kind == "modify" and entity["label"] in ANATOMY:
                modifiers[target].append(key)
    for entity in sorted(entities.values(), key=lambda entity: entity["start_ix"]):
        if entity["label"] in ANATOMY:
            continue
        kinds = [kind for kind, _ in entity["relations"]]
        term = term_of(entity["tokens"])
        if term is None and "modify" in kinds:
            continue
        places = [_phrase(target, modifiers, entities) for kind, target in entity["relations"] if kind == "located_at"]
        positions = [position for place in places for position in positions_of(place, term)]
        for position in positions or ["unspecified"]:
            yield term.entity if term else UNKNOWN_ENTITY, position, OBSERVATIONS[entity["label"]]


def _phrase(place: str, modifiers: Mapping[str, Sequence[str]], entities: Mapping[str, Any]) -> str:
    """The words of an anatomy and of all that modifies it, in the order of the text."""
    keys, waiting = {place}, [place]
    while waiting:
        new = set(modifiers[waiting.pop()]) - keys
        keys |= new
        waiting += sorted(new)
    return " ".join(entities[key]["tokens"] for key in sorted(keys, key=lambda key: entities[key]["start_ix"]))


def _check(key: str, entity: Any, entities: Mapping[str, Any]) -> None:
    if not isinstance(entity, Mapping):
        raise ValueError(f"entity {key!r:.60} is no object: {clipped(entity)}")
    missing = [name for name in ("tokens", "label", "start_ix", "relations") if name not in entity]
    if missing:
        raise ValueError(f"entity {key!r:.100} has no {', '.join(missing)}")
    known = (*OBSERVATIONS, *ANATOMY)
    if not isinstance(entity["tokens"], str) or type(entity["start_ix"]) is not int:
        values = f"{clipped(entity['tokens'])} and {clipped(entity['start_ix'])}"
        raise ValueError(f"entity {key!r:.60} needs tokens that are text and a start_ix that is a number, got {values}")
    if entity["label"] not in known:
        raise ValueError(f"entity {key!r:.60} has the label {entity['label']!r:.60}; known are {', '.join(known)}")
    if not isinstance(entity["relations"], list):
        raise ValueError(f"entity {key!r:.60} has relations that are no list: {clipped(entity['relations'])}")
    for relation in entity["relations"]:
        pair = isinstance(relation, (list, tuple)) and len(relation) == 2 and all(isinstance(w, str) for w in relation)
        if not pair or relation[1] not in entities:
            raise ValueError(f"entity {key!r:.60} has the relation {clipped(relation)}; it should be [kind, key]")
