"""What logits are worth beyond their accuracy: how sure they are for how often right, and how right by class."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tljax.losses import predictions, wilson_interval
from tljax.semi.labelling import fit_temperature, log_probabilities

BINS = 15
FITTED = ("temperature", "fit_on", "fit_images", "fit_mistakes", "raw")
"""Of what result.json says under `scaled`, what is of the fit; the others are of the images that are scored."""
_DRAWS = 1000


def reliability(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> dict[str, Any]:
    """The expected calibration error of logits over a temperature, and the bins it is made of.

    ECE = sum over bins b of n_b / n |accuracy_b - mean confidence_b|, with 15 bins of equal width, ((b-1)/15, b/15], by
    the probability of the predicted class (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3). Of few
    images it is above zero for a network that is calibrated, too; what such a one would show is drawn with it
    (consistency resampling, Broecker and Smith 2007).

    Args:
      logits: finite, `[N, outputs]`.
      labels: int `[N]`.
      temperature: positive.

    Returns:
      For result.json: `ece`; `ece_if_calibrated`, its mean and 97.5% quantile had each bin been right as often as it is
      sure; `bins`.
    """
    confidence = np.exp(log_probabilities(logits, temperature).max(axis=1))
    right, count = predictions(logits) == labels, len(labels)
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    seen = np.bincount(place, minlength=BINS)
    correct, sure = (np.bincount(place, values, BINS) for values in (right, confidence))
    mean = np.minimum(sure / np.maximum(seen, 1), 1.0)
    drawn = np.random.default_rng(0).binomial(seen, mean, (_DRAWS, BINS))
    by_chance = np.abs(drawn - sure).sum(axis=1) / count
    return {
        "ece": float(np.abs(correct - sure).sum() / count),
        "ece_if_calibrated": {"mean": float(by_chance.mean()), "upper": float(np.quantile(by_chance, 0.975))},
        "bins": [
            {"from": b / BINS, "to": (b + 1) / BINS, "confidence": float(mean[b]) if seen[b] else None}
            | _share(int(correct[b]), int(seen[b]))
            for b in range(BINS)
        ],
    }


def calibration(logits: dict[str, np.ndarray], labels: dict[str, np.ndarray], *, chosen: bool) -> dict[str, Any]:
    """How far the confidence of a network can be believed, and how far after temperature scaling.

    Args:
      logits: by split, `[N, outputs]`.
      labels: of `val` and `test`, whichever there are, `[N]`.
      chosen: whether validation also chose the epoch.

    Returns:
      By split, `reliability`, and under `scaled` that at the temperature which validation's logits give, the numbers of
      images and of mistakes that it was fitted on, and `raw`, why it is 1 where scaling would not help, else empty;
      None for a split with logits that are not finite.
    """
    sane = {split: bool(np.isfinite(logits[split]).all()) for split in labels}
    fit, scaled = "validation, which also chose the epoch" if chosen else "validation", {}
    if sane.get("val"):
        fitted = fit_temperature(logits["val"], labels["val"])
        scaled = {
            split: fitted.as_dict() | {"fit_on": fit} | reliability(logits[split], labels[split], fitted.temperature)
            for split in labels
            if sane[split]
        }
    return {
        split: reliability(logits[split], labels[split]) | {"scaled": scaled.get(split)} if sane[split] else None
        for split in labels
    }


def chose_epoch(result: Mapping[str, Any]) -> bool:
    """Whether the validation images of a result also chose its epoch, so that accuracy on them is high by that choice.

    Args:
      result: of a single run or a member; of a version that did not say so, by its config.
    """
    found = result.get("validation")
    if not found or "chose_epoch" in found:
        return bool(found and found["chose_epoch"])
    return result["config"]["select"] != "last"


def images_in_words(result: Mapping[str, Any], split: str) -> str:
    """'test', 'validation', or 'validation (these images chose the epoch)': what an accuracy is of.

    Also how many of the images an earlier run trained on, whose weights this one began from.

    Args:
      result: of a single run or a member.
      split: validation or test.
    """
    doubts = ["these images chose the epoch"] if split == "validation" and chose_epoch(result) else []
    if before := result.get("trained_before", {}).get(split, {}).get("images"):
        doubts.append(f"an earlier run trained on {before:,} of these images")
    return f"{split} ({'; '.join(doubts)})" if doubts else split


def by_class(logits: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """Of the images of each class, how many were told right."""
    right = predictions(logits) == labels
    return {name: _share(int(right[labels == c].sum()), int((labels == c).sum())) for c, name in enumerate(classes)}


def confusion(answers: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Images by true class (rows) and answer (columns), int64 `[classes, outputs]`.

    The columns beyond the classes, up to the last that there is, are answers of a head with more outputs than classes.
    """
    counts = np.zeros((classes, max(classes, 1 + int(answers.max()))), np.int64)
    np.add.at(counts, (labels, answers), 1)
    return counts


def _share(correct: int, seen: int) -> dict[str, Any]:
    return {
        "accuracy": correct / seen if seen else None, "correct": correct, "seen": seen,
        "interval95": list(wilson_interval(correct, seen)),
    }  # fmt: skip
