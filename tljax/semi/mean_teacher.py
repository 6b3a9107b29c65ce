"""Mean Teacher (Tarvainen & Valpola 2017): a network agrees with the average of what it was.

The average of the weights is what is tested.
"""

from typing import Any

import jax
import jax.numpy as jnp


def consistency_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean squared difference of two softmaxes: logits `[B, classes]` each -> `[B]`; the teacher's get no gradient."""
    return jnp.square(jax.nn.softmax(student) - jax.lax.stop_gradient(jax.nn.softmax(teacher))).mean(axis=-1)


def ramp(step: jax.Array, steps: float) -> jax.Array:
    """The factor on the consistency loss: `exp(-5 (1 - t)^2)` with t from 0 to 1 in `steps` updates, then 1."""
    t = jnp.clip(step / max(steps, 1e-9), 0.0, 1.0) if steps else jnp.float32(1)
    return jnp.exp(-5.0 * jnp.square(1.0 - t))


def moving_average(average: Any, now: Any, step: jax.Array, decay: float) -> Any:
    """Trees of equal structure -> the average after update `step`, counted from 0.

    Early on it is the plain mean of what there was, so that the beginning is forgotten as fast as it should be.
    """
    kept = jnp.minimum(decay, 1.0 - 1.0 / (step + 2.0))
    return jax.tree.map(lambda a, b: (kept * a + (1.0 - kept) * b).astype(a.dtype), average, now)
