"""How far probabilities can be believed, and the temperature that mends them."""

import dataclasses
from typing import Any

import numpy as np
from scipy import optimize, special

from tljax.metrics.accuracy import predictions, share_of

BINS = 15
FITTED = ("temperature", "fit_on", "fit_images", "fit_mistakes", "raw")
"""Of what result.json says under `scaled`, what is of the fit; the others are of the images that are scored."""
_DRAWS = 1000
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
            | share_of(int(correct[b]), int(seen[b]))
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
