"""Meta Pseudo Labels (Pham et al. 2021): a teacher learns from what its labels did to a student's loss."""

import jax
import jax.numpy as jnp
import optax


def sampled_labels(keys: jax.Array, teacher: jax.Array) -> jax.Array:
    """Hard labels drawn from the teacher: one key per image `[B]`, logits `[B, classes]` -> int `[B]`."""
    return jax.vmap(jax.random.categorical)(keys, teacher).astype(jnp.int32)


def feedback(before: jax.Array, after: jax.Array) -> jax.Array:
    """How much the student's loss on labeled images fell by its update; the paper's `h` to first order."""
    return jax.lax.stop_gradient(before - after)


def feedback_loss(teacher: jax.Array, labels: jax.Array, fell: jax.Array) -> jax.Array:
    """The teacher's loss of its own labels, `[B]`: lower where what it said helped, higher where it did harm."""
    return fell * optax.softmax_cross_entropy_with_integer_labels(teacher, labels)
