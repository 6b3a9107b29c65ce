"""How sure one can be: intervals, paired tests, and what a printed percentage says about its test set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tljax.studies.study import number, rounding

LEVEL = 0.05


def mean_interval(values: Sequence[float], *, share: bool = False) -> tuple[float, float] | None:
    """Student's 95% interval of a mean over seeds, of shares cut to 0 to 1; None of fewer than two."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    low, high = float(np.mean(values) - half), float(np.mean(values) + half)
    return (max(low, 0.0), min(high, 1.0)) if share else (low, high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The p-value that two rows are equally good on the same images (McNemar 1947, exact, two-sided).

    Args:
      first: bool `[seeds, N]`, which images a row got right.
      second: the same of another row, of as many images; the numbers of seeds may differ.

    Returns:
      With one seed each, McNemar's exact test. With several, its generalisation: the sign of each image's difference
      between the rows' numbers of right answers is as good as a coin's. It speaks about other images of this kind; what
      other seeds would give is what the intervals over seeds are for.
    """
    difference = first.sum(0) * len(second) - second.sum(0) * len(first)
    difference = difference // max(np.gcd.reduce(difference), 1)
    sizes, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    chances = np.ones(1)  # of the sums of the images so far, from the smallest to the largest
    for size, count in zip(sizes, counts, strict=True):
        spread = np.zeros(2 * size * count + 1)  # of `count` coins of +-`size`
        spread[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, spread)
    largest = len(chances) // 2
    extreme = np.abs(np.arange(-largest, largest + 1)) >= abs(int(difference.sum()))
    return float(min(chances[extreme].sum(), 1.0))


def paired_over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """The p-value that two rows are equally good over seeds (Student's paired t-test, two-sided).

    Args:
      first: a row's accuracy by seed.
      second: another's.

    Returns:
      None where fewer than two seeds are common, or all differ alike: then the noise of seeds is not known.
    """
    common = sorted(first.keys() & second.keys())
    if len(common) < 2:
        return None
    difference = np.array([first[seed] - second[seed] for seed in common])
    if np.ptp(difference) < 1e-12:
        return None if abs(difference[0]) > 1e-12 else 1.0
    found: Any = stats.ttest_1samp(difference, 0.0)
    return float(found.pvalue)


def two_proportions(correct: int, seen: int, other_correct: int, other_seen: int) -> float:
    """The p-value that two rows on different images are equally good (Fisher's exact test, two-sided)."""
    table = [[correct, seen - correct], [other_correct, other_seen - other_correct]]
    found: Any = stats.fisher_exact(table)
    return float(found.pvalue)


def less_often_right(
    first: np.ndarray, first_labels: np.ndarray, second: np.ndarray, second_labels: np.ndarray
) -> float:
    """The p-value that the second images are no harder than the first, class by class (Birch 1964, exact, one-sided).

    Given how many of a class are right in all, how many of these are among the first is hypergeometric; the sum over
    classes is looked at, so that other shares of the classes are no difference.

    Args:
      first, second: bool `[N]`, `[M]`, which images were told right.
      first_labels, second_labels: their classes, int `[N]`, `[M]`.
    """
    chances, least, sure = np.ones(1), 0, int(first.sum())
    for label in np.unique(first_labels):
        mine, others = first[first_labels == label], second[second_labels == label]
        right = int(mine.sum() + others.sum())
        low, high = max(0, right - len(others)), min(len(mine), right)
        found = stats.hypergeom.pmf(np.arange(low, high + 1), len(mine) + len(others), right, len(mine))
        chances, least = np.convolve(chances, found), least + low
    return float(min(chances[sure - least :].sum(), 1.0))


def holm(values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """P-values of many comparisons, corrected so that one false finding among all of them stays rare (Holm 1979)."""
    corrected, least = {}, 0.0
    for rank, key in enumerate(sorted(values, key=lambda key: values[key])):
        least = max(least, min(1.0, (len(values) - rank) * values[key]))
        corrected[key] = least
    return {key: corrected[key] for key in values}


def counts_of(text: str, seen: int) -> int | None:
    """How many of `seen` images a printed accuracy is; None if no whole number gives what is printed."""
    correct = round(number(text) * seen)
    return correct if abs(correct / seen - number(text)) <= rounding(text) * 1.001 else None


def implied_size(texts: Sequence[str], *, least: int = 10, most: int = 10_000) -> int | None:
    """The smallest test set on which all printed accuracies are whole numbers of images; None up to `most`."""
    sizes = (n for n in range(least, most + 1) if all(counts_of(text, n) is not None for text in texts))
    return next(sizes, None)
