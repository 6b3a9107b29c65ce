"""What a teacher's answers to unlabelled images are taken for: probabilities, which of them count, as which labels.

Everything here is NumPy in double precision, over all images at once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize, special

from tljax.errors import UserError

BINS = 10


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax `[N, classes]` of logits `[N, classes]` over a temperature; of one logit `[N, 1]` the two classes'."""
    logits = np.asarray(logits, np.float64) / temperature
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return special.softmax(logits, axis=1)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which logits `[N, outputs]` give labels `[N]` the highest likelihood (Guo et al. 2017).

    Between 1/20 and 20: where all are right the likelihood rises for ever as it falls.
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        found = probabilities(logits, float(np.exp(log_temperature)))[rows, labels]
        return -float(np.log(np.maximum(found, np.finfo(float).tiny)).mean())

    found: Any = optimize.minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def select(found: np.ndarray, how: str, *, share: float = 1.0, threshold: float = 0.95) -> np.ndarray:
    """Which images get their most probable class as a label; of equal confidence the first.

    Args:
      found: probabilities `[N, classes]`.
      how: 'all'; 'threshold': those whose highest probability reaches `threshold`; 'top': the `share` with the highest
        ones; 'top_per_class': that share of each class that was predicted.
      share: 0 to 1; a number of images is rounded to the nearest.
      threshold: 0 to 1.

    Returns:
      Sorted rows, int `[n]`.

    Raises:
      UserError: for another name.
    """
    confidence, predicted = found.max(axis=1), found.argmax(axis=1)

    def top(rows: np.ndarray) -> np.ndarray:
        order = np.argsort(-confidence[rows], kind="stable")
        return rows[order[: int(share * len(rows) + 0.5)]]

    rules: dict[str, Callable[[], np.ndarray]] = {
        "all": lambda: np.arange(len(found)),
        "threshold": lambda: np.flatnonzero(confidence >= threshold),
        "top": lambda: top(np.arange(len(found))),
        "top_per_class": lambda: np.concatenate([top(np.flatnonzero(predicted == c)) for c in range(found.shape[1])]),
    }
    if how not in rules:
        raise UserError(f"semi.select={how!r} is not one of {', '.join(rules)}")
    return np.sort(rules[how]())


def tell(found: np.ndarray, chosen: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """What pseudo-labels were worth, by labels that nobody else may know.

    Args:
      found: probabilities `[N, classes]` of all unlabelled images.
      chosen: rows that were labelled, `[n]`.
      truth: their labels, `[N]`.
      classes: names.

    Returns:
      Counts, for result.json: given and right, in all and by the class that was given; and for each tenth of confidence
      how many images had it, how many of those were given a label, and how many would be right.
    """
    predicted, confidence = found.argmax(axis=1), found.max(axis=1)
    right = predicted == truth
    given = np.zeros(len(found), bool)
    given[chosen] = True
    tenth = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return {
        "unlabelled": len(found),
        "given": int(given.sum()),
        "right": int((right & given).sum()),
        "by_class": {
            name: {
                "given": int((given & (predicted == c)).sum()),
                "right": int((given & right & (predicted == c)).sum()),
                "images": int((truth == c).sum()),
            }
            for c, name in enumerate(classes)
        },
        "confidence": [
            {
                "from": b / BINS,
                "images": int((tenth == b).sum()),
                "given": int((given & (tenth == b)).sum()),
                "right": int((right & (tenth == b)).sum()),
            }
            for b in range(BINS)
        ],
    }
