"""How sure one can be: intervals, paired tests, and what a printed percentage says about its test set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tljax.studies.study import number, rounding

LEVEL = 0.05
FLIPS = 20_000  # draws of a permutation test: its p-values are good to 0.0015 near the level


def mean_interval(values: Sequence[float], *, share: bool = False) -> tuple[float, float] | None:
    """Student's 95% interval of a mean over seeds, of shares cut to 0 to 1; None of fewer than two."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    low, high = float(np.mean(values) - half), float(np.mean(values) + half)
    return (max(low, 0.0), min(high, 1.0)) if share else (low, high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The p-value that two rows are equally good on the same test images (McNemar 1947, exact, two-sided).

    Args:
      first: bool `[seeds, N]`, which images a row got right.
      second: the same of another row, of as many images; the numbers of seeds may differ.

    Returns:
      With one seed each, McNemar's exact test. With several, its generalisation: each image's difference between the
      rows' shares of right answers keeps or changes its sign at random. It speaks about other images of this kind; what
      other seeds would give is what the intervals over seeds are for.
    """
    difference = first.mean(0) - second.mean(0)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    if len(first) == len(second) == 1:
        return float(stats.binomtest(int((difference > 0).sum()), len(difference)).pvalue)
    signs = np.random.default_rng(0).integers(0, 2, (FLIPS, len(difference)), dtype=np.int8) * 2 - 1
    extreme = np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9
    return float((extreme.sum() + 1) / (FLIPS + 1))


def two_proportions(correct: int, seen: int, other_correct: int, other_seen: int) -> float:
    """The p-value that two rows on different images are equally good (Fisher's exact test, two-sided)."""
    table = [[correct, seen - correct], [other_correct, other_seen - other_correct]]
    found: Any = stats.fisher_exact(table)
    return float(found.pvalue)


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
