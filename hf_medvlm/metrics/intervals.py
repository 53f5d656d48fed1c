"""Bootstrap intervals and a paired test, by patient. NumPy only: knows neither models nor what is being measured.

Studies of one patient are alike, so patients are drawn, never studies. Everything follows from `seed` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""(R, K) sums over studies -> (R,) values of the metric, one for each of R resamples."""

_BLOCK = 100  # resamples drawn at once: bounds the memory at 100 counts a patient


def mean_columns(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """(N,) scores -> (N, 2) score and count, whose sums `ratio_of_sums` turns into their mean; NaN counts as absent."""
    values = np.asarray(values, dtype=float)
    present = ~np.isnan(values)
    return np.stack([np.where(present, values, 0.0), present.astype(float)], axis=1)


def ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    """(R, 2) -> (R,): the first sum over the second, NaN where that is 0."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)


def _columns(values: np.ndarray | Sequence[float], statistic: Statistic | None) -> tuple[np.ndarray, Statistic]:
    values = np.asarray(values, dtype=float)
    if statistic is None:
        if values.ndim != 1:
            raise ValueError(f"values of shape {values.shape} need a statistic; without one they are (N,) scores")
        return mean_columns(values), ratio_of_sums
    return values.reshape(len(values), -1), statistic


def _group_numbers(groups: Sequence[Hashable] | None, rows: int) -> tuple[np.ndarray, int]:
    """Number of the group of each row, (N,), and how many there are; without `groups` each row is its own."""
    if groups is None:
        return np.arange(rows), rows
    if len(groups) != rows:
        raise ValueError(f"{len(groups)} groups (patients) for {rows} rows; give one for each row")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups], dtype=int), len(numbers)


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    statistic: Statistic | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a metric that is a function of sums over studies (a mean, a corpus BLEU, an F1 of counts).

    Args:
        values: (N,) scores of studies, whose mean is the metric (NaN: not defined for that study), or (N, K) summands.
        groups: the patient of each study; None makes each study its own.
        statistic: (R, K) sums -> (R,) metric; needed for (N, K) values only.

    Returns:
        (low, high); (NaN, NaN) with fewer than two patients, which tell nothing of the spread.

    Reference: Efron and Tibshirani 1993, chapter 13 (percentile interval), with patients as the clusters drawn.
    """
    columns, statistic = _columns(values, statistic)
    numbers, count = _group_numbers(groups, len(columns))
    if count < 2:
        return float("nan"), float("nan")
    sums = np.zeros((count, columns.shape[1]))
    np.add.at(sums, numbers, columns)
    rng, drawn = np.random.default_rng(seed), []
    for start in range(0, resamples, _BLOCK):
        draws = rng.integers(count, size=(min(_BLOCK, resamples - start), count))
        times = np.stack([np.bincount(draw, minlength=count) for draw in draws])  # (block, patients)
        drawn.append(statistic(times @ sums))
    return _interval(np.concatenate(drawn), level)


def bootstrap_ratios(
    sums: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """The percentile intervals of K ratios of sums at once, on the same resamples as `bootstrap_interval`'s.

    Args:
        sums: (N, K, 2), what each study adds to the numerator and the denominator of each ratio.
        groups: the patient of each study; None makes each study its own.

    Returns:
        K times (low, high); (NaN, NaN) with fewer than two patients.
    """
    rows, ratios = sums.shape[:2]
    numbers, count = _group_numbers(groups, rows)
    if count < 2:
        return [(float("nan"), float("nan"))] * ratios
    of_groups = np.zeros((count, ratios * 2))
    np.add.at(of_groups, numbers, sums.reshape(rows, -1).astype(float))
    rng, drawn = np.random.default_rng(seed), []
    for start in range(0, resamples, _BLOCK):
        draws = rng.integers(count, size=(min(_BLOCK, resamples - start), count))
        times = np.stack([np.bincount(draw, minlength=count) for draw in draws])  # (block, patients)
        drawn.append((times @ of_groups).reshape(-1, 2))
    values = ratio_of_sums(np.concatenate(drawn)).reshape(-1, ratios)
    return [_interval(column, level) for column in values.T]


def resampled_rows(
    rows: int, groups: Sequence[Hashable] | None = None, *, resamples: int = 1000, seed: int = 0
) -> Iterator[np.ndarray]:
    """Row numbers of each bootstrap sample, patient by patient: for metrics that no sum gives, such as an AUC."""
    numbers, count = _group_numbers(groups, rows)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers, minlength=count))[:-1])
    rng = np.random.default_rng(seed)
    for _ in range(resamples if count else 0):
        yield np.concatenate([members[number] for number in rng.integers(count, size=count)])


def bootstrap_rows(
    compute: Callable[[np.ndarray], float],
    rows: int,
    groups: Sequence[Hashable] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of any metric: `compute` gets the row numbers of each sample; NaN results are left out."""
    if _group_numbers(groups, rows)[1] < 2:
        return float("nan"), float("nan")
    drawn = resampled_rows(rows, groups, resamples=resamples, seed=seed)
    return _interval(np.array([compute(sample) for sample in drawn], dtype=float), level)


@dataclass(frozen=True)
class PairedTest:
    """`difference` is the metric of the first system less that of the second; `p_value` is two-sided."""

    difference: float
    p_value: float
    low: float
    high: float


def paired_test(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    statistic: Statistic | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Are two systems, scored on the same studies, different? Approximate randomisation by patient, with an interval.

    Under the null hypothesis a patient's two results could be swapped; `p_value` is the share of random swaps with a
    difference at least as large. The interval of the difference is `bootstrap_interval`'s.

    Args:
        first, second, groups, statistic: as `values`, `groups` and `statistic` of `bootstrap_interval`.

    Raises:
        ValueError: the two are not of one shape.

    Reference: Noreen 1989, "Computer-intensive methods for testing hypotheses"; the added one: Phipson and Smyth 2010.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"the two systems' scores have shapes {np.shape(first)} and {np.shape(second)}; pair them")
    a, statistic = _columns(first, statistic)
    b, _ = _columns(second, statistic if np.ndim(second) > 1 else None)
    numbers, count = _group_numbers(groups, len(a))
    sums = np.zeros((2, count, a.shape[1]))
    np.add.at(sums[0], numbers, a)
    np.add.at(sums[1], numbers, b)

    def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return statistic(one) - statistic(other)

    total, gap = sums.sum(axis=1), sums[1] - sums[0]
    observed = float(difference(total[:1], total[1:])[0])
    if count < 2 or np.isnan(observed):
        return PairedTest(observed, float("nan"), float("nan"), float("nan"))
    rng, as_large = np.random.default_rng(seed), 0
    for start in range(0, resamples, _BLOCK):
        swap = rng.integers(2, size=(min(_BLOCK, resamples - start), count))
        moved = swap @ gap  # (block, K)
        as_large += int((np.abs(difference(total[0] + moved, total[1] - moved)) >= abs(observed) - 1e-12).sum())
    width = a.shape[1]
    low, high = bootstrap_interval(
        np.concatenate([a, b], axis=1),
        groups,
        lambda both: difference(both[:, :width], both[:, width:]),
        resamples=resamples,
        level=level,
        seed=seed,
    )
    return PairedTest(observed, (as_large + 1) / (resamples + 1), low, high)


def paired_rows(
    compute: Callable[[np.ndarray, np.ndarray], float],
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """`paired_test` for a metric that no sum gives, such as an AUC.

    Args:
        compute: (values (N, ...), row numbers) -> metric. first, second: what each system says of the N studies.

    Raises:
        ValueError: the two are not of one shape.
    """
    if first.shape != second.shape:
        raise ValueError(f"the two systems' values have shapes {first.shape} and {second.shape}; pair them")
    rows, (numbers, count) = np.arange(len(first)), _group_numbers(groups, len(first))
    observed = compute(first, rows) - compute(second, rows)
    if count < 2 or np.isnan(observed):
        return PairedTest(observed, float("nan"), float("nan"), float("nan"))
    drawn = resampled_rows(len(first), groups, resamples=resamples, seed=seed)
    low, high = _interval(np.array([compute(first, sample) - compute(second, sample) for sample in drawn]), level)
    rng, as_large = np.random.default_rng(seed), 0
    for _ in range(resamples):
        swap = (rng.integers(2, size=count)[numbers] == 1).reshape(-1, *[1] * (first.ndim - 1))
        one, other = np.where(swap, second, first), np.where(swap, first, second)
        as_large += abs(compute(one, rows) - compute(other, rows)) >= abs(observed) - 1e-12
    return PairedTest(float(observed), (as_large + 1) / (resamples + 1), low, high)
