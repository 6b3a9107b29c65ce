"""Intervals and tests against known values, and against each other where two say the same."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tljax.metrics import significance
from tljax.metrics.printed import number, rounding


def test_numbers_as_printed():
    assert number("91.576 %") == pytest.approx(0.91576)
    assert number("93.5%") == pytest.approx(0.935)
    assert number("0.947712") == 0.947712
    assert number("5.57") == 5.57
    assert rounding("91.576 %") == pytest.approx(0.000005)
    assert rounding("0.982") == pytest.approx(0.0005)


def test_percentages_tell_the_size_of_their_test_set():
    """The first report's Tables 2 to 4 are whole images of 736; the fourth's Table 1 of 153."""
    assert significance.implied_size(["91.576 %", "91.033 %", "90.625 %", "86.141 %"]) == 736
    assert significance.implied_size(["0.947712", "0.810458", "0.8954", "0.954248", "0.751634"]) == 153
    assert significance.counts_of("91.576 %", 736) == 674
    assert significance.counts_of("91.5 %", 10) is None
    assert significance.implied_size(["50.0 %", "33.3 %"], least=2) == 6


def test_mcnemar_with_one_seed_is_the_exact_test():
    first, second = np.zeros((1, 40), bool), np.zeros((1, 40), bool)
    first[0, :12], second[0, 10:14] = True, True  # 10 images only the first got right, 2 only the second
    assert significance.mcnemar(first, second) == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))
    assert significance.mcnemar(second, first) == significance.mcnemar(first, second)
    assert significance.mcnemar(first, first) == 1.0


def test_mcnemar_with_seeds_agrees_with_one_seed_repeated():
    """Three equal seeds say no more than one."""
    rng = np.random.default_rng(0)
    first, second = rng.random((1, 300)) < 0.85, rng.random((1, 300)) < 0.78
    single = significance.mcnemar(first, second)
    assert significance.mcnemar(np.repeat(first, 3, 0), np.repeat(second, 3, 0)) == pytest.approx(single)
    assert significance.mcnemar(np.repeat(first, 3, 0), second) == pytest.approx(single)


def test_mcnemar_with_seeds_is_that_of_all_signs():
    """Held against every one of the 2^12 ways in which the coins of 12 images can fall."""
    rng = np.random.default_rng(3)
    first, second = rng.random((3, 12)) < 0.8, rng.random((3, 12)) < 0.5
    difference = first.sum(0) - second.sum(0)
    sums = [np.dot(signs, difference) for signs in itertools.product((-1, 1), repeat=12)]
    expected = np.mean(np.abs(sums) >= abs(difference.sum()))
    assert significance.mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_is_right_about_noise():
    """Rows of equal skill differ 'significantly' in about one of twenty comparisons."""
    rng = np.random.default_rng(1)
    found = [significance.mcnemar(rng.random((2, 200)) < 0.8, rng.random((2, 200)) < 0.8) < 0.05 for _ in range(100)]
    assert sum(found) <= 12


def test_over_seeds_alone_it_is_students_paired_test():
    first, second = np.array([0.8, 0.84, 0.9]), np.array([0.78, 0.83, 0.85])
    found, expected = significance.paired(first - second, 0.0), stats.ttest_rel(first, second)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-3)
    assert found.interval == pytest.approx(expected.confidence_interval(0.95), rel=1e-3)
    two_sided = stats.ttest_1samp(first - second, 0.05).pvalue
    assert found.p_within(0.05) == pytest.approx(two_sided / 2, rel=1e-3)


def test_over_images_alone_it_is_normal():
    found = significance.Difference(0.03, 0.0, 0.01**2, 5)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(3))
    assert found.interval == pytest.approx((0.03 - 0.0196, 0.03 + 0.0196), abs=1e-5)


def test_both_noises_are_those_of_their_sum():
    """Held against draws of Student's t and a normal variable."""
    rng = np.random.default_rng(0)
    drawn = 0.8 * rng.standard_t(2, 200_000) + 0.6 * rng.standard_normal(200_000)
    found = significance.Difference(3.0, 0.64, 0.36, 3)
    assert found.tail(3.0) == pytest.approx(np.mean(drawn >= 3.0), rel=0.02)
    assert found.tail(-3.0) == pytest.approx(np.mean(drawn >= -3.0), rel=0.02)
    assert found.p_beyond(2.0) == pytest.approx(np.mean(np.abs(drawn + 2.0) >= 3.0), rel=0.02)


def test_noise_that_was_not_seen_is_not_known():
    found = significance.paired([0.25, 0.25, 0.25], 0.0)
    assert found.p_value == 1.0
    assert found.interval is None


def test_variance_over_images_is_what_seeds_share():
    """The same answers for every seed: all of it. Luck of single runs is in the variance over seeds already."""
    rng = np.random.default_rng(0)
    first, second = rng.random((1, 400)) < 0.85, rng.random((1, 400)) < 0.8
    single = significance.variance_over_images(first, second)
    plain = np.var(first.astype(float) - second, ddof=1) / 400
    assert single == pytest.approx(plain, rel=0.03)
    assert significance.variance_over_images(np.repeat(first, 3, 0), np.repeat(second, 3, 0)) == pytest.approx(single)
    luck = significance.variance_over_images(rng.random((3, 400)) < 0.85, rng.random((3, 400)) < 0.8)
    assert luck < plain / 5
    assert significance.variance_over_images(first, first) > 0


def test_a_published_run_has_the_noise_of_a_run():
    """Table VI's SGD: three runs between 70 and 75%, published 66.08%."""
    runs = 0.7249 + 0.02576 * np.array([-1, 0, 1])
    expected = 2 * stats.t.sf(0.0641 / (0.02576 * np.sqrt(4 / 3)), 2)
    found = significance.one_more_run(runs, 0.6608, 0.0)
    assert found.p_value == pytest.approx(expected, rel=1e-3)
    assert found.p_value == pytest.approx(0.164, abs=0.001)
    assert significance.one_more_run(runs, 0.6608, 0.01**2).p_value > found.p_value
    assert significance.one_more_run(runs[:1], 0.6608, 0.01**2) is None


def test_holm_by_hand():
    values = {("a", "b"): 0.01, ("a", "c"): 0.04, ("b", "c"): 0.03}
    assert significance.holm(values) == pytest.approx({("a", "b"): 0.03, ("a", "c"): 0.06, ("b", "c"): 0.06})
    assert significance.holm({}) == {}


def test_two_proportions_is_fishers():
    assert significance.two_proportions(674, 736, 634, 736) == pytest.approx(
        stats.fisher_exact([[674, 62], [634, 102]]).pvalue
    )


def test_interval_of_a_mean():
    low, high = significance.mean_interval([0.9, 0.92, 0.94])
    half = stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3)
    assert (low, high) == pytest.approx((0.92 - half, 0.92 + half))
    assert significance.mean_interval([0.9]) is None
