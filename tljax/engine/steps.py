"""The training and forward steps: pure functions of one device's share of a batch."""

import functools
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from tljax.core.rng import Stream, example_keys, streams
from tljax.distributed.parallel import AXIS
from tljax.metrics.accuracy import hard, predictions
from tljax.metrics.losses import Loss
from tljax.models import ForwardContext, Network
from tljax.run_dir.train_state import TrainState
from tljax.transfer.plan import Path, Plan, merge
from tljax.transfer.population import Family

Batch = Mapping[str, Any]
Metrics = dict[str, Any]


Variables = dict[str, dict[Path, Any]]
"""`params` and `batch_stats`, each flat by path: those that a plan changes (trainable), or all others (frozen)."""
NOTHING: Variables = {"params": {}, "batch_stats": {}}


def by_family(families: Sequence[Family], tree: Any) -> list[Any]:
    """A tree whose leaves have a leading axis of members, cut into one tree per family."""
    ends = list(itertools.accumulate(len(family.schedules) for family in families))
    return [jax.tree.map(operator.itemgetter(slice(a, b)), tree) for a, b in zip([0, *ends], ends, strict=False)]


def partition(model: Network, plan: Plan, variables: Mapping[str, Any]) -> tuple[Variables, Variables]:
    """Variables cut in two: trainable, which is what the plan changes, and frozen."""
    moving = {name for name, mode in plan.modes.items() if mode.update}
    trained, constant = plan.split(variables["params"])
    stats: dict[Path, Any] = dict(traverse_util.flatten_dict(variables["batch_stats"]))
    updated = {p: v for p, v in stats.items() if model.group_of(p) in moving}
    fixed = {p: v for p, v in stats.items() if p not in updated}
    return {"params": trained, "batch_stats": updated}, {"params": constant, "batch_stats": fixed}


def combine(trainable: Variables, frozen: Variables) -> dict[str, Any]:
    """The inverse of `partition`."""
    return {name: merge(trainable[name], frozen[name]) for name in ("params", "batch_stats")}


def update_params(
    plan: Plan, tx: optax.GradientTransformationExtraArgs, frozen: Variables, params: Any, opt_state: Any, grads: Any,
    factor: jax.Array,
) -> tuple[Any, Any]:  # fmt: skip
    """Trainable parameters, flat by path, and the optimizer's state after one update by gradients of the same form.

    Frozen parameters enter the optimizer as zeros, which cost nothing once compiled, and leave it untouched: adding a
    zero update would still turn -0.0 into 0.0.
    """
    full = merge(grads, {p: jnp.zeros_like(v) for p, v in frozen["params"].items()})
    updates, opt_state = tx.update(full, opt_state, merge(params, frozen["params"]), multiplier=factor)
    return optax.apply_updates(params, plan.split(updates)[0]), opt_state


def gradient_norms(plan: Plan, grads: Mapping[Path, jax.Array]) -> Metrics:
    """Of gradients flat by path: `grad_norm` of all, and `norms` of each trained group."""
    groups = {plan.labels[path] for path in grads}
    norms = {g: optax.tree.norm({p: v for p, v in grads.items() if plan.labels[p] == g}) for g in sorted(groups)}
    return {"grad_norm": optax.tree.norm(norms), "norms": norms}


def active_outputs(model: Network, logits: jax.Array, mask: jax.Array) -> Metrics:
    """Of a head that ends in a ReLU, `active`: the examples by output whose logit is above 0. Nothing of others."""
    if not model.rectified:
        return {}
    return {"active": ((logits > 0) & (mask > 0)[:, None]).sum(0)}


def run_prefix(model: Network, frozen: Variables, x: jax.Array, *, start_stage: str | None, stop_stage: str) -> Any:
    """Stages of the constant prefix, which no member changes."""
    return model.apply(combine(NOTHING, frozen), x, ForwardContext(), start_stage=start_stage, stop_stage=stop_stage)


def each_member(function: Callable[..., Any], member_map: str, *arguments: Any) -> Any:
    """Calls `function` for every member: 'none' (no axis of members), 'vmap' (fast for heads), or 'map' (one after the
    other, fast where members are large)."""
    if member_map == "none":
        return function(*arguments)
    if member_map == "vmap":
        return jax.vmap(function)(*arguments)
    return jax.lax.map(lambda packed: function(*packed), arguments)


def make_train_step(
    *,
    model: Network,
    plan: Plan,
    families: Sequence[Family],
    loss: Loss,
    inputs: Callable[[jax.Array, Batch], jax.Array],
    start_stage: str | None = None,
    frozen_prefix_end: str | None = None,
    member_map: str = "none",
    first_step: int = 0,
    accumulate: int = 1,
    cross_replica_bn: bool = False,
    axis: str | None = AXIS,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Makes `step(state, batch, key) -> (state, metrics)` on one replica's share of a batch.

    Args:
      model, plan, loss: the run's.
      families: the optimizers and hyperparameters of its members.
      inputs: the keys of examples `[B]` and a batch -> what stage `start_stage` takes.
      start_stage: the first stage to run; None for the first of all.
      frozen_prefix_end: the stage that the constant prefix ends before; what is below runs once for all members,
        without a gradient. None where there is no such prefix.
      member_map: 'none' for a single run; 'vmap' or 'map' for a population, whose trainable parameters, moving
        statistics and optimizer states carry a leading axis of members, and whose `opt_state` is a tuple by family.
      first_step: the step at which the phase began.
      accumulate: parts that the share is cut into, one after the other; their gradients are summed before the update.
      cross_replica_bn: batch statistics over all replicas instead of each replica's own.
      axis: the name of the replicas' axis; None for a step outside pmap.

    Returns:
      The step. A batch has label `[B]` or `[B, classes]`, index `[B]`, mask `[B]`, epoch `[]`, and what
      `inputs` reads. Metrics are sums over the whole batch (loss, correct, seen; `active_outputs`) and the norms of the
      gradient (`gradient_norms`), with an axis of members in a population.
    """
    alone = member_map == "none"
    shared_prefix = frozen_prefix_end if frozen_prefix_end != start_stage else None

    def total(values: Any) -> Any:
        return values if axis is None else jax.lax.psum(values, axis)

    def parts_of(examples: Any) -> Any:
        return jax.tree.map(lambda v: jnp.moveaxis(v.reshape(-1, accumulate, *v.shape[1:]), 1, 0), examples)

    def prefix(frozen: Variables, x: jax.Array, stop_stage: str) -> jax.Array:
        run = functools.partial(run_prefix, model, frozen, start_stage=start_stage, stop_stage=stop_stage)
        if accumulate == 1:
            return run(x)
        y = jnp.moveaxis(jax.lax.map(run, parts_of(x)), 0, 1)
        return y.reshape(-1, *y.shape[2:])

    def update(
        family: Family,
        frozen: Variables,
        examples: Batch,
        seen: jax.Array,
        trainable: Variables,
        opt_state: Any,
        hyper: Any,
        factor: Any,
    ) -> tuple[Variables, Any, Metrics]:
        def part(params: Any, stats: Any, part_of: Batch) -> tuple[jax.Array, tuple[Any, Metrics]]:
            forward = ForwardContext(
                bn=plan.modes,
                mask=part_of["mask"],
                keys=part_of["key"],
                axis_name=axis if cross_replica_bn else None,
            )
            variables = combine({"params": params, "batch_stats": stats}, frozen)
            logits, changed = model.apply(
                variables, part_of["x"], forward, start_stage=frozen_prefix_end or start_stage, mutable=["batch_stats"]
            )
            moved = dict(traverse_util.flatten_dict(changed.get("batch_stats", {})))
            losses = loss(logits, part_of["label"]) * part_of["mask"]
            right = (predictions(logits) == hard(part_of["label"])) * part_of["mask"]
            sums = {"loss": losses.sum(), "correct": right.sum(), "seen": part_of["mask"].sum()}
            sums |= active_outputs(model, logits, part_of["mask"])
            return losses.sum() / seen, ({p: moved.get(p, v) for p, v in stats.items()}, sums)

        gradient = jax.grad(part, has_aux=True)
        if accumulate == 1:
            grads, (stats, sums) = gradient(trainable["params"], trainable["batch_stats"], examples)
        else:

            def accumulate_part(carry: Any, part_of: Batch) -> tuple[Any, Any]:
                grads, stats = carry
                more, (stats, sums) = gradient(trainable["params"], stats, part_of)
                return (jax.tree.map(jnp.add, grads, more), stats), sums

            start = (jax.tree.map(jnp.zeros_like, trainable["params"]), trainable["batch_stats"])
            (grads, stats), sums = jax.lax.scan(accumulate_part, start, parts_of(examples))
            sums = {k: v.sum(0) for k, v in sums.items()}

        grads = total(grads)
        if axis is not None and not cross_replica_bn:  # each replica's statistics count by the examples it saw
            here = examples["mask"].sum()
            stats = {p: total(v * (here.astype(v.dtype) / seen.astype(v.dtype))) for p, v in stats.items()}
        moved, opt_state = update_params(
            plan, family.optimizer(hyper), frozen, trainable["params"], opt_state, grads, factor
        )
        metrics = {**total(sums), **gradient_norms(plan, grads)}
        return {"params": moved, "batch_stats": stats}, opt_state, metrics

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        trainable, frozen = partition(model, plan, state.variables)
        keys = example_keys(key, batch["epoch"], batch["index"])
        x = inputs(streams(keys, Stream.AUGMENTATION), batch)
        if shared_prefix:
            x = prefix(frozen, x, shared_prefix)
        examples = {"x": x, "key": keys, "label": batch["label"], "mask": batch["mask"]}
        seen = total(batch["mask"].sum())
        parts, opt_states = (
            ([trainable], (state.opt_state,)) if alone else (by_family(families, trainable), state.opt_state)
        )
        done = []
        for family, mine, opt_state in zip(families, parts, opt_states, strict=True):
            factors = [schedule(state.step - first_step) for schedule in family.schedules]
            run = functools.partial(update, family, frozen, examples, seen)
            done.append(
                each_member(run, member_map, mine, opt_state, family.hyper, factors[0] if alone else jnp.stack(factors))
            )
        if alone:
            ((trainable, opt_state, metrics),) = done
        else:
            parts, opt_state, metrics = zip(*done, strict=True)
            trainable, metrics = (jax.tree.map(lambda *v: jnp.concatenate(v), *trees) for trees in (parts, metrics))
        variables = combine(trainable, frozen)
        return state.replace(step=state.step + 1, **variables, opt_state=opt_state), metrics

    return step


def make_forward_step(
    *,
    model: Network,
    plan: Plan,
    inputs: Callable[[jax.Array, Batch], jax.Array],
    start_stage: str | None = None,
    frozen_prefix_end: str | None = None,
    stop_stage: str | None = None,
    member_map: str = "none",
    axis: str | None = AXIS,
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """Makes `step(variables, batch, key) -> outputs`: the stages from `start_stage` to before `stop_stage`, evaluated.

    Args: as for `make_train_step`; without `stop_stage`, the outputs are logits.

    Returns:
      The step. Its outputs are `[B, ...]`, in a population `[B, members, ...]` unless they are of the prefix. Under
      pmap every replica gets those of all, `[replicas, B, ...]`, so that each process can read them.
    """

    def step(variables: Any, batch: Batch, key: jax.Array) -> jax.Array:
        trainable, frozen = partition(model, plan, variables)
        x = inputs(streams(example_keys(key, batch["epoch"], batch["index"]), Stream.AUGMENTATION), batch)
        if stop_stage is not None:
            y: Any = run_prefix(model, frozen, x, start_stage=start_stage, stop_stage=stop_stage)
        else:
            if frozen_prefix_end != start_stage and frozen_prefix_end is not None:
                x = run_prefix(model, frozen, x, start_stage=start_stage, stop_stage=frozen_prefix_end)

            def finish(trainable: Variables) -> Any:
                return model.apply(
                    combine(trainable, frozen), x, ForwardContext(), start_stage=frozen_prefix_end or start_stage
                )

            y = each_member(finish, member_map, trainable)
            y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
            y = y if member_map == "none" else jnp.swapaxes(y, 0, 1)
        return y if axis is None else jax.lax.all_gather(y, axis)

    return step
