"""Accuracy: what logits answer, how often that is right, and its confidence interval."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tljax.metrics.losses import Loss


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
    """How a network did on some examples: counts, so that every accuracy has a confidence interval."""

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
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounded, an end could pass the proportion itself, which at 0 and at 1 it equals.
    return max(0.0, min(p, center - half)), min(1.0, max(p, center + half))


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
    return {name: share_of(int(right[labels == c].sum()), int((labels == c).sum())) for c, name in enumerate(classes)}


def confusion(answers: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Images by true class (rows) and answer (columns), int64 `[classes, outputs]`.

    The columns beyond the classes, up to the last that there is, are answers of a head with more outputs than classes.
    """
    counts = np.zeros((classes, max(classes, 1 + int(answers.max()))), np.int64)
    np.add.at(counts, (labels, answers), 1)
    return counts


def share_of(correct: int, seen: int) -> dict[str, Any]:
    return {
        "accuracy": correct / seen if seen else None, "correct": correct, "seen": seen,
        "interval95": list(wilson_interval(correct, seen)),
    }  # fmt: skip
