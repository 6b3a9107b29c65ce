"""What a teacher's answers to unlabeled images are taken for: probabilities, which of them count, as which labels.

Everything here is NumPy in double precision, over all images at once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import special

from tljax.core.errors import UserError
from tljax.metrics.calibration import log_probabilities

BINS = 10


def select(found: np.ndarray, how: str, *, share: float = 1.0, threshold: float = 0.95, seed: int = 0) -> np.ndarray:
    """Which images get their most probable class as a label.

    Args:
      found: logarithms of probabilities `[N, classes]`. The highest probability of a sure network is 1.0 in floating
        point for many images at once; what is left for the other classes tells them apart.
      how: 'all'; 'threshold': those whose highest probability reaches `threshold`; 'top': the `share` with the highest
        ones; 'top_per_class': that share of each class that was predicted.
      share: 0 to 1; a number of images is rounded to the nearest.
      threshold: 0 to 1.
      seed: of the order of images that are equally sure: the order of files may know their classes.

    Returns:
      Sorted rows, int `[n]`.

    Raises:
      UserError: for another name.
    """
    predicted, any_order = found.argmax(axis=1), np.random.default_rng(seed).permutation(len(found))
    unsure: Any = special.logsumexp(np.sort(found, axis=1)[:, :-1], axis=1)

    def top(rows: np.ndarray) -> np.ndarray:
        order = np.lexsort((any_order[rows], unsure[rows]))
        return rows[order[: int(share * len(rows) + 0.5)]]

    rules: dict[str, Callable[[], np.ndarray]] = {
        "all": lambda: np.arange(len(found)),
        "threshold": lambda: np.flatnonzero(found.max(axis=1) >= np.log(threshold)),
        "top": lambda: top(np.arange(len(found))),
        "top_per_class": lambda: np.concatenate([top(np.flatnonzero(predicted == c)) for c in range(found.shape[1])]),
    }
    if how not in rules:
        raise UserError(f"semi.select={how!r} is not one of {', '.join(rules)}")
    return np.sort(rules[how]())


def passed_on(teacher: np.ndarray, student: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """What became of a teacher's mistakes, on images that neither network was trained on.

    Args:
      teacher: logits `[N, outputs]`.
      student: likewise.
      truth: labels `[N]`.

    Returns:
      Counts: the teacher's mistakes; how many of them the student `repeated` with the same wrong class and how many it
      `mended`; and `new` ones, where the teacher is right.
    """
    said, says = (log_probabilities(logits).argmax(axis=1) for logits in (teacher, student))
    wrong = said != truth
    return {
        "mistakes": int(wrong.sum()),
        "repeated": int((wrong & (says == said)).sum()),
        "mended": int((wrong & (says == truth)).sum()),
        "new": int((~wrong & (says != truth)).sum()),
    }


def share_right(told: Mapping[str, Any]) -> float | None:
    """Which share of the labels that were given is right, of those that somebody knows; None where there are none.

    Args:
      told: `given` and `right`, and `known` where not all are known.
    """
    known = told.get("known", told.get("given"))
    return told["right"] / known if known else None


def tell(found: np.ndarray, chosen: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """What pseudo-labels were worth, by labels that nobody else may know.

    Args:
      found: logarithms of probabilities `[N, classes]`, of all unlabeled images.
      chosen: rows that were labeled, `[n]`.
      truth: their labels, `[N]`; below 0 where nobody knows them.
      classes: names.

    Returns:
      Counts, for result.json: given, of those with a label that is `known`, and right, in all and by the class that was
      given; and for each tenth of confidence
      how many images had it, how many of those were given a label, and how many would be right.
    """
    predicted, confidence = found.argmax(axis=1), np.exp(found.max(axis=1))
    right, confidence = predicted == truth, np.nan_to_num(confidence)  # of a network that diverged
    given = np.zeros(len(found), bool)
    given[chosen] = True
    tenth = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return {
        "unlabelled": len(found),  # result.json keeps the names that others read
        "given": int(given.sum()),
        "known": int((given & (truth >= 0)).sum()),
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
