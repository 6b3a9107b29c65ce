"""What a run is made of before its first step: data, network, plans."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from tljax.core.errors import UserError, counted, few
from tljax.core.rng import Stream, example_keys, streams
from tljax.core.shared_cache import is_sharing
from tljax.data import content, duplicates
from tljax.data.augment import Augmentation, make_normalize, make_views
from tljax.data.batches import num_batches, train_batches
from tljax.data.color import Color
from tljax.data.load import Data, decode_data, open_data
from tljax.data.randaugment import RandAugment
from tljax.data.statistics import mean_and_std
from tljax.engine.input_pipeline import Features, InputPipeline
from tljax.engine.parallel import Replicas
from tljax.engine.steps import (
    by_family,
    combine,
    make_forward_step,
    make_train_step,
    partition,
)
from tljax.metrics.accuracy import hard
from tljax.metrics.losses import Loss, make_loss, outputs
from tljax.models import Network, check_side, create_model, init_variables, variable_shapes
from tljax.models.layers import parameter_dtype
from tljax.report import console as console_lib
from tljax.report import plots
from tljax.semi.input_pipeline import JointPipeline
from tljax.semi.joint import METHODS, Method, make_joint_step
from tljax.transfer.optimizer import Schedule, make_optimizer, make_schedule
from tljax.transfer.plan import Phase, Plan, make_phases, make_plan, merge, prefix_end, read_groups
from tljax.transfer.population import Family, Member, as_typed, is_population, make_families, members_of
from tljax.weights.initial import find_weights, load_pretrained, merge_loaded, no_weights


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run is a function of; nothing in it changes.

    Attributes:
      config: the config.
      members: the single runs in it: one, or those of a population.
      data: pixels, labels and splits.
      model: the network.
      phases: stretches of epochs, by member; members differ in their rates alone.
      plans: what each phase trains, by member and phase.
      preprocessing: `resize`, `crop`, `mean`, `std`, `white`, `float_white`, as `Preprocessing` has them.
      origin: where the initial parameters came from.
      replicas: the devices.
      earlier: digests of the pictures that the weights have trained on in earlier runs.
    """

    config: Any
    members: tuple[Member, ...]
    data: Data
    model: Network
    phases: tuple[tuple[Phase, ...], ...]
    plans: tuple[tuple[Plan, ...], ...]
    preprocessing: dict[str, Any]
    origin: dict[str, Any]
    replicas: Replicas
    earlier: frozenset[bytes] = frozenset()

    @property
    def batch_size(self) -> int:
        """The config's, or all training images where they are fewer."""
        return min(self.config.batch_size, len(self.data.splits["train"]))

    @property
    def batches(self) -> dict[str, int]:
        """The examples of an update, by the fields that say so."""
        more = {"semi.batch_size": self.config.semi.batch_size} if self.joint else {}
        return {"batch_size": self.batch_size, **more}

    def trained_before(self, split: str) -> np.ndarray:
        """Of the images of a split, whether an earlier run that the weights come from trained on them, bool `[n]`."""
        contents = self.data.contents[self.data.splits[split]].tolist()
        return np.array([one in self.earlier for one in contents], bool)

    @property
    def joint(self) -> bool:
        """Whether labelled and unlabelled images train together; an epoch is then a pass over the unlabelled ones."""
        return self.config.semi.method in METHODS

    @property
    def steps_per_epoch(self) -> int:
        return self.config.epoch_steps or self.steps_per_pass

    @property
    def last_step(self) -> int:
        """How many updates there are."""
        updates = self.config.epochs * self.steps_per_epoch
        return min(updates, self.config.stop_after or updates)

    def lasting(self, config: Any) -> "Experiment":
        """The same with a config that differs in how long training is, or how many views there are."""
        members = members_of(config)
        made = dataclasses.replace(self, config=config, members=members, phases=phases_of(config, members))
        vars(made)["duplicates"] = self.duplicates  # of the same images
        return made

    @property
    def steps_per_pass(self) -> int:
        """Updates in which each training image, or each unlabelled one of a joint run, comes once."""
        if self.joint:
            images = len(self.data.splits["unlabelled"])
            return num_batches(images, min(self.config.semi.batch_size, images))
        return num_batches(len(self.data.splits["train"]) * (1 + self.config.augment.copies), self.batch_size)

    @property
    def normalize(self) -> Callable[[Any], jax.Array]:
        return make_normalize(self.preprocessing["mean"], self.preprocessing["std"])

    def make_views(self, *, plain: bool = False, strong: bool = False) -> Callable[..., jax.Array]:
        """`(keys, images, sizes) -> inputs` of training, of training images as they are, or of second views."""
        size = self.config.data.size
        what = Augmentation(size, crop="center", flip=False) if plain else augmentation(self.config, strong=strong)
        return make_views(what, self.preprocessing["mean"], self.preprocessing["std"])

    @functools.cached_property
    def plain_loss(self) -> Loss:
        """The loss without smoothing: what evaluations report."""
        return make_loss(self.config.loss.name)

    @functools.cached_property
    def duplicates(self) -> duplicates.Found:
        """Images that occur twice: half a millisecond per image, once."""
        return duplicates.find(self.data)

    @property
    def population(self) -> bool:
        return is_population(self.config)

    def frozen_prefix_end(self, phase: int) -> str | None:
        """The stage that the phase's constant prefix ends before, if there is one."""
        return prefix_end(self.model, self.plans[0][phase])

    def member_map(self, phase: int) -> str:
        """How members are computed: heads in one product, anything larger one after the other."""
        if not self.population:
            return "none"
        return "vmap" if self.frozen_prefix_end(phase) == "head" else "map"

    def schedule(self, phase: int, member: int = 0) -> Schedule:
        """Steps since the phase began -> the factor on its rates."""
        s, span, per_epoch = self.members[member].config.schedule, self.phases[member][phase], self.steps_per_epoch
        return make_schedule(
            s.name,
            steps=(span.last - span.first) * per_epoch,
            warmup_steps=round(s.warmup_epochs * per_epoch),
            decay_steps=max(1, round(s.step_epochs * per_epoch)),
            factor=s.factor,
        )

    def rate(self, step: int, phase: int, member: int = 0) -> float:
        """The phase's base learning rate at an update, counted from 0 since the run began."""
        span = self.phases[member][phase]
        done = jnp.int32(step - span.first * self.steps_per_epoch)
        return span.lr * float(self.schedule(phase, member)(done))

    def families(self, phase: int) -> list[Family]:
        """The optimizers and hyperparameters of the members."""
        everyone = range(len(self.members))
        plans, schedules = [self.plans[m][phase] for m in everyone], [self.schedule(phase, m) for m in everyone]
        if self.population:
            return make_families(self.members, plans, schedules, dtype=parameter_dtype(self.config.model.dtype))
        o = self.config.optimizer
        tx = make_optimizer(plans[0], name=o.name, momentum=o.momentum, clip=o.clip, decay_all=o.decay_all)
        return [Family.single(tx, schedules[0])]

    def init_optimizer(self, phase: int, params: Any) -> Any:
        """The optimizer state at the beginning of a phase."""
        families = self.families(phase)
        if not self.population:
            return families[0].optimizer({}).init(params)
        trainable, frozen = self.plans[0][phase].split(params)

        def init(family: Family, mine: Any) -> Any:
            return jax.vmap(lambda own, hyper: family.optimizer(hyper).init(merge(own, frozen)))(mine, family.hyper)

        return tuple(init(*each) for each in zip(families, by_family(families, trainable), strict=True))

    @property
    def method(self) -> Method:
        """How unlabelled images are learned from."""
        s = self.config.semi
        return Method(
            name=s.method, weight=s.weight, ramp_steps=s.ramp_epochs * self.steps_per_epoch, threshold=s.threshold,
            decay=s.decay, classes=self.model.num_classes, images=len(self.data.source),
            unlabelled=len(self.data.splits["unlabelled"]),
        )  # fmt: skip

    def init_semi(self, variables: dict[str, Any], opt_state: Any) -> dict[str, Any]:
        """What the method keeps, at the beginning."""
        return self.method.init(partition(self.model, self.plans[0][0], variables)[0], opt_state) if self.joint else {}

    def train_step(self, phase: int, feed: InputPipeline | JointPipeline) -> Callable[..., Any]:
        """The step of one replica in a phase."""
        config, prefix_end = self.config, self.frozen_prefix_end(phase)
        if isinstance(feed, JointPipeline):
            return make_joint_step(
                model=self.model,
                plan=self.plans[0][phase],
                family=self.families(phase)[0],
                loss=make_loss(config.loss.name, label_smoothing=config.loss.label_smoothing),
                method=self.method,
                labelled=feed.labelled.inputs,
                weak=feed.first.inputs,
                strong=feed.second.inputs,
                start_stage=prefix_end if feed.features is not None else None,
                frozen_prefix_end=prefix_end,
                cross_replica_bn=config.cross_replica_bn,
            )
        return make_train_step(
            model=self.model,
            plan=self.plans[0][phase],
            families=self.families(phase),
            loss=make_loss(config.loss.name, label_smoothing=config.loss.label_smoothing),
            inputs=feed.inputs,
            start_stage=prefix_end if feed.features is not None else None,
            frozen_prefix_end=prefix_end,
            member_map=self.member_map(phase),
            first_step=self.phases[0][phase].first * self.steps_per_epoch,
            accumulate=config.accumulate,
            cross_replica_bn=config.cross_replica_bn,
        )

    def forward_step(self, phase: int, feed: InputPipeline, *, stop_stage: str | None = None) -> Callable[..., Any]:
        """Logits of one replica, or with `stop_stage` the features that reach that stage."""
        prefix_end = self.frozen_prefix_end(phase)
        return make_forward_step(
            model=self.model,
            plan=self.plans[0][phase],
            inputs=feed.inputs,
            start_stage=prefix_end if feed.features is not None else None,
            frozen_prefix_end=prefix_end,
            stop_stage=stop_stage,
            member_map=self.member_map(phase),
        )

    def training_feed(self, kept: Mapping[str, Features]) -> InputPipeline | JointPipeline:
        """What trains, on kept features where there are any."""
        labelled = self.feed("train", training=True, features=kept.get("train"))
        if not self.joint:
            return labelled
        rows, strong = self.config.semi.batch_size, kept.get("strong", kept.get("train"))
        first = self.feed("unlabelled", training=True, features=kept.get("train"), batch_size=rows)
        second = self.feed(
            "unlabelled", training=True, strong=True, features=strong, batch_size=rows, once=strong is None
        )
        if "strong" not in kept:  # two draws of one kind: the other half of the kept views
            second = dataclasses.replace(second, offset=self.config.cache.views // 2)
        return JointPipeline(labelled, first, second)

    def feed(
        self,
        images: str | np.ndarray,
        *,
        training: bool = False,
        strong: bool = False,
        features: Features | None = None,
        batch_size: int | None = None,
        once: bool = False,
    ) -> InputPipeline:
        """A split, or other images, as batches: in whole pictures and shuffled for training, `strong` in second views;
        gone through but `once`, from the host."""
        indices = self.data.splits[images] if isinstance(images, str) else images
        return InputPipeline(
            data=self.data,
            indices=indices,
            batch_size=min(batch_size or self.config.batch_size, len(indices)),
            training=training,
            views=self.make_views(strong=strong),
            plain=self.make_views(plain=True),
            normalize=self.normalize,
            crop=self.config.data.size,
            seed=self.config.seed,
            features=features,
            placement="host" if once else self.config.data.placement,
            copies=self.config.augment.copies if training else 0,
        )

    @property
    def views(self) -> int:
        """How many views of a training image there are to keep features of: 1 without randomness, 0 for endless."""
        if self.config.augment.copies:
            return 0
        if not self.joint and not augmentation(self.config).random:
            return 1
        passes = -(-self.config.epochs * self.steps_per_epoch // self.steps_per_pass)
        if is_sharing() or self.joint:  # jointly labelled images make more passes, second views come half a turn later
            return self.config.cache.views
        return min(self.config.cache.views, passes)

    @property
    def views_seed(self) -> int:
        """Of the kept views' randomness."""
        return self.config.seed if self.config.cache.seed is None else self.config.cache.seed

    def save_augmented(self, path: Path) -> None:
        """Saves the first training batch as the network will see it."""
        data, size = self.data, min(32, self.batch_size)
        batches = train_batches(
            data.pixels, data.targets, data.splits["train"], batch_size=size, seed=self.config.seed, epoch=0
        )
        batch = next(batches)
        keys = streams(example_keys(jax.random.key(self.config.seed), 0, batch["index"]), Stream.AUGMENTATION)
        views = np.asarray(jax.jit(self.make_views())(keys, batch["image"], batch["size"]))
        seen = 255 * (views * np.float32(self.preprocessing["std"]) + np.float32(self.preprocessing["mean"]))
        plots.save_batch(path, seen, [data.source.classes[label] for label in hard(batch["label"])])


def augmentation(config: Any, *, strong: bool = False) -> Augmentation:
    """Of training images, or of their second views."""
    a, s = config.augment, config.semi
    rand = RandAugment(s.strong_ops, s.strong_magnitude) if strong else RandAugment(a.rand_ops, a.rand_magnitude)
    color = Color(a.brightness, a.contrast, a.saturation, a.hue, a.grey, a.invert, a.blur)
    return Augmentation(
        config.data.size,
        a.crop,
        tuple(a.scale),
        tuple(a.ratio),
        a.flip,
        a.rotation,
        a.turns,
        color,
        a.colour_last,
        rand,
    )


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


def phases_of(config: Any, members: tuple[Member, ...]) -> tuple[tuple[Phase, ...], ...]:
    """By member."""
    t = config.transfer
    return tuple(
        make_phases(t.phases, train=t.train, epochs=config.epochs, lr=member.config.optimizer.lr) for member in members
    )


def outline(config: Any) -> Outline:
    """Raises UserError for a network that there is not, or a plan that cannot be."""
    m, t = config.model, config.transfer
    build: Callable[..., Network] = functools.partial(
        create_model,
        m.name,
        until=m.until or None,
        width=m.width,
        blocks=m.blocks,
        drop=m.drop,
        depth_drop=m.depth_drop,
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
