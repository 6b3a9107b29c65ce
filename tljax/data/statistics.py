"""Mean and standard deviation of the colors of a set of images, in one pass."""

import numpy as np

from tljax.data.pixels import Pixels


def combine(
    first: tuple[int, np.ndarray, np.ndarray], second: tuple[int, np.ndarray, np.ndarray]
) -> tuple[int, np.ndarray, np.ndarray]:
    """(count, mean, variance) of two sets put together (Chan et al. 1979; formula (1) of the third report)."""
    (n, mean_n, var_n), (m, mean_m, var_m) = first, second
    share = m / (n + m)
    mean = (1 - share) * mean_n + share * mean_m
    return n + m, mean, (1 - share) * var_n + share * var_m + share * (1 - share) * (mean_n - mean_m) ** 2


def mean_and_std(pixels: Pixels, indices: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, values 0 to 1, every pixel of every image counting alike.

    Args:
      pixels: the decoded images, as they are kept.
      indices: which of them; those that could not be read are passed over.
    """
    total = (0, np.zeros(3), np.zeros(3))
    for index in np.asarray(indices)[pixels.held[indices]]:
        values = pixels.image(int(index)).reshape(-1, 3) / 255.0
        total = combine(total, (len(values), values.mean(0), values.var(0)))
    return tuple(total[1].tolist()), tuple(np.sqrt(total[2]).tolist())
