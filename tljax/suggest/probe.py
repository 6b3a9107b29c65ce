"""What fixed features are worth for labels: a cross-validated linear probe, LogME, labels that are likely wrong."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Of the penalty on weights, for features of variance 1 and a loss that is a mean over images."""


@dataclasses.dataclass(frozen=True)
class Probed:
    """What cross-validation says of features.

    Attributes:
      probabilities: float64 `[N, classes]`, of each image by a probe that did not see it.
      labels: int `[N]`.
      strength: of the penalty, the one with the lowest loss.
      losses: mean negative log-likelihood by strength.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    strength: float
    losses: dict[float, float]

    @property
    def right(self) -> np.ndarray:
        """Which images were classified right, bool `[N]`."""
        return self.probabilities.argmax(1) == self.labels

    @property
    def loss(self) -> float:
        return self.losses[self.strength]


def make_folds(labels: np.ndarray, count: int, *, seed: int = 0, groups: np.ndarray | None = None) -> np.ndarray:
    """The fold of each image, `[N]`: each class is spread evenly.

    Args:
      labels: int `[N]`.
      count: of folds.
      seed: of the order within a class.
      groups: what must not be divided, such as copies of one picture, by number `[N]`.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), int)
    folds[order] = np.arange(len(labels)) % count
    if groups is not None:
        _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
        folds = folds[first[inverse]]
    return folds


def cross_validate(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, *, strengths: Sequence[float] = STRENGTHS
) -> Probed:
    """Logistic regression over several classes, its penalty chosen by the loss on what was left out.

    Args:
      features: `[N, D]`.
      labels: int `[N]`, from 0, each class at least once.
      folds: of each image, from 0.
      strengths: of the penalty.

    Returns:
      The choice among a handful of strengths by the images that are then reported on flatters all features alike.
    """
    strengths = sorted(strengths, reverse=True)  # each begins where the stronger one ended
    classes = int(labels.max()) + 1
    found = np.zeros((len(strengths), len(labels), classes))
    for fold in np.unique(folds):
        out = folds == fold
        train, held = standardised(features[~out], features[out])
        weights = np.zeros((train.shape[1] + 1, classes))
        for i, strength in enumerate(strengths):
            weights = fit(train, labels[~out], classes, strength, start=weights)
            found[i, out] = special.softmax(held @ weights[:-1] + weights[-1], axis=1)
    losses = -np.log(np.maximum(found[:, np.arange(len(labels)), labels], 1e-12)).mean(1)
    best = int(losses.argmin())
    return Probed(found[best], labels, strengths[best], dict(zip(strengths, losses.tolist(), strict=True)))


def held_out(features: np.ndarray, labels: np.ndarray, others: np.ndarray, *, strength: float) -> np.ndarray:
    """What a probe of all of some images says of others: the most probable class of each, int `[M]`.

    Args:
      features: `[N, D]`.
      labels: int `[N]`, from 0, each class at least once.
      others: `[M, D]`.
      strength: of the penalty.
    """
    train, held = standardised(features, others)
    classes = int(labels.max()) + 1
    weights = fit(train, labels, classes, strength, start=np.zeros((train.shape[1] + 1, classes)))
    return (held @ weights[:-1] + weights[-1]).argmax(1)


def standardised(train: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the training part's mean and deviation, float64; of more features than images, the coordinates in the
    space that the training part spans: the penalized solution lies in it (the representer theorem)."""
    train, held = train.astype(np.float64), held.astype(np.float64)
    mean, deviation = train.mean(0), train.std(0)
    deviation[deviation < 1e-8 * max(deviation.max(), 1e-30)] = np.inf
    train, held = (train - mean) / deviation, (held - mean) / deviation
    if train.shape[1] > len(train):
        basis = np.linalg.qr(train.T)[0]
        train, held = train @ basis, held @ basis
    return train, held


def fit(features: np.ndarray, labels: np.ndarray, classes: int, strength: float, *, start: np.ndarray) -> np.ndarray:
    """Minimizes mean cross-entropy + strength / 2 |W|^2, a convex function, by L-BFGS; biases are free.

    Returns:
      `[D + 1, classes]`, the last row the biases.
    """
    truth = np.eye(classes)[labels]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape)
        logits = features @ weights[:-1] + weights[-1]
        loss = (special.logsumexp(logits, axis=1) - (logits * truth).sum(1)).mean()
        wrong = (special.softmax(logits, axis=1) - truth) / len(labels)
        gradient = np.concatenate([features.T @ wrong + strength * weights[:-1], wrong.sum(0)[None]])
        return float(loss + strength / 2 * np.square(weights[:-1]).sum()), gradient.ravel()

    found: Any = optimize.minimize(
        value, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "maxcor": 20, "gtol": 1e-5}
    )
    return found.x.reshape(start.shape)


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """The logarithm of the maximum evidence per image, mean over classes (You et al. 2021, "LogME: Practical
    Assessment of Pre-trained Models for Transfer Learning", algorithm 1).

    Each class against the others is a linear regression with a Gaussian prior of precision alpha on the weights and
    noise of precision beta; both are raised to where the evidence is highest. In the coordinates of the singular
    vectors the best beta of a ratio alpha / beta is a formula, so the highest is looked for along the ratio alone: the
    paper's fixed point is the same place, but comes to it ever slower where the evidence is flat.

    Args:
      features: `[N, D]`.
      labels: int `[N]`, from 0.

    Returns:
      Higher is better; it may be of either sign.
    """
    features = features.astype(np.float64)
    count = len(features)
    vectors, singular, _ = np.linalg.svd(features, full_matrices=False)
    squares = singular**2
    evidences = []
    for label in np.unique(labels):
        target = (labels == label).astype(np.float64)
        along = (vectors.T @ target) ** 2
        beyond = max(float(target @ target - along.sum()), 1e-30)  # what no weights explain

        def missing(logarithm: float, along: np.ndarray = along, beyond: float = beyond) -> float:
            shrunk = 1 / (1 + squares / np.exp(logarithm))  # 1 where a weight is held at zero, 0 where it is free
            missed = beyond + float(along @ shrunk)
            return -(np.log(shrunk).sum() + count * np.log(count / (2 * np.pi * missed)) - count) / (2 * count)

        ratios = np.log(np.geomspace(1e-12, 1e6, 200) * max(squares.max(), 1e-30))
        place = int(np.argmin([missing(ratio) for ratio in ratios]))
        around = ratios[max(place - 1, 0)], ratios[min(place + 1, len(ratios) - 1)]
        found: Any = optimize.minimize_scalar(missing, bounds=around, method="bounded")
        evidences.append(-found.fun)
    return float(np.mean(evidences))


@dataclasses.dataclass(frozen=True)
class Suspect:
    """An image whose label is likely wrong.

    Attributes:
      image: its row.
      likely: the class that it looks like.
      given, other: the probabilities of its label and of that class.
    """

    image: int
    likely: int
    given: float
    other: float


def suspects(probed: Probed) -> list[Suspect]:
    """Labels that are likely wrong, the likeliest first (confident learning: Northcutt et al. 2021).

    A class's threshold is how probable the probe finds it on average of images with its label. An image counts as the
    most probable class among those above their thresholds; off the diagonal of that count are the suspects, ranked by
    the probability of their label less that of the other class.
    """
    chances, labels = probed.probabilities, probed.labels
    present = np.unique(labels)
    threshold = np.full(chances.shape[1], np.inf)
    threshold[present] = [chances[labels == c, c].mean() for c in present]
    confident = np.where(chances >= threshold, chances, -1.0)
    likely, rows = confident.argmax(1), np.arange(len(labels))
    found = np.flatnonzero((confident.max(1) >= 0) & (likely != labels))
    margin = chances[rows, labels] - chances[rows, likely]
    return [
        Suspect(int(i), int(likely[i]), float(chances[i, labels[i]]), float(chances[i, likely[i]]))
        for i in found[np.argsort(margin[found], kind="stable")]
    ]
