"""Optimizers and schedules: one optax chain per group of the plan, torch's update rules."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax.core.errors import UserError
from tljax.transfer.plan import FROZEN, GroupPlan, Plan

Schedule = Callable[[jax.Array], jax.Array]
"""Steps since the phase began -> the factor on every learning rate, 0 to 1."""


def make_schedule(
    name: str, *, steps: int, warmup_steps: int = 0, decay_steps: int = 1, factor: float = 0.1
) -> Schedule:
    """Makes a schedule over the `steps` of a phase.

    Args:
      name: 'constant'; 'step' (times `factor` every `decay_steps`); 'cosine' (to zero at the end).
      steps: updates in the phase.
      warmup_steps: rises linearly over so many updates first, whatever the name.
      decay_steps: for 'step'.
      factor: for 'step'.

    Raises:
      UserError: for another name.
    """

    def multiplier(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (t + 1) / max(warmup_steps, 1)) if warmup_steps else jnp.float32(1)
        if name == "step":
            # Of whole numbers: compiled, floats over a constant are times its inverse, and may fall short of the next.
            return warm * factor ** (jnp.asarray(step) // decay_steps).astype(jnp.float32)
        if name == "cosine":
            done = jnp.clip((t - warmup_steps) / max(steps - warmup_steps, 1), 0, 1)
            return warm * 0.5 * (1 + jnp.cos(math.pi * done))
        return warm

    if name not in ("constant", "step", "cosine"):
        raise UserError(f"schedule.name={name!r} is not one of constant, step, cosine")
    return multiplier


def scale_by_rate(rate: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Multiplies by `-rate * multiplier`, the multiplier given at each update.

    The schedule's position comes from the train state, not from a count in here: phases then keep or drop moments
    without moving the schedule, and there is no second count to disagree with the first.
    """

    def update(updates: Any, state: Any, params: Any = None, *, multiplier: jax.Array | float = 1.0, **_: Any) -> Any:
        del params
        return jax.tree.map(lambda u: jnp.asarray(-rate * multiplier, u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def check_optimizer(name: str) -> None:
    """Raises UserError for an optimizer that does not exist."""
    if name not in ("adam", "adamw", "sgd"):
        raise UserError(f"optimizer.name={name!r} is not one of adam, adamw, sgd")


def make_optimizer(
    plan: Plan, *, name: str, momentum: float = 0.9, clip: float = 0.0, decay_all: bool = False
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a plan: `update(grads, state, params, multiplier=...)` over the full tree of parameters.

    Every parameter is labeled; frozen ones go to `set_to_zero` and hold no moments. The rules are torch's: weight
    decay enters the gradient for `sgd` and `adam`, and is decoupled for `adamw`.

    Args:
      plan: labels, rates and weight decays.
      name: 'adam', 'adamw' or 'sgd'.
      momentum: for 'sgd'.
      clip: the largest global norm of the gradient, over what trains; 0 for none.
      decay_all: weight decay on biases and batch norms too, as torch does unless told otherwise.
    """
    check_optimizer(name)

    def chain(group: GroupPlan) -> optax.GradientTransformation:
        mask = None if decay_all else lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        # An array is a member's own decay, traced: its value cannot be asked for.
        decays = isinstance(group.weight_decay, jax.Array) or group.weight_decay != 0
        decay = [optax.add_decayed_weights(group.weight_decay, mask)] if decays else []
        rule = optax.trace(momentum) if name == "sgd" else optax.scale_by_adam()
        before, after = ([], decay) if name == "adamw" else (decay, [])
        return optax.chain(*before, rule, *after, scale_by_rate(group.lr))

    transforms: dict[Hashable, Any] = {g.name: chain(g) for g in plan.groups if g.trainable}
    transforms[FROZEN] = optax.set_to_zero()
    by_group = optax.multi_transform(transforms, plan.label_tree)
    return optax.with_extra_args_support(optax.chain(*([optax.clip_by_global_norm(clip)] if clip else []), by_group))


def carry_moments(old: Any, new: Any) -> Any:
    """The optimizer state of a phase that keeps the moments of the one before.

    Groups whose state has the same shape in both continue; all others start as `new` has them.
    """

    def groups(state: Any) -> dict[str, Any]:
        return state[-1].inner_states

    kept = {
        g: groups(old)[g] if g in groups(old) and _same_shape(groups(old)[g], fresh) else fresh
        for g, fresh in groups(new).items()
    }
    return (*new[:-1], new[-1]._replace(inner_states=kept))


def _same_shape(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
