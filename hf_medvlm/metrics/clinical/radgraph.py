"""RadGraph F1: how far two reports agree in entities and relations, on annotations of the RadGraph model.

Jain et al. 2021, "RadGraph" (arXiv 2106.14463); the three rewards are those of Delbrouck et al. 2022 (arXiv
2210.12186), `simple`, `partial` and `complete`; `radgraph_rexrank` is the mean of entity and relation F1 of Yu et al.
2023, which
RadCliQ and ReXrank use. An annotation is what the package `radgraph` gives of one report: `{"entities": {id: {"tokens":
text, "label": label, "relations": [[kind, id], ...]}}}`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from hf_medvlm.metrics.base import WeightsInFolder
from hf_medvlm.metrics.clinical.results import ClinicalResult, check_pairs
from hf_medvlm.metrics.clinical.weights import MissingWeights, default_device, find_file, require_package

Annotation = Mapping[str, Any]
MODELS = ("radgraph", "radgraph-xl")
PROTOCOLS = {
    "radgraph_simple": "F1 over (entity, label)",
    "radgraph_partial": "F1 over (entity, label, whether it has a relation)",
    "radgraph_complete": "F1 over (entity, label, relation, other entity)",
    "radgraph_rexrank": "mean of the F1 over entities and the F1 over relations, as RadCliQ and ReXrank take it",
}


def set_f1(first: set, second: set) -> float:
    """F1 of two sets; 0 where either is empty."""
    hits = len(first & second)
    return 2 * hits / (len(first) + len(second)) if hits else 0.0


def radgraph_f1(prediction: Annotation, reference: Annotation) -> dict[str, float]:
    """`radgraph_simple`, `_partial`, `_complete` and `_rexrank` of one pair of annotations.

    The first three are 0 where a side has no entity at all, as in the package `radgraph` (0.1.18, `rewards.py`, whose
    lower case inside relations alone is kept).
    """
    sides = [list((annotation.get("entities") or {}).values()) for annotation in (prediction, reference)]
    by_id = [annotation.get("entities") or {} for annotation in (prediction, reference)]
    result = dict.fromkeys(PROTOCOLS, 0.0)
    if all(sides):
        result["radgraph_simple"] = set_f1(*({(e["tokens"], e["label"]) for e in side} for side in sides))
        result["radgraph_partial"] = set_f1(
            *({(e["tokens"], e["label"], bool(e["relations"])) for e in side} for side in sides)
        )
        result["radgraph_complete"] = set_f1(*map(_complete, by_id))
    entities = set_f1(*({(e["tokens"], e["label"]) for e in side} for side in sides))
    result["radgraph_rexrank"] = (entities + set_f1(*map(_relations, by_id))) / 2
    return result


def _complete(entities: Mapping[str, Any]) -> set:
    items: set = set()
    for entity in entities.values():
        if not entity["relations"]:
            items.add((entity["tokens"], entity["label"]))
        for kind, other in entity["relations"]:
            items.add((entity["tokens"].lower(), entity["label"], kind, entities[other]["tokens"].lower()))
    return items


def _relations(entities: Mapping[str, Any]) -> set:
    return {
        (entity["tokens"], entity["label"], entities[other]["tokens"], entities[other]["label"], kind)
        for entity in entities.values()
        for kind, other in entity["relations"]
        if other in entities
    }


def locate(weights: str | Path | None, model: str) -> Path:
    """`weights.th` of the model.

    Raises:
        MissingWeights: the package or the model is not there.
    """
    require_package("radgraph", "RadGraph")
    return find_file(weights, (model,), ("weights.th",), f"RadGraph's model {model}")


def load_annotator(
    weights: str | Path | None, model: str | None = None, device: str | None = None
) -> Callable[[Sequence[str]], list[Annotation]]:
    """Texts -> the annotations of the package `radgraph`, from a model folder of the user's; nothing is fetched.

    Args:
        weights: folder with `radgraph/` or `radgraph-xl/` as unpacked from `radgraph.tar.gz` (config.json, weights.th,
            vocabulary/), and the BERT that its config names, in a folder of that name.
        model: "radgraph" or "radgraph-xl"; by default the one whose folder lies in `weights`.

    Raises:
        MissingWeights: the package, the model or its BERT is not there.
    """
    model = model or _model_in(weights)
    state = locate(weights, model)
    try:
        from radgraph import RadGraph
    except ImportError as error:
        raise MissingWeights(f"RadGraph: its package cannot be imported ({error}); pip install radgraph") from error
    with tempfile.TemporaryDirectory() as cache:
        copy = Path(cache) / model
        copy.mkdir()
        for name in ("weights.th", "vocabulary"):
            os.symlink((state.parent / name).resolve(), copy / name)
        (copy / "config.json").write_text(
            json.dumps(_with_local_bert(state.parent / "config.json", Path(str(weights))))
        )
        cuda = default_device(device)
        labeller = RadGraph(
            model_type=model, model_cache_dir=cache, cuda=(cuda.index or 0) if cuda.type == "cuda" else -1
        )

    def annotate(texts: Sequence[str]) -> list[Annotation]:
        annotations = labeller(list(texts))
        return [annotations[str(number)] for number in range(len(texts))]

    return annotate


def _model_in(weights: str | Path | None) -> str:
    there = [name for name in MODELS if weights and (Path(weights) / name / "weights.th").is_file()]
    return there[0] if there else MODELS[0]


def _with_local_bert(path: Path, weights: Path) -> dict[str, Any]:
    """RadGraph's config with the Hub id of its BERT replaced by the folder in which it lies here."""
    config = json.loads(path.read_text(encoding="utf-8"))
    places = [
        config["dataset_reader"]["token_indexers"]["bert"],
        config["model"]["embedder"]["token_embedders"]["bert"],
    ]
    for place in places:
        name = str(place["model_name"])
        folders = [Path(name), weights / name.rpartition("/")[2], path.parent / name.rpartition("/")[2]]
        local = next((folder for folder in folders if (folder / "config.json").is_file()), None)
        if local is None:
            raise MissingWeights(f"RadGraph: its BERT {name} lies in none of {', '.join(map(str, folders[1:]))}")
        place["model_name"] = str(local.resolve())
    return config


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    weights: str | Path | None,
    device: str | None = None,
    model: str | None = None,
) -> ClinicalResult:
    """The four RadGraph scores, means over studies.

    Args:
        model: "radgraph" or "radgraph-xl"; by default the one whose folder lies in `weights`.

    Raises:
        MissingWeights, ValueError: as `load_annotator`; and where the texts are not in pairs.
    """
    check_pairs(predictions, references)
    chosen = model or _model_in(weights)
    annotations = load_annotator(weights, chosen, device)([*predictions, *references])
    return score_annotations(annotations[: len(predictions)], annotations[len(predictions) :], chosen)


def score_annotations(
    predictions: Sequence[Annotation], references: Sequence[Annotation], model: str = "the model that annotated them"
) -> ClinicalResult:
    """As `score`, of stored annotations."""
    rows = [radgraph_f1(*pair) for pair in zip(predictions, references, strict=True)]
    result = ClinicalResult()
    for name, how in PROTOCOLS.items():
        values = [row[name] for row in rows]
        result.add(name, np.mean(values) if rows else np.nan, f"{how}; annotated by {model}; mean over studies", values)
    return result


class Metric(WeightsInFolder, evaluate.Metric):
    """`metrics.load("radgraph", weights=FOLDER).compute(predictions=texts, references=texts)`, as in `score`."""

    default_name = "radgraph"

    def __init__(self, config_name: str | None = None, model: str | None = None, **options: Any) -> None:
        self.model = model
        super().__init__(config_name, **options)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        result = score(predictions, references, self.weights, self.device, self.model)
        return result.values | {"protocol": "; ".join(fact.protocol for fact in result.facts.values())}
