"""What a config leaves open, chosen for the images at hand, each with a reason that the run prints and records.

A field is open where its value is None. `configs/folder.py` leaves those of `DEFAULTS` open; what a user sets stands.
The numbers come from heads on kept features of PACS cartoon and three breeds of pets; `make bench-defaults` sets what
they give beside others' defaults.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.core.errors import UserError, counted
from tljax.data.augment import make_normalize
from tljax.data.batches import num_batches
from tljax.data.folder import unlabeled_folders
from tljax.data.load import DatasetIndex, open_data
from tljax.data.pixels import decode_all, find_levels
from tljax.data.reading import put_central_square
from tljax.models import init_variables
from tljax.run_dir.files import CONFIG, FREE, PLACES, write_json, write_whole
from tljax.settings.build import source_of
from tljax.settings.dotted import flatten, with_fields
from tljax.settings.validate import check_fields
from tljax.train.checks import check
from tljax.train.experiment import augmentation
from tljax.train.setup import Outline, outline, plans_of
from tljax.transfer.plan import prefix_end, read_groups
from tljax.weights.hub import FILES
from tljax.weights.initial import find_weights, load_pretrained, merge_loaded, no_weights

DEFAULTS: dict[str, Any] = {
    "cache.views": 0, "model.head_init": "torch", "optimizer.lr": 1e-3, "optimizer.lr_groups": "",
    "schedule.name": "constant", "epochs": 10, "epoch_steps": 0, "select": "validation",
}  # fmt: skip
"""The fields that may be open, and what they are where nothing was measured."""

VIEWS = 8
KEPT_BYTES = 4e9  # of all views' features, at most
SEEN = 32  # images that are looked at before a rate is chosen
REACH = 3.0  # how far the first update of a new head may move a logit: Adam moves each weight by the rate
DEEP_RATE, SCRATCH_RATE, SGD = 1e-4, 1e-3, 10.0  # Adam's rates; plain gradients take ten times as much
UPDATES, CHEAP_UPDATES, CHEAP_BYTES = 300, 1000, 65536  # of a new head; where a view's features are few, more
DEEP_EPOCHS, SCRATCH_EPOCHS = 10, 30
STOPS = 10  # how often a run of few images validates and saves
ENOUGH = 500  # validation images whose accuracy, to two points, is more than luck
CHOICES, REPEAT = "chosen.json", "repeat.py"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A value for a field that was open, and why. Prints as one line."""

    field: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What choices rest on.

    Attributes:
      train, val: how many images.
      kept: the stage that ends what never changes, so that its features can be kept; None where all changes.
      view_bytes: of one view's features there.
      random: whether two views of an image can differ.
      trained: the groups that train, in part or whole.
      new_head: whether the head starts from random numbers.
      strength: what the head sees of an image, summed over its features (in each place of a map, on average); None
        where it was not looked at.
    """

    train: int
    val: int
    kept: str | None = None
    view_bytes: int = 0
    random: bool = True
    trained: tuple[str, ...] = ("head",)
    new_head: bool = True
    strength: float | None = None


def choose(config: Any, workdir: Path | None = None, *, look: bool = True) -> tuple[Any, tuple[Choice, ...]]:
    """Fills what a config leaves open.

    Args:
      config: as `tljax/settings/fields.py` describes.
      workdir: a folder; what was chosen for a run of this config that began there is not chosen again.
      look: at some images through the network, which the rate of a new head comes from; else it is a usual one.

    Returns:
      A config with nothing open (the given one, where nothing was), and what was chosen.

    Raises:
      UserError: where something is open: for whatever is wrong with the config, the plan or the data. Images are
        listed; none is read but those that `look` looks at.
    """
    check_fields(config, opened=DEFAULTS)
    opened = open_fields(config)
    check_minutes(config, opened)
    if not opened:
        return config, ()
    choices = workdir and chosen_before(config, workdir)
    if not choices:
        filled = {name: DEFAULTS[name] for name in opened} | {"minutes": None}
        choices = _choose(with_fields(config, filled), opened, look=look)
    return with_fields(config, {choice.field: choice.value for choice in choices} | {"minutes": None}), choices


def open_fields(config: Any) -> list[str]:
    """The names of the fields that a config leaves open."""
    given = flatten(config.to_dict())
    return [name for name in DEFAULTS if given[name] is None]


def check_minutes(config: Any, opened: Sequence[str]) -> None:
    """Raises UserError for a budget that is no time, or that a config does not go with."""
    if (minutes := config.minutes) is None:
        return
    if minutes <= 0:
        raise UserError(f"minutes={minutes:g} is not a time; give what the whole command may take, such as 5")
    if "epochs" not in opened:
        raise UserError(f"minutes={minutes:g} sets the number of epochs, and epochs={config.epochs} is set already; "
                        "leave one of them out, and let configs/folder.py leave epochs open")  # fmt: skip
    for name, value, usual in (
        ("transfer.phases", config.transfer.phases, ""),
        ("semi.method", config.semi.method, "none"),
    ):
        if value != usual:
            raise UserError(f"minutes={minutes:g} does not go with {name}={value}; say how long with epochs")


def _choose(filled: Any, opened: Sequence[str], *, look: bool) -> tuple[Choice, ...]:
    check(filled)
    phases = [part for part in filled.transfer.phases.split(";") if part.strip()]
    if phases or filled.semi.method != "none":
        name = "transfer.phases" if phases else "semi.method"
        values = DEFAULTS | ({"epochs": _epochs_of(phases)} if phases else {})
        why = {"epochs": "what transfer.phases add up to"} if phases else {}
        return tuple(Choice(field, values[field], why.get(field, f"as ever with {name}")) for field in opened)
    choices = choices_for(filled, facts_of(filled, look=look), opened)
    return tuple(choice for choice in choices if choice.field in opened)


def _epochs_of(phases: Sequence[str]) -> int:
    """What phases that each say their epochs come to, else the usual number."""
    counts = [part.split("@")[1].strip() if "@" in part else "" for part in phases]
    return sum(map(int, counts)) if all(count.isdecimal() for count in counts) else DEFAULTS["epochs"]


def chosen_before(config: Any, workdir: Path) -> tuple[Choice, ...]:
    """What a run of the same config in this folder has chosen; nothing where there is none, or another."""
    given, opened = flatten(config.to_dict()), open_fields(config)
    try:
        there = flatten(json.loads((workdir / CONFIG).read_bytes()))
        choices = [Choice(**choice) for choice in json.loads((workdir / CHOICES).read_bytes())]
    except (OSError, ValueError, TypeError, AttributeError):
        return ()
    asked = flatten(json.loads(json.dumps(given)))
    same = all(asked[name] == there.get(name) for name in asked if name not in (*opened, *FREE, *PLACES))
    # What was chosen may have been set since.
    found = tuple(choice for choice in choices if choice.field in (*opened, "minutes"))
    return found if same and {choice.field for choice in found} - {"minutes"} == {*opened} else ()


def write_choices(workdir: Path, config: Any, choices: Sequence[Choice]) -> None:
    """Leaves them, if any, in a run's folder for its next sitting, with the config that repeats it."""
    if choices:
        write_json(workdir / CHOICES, [dataclasses.asdict(choice) for choice in choices])
        write_repeat(workdir, config, choices)


def write_repeat(workdir: Path, config: Any, choices: Sequence[Choice]) -> None:
    """Leaves the config that repeats a run, nothing open, in its folder."""
    words = "\n".join(f"- {choice}" for choice in choices)
    words = f"Repeats the run of this folder, with what was chosen for its images:\n\n{words}\n"
    chosen = {choice.field: choice.value for choice in choices if choice.field != "minutes"}
    write_whole(workdir / REPEAT, source_of(with_fields(config, chosen | _absolute(config)), words))


def _absolute(config: Any) -> dict[str, Any]:
    """The fields that name files, by names that lead there from any folder; `data.train` begins at the source."""
    kind, _, where = config.data.source.partition(":")
    fields = {f"data.{name}": _full(value) for name in ("tfds_dir", "pseudo") if (value := config.data[name])}
    if kind in ("folder", "pets"):
        fields["data.source"] = f"{kind}:{_full(where)}"
    if config.data.unlabeled:
        root = Path(os.path.expanduser(where)) if kind == "folder" else None
        fields["data.unlabeled"] = ",".join(map(_full, unlabeled_folders(root, config.data.unlabeled)))
    if not no_weights(config.model.weights) and config.model.weights not in FILES:
        fields["model.weights"] = _full(config.model.weights)
    return fields


def _full(path: str | Path) -> str:
    return os.path.abspath(os.path.expanduser(path))


def as_record(choices: Sequence[Choice]) -> dict[str, Any]:
    """What result.json says of them."""
    return {"chosen": [dataclasses.asdict(choice) for choice in choices]} if choices else {}


def facts_of(config: Any, *, look: bool = True) -> Facts:
    """Lists the images, finds what of the network never changes, and looks at some images through it.

    Raises:
      UserError: for whatever is wrong with the data, the plan or the weights.
    """
    listed = open_data(config.data, seed=config.seed)
    drawn = outline(config)
    model, splits = drawn.sketch, listed.splits
    plan = plans_of(model, drawn.shapes, drawn.members[0].config, drawn.phases[0], drawn.fresh)[0]
    end, side, view = prefix_end(model, plan), config.data.size, 0
    if end is not None:
        one = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((1, side, side, 3)), stop_stage=end), drawn.shapes)
        view = one.size * one.dtype.itemsize
    strength = None if not look or no_weights(config.model.weights) else _strength(config, listed, drawn)
    return Facts(
        len(splits["train"]), len(splits.get("val", ())), end, view, augmentation(config).random,
        tuple(group.name for group in plan.groups if group.trainable), plan.groups[-1].fresh, strength,
    )  # fmt: skip


def _strength(config: Any, listed: DatasetIndex, drawn: Outline) -> float:
    """The sum of what the pretrained network gives its head, of training images."""
    m, d, model = config.model, config.data, drawn.sketch
    weights = find_weights(m.weights, m.name)
    loaded, fresh = load_pretrained(weights, m.name), read_groups("transfer.fresh", drawn.fresh, model.groups)
    variables, _ = merge_loaded(model, init_variables(model, jax.random.key(0)), loaded, fresh=[*fresh, "head"])
    train = listed.splits["train"]
    some = np.unique(train[np.linspace(0, len(train) - 1, min(SEEN, len(train))).astype(int)])
    resize = d.resize or weights.short_side(d.size)
    levels = find_levels(listed.source, some, workers=d.workers or None)
    pixels = decode_all(listed.source, some, short_side=resize, levels=levels, workers=d.workers or None)
    read = [i for i in some if pixels.sizes[i].all()]
    if not read:
        raise UserError(f"none of {len(some)} training images of {listed.source.spec} can be read, such as "
                        f"{pixels.skipped[0][0]!r}: {pixels.skipped[0][1]}")  # fmt: skip
    squares = np.zeros((len(read), d.size, d.size, 3), np.uint8)
    for i, square in zip(read, squares, strict=True):
        put_central_square(pixels.image(i), square)
    normalize = make_normalize(d.mean or weights.mean, d.std or weights.std)

    def forward(variables: Any, squares: Any) -> jax.Array:
        seen: Any = model.apply(variables, normalize(squares), stop_stage="head")
        return jnp.abs(seen).sum(-1).mean()

    # It runs once: to optimize its code takes seconds, and saves none.
    run = jax.jit(forward, compiler_options={"xla_backend_optimization_level": 0})
    return float(run(variables, squares))


def choices_for(config: Any, facts: Facts, opened: Sequence[str]) -> Iterator[Choice]:
    """Choices for all of `DEFAULTS`; of these count the `opened` ones.

    Args:
      config: whole; what is not opened is as the user has it.
      facts: of its data and network.
      opened: names of fields.
    """
    views = _views(config, facts)
    yield views
    yield Choice("model.head_init", "normal", "small weights leave no class dead behind a ReLU")
    yield from _rates(config, facts, opened)
    yield from _length(config, facts, opened, views.value if "cache.views" in opened else config.cache.views)
    yield _selection(facts)


def _views(config: Any, facts: Facts) -> Choice:
    if facts.kept is None:
        return Choice("cache.views", 0, "the first stage trains, so that no features can be kept")
    if not facts.random or config.protocol.augmented_copies or config.cache.features == "off":
        return Choice("cache.views", 0, "nothing random, or features are not to be kept")
    most = int(KEPT_BYTES / (facts.view_bytes * facts.train))
    if most < 2:
        return Choice("cache.views", 0, f"features of 2 views of {counted(facts.train, 'image')} would take "
                      f"{2 * facts.view_bytes * facts.train / 1e9:.1f} GB")  # fmt: skip
    views = min(VIEWS, most)
    return Choice("cache.views", views, f"{views} random views of each image go once through the stages before "
                  f"{facts.kept}, which never change; updates are on their features")  # fmt: skip


def _rates(config: Any, facts: Facts, opened: Sequence[str]) -> Iterator[Choice]:
    names = set(config.population.optimizer) or {config.optimizer.name}
    name = " and ".join(sorted(names))
    scale = SGD if names == {"sgd"} else 1.0
    if no_weights(config.model.weights):
        yield Choice("optimizer.lr", SCRATCH_RATE * scale, f"{name} on random weights")
        yield Choice("optimizer.lr_groups", "", "one rate for all")
        return
    if not facts.new_head or "head" not in facts.trained:
        yield Choice("optimizer.lr", DEEP_RATE * scale, f"{name} on pretrained layers, which a higher rate would undo")
        yield Choice("optimizer.lr_groups", "", "one rate for all")
        return
    if facts.strength and names != {"sgd"}:
        head = float(f"{REACH / facts.strength:.0e}")
        why = f"{name} on a new head; its inputs add up to {facts.strength:,.0f}: an update moves a logit by {REACH:g}"
    else:
        head, why = (
            SCRATCH_RATE * scale,
            f"{name} on a new head" + ("" if scale == SGD else "; a run looks at images first, which may change it"),
        )
    alone = facts.trained == ("head",)
    if alone or config.population.lr or "optimizer.lr" not in opened:
        whose = "population.lr has the rates" if config.population.lr else "optimizer.lr is yours"
        yield Choice("optimizer.lr", head, whose if config.population.lr else why)
        yield Choice("optimizer.lr_groups", "", "one group trains" if alone else f"{whose}, and of all groups")
    else:
        yield Choice("optimizer.lr", DEEP_RATE * scale, f"{name} on pretrained layers, which a higher rate would undo")
        yield Choice("optimizer.lr_groups", f"head:{head:g}", why)


def _length(config: Any, facts: Facts, opened: Sequence[str], views: int) -> Iterator[Choice]:
    """How many updates, at rates that end at 0, and how often a run stops among them to validate and save."""
    kept = config.cache.features != "off" and not config.protocol.augmented_copies and (views or not facts.random)
    per_pass = num_batches(facts.train * (1 + config.protocol.augmented_copies), min(config.batch_size, facts.train))
    if no_weights(config.model.weights):
        updates, why = SCRATCH_EPOCHS * per_pass, "random weights take long"
    elif facts.trained != ("head",):
        updates, why = DEEP_EPOCHS * per_pass, "pretrained layers take few passes"
    elif facts.kept != "head" or not kept:
        updates, why = DEEP_EPOCHS * per_pass, "each takes images through the whole network"
    elif facts.view_bytes <= CHEAP_BYTES:
        updates, why = max(CHEAP_UPDATES, VIEWS * per_pass), "on kept features of this size they cost next to nothing"
    else:
        updates, why = VIEWS * per_pass, "a new head has settled by then"
    updates = max(UPDATES, updates)
    steps = 0 if "epoch_steps" in opened else config.epoch_steps
    if {"epochs", "epoch_steps"} <= {*opened} and updates > STOPS * per_pass:
        steps = -(-updates // STOPS)
    epochs = -(-updates // (steps or per_pass))
    unit = f"epochs of {counted(steps, 'update')}" if steps else "passes"
    if epochs == 1 and steps and "epoch_steps" not in opened:
        why += f"; epoch_steps={steps} has validation looked at once, at the end: lower it, or set epochs, for more"
    yield Choice("epochs", epochs, f"{epochs} {unit}, {counted(epochs * (steps or per_pass), 'update')} in all: {why}")
    yield Choice("epoch_steps", steps, f"updates between two looks at validation; a pass has {per_pass}" if steps
                 else f"each is a pass of {counted(per_pass, 'update')}")  # fmt: skip
    yield Choice("schedule.name", "cosine", "rates fall to 0 by the last update")


def _selection(facts: Facts) -> Choice:
    if facts.val >= ENOUGH:
        return Choice("select", "validation", f"{facts.val:,} validation images tell epochs apart")
    few = f"{facts.val} validation images would pick the luckiest epoch"
    return Choice("select", "last", few if facts.val else "there are no validation images")
