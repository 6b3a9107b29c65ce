"""What a run is made of before its first step: data, network, plans; and what a config may not say."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from tljax.data.augment import Augmentation, make_augment, make_normalize
from tljax.data.batches import num_batches, train_batches
from tljax.data.load import Data, decode_data, open_data
from tljax.errors import UserError
from tljax.losses import Loss, make_loss, outputs
from tljax.models import Network, create_model, init_variables
from tljax.report import pictures
from tljax.report.console import progress_bar
from tljax.steps import Replicas, augmentation_keys, example_keys, make_train_step
from tljax.transfer.initial import find_weights, load_pretrained, merge_loaded, no_weights
from tljax.transfer.optimizer import Schedule, check_optimizer, make_optimizer, make_schedule
from tljax.transfer.plan import Phase, Plan, make_phases, make_plan
from tljax.workdir import flatten


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run is a function of; nothing in it changes.

    Attributes:
      config: the config.
      data: pixels, labels and splits.
      model: the network.
      phases, plans: stretches of epochs, and what each trains.
      preprocessing: `resize`, `crop`, `mean`, `std`.
      origin: where the initial parameters came from.
      replicas: the devices.
    """

    config: Any
    data: Data
    model: Network
    phases: tuple[Phase, ...]
    plans: tuple[Plan, ...]
    preprocessing: dict[str, Any]
    origin: dict[str, Any]
    replicas: Replicas

    @property
    def batch_size(self) -> int:
        """The config's, or all training images where they are fewer."""
        return min(self.config.batch_size, len(self.data.splits["train"]))

    @property
    def steps_per_epoch(self) -> int:
        return num_batches(len(self.data.splits["train"]), self.batch_size)

    @property
    def normalize(self) -> Callable[[Any], jax.Array]:
        return make_normalize(self.preprocessing["mean"], self.preprocessing["std"])

    @functools.cached_property
    def plain_loss(self) -> Loss:
        """The loss without smoothing: what evaluations report."""
        return make_loss(self.config.loss.name)

    def optimizer(self, phase: int) -> Any:
        o = self.config.optimizer
        return make_optimizer(self.plans[phase], name=o.name, momentum=o.momentum, clip=o.clip, decay_all=o.decay_all)

    def schedule(self, phase: int) -> Schedule:
        """Steps since the phase began -> the factor on its rates."""
        s, span, per_epoch = self.config.schedule, self.phases[phase], self.steps_per_epoch
        return make_schedule(
            s.name,
            steps=(span.last - span.first) * per_epoch,
            warmup_steps=round(s.warmup_epochs * per_epoch),
            decay_steps=max(1, round(s.step_epochs * per_epoch)),
            factor=s.factor,
        )

    def rate(self, step: int, phase: int) -> float:
        """The phase's base learning rate at an update, counted from 0 since the run began."""
        span = self.phases[phase]
        return span.lr * float(self.schedule(phase)(jnp.int32(step - span.first * self.steps_per_epoch)))

    def train_step(self, phase: int) -> Callable[..., Any]:
        """The step of one replica in a phase."""
        config, span = self.config, self.phases[phase]
        return make_train_step(
            model=self.model,
            plan=self.plans[phase],
            tx=self.optimizer(phase),
            schedule=self.schedule(phase),
            loss=make_loss(config.loss.name, label_smoothing=config.loss.label_smoothing),
            augment=make_augment(augmentation(config)),
            normalize=self.normalize,
            first_step=span.first * self.steps_per_epoch,
            accumulate=config.accumulate,
            cross_replica_bn=config.cross_replica_bn,
        )

    def save_augmented(self, path: Path) -> None:
        """Saves the first training batch as the network will see it."""
        data, size = self.data, min(32, self.batch_size)
        batches = train_batches(
            data.pixels, data.source.labels, data.splits["train"], batch_size=size, seed=self.config.seed, epoch=0
        )
        batch = next(batches)
        keys = augmentation_keys(example_keys(jax.random.key(self.config.seed), 0, batch["index"]))
        views = jax.jit(make_augment(augmentation(self.config)))(keys, batch["image"], batch["size"])
        pictures.save_batch(path, np.asarray(views), [data.source.classes[label] for label in batch["label"]])


def augmentation(config: Any) -> Augmentation:
    a = config.augment
    return Augmentation(config.data.size, a.crop, tuple(a.scale), tuple(a.ratio), a.flip, a.rotation)


def check(config: Any) -> None:
    """Refuses numbers and names that cannot be, before anything is opened.

    Raises:
      UserError: naming the field.
    """
    least = {
        "epochs": 1, "batch_size": 1, "accumulate": 1, "seed": 0, "data.size": 1, "data.resize": 0, "data.val": 0,
        "data.per_class": 0, "data.workers": 0, "data.memory_gb": 0, "data.split_seed": 0, "schedule.step_epochs": 0,
        "schedule.warmup_epochs": 0, "schedule.factor": 0, "optimizer.weight_decay": 0, "optimizer.clip": 0,
        "optimizer.momentum": 0,
    }  # fmt: skip
    fields = flatten(config.to_dict())
    for name, value in fields.items():
        numbers = value if isinstance(value, tuple | list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"{name}={value} is not a finite number")
    for name, bound in least.items():
        if fields[name] < bound:
            raise UserError(f"{name}={fields[name]} is too small; it is at least {bound}")
    if config.optimizer.momentum >= 1:
        raise UserError(f"optimizer.momentum={config.optimizer.momentum} is not below 1; sgd would diverge")
    if config.seed >= 2**32:
        raise UserError(f"seed={config.seed} does not fit in 32 bits")
    if config.accumulate > config.batch_size:
        raise UserError(
            f"accumulate={config.accumulate} cuts a batch of batch_size={config.batch_size} into empty parts"
        )
    if config.transfer.moments not in ("keep", "fresh"):
        raise UserError(f"transfer.moments={config.transfer.moments!r} is not one of keep, fresh")
    for name in ("mean", "std"):
        values = config.data[name]
        numbers = all(isinstance(v, int | float) and v >= 0 for v in values)
        if len(values) not in (0, 3) or not numbers or (name == "std" and not all(values)):
            raise UserError(f"data.{name}={values} is not three numbers, one per channel, of values in 0 to 1")
    if config.data.resize and config.data.resize < config.data.size:
        raise UserError(f"data.resize={config.data.resize}, the side that images are kept at, is smaller than "
                        f"data.size={config.data.size}")  # fmt: skip
    augmentation(config)
    check_optimizer(config.optimizer.name)
    make_schedule(config.schedule.name, steps=1)
    make_loss(config.loss.name, label_smoothing=config.loss.label_smoothing)


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
    m, t, d = config.model, config.transfer, config.data
    build: Callable[..., Network] = functools.partial(
        create_model, m.name, until=m.until or None, width=m.width, blocks=m.blocks, drop=m.drop, dtype=m.dtype
    )
    phases = make_phases(t.phases, train=t.train, epochs=config.epochs, lr=config.optimizer.lr)
    sketch = build()  # shapes suffice to find what is wrong with the plan
    shapes = jax.eval_shape(lambda: init_variables(sketch, jax.random.key(0)))
    scratch = no_weights(m.weights)
    fresh = "all" if scratch else t.fresh
    for chosen in {t.fresh, fresh}:
        plans_of(sketch, shapes, config, phases, chosen)
    source, splits = open_data(d, seed=config.seed)
    num_classes = outputs(config.loss.name, len(source.classes))

    weights = find_weights(m.weights, m.name)
    loaded = load_pretrained(weights, m.name)
    started = [group for group in sketch.groups if fresh == "all" or group in fresh.replace(" ", "").split(",")]
    merge_loaded(sketch, shapes, loaded, fresh=[*started, "head"], shapes_only=True)
    if "head" not in started and loaded.classes not in (None, source.classes):
        raise UserError(
            f"{loaded.source} tells apart {', '.join(loaded.classes[:3])}, ..., not the classes of {source.spec}; "
            f"say transfer.fresh=head"
        )

    resize = d.resize or round(d.size * weights.resize / weights.crop)  # the same share of the picture at any size
    preprocessing = {
        "resize": resize, "crop": d.size, "mean": list(d.mean or weights.mean), "std": list(d.std or weights.std)
    }  # fmt: skip
    with progress_bar(console, "decoding") as advance:
        data = decode_data(d, source, splits, resize=resize, workdir=workdir, progress=advance)
    counts = ", ".join(f"{name} {len(members):,}" for name, members in data.splits.items())
    console.print(f"{source.spec}: {len(source.classes)} classes; images: {counts}", markup=False)
    if data.skipped:
        name, reason = data.skipped[0]
        console.print(f"skipped {len(data.skipped):,} files, such as {name!r}: {reason}", markup=False)

    model = build(num_classes=num_classes)
    variables = init_variables(model, jax.random.key(config.seed))
    variables, origin = merge_loaded(model, variables, loaded, fresh=started)
    plans = plans_of(model, variables, config, phases, fresh)
    replicas = Replicas.here(config.accumulate)
    return Experiment(config, data, model, phases, plans, preprocessing, origin, replicas), variables


def plans_of(model: Network, variables: Any, config: Any, phases: tuple[Phase, ...], fresh: str) -> tuple[Plan, ...]:
    """One plan per phase. A group that started fresh and has trained is fresh no longer."""
    t, o = config.transfer, config.optimizer
    plans = []
    for phase in phases:
        plan = make_plan(
            model, variables, train=phase.train, fresh=fresh, bn=t.bn, lr=phase.lr, lr_groups=o.lr_groups,
            lr_decay=o.lr_decay, weight_decay=o.weight_decay, allow_fresh_frozen=t.allow_fresh_frozen,
        )  # fmt: skip
        fresh = ",".join(g.name for g in plan.groups if g.fresh and not g.trained)
        plans.append(plan)
    return tuple(plans)
