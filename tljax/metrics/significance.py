"""How sure one can be: intervals, paired tests, and what a printed percentage says about its test set."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import optimize, special, stats

from tljax.metrics.printed import number, rounding

LEVEL = 0.05
Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference, and how far noise alone moves it.

    Runs differ by their seeds, of which few are known, and by the test images, of which many are. The statistic is
    Behrens and Fisher's: `(mean - truth) ~ sqrt(of_seeds) T + sqrt(of_images) N(0, 1)`, with Student's T of
    `seeds - 1` degrees of freedom. Its error rate is at most the stated one whatever the share of the two variances
    (Robinson 1976); Welch's approximation goes to 14% where there are two seeds.

    Attributes:
      mean: of the seeds' differences.
      of_seeds: variance of `mean` over seeds, estimated from `seeds` of them; 0 of one, of which it is not known.
      of_images: variance of `mean` over test images; 0 where a measure has none.
      seeds: how many.
    """

    mean: float
    of_seeds: float
    of_images: float
    seeds: int

    def tail(self, distance: float) -> float:
        """The chance that noise moves the mean up by `distance` or more; of one seed, noise of images alone."""
        if not self._noise:
            return 0.5
        if self.seeds < 2:
            return float(special.ndtr(-distance / np.sqrt(self.of_images)))
        spread, weights = _chi_square(self.seeds - 1)
        return float(weights @ special.ndtr(-distance / np.sqrt(self.of_seeds / spread + self.of_images)))

    @property
    def _noise(self) -> float:
        """Its deviation; 0 where none was seen, which is then not known rather than absent."""
        return float(np.sqrt(self.of_seeds + self.of_images)) if self.of_seeds + self.of_images > 1e-18 else 0.0

    @property
    def p_value(self) -> float:
        """That there is no difference, two-sided."""
        return 2 * self.tail(abs(self.mean))

    def p_beyond(self, margin: float) -> float:
        """That the truth is at most `margin` from 0, on either side."""
        return min(1.0, self.tail(abs(self.mean) - margin) + self.tail(abs(self.mean) + margin))

    def p_within(self, margin: float) -> float:
        """That the truth is `margin` or more from 0: two one-sided tests (Schuirmann 1987)."""
        return self.tail(margin - abs(self.mean))

    @functools.cached_property
    def interval(self) -> tuple[float, float] | None:
        """95%; None where no noise was seen."""
        if not self._noise:
            return None
        root: Any = optimize.brentq(lambda x: self.tail(x) - LEVEL / 2, 0.0, 100 * self._noise)
        half = float(root)
        return self.mean - half, self.mean + half


@functools.cache
def _chi_square(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of a chi-square over its degrees of freedom, and weights under which a sum is a mean over it."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    nodes = (nodes + 1) / 2  # their fourth powers lie close where chi-square is small: it makes the heavy tails
    return stats.chi2.ppf(nodes**4, freedom) / freedom, weights * 2 * nodes**3


def paired(values: Sequence[float] | np.ndarray, of_images: float) -> Difference:
    """The difference of two rows over seeds.

    Args:
      values: a row's measure minus another's, of every seed that both have; at least one.
      of_images: variance of their mean over test images.
    """
    seeds = len(values)
    of_seeds = float(np.var(values, ddof=1)) / seeds if seeds > 1 else 0.0
    return Difference(float(np.mean(values)), of_seeds, of_images, seeds)


def variance_over_images(first: np.ndarray, second: np.ndarray) -> float:
    """Variance, over test images, of the mean difference of two rows' accuracies over seeds, beside that over seeds.

    Args:
      first: bool `[seeds, N]`, which images a row got right.
      second: the same of another row.

    Returns:
      That of the images' mean differences, less the luck of single runs with single images, which the variance over
      seeds has in it (two-way analysis of variance; Obuchowski and Rockette 1995). Each row gets one image more that it
      alone got right: where few images tell rows apart, a normal interval is else too narrow (Bonett and Price 2012).
      Never 0.
    """
    each = first.astype(np.float64) - second
    seeds, images = each.shape
    mean = each.mean(0)
    more = 2 / (images + 1) / (images + 2)
    luck = 0.0
    if seeds > 1:
        rest = each - mean - each.mean(1, keepdims=True) + each.mean()
        luck = float(np.sum(rest**2)) / (seeds - 1) / max(images - 1, 1) / (seeds * images)
    return max(float(np.var(np.append(mean, (1.0, -1.0)), ddof=1)) / (images + 2) - luck, more)


def binomial_variance(accuracy: float, seen: int) -> float:
    """Variance of an accuracy over test images; never 0, by two right and two wrong ones more (Agresti, Coull 1998)."""
    share = (accuracy * seen + 2) / (seen + 4)
    return share * (1 - share) / (seen + 4)


def one_more_run(runs: Sequence[float] | np.ndarray, published: float, of_images: float) -> Difference | None:
    """The mean of our runs minus a published number, which is of one run of which no other is known.

    Its seed's noise is that of ours, so that the interval is one of prediction: `sqrt(1 + 1/n)` deviations wide
    instead of `sqrt(1/n)`.

    Args:
      runs: our accuracies by seed.
      published: theirs.
      of_images: variance of the difference over test images; 0 where these are the same.

    Returns:
      None of fewer than two runs, whose noise is not known.
    """
    if len(runs) < 2:
        return None
    of_seeds = float(np.var(runs, ddof=1)) * (1 + 1 / len(runs))
    return Difference(float(np.mean(runs)) - published, of_seeds, of_images, len(runs))


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
      With one seed each, McNemar's exact test. With several, its generalization: the sign of each image's difference
      between the rows' numbers of right answers is as good as a coin's. It speaks about these networks and other
      images of this kind; for what other seeds would give see `Difference`.
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


def holm(values: Mapping[Key, float]) -> dict[Key, float]:
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
