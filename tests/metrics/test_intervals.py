"""Bootstrap and paired test against resampling written out row by row."""

import numpy as np
import pytest

from hf_medvlm.metrics.intervals import bootstrap_interval, bootstrap_rows, paired_test, resampled_rows

PATIENTS = ["a", "a", "b", "c", "c", "c", "d", "e", "f", "f"]
SCORES = np.array([0.1, 0.3, np.nan, 0.5, 0.2, 0.9, 0.4, 0.8, 0.6, 0.7])


def test_sums_and_rows_give_the_same_interval():
    fast = bootstrap_interval(SCORES, PATIENTS, resamples=4000, seed=3)
    slow = bootstrap_rows(lambda rows: np.nanmean(SCORES[rows]), len(SCORES), PATIENTS, resamples=4000, seed=4)
    assert fast == pytest.approx(slow, abs=0.02)
    assert fast[0] < np.nanmean(SCORES) < fast[1]


def test_patients_are_drawn_whole():
    numbers = np.array([ord(patient) for patient in PATIENTS])
    for rows in resampled_rows(len(PATIENTS), PATIENTS, resamples=50, seed=1):
        for patient in set(PATIENTS):
            times = [np.sum(rows == row) for row in np.flatnonzero(numbers == ord(patient))]
            assert len(set(times)) == 1


def test_studies_of_one_patient_tell_less_than_as_many_patients():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    by_patient = bootstrap_interval(values, np.repeat(np.arange(20), 10).tolist())
    by_study = bootstrap_interval(values)
    assert by_patient[1] - by_patient[0] > 2 * (by_study[1] - by_study[0])


def test_a_ratio_of_sums_is_resampled_as_a_ratio():
    counts = np.random.default_rng(0).integers(1, 9, size=(30, 2)).astype(float)
    ratio = lambda sums: sums[:, 0] / sums[:, 1]  # noqa: E731
    low, high = bootstrap_interval(counts, None, ratio, seed=5, resamples=3000)
    slow = bootstrap_rows(lambda rows: counts[rows, 0].sum() / counts[rows, 1].sum(), 30, resamples=3000, seed=6)
    assert (low, high) == pytest.approx(slow, abs=0.03)


def test_coverage_is_near_its_level():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.normal(1.0, 1.0, size=40), resamples=300)
        inside += low <= 1.0 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_same_seed_same_interval_and_other_seed_another():
    assert bootstrap_interval(SCORES, PATIENTS, seed=1) == bootstrap_interval(SCORES, PATIENTS, seed=1)
    assert bootstrap_interval(SCORES, PATIENTS, seed=1) != bootstrap_interval(SCORES, PATIENTS, seed=2)


@pytest.mark.parametrize("values, groups", [([], None), ([0.5], None), ([0.5, 0.7], ["a", "a"]), ([np.nan] * 3, None)])
def test_too_little_to_tell_is_nan(values, groups):
    assert np.isnan(bootstrap_interval(values, groups)).all()


def test_paired_test_sees_a_small_steady_difference_and_no_noise():
    rng = np.random.default_rng(0)
    base = rng.normal(size=60)
    steady = paired_test(base + 0.1 + rng.normal(scale=0.05, size=60), base, seed=1)
    assert steady.p_value < 0.01 and 0.05 < steady.low < steady.difference < steady.high < 0.15
    noise = paired_test(base + rng.normal(scale=0.5, size=60), base)
    assert noise.low < noise.difference < noise.high
    assert paired_test(base, base).p_value == 1.0


def test_p_values_are_even_under_the_null():
    rng = np.random.default_rng(2)
    p_values = [paired_test(rng.normal(size=20), rng.normal(size=20), resamples=200).p_value for _ in range(200)]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10


def test_exact_permutation_by_patient():
    first, second, groups = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.0, 1.0, 5.0, 1.0]), ["a", "a", "b", "c"]
    gaps = [2.0, -1.0, 2.0]  # summed over each patient
    signs = np.array(np.meshgrid(*[[1, -1]] * 3)).reshape(3, -1)
    exact = np.mean(np.abs(gaps @ signs) >= abs(sum(gaps)))
    assert paired_test(first, second, groups, resamples=20_000).p_value == pytest.approx(exact, abs=0.02)


def test_a_corpus_metric_is_paired_through_its_sums():
    rng = np.random.default_rng(0)
    second = rng.integers(1, 9, size=(50, 2)).astype(float)
    first = second + [2.0, 0.0]
    tested = paired_test(first, second, statistic=lambda sums: sums[:, 0] / sums[:, 1])
    assert tested.difference == pytest.approx(100 / second[:, 1].sum()) and tested.p_value < 0.01


def test_unpaired_or_ungrouped_input_is_refused():
    with pytest.raises(ValueError, match="pair them"):
        paired_test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="2 groups .* for 3 rows"):
        bootstrap_interval([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(ValueError, match="need a statistic"):
        bootstrap_interval(np.ones((3, 2)))
