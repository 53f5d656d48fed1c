"""Retrieval over the whole gallery, both ways: recall@1/5/10, median rank, MRR. NumPy only: knows no model and no file.

A score here cannot be gamed: equal reports are matches of each other (`groups`), ties are shared out as their expected
value under a random order, so that constant embeddings score chance exactly, and nothing depends on batches or blocks.

Headline: mean recall, the mean of the six recalls, greater is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from hf_medvlm.errors import clipped
from hf_medvlm.metrics.base import InMemory, check_options, check_sides, numbers
from hf_medvlm.metrics.facts import LOWER, NEITHER, RETRIEVAL, Fact

PRIMARY, GREATER_IS_BETTER = "mean_recall", True
CUTOFFS = (1, 5, 10)
TIE = 1e-9  # dot products closer than this share of the longest vectors' product are tied; float64 errs by 1e-15
PROTOCOL = (
    "dot products over the whole gallery of {gallery} rows with {unique} distinct groups; rows of one group match each "
    "other; the best match counts; ties are shared out (expected value); median rank is that of the expected ranks"
)


def retrieval_scores(
    image_embeds: np.ndarray, text_embeds: np.ndarray, groups: Sequence | None = None, *, block: int = 2048
) -> dict[str, float]:
    """Recall, ranks and MRR of images retrieving texts (`i2t_`) and texts retrieving images (`t2i_`).

    Args:
        image_embeds, text_embeds, groups, block: as in `query_scores`.

    Returns:
        `{i2t,t2i}_recall@{1,5,10}`, `_median_rank`, `_mrr`, ranks from 1, `mean_recall`; beside them `gallery_size`,
        `unique_texts` (distinct groups), `chance_recall@k`, `chance_median_rank`, `chance_mrr` (a random order) and
        `ceiling_recall@k`: what perfect embeddings would score under the same matching rule. Rows of one group match
        each other, so that it is 1.
    """
    queries = query_scores(image_embeds, text_embeds, groups, block=block)
    sizes = queries.pop("matches")
    result = {
        name: float(np.median(values) if name.endswith("rank") else values.mean()) for name, values in queries.items()
    }
    result = {name.replace("_rank", "_median_rank").replace("reciprocal", "mrr"): v for name, v in result.items()}
    result["mean_recall"] = float(np.mean([result[f"{way}_recall@{k}"] for way in ("i2t", "t2i") for k in CUTOFFS]))
    counts = {"gallery_size": len(sizes), "unique_texts": round((1 / sizes).sum())}
    ceiling = _expected(np.zeros_like(sizes), sizes, sizes, "ceiling_")  # a query's own group stands first
    return result | counts | {f"ceiling_recall@{k}": float(ceiling[f"ceiling_recall@{k}"].mean()) for k in CUTOFFS}


def retrieval_fact(name: str, scores: Mapping[str, float]) -> Fact:
    """What is to be known of the score called `name`, one of `retrieval_scores` or of `query_scores`.

    Args:
        scores: what `retrieval_scores` gave, for the size of the gallery.
    """
    how = PROTOCOL.format(gallery=int(scores["gallery_size"]), unique=int(scores["unique_texts"]))
    if name in ("gallery_size", "unique_texts"):
        return Fact(RETRIEVAL, how, NEITHER, "studies" if name == "gallery_size" else "groups")
    if name.startswith("ceiling_"):
        return Fact(RETRIEVAL, f"what perfect embeddings would score under the same rule; {how}", NEITHER)
    if name.endswith("rank"):
        return Fact(RETRIEVAL, how, LOWER, "rank, from 1")
    if name == "mean_recall":
        how = f"mean of the six recalls at {', '.join(map(str, CUTOFFS))}; {how}"
    return Fact(RETRIEVAL, how)


def query_scores(
    image_embeds: np.ndarray, text_embeds: np.ndarray, groups: Sequence | None = None, *, block: int = 2048
) -> dict[str, np.ndarray]:
    """The same for each query on its own: `{i2t,t2i,chance}_recall@k`, `_rank`, `_reciprocal` and `matches`, (N,) each.

    Time is N x N x D multiplications, memory `block` x 4 `block` similarities beside the embeddings.

    Args:
        image_embeds, text_embeds: (N, D), row i of both is one study; normalised by the caller, for cosine.
        groups: N ids; rows with the same id match each other (the same text or study). Without it row i matches row i.
        block: rows compared at a time; changes memory and speed alone.

    Raises:
        ValueError: shapes or ids that do not fit, embeddings that are not numbers.
    """
    images, texts = np.asarray(image_embeds), np.asarray(text_embeds)
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise ValueError(
            f"image and text embeddings must both be (N, D) with N > 0, got {images.shape} and {texts.shape}"
        )
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    count = len(images)
    if groups is not None and (isinstance(groups, str) or not hasattr(groups, "__len__")):
        raise ValueError(f"groups must be a list with an id for each row, got {groups!r:.100}")
    ids = np.arange(count) if groups is None else _ids(groups)
    if len(ids) != count:
        raise ValueError(f"groups must give one id a row: got {len(ids)} ids for {count} rows")
    lengths = [_longest(name, rows, block) for name, rows in (("image", images), ("text", texts))]
    members = np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])
    tolerance = TIE * lengths[0] * lengths[1]

    best = {"i2t": np.full(count, -np.inf), "t2i": np.full(count, -np.inf)}
    for rows, columns, block_scores in _matching_blocks(images, texts, members, block):
        best["i2t"][rows] = np.maximum(best["i2t"][rows], block_scores.max(1))
        best["t2i"][columns] = np.maximum(best["t2i"][columns], block_scores.max(0))
    matches = {way: np.zeros(count, int) for way in best}  # that tie with the best match
    for rows, columns, block_scores in _matching_blocks(images, texts, members, block):
        matches["i2t"][rows] += (block_scores >= best["i2t"][rows, None] - tolerance).sum(1)
        matches["t2i"][columns] += (block_scores >= best["t2i"][columns] - tolerance).sum(0)
    above = {way: np.zeros(count, int) for way in best}  # gallery rows better than the best match
    level = {way: np.zeros(count, int) for way in best}  # gallery rows better or as good
    for rows, columns in _blocks(np.arange(count), block):
        scores = _product(images[rows], texts[columns])
        for way, limits, kept, axis in (("i2t", rows, rows, 1), ("t2i", columns, columns, 0)):
            limit = best[way][limits][:, None] if axis else best[way][limits]
            above[way][kept] += np.count_nonzero(scores > limit + tolerance, axis=axis)
            level[way][kept] += np.count_nonzero(scores >= limit - tolerance, axis=axis)

    sizes = np.bincount(ids)[ids]
    result = _expected(np.zeros(count, int), np.full(count, count), sizes, "chance_")
    for way in ("i2t", "t2i"):
        result |= _expected(above[way], level[way] - above[way], matches[way], f"{way}_")
    return result | {"matches": sizes}


def _ids(groups: Sequence) -> np.ndarray:
    """A number for each group, whatever the groups are named by."""
    named: dict[Any, int] = {}
    try:
        return np.array([named.setdefault(group, len(named)) for group in groups], dtype=int).reshape(-1)
    except TypeError as error:
        raise ValueError(f"groups must be texts or numbers: {clipped(str(error))}") from error


def _product(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Dot products in float64, so that equal embeddings tie wherever in a block they stand."""
    return rows.astype(np.float64) @ columns.astype(np.float64).T


def _blocks(members: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut the square of `members` into pieces of at most `block` rows and 4 `block` columns."""
    for start in range(0, len(members), block):
        for left in range(0, len(members), 4 * block):
            yield members[start : start + block], members[left : left + 4 * block]


def _matching_blocks(
    images: np.ndarray, texts: np.ndarray, members: list[np.ndarray], block: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Image rows, text rows and the similarities of each group with itself, piece by piece."""
    for group in members:
        for rows, columns in _blocks(group, block):
            yield rows, columns, _product(images[rows], texts[columns])


def _longest(name: str, rows: np.ndarray, block: int) -> float:
    """The greatest length of an embedding; refuses one that is not finite."""
    longest = 0.0
    for start in range(0, len(rows), block):
        lengths = np.linalg.norm(rows[start : start + block].astype(np.float64), axis=1)
        if not np.isfinite(lengths).all():
            bad = start + int(np.flatnonzero(~np.isfinite(lengths))[0])
            raise ValueError(f"the {name} embedding of row {bad} holds NaN or infinity; nothing can be ranked with it")
        longest = max(longest, float(lengths.max()))
    return longest


def _expected(above: np.ndarray, tied: np.ndarray, matches: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
    """Expected recall, rank and reciprocal rank of each query's best match, anywhere among `tied` rows below `above`.

    Args:
        above, tied, matches: (N,) counts; `matches` of the `tied` rows are right, and every order of them is as likely.
    """
    cases, which = np.unique(np.stack([above, tied, matches], axis=1), axis=0, return_inverse=True)
    ranks = cases[:, 0] + (cases[:, 1] + 1) / (
        cases[:, 2] + 1
    )  # the first of m among t is expected at (t + 1) / (m + 1)
    recalls, reciprocals = np.zeros((len(cases), len(CUTOFFS))), np.zeros(len(cases))
    for row, (better, t, m) in enumerate(cases):
        place = np.arange(t - m + 1)
        still_none = np.cumprod((t - m - place) / (t - place))  # none of the first 1, 2, ... tied rows is a match
        first = np.append(1.0, still_none[:-1]) - still_none
        reciprocals[row] = (first / (better + 1 + place)).sum()
        recalls[row] = [first[: max(k - better, 0)].sum() for k in CUTOFFS]
    which = which.reshape(-1)
    expected = {f"{prefix}recall@{k}": recalls[which, column] for column, k in enumerate(CUTOFFS)}
    return expected | {f"{prefix}rank": ranks[which], f"{prefix}reciprocal": reciprocals[which]}


class Metric(InMemory, evaluate.Metric):
    """`compute(predictions=image_embeds, references=text_embeds, groups=ids)`, as in `retrieval_scores`.

    With `add_batch` the groups go to `compute`, in the order of all rows added.
    """

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=retrieval_scores.__doc__,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def compute(self, *, predictions=None, references=None, **options) -> dict[str, float] | None:
        """Scores arrays as they are: a trip through Arrow would copy a gallery of 200,000 several times over."""
        if predictions is None or self.writer is not None:
            return super().compute(predictions=predictions, references=references, **options)
        check_options("retrieval", self._compute, options)
        check_sides("retrieval", predictions, references)
        return self._compute(predictions, references, **options)

    def _compute(
        self, predictions: Sequence, references: Sequence, groups: Sequence | None = None, block: int = 2048
    ) -> dict[str, float]:
        sides = numbers("image embeddings", predictions), numbers("text embeddings", references)
        return retrieval_scores(*sides, groups, block=block)
