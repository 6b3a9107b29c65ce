"""What a run is made of before its first step: data, network, plans."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from tljax.core.errors import UserError, counted, few
from tljax.data import content
from tljax.data.load import decode_data, open_data
from tljax.data.statistics import mean_and_std
from tljax.distributed.parallel import Replicas
from tljax.engine.steps import (
    combine,
    partition,
)
from tljax.metrics.losses import outputs
from tljax.models import Network, check_side, create_model, init_variables, variable_shapes
from tljax.report import console as console_lib
from tljax.train.experiment import Experiment, phases_of
from tljax.transfer.plan import Phase, Plan, make_plan, prefix_end, read_groups
from tljax.transfer.population import Member, as_typed, is_population, members_of
from tljax.weights.initial import find_weights, load_pretrained, merge_loaded, no_weights


class Outline(NamedTuple):
    """What can be said of a run before its data are opened.

    Attributes:
      build: `num_classes=... -> network`.
      members, phases: as `Experiment` has them.
      sketch, shapes: a network, and the shapes of its variables.
      fresh: groups that start from random numbers.
    """

    build: Callable[..., Network]
    members: tuple[Member, ...]
    phases: tuple[tuple[Phase, ...], ...]
    sketch: Network
    shapes: dict[str, Any]
    fresh: str


def outline(config: Any) -> Outline:
    """Raises UserError for a network that there is not, or a plan that cannot be."""
    m, t = config.model, config.transfer
    build: Callable[..., Network] = functools.partial(
        create_model,
        m.name,
        last_stage=m.last_stage or None,
        width=m.width,
        blocks=m.blocks,
        dropout=m.dropout,
        stochastic_depth=m.stochastic_depth,
        dtype=m.dtype,
        head_init=m.head_init,
    )
    members = members_of(config)
    phases = phases_of(config, members)
    sketch = build()  # shapes suffice to find what is wrong with the plan
    shapes = variable_shapes(sketch)
    check_side(sketch, m.name, config.data.size)
    scratch = no_weights(m.weights)
    fresh = "all" if scratch else t.fresh
    for chosen in {t.fresh, fresh}:
        for member, spans in zip(members, phases, strict=True):
            with as_typed(member):
                plans = plans_of(sketch, shapes, member.config, spans, chosen)
            if config.cache.views and not any(prefix_end(sketch, plan) for plan in plans):
                raise UserError(
                    "cache.views keeps features of a part that never changes, and this plan has none: something in the "
                    "first group trains or its batch norm moves; leave cache.views out"
                )
    return Outline(build, members, phases, sketch, shapes, fresh)


def prepare(config: Any, workdir: Path | None, console: Console) -> tuple[Experiment, dict[str, Any]]:
    """Finds the weights, decodes the data, makes the plans.

    Args:
      config: the config, checked.
      workdir: for decoded images that outgrow the memory; None forbids that.
      console: where to print.

    Returns:
      The experiment and its initial variables.

    Raises:
      UserError: for whatever the user can mend; what is cheap to find is said first, images are decoded last.
    """
    m, d = config.model, config.data
    build, members, phases, sketch, shapes, fresh = outline(config)
    listed = open_data(d, seed=config.seed)
    source = listed.source
    if config.select == "test" and "test" not in listed.splits:
        raise UserError(f"select='test' tests every epoch, and {source.spec} has no test images, but "
                        f"{' and '.join(listed.splits)}; say data.test=val to test on its folder val, or give "
                        "data.split")  # fmt: skip
    num_classes = head_outputs(config, len(source.classes))

    weights = find_weights(m.weights, m.name)
    loaded = load_pretrained(weights, m.name)
    started = list(read_groups("transfer.fresh", fresh, sketch.groups))
    merge_loaded(sketch, shapes, loaded, fresh=[*started, "head"], shapes_only=True)
    if "head" not in started and loaded.classes not in (None, source.classes):
        raise UserError(
            f"{loaded.source} tells apart {', '.join(loaded.classes[:3])}, ..., not the classes of {source.spec}; "
            f"say transfer.fresh=head"
        )
    if "head" not in started and loaded.variables and loaded.classes is None:
        console.print(
            f"warning: {loaded.source} does not say which classes its head tells apart; its outputs are taken for "
            f"{few(source.classes, 4)} in this order; say transfer.fresh=head if they are others",
            markup=False,
        )

    resize = d.resize or weights.short_side(d.size)
    with console_lib.progress_bar(console, "decoding") as advance:
        data = decode_data(d, listed, resize=resize, workdir=workdir, progress=advance)
    counts = {split: count.tolist() for split, count in data.counts.items()}
    images = {split: len(members) for split, members in data.splits.items()}
    console.print(f"{source.spec}: {console_lib.image_words(images, source.classes, counts)}", markup=False)
    if (rows := console_lib.class_rows(source.classes, counts)) and not d.pseudo:  # a student's are its teacher's
        console_lib.print_table(console, "", rows)
    for note in data.notes:
        console.print(note, markup=False)
    if data.skipped:
        name, reason = data.skipped[0]
        console.print(f"skipped {counted(len(data.skipped), 'file')}, such as {name!r}: {reason}", markup=False)
    if words := data.pixels.levels.words:
        console.print(words, markup=False)
    for names, words in (
        (data.pixels.flat, "of next to no contrast"),
        (data.pixels.paged, "of several pages or frames, the first of which is read"),
    ):
        if names:
            console.print(f"warning: {counted(len(names), 'image')} {words}: {few(names)}", markup=False)

    earlier: frozenset[bytes] | None = frozenset()
    if weights.path and weights.path.is_dir():
        earlier = content.trained_on(weights.path)
        if earlier is None:
            console.print(f"warning: an older version made {weights.path} and did not keep which images it trained on: "
                          "nobody can tell whether some are tested here", markup=False)  # fmt: skip

    mean, std = (weights.mean, weights.std) if d.normalize == "weights" else mean_and_std(data.pixels, data.pool)
    preprocessing = {
        "resize": resize, "crop": d.size, "mean": list(d.mean or mean), "std": list(d.std or std),
        **data.pixels.levels._asdict(),
    }  # fmt: skip
    model = build(num_classes=num_classes)
    variables, origin = start(model, members[0], loaded, started)
    plans = tuple(
        plans_of(model, variables, member.config, spans, fresh) for member, spans in zip(members, phases, strict=True)
    )
    if is_population(config):
        variables = stack_members(model, members, plans[0][0], variables, loaded, started)
    replicas = Replicas.here(config.accumulate)
    experiment = Experiment(
        config, members, data, model, phases, plans, preprocessing, origin, replicas, earlier or frozenset()
    )
    return experiment, variables


def head_outputs(config: Any, classes: int) -> int:
    """How many outputs the head has. Raises UserError where those that `model.outputs` asks for do not fit."""
    asked, needed = config.model.outputs, outputs(config.loss.name, classes)
    if asked and (asked < needed or config.loss.name == "sigmoid"):
        raise UserError(f"model.outputs={asked} does not fit loss.name={config.loss.name} on "
                        f"{counted(classes, 'class')}; it needs {needed}")  # fmt: skip
    return asked or needed


def start(model: Network, member: Member, loaded: Any, fresh: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A member's initial variables, and where they came from."""
    own = member.config.transfer.seed
    key = jax.random.key(member.config.seed if own is None else own)
    return merge_loaded(model, init_variables(model, key), loaded, fresh=fresh)


def stack_members(
    model: Network, members: tuple[Member, ...], plan: Plan, variables: dict[str, Any], loaded: Any, fresh: list[str]
) -> dict[str, Any]:
    """The variables of a population: what training changes gets an axis of members, the rest is there once."""
    by_seed = {members[0].config.transfer.seed: variables}
    for member in members:
        seed = member.config.transfer.seed
        if seed not in by_seed:
            by_seed[seed] = start(model, member, loaded, fresh)[0]
    if len(by_seed) > 1 and (lost := [g.name for g in plan.groups if g.fresh and not g.trained]):
        raise UserError(
            f"population.seed would give each member its own {', '.join(lost)}, which stay frozen and are kept once "
            f"for all; add them to transfer.train, or leave population.seed out"
        )
    owns = [partition(model, plan, by_seed[member.config.transfer.seed])[0] for member in members]
    shared = partition(model, plan, variables)[1]
    return combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *owns), shared)


def plans_of(model: Network, variables: Any, config: Any, phases: tuple[Phase, ...], fresh: str) -> tuple[Plan, ...]:
    """One plan per phase. A group that started fresh and has trained is fresh no longer."""
    t, o = config.transfer, config.optimizer
    plans = []
    for phase in phases:
        plan = make_plan(
            model, variables, train=phase.train, fresh=fresh, bn=t.bn, lr=phase.lr, lr_groups=o.lr_groups,
            lr_decay=o.lr_decay, weight_decay=o.weight_decay, allow_fresh_frozen=t.allow_fresh_frozen,
            asked_by="a phase of transfer.phases" if t.phases else "transfer.train",
        )  # fmt: skip
        fresh = ",".join(g.name for g in plan.groups if g.fresh and not g.trained)
        plans.append(plan)
    return tuple(plans)
