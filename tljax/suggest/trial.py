"""Backbones and learning rates tried on some of the training images, before a run; the test's labels stay unread."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from tljax.core import shared_cache
from tljax.core.errors import UserError
from tljax.distributed import parallel
from tljax.engine.input_pipeline import predict_all
from tljax.metrics.accuracy import predictions
from tljax.models import Network, create_model
from tljax.report.console import make_writer
from tljax.run_dir.checkpoint import Checkpoints
from tljax.settings.dotted import with_fields
from tljax.train.checks import check
from tljax.train.experiment import Experiment
from tljax.train.final_eval import restore_best
from tljax.train.setup import prepare
from tljax.train.trainer import Trainer
from tljax.transfer.plan import read_groups
from tljax.transfer.population import AXES
from tljax.weights import hub
from tljax.weights.initial import no_weights

PLAIN = {
    "augment.crop": "center", "augment.flip": False, "augment.rotation": 0.0, "protocol.augmented_copies": 0,
    "augment.brightness": 0.0, "augment.contrast": 0.0, "augment.saturation": 0.0, "augment.hue": 0.0,
    "augment.grayscale": 0.0, "augment.invert": 0.0, "augment.blur": 0, "augment.rand_ops": 0, "cache.views": 0,
}  # fmt: skip
"""Nothing random, so that what a frozen part puts out is computed once."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A pretrained network, perhaps cut short.

    Attributes:
      name: as `model.name`.
      last_stage: as `model.last_stage`; None for the whole.
      weights: as `model.weights`.
    """

    name: str
    last_stage: str | None
    weights: str

    def __str__(self) -> str:
        return self.name + (f":{self.last_stage}" if self.last_stage else "")


def read_backbones(text: str) -> tuple[Backbone, ...]:
    """Reads `NAME[:UNTIL][=WEIGHTS],...`; without WEIGHTS, ImageNet's.

    Raises:
      UserError: for a network or a stage that there is not, or one that is named twice.
    """
    found = []
    for part in (part.strip() for part in text.split(",")):
        who, equals, weights = part.partition("=")
        name, colon, last_stage = who.partition(":")
        if not name or (equals and not weights) or (colon and not last_stage):
            raise UserError(f"--backbones={text!r}: {part!r} is not NAME, NAME=WEIGHTS or NAME:LAST_STAGE=WEIGHTS, "
                            "as in resnet18:layer3=resnet18.pth")  # fmt: skip
        create_model(name, last_stage=last_stage or None)
        found.append(Backbone(name, last_stage or None, weights or "imagenet"))
    if len({str(one) for one in found}) < len(found):
        raise UserError(f"--backbones={text!r} names a network twice")
    return tuple(found)


def own_backbone(config: Any) -> Backbone:
    """The one that a config names."""
    return Backbone(config.model.name, config.model.last_stage or None, config.model.weights)


def available(config: Any) -> tuple[Backbone, ...]:
    """The config's own, and ImageNet's whose file is here already; nothing is downloaded.

    Raises:
      UserError: when there is none.
    """
    own, found = own_backbone(config), []
    folders = hub.folders()
    for weights, files in hub.FILES.items():
        for name, file in files.items():
            if any((folder / file).is_file() for folder in folders):
                found.append(Backbone(name, own.last_stage if name == own.name else None, weights))
    if not no_weights(own.weights) and own.weights not in hub.FILES:
        found = [own, *(one for one in found if str(one) != str(own))]
    best = {str(one): one for one in found}  # of two weights of one network, the later ones
    if not best:
        raise UserError(
            f"no pretrained network is here to be tried: put files of torchvision in {folders[0]}, or name some, as in "
            "--backbones=resnet18=resnet18-f37072fd.pth,squeezenet1_0=squeezenet1_0-b66bff10.pth"
        )
    return tuple(best.values())


def network_fields(config: Any, backbone: Backbone) -> dict[str, Any]:
    """What a config says of its network with another in its place; a width or depth is its own network's."""
    fields = {"model.name": backbone.name, "model.last_stage": backbone.last_stage, "model.weights": backbone.weights}
    if backbone.name != config.model.name:
        fields |= dict.fromkeys(("model.width", "model.blocks", "model.dropout", "model.stochastic_depth"))
    return fields


def _groups(config: Any, backbone: Backbone) -> tuple[str, ...]:
    m = config.model
    more = {"width": m.width, "blocks": m.blocks} if backbone.name == m.name else {}
    network: Network = create_model(backbone.name, last_stage=backbone.last_stage, **more)
    return network.groups


def train_of(config: Any, backbone: Backbone) -> str:
    """`transfer.train` of a config, for another network: what are the last groups here are the last groups there.

    Raises:
      UserError: where it cannot be said of that network.
    """
    own, theirs = _groups(config, own_backbone(config)), _groups(config, backbone)
    text = config.transfer.train
    if text.strip() == "all" or own == theirs:
        return text
    if set(part.strip() for part in text.split(",")) <= set(theirs):
        return text
    mine = read_groups("transfer.train", text, own)
    if mine == own[len(own) - len(mine) :] and len(mine) < len(theirs):
        return ",".join(theirs[len(theirs) - len(mine) :])
    raise UserError(f"transfer.train={text!r} of {config.model.name} cannot be said of {backbone}, whose groups are "
                    f"{', '.join(theirs)}; leave it out of --backbones")  # fmt: skip


def last_stage_of(config: Any, backbone: Backbone) -> str:
    """The head and the group before it."""
    return ",".join(_groups(config, backbone)[-2:])


def try_fields(config: Any) -> dict[str, Any]:
    """Of a trial: one phase, labeled images alone, nothing random in the images, no pictures of the run."""
    fields = PLAIN | {"transfer.phases": "", "semi.method": "none", "pictures": False, "select": "validation",
                      "epoch_steps": 0, "data.pseudo": ""}  # fmt: skip
    if config.data.val == 0:  # a run may do without, a choice may not
        fields["data.val"] = 0.2
    return fields | {f"population.{axis}": () for axis in AXES}


def some(x: Experiment, images: int, *, seed: int) -> Experiment:
    """The experiment without its test, on so many images of a split at most, of each class in proportion; 2 to train on
    of each class that has them, or cross-validation could not be, and the data would be blamed for this choice."""
    splits = {name: members for name, members in x.data.splits.items() if name in ("train", "val")}
    for name, members in splits.items():
        if len(members) <= images:
            continue
        rng, labels, kept = np.random.default_rng(seed), x.data.labels(name), []
        for label in np.unique(labels):
            mine = rng.permutation(members[labels == label])
            least = 2 if name == "train" else 1
            kept.append(mine[: max(least, round(len(mine) * images / len(members)))])
        splits[name] = np.sort(np.concatenate(kept))
    return dataclasses.replace(x, data=dataclasses.replace(x.data, splits=splits))


def has_own_validation(x: Experiment) -> bool:
    """Whether the data say which images are for validation; those drawn here are like the others but for chance."""
    return bool(np.isin(x.data.splits["val"], x.data.source.splits.get("val", ())).all())


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a backbone makes of images.

    Attributes:
      features: of training images, what reaches its head, mean over space, float32 `[N, D]`.
      validation: the same of validation images, `[M, D]`; of none unless `has_own_validation`.
      x: the experiment that it was part of.
      whole: the same with all its splits.
    """

    features: np.ndarray
    validation: np.ndarray
    x: Experiment
    whole: Experiment


def features_of(config: Any, backbone: Backbone, *, images: int, folder: Path, console: Console) -> Seen:
    """Runs a backbone over training and validation images as an evaluation sees them.

    Raises:
      UserError: when its weights are not there or do not fit.
    """
    head = {"transfer.train": "head", "transfer.fresh": "head", "transfer.bn": "", "optimizer.lr_groups": ""}
    config = with_fields(config, network_fields(config, backbone) | try_fields(config) | head)
    shared_cache.begin_run()
    whole, variables = prepare(config, folder, console)
    x = some(whole, images, seed=config.data.split_seed)
    replicated, key = parallel.replicate(variables), jax.random.key(0)

    def features(split: str) -> np.ndarray:
        feed = x.feed(split, once=True)
        step = parallel.eval_step(x.forward_step(0, feed, stop_stage="head"))
        return np.concatenate(
            [
                np.asarray(values, np.float32).reshape(len(values), -1, values.shape[-1]).mean(1)
                for values in predict_all(step, feed, replicated, key, x.replicas)
            ]
        )

    train = features("train")
    return Seen(train, features("val") if has_own_validation(whole) else train[:0], x, whole)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Short runs at several rates, side by side.

    Attributes:
      train: groups that trained.
      rates: learning rates, rising.
      epochs: that each ran.
      images: that each trained on.
      right: whether each was right at its best epoch, bool `[rates, validation images]`.
      losses: the lowest validation loss of each; not finite where it diverged.
      best_epochs: of each, from 1.
    """

    train: str
    rates: tuple[float, ...]
    epochs: int
    images: int
    right: np.ndarray
    losses: tuple[float, ...]
    best_epochs: tuple[int, ...]

    @property
    def plateau(self) -> tuple[int, ...]:
        """Rates next to each other that are as good as the best one: at most one standard error of it below."""
        correct = self.right.sum(1)
        seen, best = self.right.shape[1], int(correct.argmax())
        share = (correct[best] + 1) / (seen + 2)  # of all right, the error is not zero either
        as_good = correct >= correct[best] - np.sqrt(seen * share * (1 - share))
        low = high = best
        while low and as_good[low - 1]:
            low -= 1
        while high + 1 < len(as_good) and as_good[high + 1]:
            high += 1
        return tuple(range(low, high + 1))

    @property
    def chosen(self) -> int:
        """The middle of the plateau; of two, the one with the lower loss."""
        places = self.plateau
        middle = places[(len(places) - 1) // 2 : len(places) // 2 + 1]
        return min(middle, key=lambda i: (not np.isfinite(self.losses[i]), self.losses[i]))


def try_rates(
    config: Any,
    backbone: Backbone,
    train: str,
    rates: Sequence[float],
    *,
    epochs: int,
    images: int,
    folder: Path,
    console: Console,
) -> Trial:
    """Trains a population of rates for a few epochs and validates it; nothing of it is kept.

    Raises:
      UserError: for a plan that cannot be.
    """
    fields = network_fields(config, backbone) | try_fields(config)
    fields |= {"transfer.train": train, "population.lr": tuple(rates), "epochs": epochs}
    config = with_fields(config, fields)
    check(config)
    shared_cache.begin_run()
    whole, variables = prepare(config, folder, console)
    x = some(whole, images, seed=config.data.split_seed)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        checkpoints = Checkpoints(Path(place))
        try:
            trainer = Trainer(x, checkpoints, Console(quiet=True), 0.0, Path(place))
            trainer.begin(variables)
            trainer.train(make_writer(Path(place), console, config, first=False))
            restore_best(trainer)
            logits, labels = trainer.logits("val"), x.data.labels("val")
        finally:
            checkpoints.close()
    losses = []
    for history in trainer.histories:
        known = [row["val_loss"] for row in history if np.isfinite(row["val_loss"])]
        losses.append(min(known, default=float("inf")))
    right = np.stack([predictions(one) == labels for one in logits])
    best = tuple(trainer.best_row(m)["epoch"] for m in range(len(rates)))
    return Trial(train, tuple(rates), epochs, len(x.data.splits["train"]), right, tuple(losses), best)
