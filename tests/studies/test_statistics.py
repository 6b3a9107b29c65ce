"""Intervals and tests against known values, and against each other where two say the same."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tljax.studies import statistics
from tljax.studies.study import number, rounding


def test_numbers_as_printed():
    assert number("91.576 %") == pytest.approx(0.91576)
    assert number("93.5%") == pytest.approx(0.935)
    assert number("0.947712") == 0.947712
    assert number("5.57") == 5.57
    assert rounding("91.576 %") == pytest.approx(0.000005)
    assert rounding("0.982") == pytest.approx(0.0005)


def test_percentages_tell_the_size_of_their_test_set():
    """The first report's Tables 2 to 4 are whole images of 736; the fourth's Table 1 of 153."""
    assert statistics.implied_size(["91.576 %", "91.033 %", "90.625 %", "86.141 %"]) == 736
    assert statistics.implied_size(["0.947712", "0.810458", "0.8954", "0.954248", "0.751634"]) == 153
    assert statistics.counts_of("91.576 %", 736) == 674
    assert statistics.counts_of("91.5 %", 10) is None
    assert statistics.implied_size(["50.0 %", "33.3 %"], least=2) == 6


def test_mcnemar_with_one_seed_is_the_exact_test():
    first, second = np.zeros((1, 40), bool), np.zeros((1, 40), bool)
    first[0, :12], second[0, 10:14] = True, True  # 10 images only the first got right, 2 only the second
    assert statistics.mcnemar(first, second) == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))
    assert statistics.mcnemar(second, first) == statistics.mcnemar(first, second)
    assert statistics.mcnemar(first, first) == 1.0


def test_mcnemar_with_seeds_agrees_with_one_seed_repeated():
    """Three equal seeds say no more than one."""
    rng = np.random.default_rng(0)
    first, second = rng.random((1, 300)) < 0.85, rng.random((1, 300)) < 0.78
    single = statistics.mcnemar(first, second)
    assert statistics.mcnemar(np.repeat(first, 3, 0), np.repeat(second, 3, 0)) == pytest.approx(single)
    assert statistics.mcnemar(np.repeat(first, 3, 0), second) == pytest.approx(single)


def test_mcnemar_with_seeds_is_that_of_all_signs():
    """Held against every one of the 2^12 ways in which the coins of 12 images can fall."""
    rng = np.random.default_rng(3)
    first, second = rng.random((3, 12)) < 0.8, rng.random((3, 12)) < 0.5
    difference = first.sum(0) - second.sum(0)
    sums = [np.dot(signs, difference) for signs in itertools.product((-1, 1), repeat=12)]
    expected = np.mean(np.abs(sums) >= abs(difference.sum()))
    assert statistics.mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_is_right_about_noise():
    """Rows of equal skill differ 'significantly' in about one of twenty comparisons."""
    rng = np.random.default_rng(1)
    found = [statistics.mcnemar(rng.random((2, 200)) < 0.8, rng.random((2, 200)) < 0.8) < 0.05 for _ in range(100)]
    assert sum(found) <= 12


def test_over_seeds_is_students_paired_test():
    first, second = {0: 0.8, 1: 0.84, 2: 0.9}, {2: 0.85, 1: 0.83, 0: 0.78, 3: 0.1}
    expected = stats.ttest_rel([0.8, 0.84, 0.9], [0.78, 0.83, 0.85]).pvalue
    assert statistics.paired_over_seeds(first, second) == pytest.approx(expected)
    assert statistics.paired_over_seeds(first, {0: 0.7}) is None
    assert statistics.paired_over_seeds(first, first) == 1.0
    assert statistics.paired_over_seeds({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5}) is None


def test_holm_by_hand():
    values = {("a", "b"): 0.01, ("a", "c"): 0.04, ("b", "c"): 0.03}
    assert statistics.holm(values) == pytest.approx({("a", "b"): 0.03, ("a", "c"): 0.06, ("b", "c"): 0.06})
    assert statistics.holm({}) == {}


def test_two_proportions_is_fishers():
    assert statistics.two_proportions(674, 736, 634, 736) == pytest.approx(
        stats.fisher_exact([[674, 62], [634, 102]]).pvalue
    )


def test_interval_of_a_mean():
    low, high = statistics.mean_interval([0.9, 0.92, 0.94])
    half = stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3)
    assert (low, high) == pytest.approx((0.92 - half, 0.92 + half))
    assert statistics.mean_interval([0.9]) is None
