"""FlexMatch (Zhang et al. 2021): FixMatch whose threshold is lower for classes that are learned later."""

import jax
import jax.numpy as jnp

from tljax.data.labels import UNLABELED


def thresholds(status: jax.Array, unlabeled: int, classes: int, base: float) -> jax.Array:
    """The threshold of each class.

    Args:
      status: int `[N]`, what each image was last given with at least `base`; `UNLABELED` for those that never were.
      unlabeled: how many of the N images have no label.
      classes: how many there are.
      base: the highest threshold.

    Returns:
      float `[classes]`. With beta the images of a class over those of the largest class, or over the images that were
      given nothing yet where those are more (the paper's warm-up), it is `base * beta / (2 - beta)`.
    """
    counts = (status[:, None] == jnp.arange(classes)[None, :]).sum(axis=0)
    most = jnp.maximum(jnp.maximum(counts.max(), unlabeled - counts.sum()), 1)
    beta = counts / most
    return base * beta / (2.0 - beta)


def new_status(status: jax.Array, index: jax.Array, weak: jax.Array, mask: jax.Array, base: float) -> jax.Array:
    """The status after a batch: images `index` `[B]` with logits `[B, classes]`; rows of mask 0 are none."""
    found = jax.nn.softmax(weak)
    sure = (found.max(axis=-1) >= base) & (mask > 0)
    place = jnp.where(sure, index, len(status))  # beyond the end: dropped
    return status.at[place].set(found.argmax(axis=-1).astype(status.dtype), mode="drop")


def no_status(images: int) -> jax.Array:
    """Before the first batch."""
    return jnp.full((images,), UNLABELED, jnp.int32)
