"""What a teacher's answers to unlabelled images are taken for: probabilities, which of them count, as which labels.

Everything here is NumPy in double precision, over all images at once.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import optimize, special

from tljax.errors import UserError

BINS = 10
# Chosen by benchmarks/calibration.py on other draws than those whose figures are told.
PRIOR = 0.5
TEMPERATURES = np.exp(np.linspace(-np.log(20), np.log(20), 61))  # the middle one is 1


def log_probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Of logits `[N, classes]` over a temperature, `[N, classes]`; of one logit `[N, 1]` the two classes'."""
    logits = np.asarray(logits, np.float64) / temperature
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return special.log_softmax(logits, axis=1)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """What logits are divided by, so that their probabilities can be believed.

    Attributes:
      temperature: above 0; 1 leaves logits as they are.
      fit_images: that it was fitted on.
      fit_mistakes: of them, how many the network has wrong.
      raw: why the logits are left as they are, where scaling would not help; else empty.
    """

    temperature: float
    fit_images: int
    fit_mistakes: int
    raw: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For result.json."""
        return dataclasses.asdict(self)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> Temperature:
    """The most probable temperature of logits `[N, outputs]` with labels `[N]` (Guo et al. 2017), if scaling helps.

    Before any image is seen, log T is taken for normal around 0 with deviation `PRIOR`. The likelihood is a product
    over images, in which one that is surely right has next to nothing to say: few images, or few mistakes among them,
    leave T near 1. Scaling has to help images that it was not fitted on: each is scored at the temperature of all
    others, and the mean gain has to be above its standard error. Below 1, T takes two mistakes: without any the
    likelihood rises for ever as T falls, and of a single one nothing is left where that is left out.

    Returns:
      A temperature from 1/20 to 20; 1, with the reason, where it does not help.
    """
    rows, count = np.arange(len(labels)), len(labels)
    losses = np.stack([-log_probabilities(logits, t)[rows, labels] for t in TEMPERATURES], axis=1)  # [N, temperatures]
    mistakes = int((log_probabilities(logits).argmax(axis=1) != labels).sum())

    def raw(reason: str) -> Temperature:
        return Temperature(1.0, count, mistakes, reason)

    if not mistakes:
        return raw(f"all {count:,} validation images are right, which does not tell how sure to be")
    cost, one = losses.sum(axis=0) + _prior(TEMPERATURES), len(TEMPERATURES) // 2
    if mistakes == 1 and cost.argmin() < one:
        return raw(f"one of {count:,} validation images is wrong, which does not tell how much surer to be")
    gain = losses[:, one] - losses[rows, (cost - losses).argmin(axis=1)]
    if count < 2 or gain.mean() <= gain.std(ddof=1) / np.sqrt(count):
        return raw(f"fitted on {count:,} validation images, {mistakes:,} of them wrong, it does not help others")
    near = TEMPERATURES[np.clip(cost.argmin() + np.array([-1, 1]), 0, len(TEMPERATURES) - 1)]

    def exact(log_t: float) -> float:
        return -float(log_probabilities(logits, np.exp(log_t))[rows, labels].sum()) + float(_prior(np.exp(log_t)))

    found: Any = optimize.minimize_scalar(exact, bounds=tuple(np.log(near)), method="bounded")
    return Temperature(float(np.exp(found.x)), count, mistakes)


def _prior(temperature: Any) -> Any:
    return np.log(temperature) ** 2 / (2 * PRIOR**2)


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
      found: logarithms of probabilities `[N, classes]`, of all unlabelled images.
      chosen: rows that were labelled, `[n]`.
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
        "unlabelled": len(found),
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
