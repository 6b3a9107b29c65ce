"""Losses per example, and what a set of logits is worth."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tljax.errors import UserError

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""Logits `[B, outputs]`; labels int `[B]` or probabilities `[B, classes]` -> losses `[B]`, float32 or better."""


def make_loss(name: str, *, label_smoothing: float = 0.0) -> Loss:
    """Makes a loss.

    Args:
      name: 'softmax' (cross-entropy over the classes), or 'sigmoid' (binary cross-entropy on one logit, whose sign
        says class 1).
      label_smoothing: the share of the target that is spread evenly over the classes, 0 to 1.

    Raises:
      UserError: for another name or share.
    """
    if name not in ("softmax", "sigmoid"):
        raise UserError(f"loss.name={name!r} is not one of softmax, sigmoid")
    if not 0 <= label_smoothing < 1:
        raise UserError(f"loss.label_smoothing={label_smoothing} is not in 0 <= s < 1")

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        soft = labels.ndim == 2
        if not soft and not label_smoothing and name == "softmax":
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        classes = 2 if name == "sigmoid" else logits.shape[-1]
        target = labels.astype(logits.dtype) if soft else jax.nn.one_hot(labels, classes, dtype=logits.dtype)
        target = optax.smooth_labels(target, label_smoothing)
        if name == "sigmoid":
            return optax.sigmoid_binary_cross_entropy(logits[:, 0], target[:, 1])
        return optax.softmax_cross_entropy(logits, target)

    return loss


def outputs(name: str, num_classes: int) -> int:
    """How many outputs the head needs for a loss."""
    if name == "sigmoid" and num_classes != 2:
        raise UserError(f"loss.name=sigmoid has one logit for two classes, but the data has {num_classes}; use softmax")
    return 1 if name == "sigmoid" else num_classes


def predictions(logits: Any) -> Any:
    """Class indices `[...]` of logits `[..., outputs]`; one output means class 1 where it is positive."""
    if logits.shape[-1] == 1:
        return (logits[..., 0] > 0).astype(np.int32)
    return logits.argmax(-1).astype(np.int32)


def hard(labels: Any) -> Any:
    """Class indices `[B]` of labels, which may be probabilities `[B, classes]`."""
    return labels if labels.ndim == 1 else labels.argmax(-1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Score:
    """How a network did on some examples: counts, so that every accuracy carries its doubt."""

    correct: int
    seen: int
    loss: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.seen

    def as_dict(self) -> dict[str, Any]:
        low, high = wilson_interval(self.correct, self.seen)
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "seen": self.seen,
            "loss": self.loss,
            "interval95": [low, high],
        }


def score(logits: np.ndarray, labels: np.ndarray, loss: Loss) -> Score:
    """Scores logits `[N, outputs]` against labels `[N]`."""
    losses = np.asarray(loss(jnp.asarray(logits), jnp.asarray(labels)), np.float64)
    return Score(int((predictions(logits) == labels).sum()), len(labels), float(losses.mean()))


def wilson_interval(correct: int, seen: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion, by default at 95% (Wilson 1927)."""
    if seen == 0:
        return 0.0, 1.0
    p, n = correct / seen, seen
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounded, an end could pass the proportion itself, which at 0 and at 1 it equals.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))
