"""FixMatch (Sohn et al. 2020): what a network is sure of on one view of an image, it learns on a stronger one."""

import jax
import jax.numpy as jnp
import optax

from tljax.data.labels import UNLABELED


def pseudo_labels(weak: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Logits of weak views `[B, classes]` -> labels int `[B]`, `UNLABELED` where the highest probability is below the
    threshold, a number or one per class `[classes]`."""
    found = jax.nn.softmax(weak)
    predicted = found.argmax(axis=-1)
    least = jnp.broadcast_to(jnp.asarray(threshold), weak.shape[-1:])[predicted]
    return jnp.where(found.max(axis=-1) >= least, predicted, UNLABELED).astype(jnp.int32)


def given_loss(logits: jax.Array, given: jax.Array) -> jax.Array:
    """Cross-entropy `[B]` of logits `[B, classes]` with labels int `[B]`; 0 where the label is `UNLABELED`."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(given, 0))
    return jnp.where(given == UNLABELED, 0.0, losses)
