"""Losses per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from tljax.core.errors import UserError

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
