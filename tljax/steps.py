"""The training and evaluation steps: pure functions, pmapped. Nothing else knows that there are replicas."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tljax.losses import Loss, predictions
from tljax.models import Network, Pass
from tljax.state import TrainState
from tljax.transfer.optimizer import Schedule
from tljax.transfer.plan import Plan, merge

AXIS = "replicas"
Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


def example_keys(key: jax.Array, epoch: Any, index: Any) -> jax.Array:
    """One key per example `[B]`, a function of the run's key, the epoch and the example's index `[B]` alone."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, epoch), i))(index)


def augmentation_keys(keys: jax.Array) -> jax.Array:
    """Of the keys of examples `[B]`, those that augment; `dropout_keys` are the others."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)


def dropout_keys(keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)


def make_train_step(
    *,
    model: Network,
    plan: Plan,
    tx: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    loss: Loss,
    augment: Callable[..., jax.Array],
    normalize: Callable[[Any], jax.Array],
    first_step: int = 0,
    accumulate: int = 1,
    cross_replica_bn: bool = False,
    axis: str | None = AXIS,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Makes `step(state, batch, key) -> (state, metrics)` on one replica's share of a batch.

    Args:
      model, plan, tx, loss, augment, normalize: the run's.
      schedule: from steps since `first_step` to the factor on the rates.
      first_step: the step at which the phase began.
      accumulate: parts that the share is cut into, one after the other; their gradients are summed before the update.
      cross_replica_bn: batch statistics over all replicas instead of each replica's own.
      axis: the name of the replicas' axis; None for a step outside pmap.

    Returns:
      The step. A batch has image uint8 `[B, H, W, 3]`, size int `[B, 2]`, label `[B]`, index `[B]`, mask `[B]` and
      epoch `[]`. Metrics are sums over the whole batch (loss, correct, seen) and the norm of the gradient.
    """
    moving = frozenset(name for name, mode in plan.modes.items() if mode.update)

    def total(values: Any) -> Any:
        return values if axis is None else jax.lax.psum(values, axis)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        trainable, frozen = plan.split(state.params)
        examples = {k: v for k, v in batch.items() if k != "epoch"}
        examples["key"] = example_keys(key, batch["epoch"], batch["index"])
        seen = total(batch["mask"].sum())

        def part(trainable: Any, stats: Any, part_of: Batch) -> tuple[jax.Array, tuple[Any, Metrics]]:
            images = normalize(augment(augmentation_keys(part_of["key"]), part_of["image"], part_of["size"]))
            forward = Pass(
                bn=plan.modes,
                mask=part_of["mask"],
                keys=dropout_keys(part_of["key"]),
                axis_name=axis if cross_replica_bn else None,
            )
            logits, changed = model.apply(
                {"params": merge(trainable, frozen), "batch_stats": stats}, images, forward, mutable=["batch_stats"]
            )
            losses = loss(logits, part_of["label"]) * part_of["mask"]
            right = (predictions(logits) == part_of["label"]) * part_of["mask"]
            sums = {"loss": losses.sum(), "correct": right.sum(), "seen": part_of["mask"].sum()}
            return losses.sum() / seen, (changed.get("batch_stats", stats), sums)

        gradient = jax.grad(part, has_aux=True)
        if accumulate == 1:
            grads, (stats, sums) = gradient(trainable, state.batch_stats, examples)
        else:

            def accumulate_part(carry: Any, part_of: Batch) -> tuple[Any, Any]:
                grads, stats = carry
                more, (stats, sums) = gradient(trainable, stats, part_of)
                return (jax.tree.map(jnp.add, grads, more), stats), sums

            parts = {k: jnp.moveaxis(v.reshape(-1, accumulate, *v.shape[1:]), 1, 0) for k, v in examples.items()}
            start = (jax.tree.map(jnp.zeros_like, trainable), state.batch_stats)
            (grads, stats), sums = jax.lax.scan(accumulate_part, start, parts)
            sums = {k: v.sum() for k, v in sums.items()}

        grads = total(grads)
        if axis is not None and not cross_replica_bn:
            stats = average_statistics(stats, batch["mask"].sum(), seen, model, moving, total)
        # Frozen parameters enter the optimizer as zeros, which cost nothing once compiled, and leave it untouched:
        # adding a zero update would still turn -0.0 into 0.0.
        full = merge(grads, {p: jnp.zeros_like(v) for p, v in frozen.items()})
        updates, opt_state = tx.update(
            full, state.opt_state, state.params, multiplier=schedule(state.step - first_step)
        )
        moved: Any = optax.apply_updates(trainable, plan.split(updates)[0])
        metrics = {**total(sums), "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, merge(moved, frozen), stats, opt_state), metrics

    return step


def average_statistics(
    stats: Any, here: jax.Array, seen: jax.Array, model: Network, moving: frozenset[str], total: Callable[[Any], Any]
) -> Any:
    """Averages the statistics that moved over replicas, each by the examples it saw; others stay bit for bit."""

    def one(path: Any, value: jax.Array) -> jax.Array:
        group = model.group_of(tuple(entry.key for entry in path))
        share = here.astype(value.dtype) / seen.astype(value.dtype)
        return total(value * share) if group in moving else value

    return jax.tree_util.tree_map_with_path(one, stats)


def make_eval_step(
    *, model: Network, normalize: Callable[[Any], jax.Array], axis: str | None = AXIS
) -> Callable[[Any, Any], jax.Array]:
    """Makes `step(variables, images uint8 [B, S, S, 3]) -> logits`, evaluated with running statistics.

    Under pmap every replica gets the logits of all, `[replicas, B, outputs]`, so that each process can read them.
    """

    def step(variables: Any, images: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, normalize(images), Pass())
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return logits if axis is None else jax.lax.all_gather(logits, axis)

    return step


@dataclasses.dataclass(frozen=True)
class Replicas:
    """How batches and state are laid over the devices of all processes.

    Row `r` of a batch goes to device `r mod devices`, so that the rows that pad a last batch are spread evenly.
    """

    devices: int
    local: int
    process: int
    parts: int = 1

    @classmethod
    def here(cls, parts: int = 1) -> "Replicas":
        return cls(jax.device_count(), jax.local_device_count(), jax.process_index(), parts)

    def padded(self, batch_size: int) -> int:
        """The rows of a batch of `batch_size`, up to a multiple of the devices and of the parts of each share."""
        each = self.devices * self.parts
        return -(-batch_size // each) * each

    def rows(self, batch_size: int) -> np.ndarray:
        """Which rows of a padded batch this process holds, in the order that `shard` expects."""
        first = self.process * self.local
        return np.arange(self.padded(batch_size)).reshape(-1, self.devices)[:, first : first + self.local].T.reshape(-1)

    def shard(self, batch: Batch, **scalars: int) -> dict[str, np.ndarray]:
        """This process's rows `[local * per_device, ...]` to `[local, per_device, ...]`; scalars go to every device."""
        arrays = {k: v.reshape(self.local, -1, *v.shape[1:]) for k, v in batch.items()}
        return arrays | {k: np.full(self.local, v, np.int32) for k, v in scalars.items()}

    def unshard(self, gathered: Any) -> np.ndarray:
        """What the evaluation step gathered, `[devices, per_device, ...]`, in the order of the batch's rows."""
        return np.moveaxis(np.asarray(gathered), 0, 1).reshape(-1, *gathered.shape[2:])


def parallel_train_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step over all devices: state and batch carry a leading axis of local devices; the state is donated."""
    return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)


def parallel_eval_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """The evaluation step over all devices; its result is `[local, devices, per_device, outputs]`."""
    return jax.pmap(step, axis_name=AXIS)
