"""Numbers that go wrong: noticed at that step, kept out of the state, traced to the group they began in."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.core.rng import Stream, example_keys, streams
from tljax.distributed.parallel import AXIS
from tljax.engine.steps import Metrics
from tljax.models import ForwardContext, Network
from tljax.run_dir.train_state import TrainState
from tljax.transfer.plan import Plan


def is_finite(values: jax.Array, *, keep: int = 0) -> jax.Array:
    """Whether all numbers are, over all axes but the first `keep`."""
    return jnp.isfinite(values).all(tuple(range(keep, values.ndim)))


def skip_nonfinite_updates(step: Callable[..., Any], plan: Plan, *, alone: bool, stop: bool) -> Callable[..., Any]:
    """A training step that tells whether its numbers are finite.

    Args:
      step: as `steps.make_train_step` makes it.
      plan: the phase's.
      alone: a single run; else what trains has a leading axis of members.
      stop: leave the state of a single run as it was before a step with numbers that are not finite, and from then on,
        whatever further steps are under way: a step does nothing to a state that has not come to its number.

    Returns:
      A step like it. A batch has `number` besides `[]`, of the step, from 0 since the run began. Metrics have
      `all_finite`, a bool, or `[members]`: whether loss, gradient and what trains are finite after the step; and
      `updated`, whether the parameters of each trained group are.
    """
    axes = 0 if alone else 1

    def run(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch, key)
        flags: dict[str, list[jax.Array]] = {}
        for path, values in plan.split(new.params)[0].items():
            flags.setdefault(plan.labels[path], []).append(is_finite(values, keep=axes))
        updated = {group: functools.reduce(jnp.logical_and, found) for group, found in flags.items()}
        finite = [jnp.isfinite(metrics[name]) for name in ("loss", "grad_norm")]
        all_finite = functools.reduce(jnp.logical_and, [*finite, *updated.values()])
        metrics |= {"all_finite": all_finite, "updated": updated}
        if alone and stop:
            go = all_finite & (batch["number"] == state.step)
            new = jax.tree.map(lambda now, old: now if now is old else jnp.where(go, now, old), new, state)
        return new, metrics

    return run


def make_trace(
    model: Network, plan: Plan, inputs: Callable[[jax.Array, Any], jax.Array], start_stage: str | None
) -> Callable[..., dict[str, jax.Array]]:
    """Makes `trace(state, batch, key)`, for `parallel.eval_step`: whether `input`, and each stage's output in training,
    are finite on all devices, 0 or 1, by name."""

    def trace(state: TrainState, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        keys = example_keys(key, batch["epoch"], batch["index"])
        x = inputs(streams(keys, Stream.AUGMENTATION), batch)
        forward = ForwardContext(bn=plan.modes, mask=batch["mask"], keys=keys)
        _, found = model.apply(
            state.variables, x, forward, start_stage=start_stage, mutable=["batch_stats", "intermediates"]
        )
        seen = found["intermediates"]
        outputs = {"input": x, **{stage: seen[stage][0] for stage in model.stages if stage in seen}}
        return {name: jax.lax.pmin(is_finite(y).astype(jnp.int32), AXIS) for name, y in outputs.items()}

    return trace


def first_nonfinite(
    plan: Plan, metrics: Mapping[str, Any], trace: Callable[[], Mapping[str, Any]], stages: Sequence[str]
) -> str:
    """In words, where the numbers of a single run's step first went wrong.

    Args:
      plan: the phase's.
      metrics: of the step, of one replica.
      trace: what `make_trace` found on the step's batch, of one replica; asked for if the loss is not finite.
      stages: of the network, in order.
    """

    def told(group: str) -> str:
        words = {g.name: f" (rate {g.lr:.3g})" if g.trainable else " (frozen)" for g in plan.groups}
        return group + words.get(group, "")  # a stage may have no parameters, or several groups

    loss = float(metrics["loss"])
    if not np.isfinite(loss):
        found, words = trace(), f"the loss is {loss}"
        wrong = [stage for stage in ("input", *stages) if not found.get(stage, 1)]
        if not wrong:
            return f"{words}, of outputs that are finite"
        first = "what the network is fed with" if wrong[0] == "input" else f"the output of {told(wrong[0])}"
        return f"{words}; the first that is not finite is {first}"
    backwards = [g.name for g in reversed(plan.groups) if g.trainable]
    for group in backwards:
        if not np.isfinite(metrics["norms"][group]):
            return f"the loss is {loss:.3g}, but the gradient of {told(group)} is not finite"
    group = next((name for name in backwards if not metrics["updated"][name]), backwards[0])
    return f"loss and gradient are finite, but the parameters of {told(group)} are not after the update"
