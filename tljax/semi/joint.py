"""The training step over labeled and unlabeled images at once, for methods whose network labels for itself."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tljax.core.rng import Stream, example_keys, streams
from tljax.data.labels import UNLABELED
from tljax.engine.steps import (
    AXIS,
    NOTHING,
    Variables,
    active_outputs,
    combine,
    gradient_norms,
    partition,
    run_prefix,
    update_params,
)
from tljax.metrics.accuracy import hard, predictions
from tljax.metrics.losses import Loss
from tljax.models import ForwardContext, Network
from tljax.run_dir.train_state import TrainState
from tljax.semi import fixmatch, flexmatch, mean_teacher, meta_pseudo_labels
from tljax.transfer.plan import Plan
from tljax.transfer.population import Family

METHODS = ("mean_teacher", "fixmatch", "flexmatch", "meta_pseudo_labels")
Inputs = Callable[[jax.Array, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method is told.

    Attributes:
      name: one of `METHODS`.
      weight: of the loss on unlabeled images.
      ramp_steps: updates in which that weight rises.
      threshold: of confidence.
      decay: of Mean Teacher's average, per update.
      classes: outputs of the network.
      images: of the source; indices of batches are below this.
      unlabeled: images without a label.
    """

    name: str
    weight: float
    ramp_steps: float
    threshold: float
    decay: float
    classes: int
    images: int
    unlabeled: int

    def init(self, trainable: Variables, opt_state: Any) -> dict[str, Any]:
        """The method's part of the train state."""
        if self.name == "mean_teacher":
            return {"average": combine(trainable, NOTHING)}
        if self.name == "flexmatch":
            return {"status": np.asarray(flexmatch.no_status(self.images))}
        if self.name == "meta_pseudo_labels":
            return {"teacher": combine(trainable, NOTHING), "opt_state": opt_state}
        return {}


View = tuple[jax.Array, jax.Array, jax.Array]
"""Inputs of the network `[B, ...]`, keys for its dropout `[B]`, mask `[B]`."""


class Parts(NamedTuple):
    """A replica's share of a batch.

    Attributes:
      label: of the labeled images, `[B]` or `[B, classes]`.
      index: of the unlabeled ones, in the source.
      seen: the labeled ones.
      first, second: two views of the unlabeled ones; the second is the one that is changed more.
    """

    label: jax.Array
    index: jax.Array
    seen: View
    first: View
    second: View


class Tools(NamedTuple):
    """What a method's update is made of, on one replica.

    Attributes:
      forward: `(trainable, *views) -> logits of each view, statistics`; a view is inputs, keys and mask, and all views
        go through the network together.
      optimize: `(trainable, statistics, opt_state, grads) -> trainable, opt_state` after one update; gradients are
        those of all replicas, statistics those of this one.
      true: logits of the labeled images -> the sum of their losses, over this replica.
      seen: labeled images of the batch, over all replicas.
      unlabeled: losses `[B]` -> their part in the mean over all replicas.
      total: sums over replicas.
      everywhere: gathers rows of all replicas.
      weight: of the loss on unlabeled images, now.
    """

    forward: Callable[..., tuple[list[jax.Array], Any]]
    optimize: Callable[..., tuple[Variables, Any]]
    true: Callable[[jax.Array], jax.Array]
    seen: jax.Array
    unlabeled: Callable[[jax.Array], jax.Array]
    total: Callable[[Any], Any]
    everywhere: Callable[[jax.Array], jax.Array]
    weight: jax.Array


class Updated(NamedTuple):
    """What an update leaves: what training changes, the labeled images' logits before it, what unlabeled ones were
    given."""

    trainable: Variables
    opt_state: Any
    semi: Any
    grads: Any
    logits: jax.Array
    given: jax.Array


def consistency_update(method: Method, tools: Tools, parts: Parts, trainable: Variables, state: TrainState) -> Updated:
    """Mean Teacher, FixMatch, FlexMatch: second views of unlabeled images are held to what first views say."""
    semi, agreed = state.semi, jnp.zeros(())
    if method.name == "mean_teacher":
        (_, agreed), _ = tools.forward(_trainable(semi["average"], trainable), parts.seen, parts.first)

    def loss(params: Any) -> Any:
        first = () if method.name == "mean_teacher" else (parts.first,)  # its teacher alone sees that view
        (logits, *mine, strong), stats = tools.forward(
            {**trainable, "params": params}, parts.seen, *first, parts.second
        )
        weak = jax.lax.stop_gradient(mine[0]) if mine else agreed
        if method.name == "mean_teacher":
            losses, given = mean_teacher.consistency_loss(strong, agreed), agreed.argmax(-1).astype(jnp.int32)
        else:
            least: Any = method.threshold
            if method.name == "flexmatch":
                least = flexmatch.thresholds(semi["status"], method.unlabeled, method.classes, least)
            given = fixmatch.pseudo_labels(weak, least)
            losses = fixmatch.given_loss(strong, given)
        value = tools.true(logits) / tools.seen + tools.weight * tools.unlabeled(losses)
        return value, (logits, weak, given, stats)

    grads, (logits, weak, given, stats) = jax.grad(loss, has_aux=True)(trainable["params"])
    grads = tools.total(grads)
    moved, opt_state = tools.optimize(trainable, stats, state.opt_state, grads)
    if method.name == "flexmatch":
        rows = (tools.everywhere(v) for v in (parts.index, weak, parts.first[2]))
        semi = {"status": flexmatch.new_status(semi["status"], *rows, base=method.threshold)}
    if method.name == "mean_teacher":
        now = combine(moved, NOTHING)
        semi = {"average": mean_teacher.moving_average(semi["average"], now, state.step, method.decay)}
    return Updated(moved, opt_state, semi, grads, logits, given)


def meta_update(method: Method, tools: Tools, parts: Parts, trainable: Variables, state: TrainState) -> Updated:
    """Meta Pseudo Labels: the student learns the teacher's labels alone, the teacher from true ones, from itself
    (consistency, as FixMatch) and from what its labels did to the student."""
    teacher = _trainable(state.semi["teacher"], trainable)
    (_, weak, strong), _ = tools.forward(teacher, parts.seen, parts.first, parts.second)
    given = meta_pseudo_labels.sampled_labels(streams(parts.second[1], Stream.PSEUDO_LABEL), strong)
    sure = fixmatch.pseudo_labels(weak, method.threshold)

    def student_loss(params: Any) -> Any:
        (logits, taught), stats = tools.forward({**trainable, "params": params}, parts.seen, parts.second)
        return tools.unlabeled(fixmatch.given_loss(taught, given)), (logits, stats)

    grads, (logits, stats) = jax.grad(student_loss, has_aux=True)(trainable["params"])
    grads = tools.total(grads)
    moved, opt_state = tools.optimize(trainable, stats, state.opt_state, grads)
    (after, _), _ = tools.forward(moved, parts.seen, parts.second)
    before, after = (tools.total(tools.true(values)) / tools.seen for values in (logits, after))
    fell = meta_pseudo_labels.feedback(before, after)

    def teacher_loss(params: Any) -> Any:
        (logits, _, strong), stats = tools.forward({**teacher, "params": params}, parts.seen, parts.first, parts.second)
        losses = meta_pseudo_labels.feedback_loss(strong, given, fell)
        losses += tools.weight * fixmatch.given_loss(strong, sure)
        return tools.true(logits) / tools.seen + tools.unlabeled(losses), stats

    teacher_grads, stats = jax.grad(teacher_loss, has_aux=True)(teacher["params"])
    teacher, teachers = tools.optimize(teacher, stats, state.semi["opt_state"], tools.total(teacher_grads))
    semi = {"teacher": combine(teacher, NOTHING), "opt_state": teachers}
    return Updated(moved, opt_state, semi, grads, logits, given)


def make_joint_step(
    *,
    model: Network,
    plan: Plan,
    family: Family,
    loss: Loss,
    method: Method,
    labeled: Inputs,
    weak: Inputs,
    strong: Inputs,
    start_stage: str | None = None,
    frozen_prefix_end: str | None = None,
    cross_replica_bn: bool = False,
    axis: str | None = AXIS,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes `step(state, batch, key) -> (state, metrics)`, on one replica's share of a batch.

    Arguments that are not named here are as for `steps.make_train_step`.

    Args:
      method: which, and its numbers.
      labeled: what turns keys and a part of a batch into inputs of stage `start_stage`.
      weak: likewise, of unlabeled images.
      strong: likewise, of their second views.

    Returns:
      The step. A batch has `labeled` and `weak`, each as `steps.make_train_step` takes a batch, and `strong` where
      second views are not made from the same pictures. Metrics are sums over the labeled images (loss, correct,
      seen; `steps.active_outputs`), and `index` and `given` `[all unlabeled rows]`: which images were learned with
      which label, `UNLABELED` for none.
    """

    def total(values: Any) -> Any:
        return values if axis is None else jax.lax.psum(values, axis)

    def everywhere(values: jax.Array) -> jax.Array:
        return values if axis is None else jax.lax.all_gather(values, axis, tiled=True)

    def step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        trainable, frozen = partition(model, plan, state.variables)
        parts = parts_of(frozen, batch, key)
        tools = tools_of(frozen, parts, state.step)
        update = meta_update if method.name == "meta_pseudo_labels" else consistency_update
        done = update(method, tools, parts, trainable, state)
        mask = parts.seen[2]
        right = ((predictions(done.logits) == hard(parts.label)) * mask).sum()
        sums = {"loss": tools.true(done.logits), "correct": right, "seen": mask.sum()}
        metrics = total(sums | active_outputs(model, done.logits, mask))
        given = jnp.where(parts.first[2] > 0, done.given, UNLABELED)
        metrics |= {"index": everywhere(parts.index), "given": everywhere(given)}
        metrics |= gradient_norms(plan, done.grads)
        variables = combine(done.trainable, frozen)
        state = state.replace(step=state.step + 1, **variables, opt_state=done.opt_state, semi=done.semi)
        return state, metrics

    def tools_of(frozen: Variables, parts: Parts, step: jax.Array) -> Tools:
        mask, other = parts.seen[2], parts.first[2]
        seen, images, here = total(mask.sum()), total(other.sum()), mask.sum() + other.sum()
        factor = family.schedules[0](step)

        def forward(trainable: Variables, *views: View) -> tuple[list[jax.Array], Any]:
            x, keys, masks = (jnp.concatenate(each) for each in zip(*views, strict=True))
            forward_context = ForwardContext(
                bn=plan.modes, mask=masks, keys=keys, axis_name=axis if cross_replica_bn else None
            )
            logits, changed = model.apply(
                combine(trainable, frozen),
                x,
                forward_context,
                start_stage=frozen_prefix_end or start_stage,
                mutable=["batch_stats"],
            )
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            moved = dict(traverse_util.flatten_dict(changed.get("batch_stats", {})))
            ends = np.cumsum([len(view[0]) for view in views])[:-1]
            return jnp.split(logits, ends), {p: moved.get(p, v) for p, v in trainable["batch_stats"].items()}

        def optimize(trainable: Variables, stats: Any, opt_state: Any, grads: Any) -> tuple[Variables, Any]:
            if axis is not None and not cross_replica_bn:  # each replica's statistics count by the examples it saw
                share = here / total(here)
                stats = {p: total(v * share.astype(v.dtype)) for p, v in stats.items()}
            tx = family.optimizer({})
            params, opt_state = update_params(plan, tx, frozen, trainable["params"], opt_state, grads, factor)
            return {"params": params, "batch_stats": stats}, opt_state

        return Tools(
            forward=forward,
            optimize=optimize,
            true=lambda logits: (loss(logits, parts.label) * mask).sum(),
            seen=seen,
            unlabeled=lambda losses: (losses * other).sum() / images,
            total=total,
            everywhere=everywhere,
            weight=method.weight * mean_teacher.ramp(step, method.ramp_steps),
        )

    def parts_of(frozen: Variables, batch: Any, key: jax.Array) -> Parts:
        first, second = batch["labeled"], batch["weak"]
        keys = example_keys(key, first["epoch"], first["index"])
        others = example_keys(key, second["epoch"], second["index"])
        again = streams(others, Stream.SECOND_VIEW)
        views = [
            labeled(streams(keys, Stream.AUGMENTATION), first),
            weak(streams(others, Stream.AUGMENTATION), second),
            strong(streams(again, Stream.AUGMENTATION), batch.get("strong", second)),
        ]
        if frozen_prefix_end is not None and frozen_prefix_end != start_stage:
            views = [run_prefix(model, frozen, x, start_stage=start_stage, stop_stage=frozen_prefix_end) for x in views]
        masks = first["mask"], second["mask"]
        return Parts(
            label=first["label"],
            index=second["index"],
            seen=(views[0], keys, masks[0]),
            first=(views[1], others, masks[1]),
            second=(views[2], again, masks[1]),
        )

    return step


def _trainable(tree: Any, like: Variables) -> Variables:
    """Nested, as a train state has it, to flat by path; of networks without moving statistics these are empty."""
    flat = {name: dict(traverse_util.flatten_dict(tree.get(name, {}))) for name in like}
    return {name: {path: flat[name][path] for path in values} for name, values in like.items()}
