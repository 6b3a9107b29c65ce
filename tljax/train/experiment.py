"""What a run is made of: data, network, plans, and what they give: steps, inputs, optimizer states."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.core.rng import Stream, example_keys, streams
from tljax.core.shared_cache import is_sharing
from tljax.data import duplicates
from tljax.data.augment import Augmentation, make_normalize, make_views
from tljax.data.batches import num_batches, train_batches
from tljax.data.color import Color
from tljax.data.load import Data
from tljax.data.randaugment import RandAugment
from tljax.distributed.parallel import Replicas
from tljax.engine.input_pipeline import Features, InputPipeline
from tljax.engine.steps import (
    by_family,
    make_forward_step,
    make_train_step,
    partition,
)
from tljax.metrics.accuracy import hard
from tljax.metrics.losses import Loss, make_loss
from tljax.models import Network
from tljax.models.layers import parameter_dtype
from tljax.report import plots
from tljax.semi.input_pipeline import JointPipeline
from tljax.semi.joint import METHODS, Method, make_joint_step
from tljax.transfer.optimizer import Schedule, make_optimizer, make_schedule
from tljax.transfer.plan import Phase, Plan, make_phases, merge, prefix_end
from tljax.transfer.population import Family, Member, is_population, make_families, members_of


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
        """Whether labeled and unlabeled images train together; an epoch is then a pass over the unlabeled ones."""
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
        """Updates in which each training image, or each unlabeled one of a joint run, comes once."""
        if self.joint:
            images = len(self.data.splits["unlabeled"])
            return num_batches(images, min(self.config.semi.batch_size, images))
        return num_batches(
            len(self.data.splits["train"]) * (1 + self.config.protocol.augmented_copies), self.batch_size
        )

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
            return jax.vmap(lambda params, hyper: family.optimizer(hyper).init(merge(params, frozen)))(
                mine, family.hyper
            )

        return tuple(init(*each) for each in zip(families, by_family(families, trainable), strict=True))

    @property
    def method(self) -> Method:
        """How unlabeled images are learned from."""
        s = self.config.semi
        return Method(
            name=s.method, weight=s.weight, ramp_steps=s.ramp_epochs * self.steps_per_epoch, threshold=s.threshold,
            decay=s.decay, classes=self.model.num_classes, images=len(self.data.source),
            unlabeled=len(self.data.splits["unlabeled"]),
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
                labeled=feed.labeled.inputs,
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
        labeled = self.feed("train", training=True, features=kept.get("train"))
        if not self.joint:
            return labeled
        rows, strong = self.config.semi.batch_size, kept.get("strong", kept.get("train"))
        first = self.feed("unlabeled", training=True, features=kept.get("train"), batch_size=rows)
        second = self.feed(
            "unlabeled", training=True, strong=True, features=strong, batch_size=rows, once=strong is None
        )
        if "strong" not in kept:  # two draws of one kind: the other half of the kept views
            second = dataclasses.replace(second, offset=self.config.cache.views // 2)
        return JointPipeline(labeled, first, second)

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
            copies=self.config.protocol.augmented_copies if training else 0,
        ).placed()

    @property
    def views(self) -> int:
        """How many views of a training image there are to keep features of: 1 without randomness, 0 for endless."""
        if self.config.protocol.augmented_copies:
            return 0
        if not self.joint and not augmentation(self.config).random:
            return 1
        passes = -(-self.config.epochs * self.steps_per_epoch // self.steps_per_pass)
        if is_sharing() or self.joint:  # jointly labeled images make more passes, second views come half a turn later
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
    color = Color(a.brightness, a.contrast, a.saturation, a.hue, a.grayscale, a.invert, a.blur)
    return Augmentation(
        config.data.size,
        a.crop,
        tuple(a.scale),
        tuple(a.ratio),
        a.flip,
        a.rotation,
        config.protocol.rotations,
        color,
        config.protocol.color_after_normalization,
        rand,
    )


def phases_of(config: Any, members: tuple[Member, ...]) -> tuple[tuple[Phase, ...], ...]:
    """By member."""
    t = config.transfer
    return tuple(
        make_phases(t.phases, train=t.train, epochs=config.epochs, lr=member.config.optimizer.lr) for member in members
    )
