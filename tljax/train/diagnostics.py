"""Training that has died although every number is finite: noticed from what steps and validations give anyway.

Each kind is one line on the console, once per run, and an entry in result.json. Where a threshold stands for a
judgment, its comment says which; all of them rather miss a doubtful case than alarm over a run that is only small.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from scipy import special

from tljax.core.errors import shorten
from tljax.metrics.accuracy import hard
from tljax.train.experiment import Experiment

Entry = dict[str, Any]
"""Of result.json: `kind`, `message`, `update` (how many had been made), and `classes` or `groups` if it is of some."""

UPDATES = 10  # in a row, of a thing that is exactly 0, before it is called dead
IMAGES = 20  # a class's expected images in them: that none came has a probability of exp(-20)
WINDOW = 10  # losses at the start, and now, that are compared
LEAST = 50  # updates before a loss is asked to have fallen, or an accuracy to be above chance, in a run that has them
UNLEARNED = 0.95  # of the loss of a constant answer: below it something was learned, whatever the trend
SMALLEST = 1e-3  # a loss below which a gradient of 0 is that of a network that is done
LEVEL = 0.05  # of the test against chance, one-sided
MISTAKEN = 1 / 40  # how often a network half way between chance and always right may be called a guesser
DYING = 1e-4  # a factor on the rates that trains nothing
NAMES = 5  # on a line, at most
RISEN = 0.5  # what the factor reaches at least in a phase whose warm-up is not too long for it


@dataclasses.dataclass
class Vitals:
    """What is kept of one member's updates: plain values, for a checkpoint's record.

    Attributes:
      updates: how many.
      first, last: mean losses of the first and the last ones.
      silent: by output, updates in a row in which no image had a logit above 0; empty where the head has no ReLU.
      still: by trained group, updates in a row whose gradient was 0 though the loss was not.
      said: entries by kind.
    """

    updates: int = 0
    first: list[float] = dataclasses.field(default_factory=list)
    last: list[float] = dataclasses.field(default_factory=list)
    silent: list[int] = dataclasses.field(default_factory=list)
    still: dict[str, int] = dataclasses.field(default_factory=dict)
    said: dict[str, Entry] = dataclasses.field(default_factory=dict)

    def add(self, loss: float, norms: Mapping[str, float], active: Sequence[int]) -> None:
        self.updates += 1
        if len(self.first) < WINDOW:
            self.first.append(loss)
        self.last = [*self.last, loss][-WINDOW:]
        before = self.silent or [0] * len(active)
        self.silent = [0 if count else n + 1 for n, count in zip(before, active, strict=True)]
        self.still = {g: self.still.get(g, 0) + 1 if v == 0 and loss > SMALLEST else 0 for g, v in norms.items()}


class Diagnostics:
    """Watches a run; `record` of it goes into checkpoints, so that a run that was stopped says the same."""

    def __init__(self, x: Experiment, console: Console, record: Mapping[str, Any] | None = None):
        self.x, self.console = x, console
        self.names, self.total = x.data.source.classes, x.last_step
        targets = x.data.targets[x.data.splits["train"]]
        self.known = np.bincount(hard(targets), minlength=len(self.names))
        self.constant_loss = constant_loss(targets, len(self.names), x.config.loss.label_smoothing)
        self.vitals = [Vitals() for _ in x.members]
        self.told: list[str] = []
        if record:
            self.vitals, self.told = [Vitals(**one) for one in record["members"]], list(record["told"])
        else:
            for m in range(len(x.members)):
                for kind, message, more in doubts(x, self.known, m):
                    self.note(m, kind, message, **more)
            self.tell()

    @property
    def record(self) -> dict[str, Any]:
        return {"members": [dataclasses.asdict(one) for one in self.vitals], "told": list(self.told)}

    def entries(self, m: int) -> list[Entry]:
        """A member's `warnings` in its result.json."""
        return list(self.vitals[m].said.values())

    @property
    def by_kind(self) -> list[Entry]:
        """A population's: each kind once, as its first member has it, with all `members` that it is of."""
        kinds = dict.fromkeys(kind for one in self.vitals for kind in one.said)
        members = {kind: [m for m, one in enumerate(self.vitals) if kind in one.said] for kind in kinds}
        return [self.vitals[own[0]].said[kind] | {"members": own} for kind, own in members.items()]

    def note(self, m: int, kind: str, message: str, **more: Any) -> None:
        self.vitals[m].said[kind] = {"kind": kind, "message": message, "update": self.vitals[m].updates, **more}

    def tell(self) -> None:
        """Prints a line for each kind that is new."""
        for entry in self.by_kind:
            if entry["kind"] in self.told:
                continue
            self.told.append(entry["kind"])
            members = [f"{m:03} ({dict(self.x.members[m].settings)})" for m in entry["members"]]
            which = f"member{'s' * (len(members) > 1)} {shorten(members, NAMES)}: " if self.x.population else ""
            self.console.print(f"warning: {which}{entry['message']}", markup=False)

    def stepped(self, found: Iterable[Mapping[str, Any]], phase: int) -> None:
        """Takes in what updates of a phase returned, of one replica: `loss`, `seen` and `norms`, and of a head that
        ends in a ReLU `active` `[outputs]`; all with an axis of members in a population."""
        for metrics in found:
            loss = np.atleast_1d(metrics["loss"]) / np.atleast_1d(metrics["seen"])
            norms = {group: np.atleast_1d(values) for group, values in metrics["norms"].items()}
            active = np.atleast_2d(metrics["active"]) if "active" in metrics else np.zeros((len(loss), 0))
            for m, vitals in enumerate(self.vitals):
                own = {group: float(values[m]) for group, values in norms.items()}
                vitals.add(float(loss[m]), own, active[m].tolist())
                self.look_at_head(m, phase)
                self.look_at_gradient(m)
                self.look_at_loss(m, phase)
        self.tell()

    def look_at_head(self, m: int, phase: int) -> None:
        """Classes whose logit is 0 for all images, their own among them: behind a ReLU, their gradient is 0, too."""
        vitals = self.vitals[m]
        silent = vitals.silent
        if not silent or max(silent) < UPDATES:
            return
        share = self.known / self.known.sum() * self.x.batch_size
        every = min(silent) >= UPDATES
        if len(silent) == 1:  # one logit for two classes: 0 is how it says the first
            dead = [] if self.known[1] == 0 or silent[0] * share[1] < IMAGES else list(self.names)
        else:
            dead = [
                name
                for name, n, own in zip(self.names, silent, share, strict=False)
                if own and (every or (n >= UPDATES and n * own >= IMAGES))
            ]
        if not set(dead) - set(vitals.said.get("dead_classes", {}).get("classes", ())):
            return
        rate = self.x.plans[m][phase].groups[-1].lr
        which = "all classes" if every else f"class{'es' * (len(dead) > 1)} {shorten(dead, NAMES)}"
        self.note(
            m, "dead_classes",
            f"{which}: the head puts out 0 for every image (a dead ReLU), so {'nothing' if every else 'they'} "
            f"can{'' if every else 'not'} be learned any more; lower optimizer.lr (the head's rate is {rate:g}), or "
            "give schedule.warmup_epochs or another transfer.seed",
            classes=dead,
        )  # fmt: skip

    def look_at_gradient(self, m: int) -> None:
        vitals = self.vitals[m]
        still = [group for group, n in vitals.still.items() if n >= 2 * UPDATES]
        if "dead_classes" in vitals.said or not set(still) - set(vitals.said.get("no_gradient", {}).get("groups", ())):
            return
        self.note(
            m, "no_gradient",
            f"the gradient of {shorten(still, NAMES)} is 0, though the loss is {vitals.last[-1]:.2f}: nothing is "
            "learned there; lower optimizer.lr, or start from other weights (model.weights, transfer.fresh, "
            "transfer.seed)",
            groups=still,
        )  # fmt: skip

    def look_at_loss(self, m: int, phase: int) -> None:
        """At a fifth of the run, when warm-up is over, at half of it and at its end."""
        vitals, s = self.vitals[m], self.x.members[m].config.schedule
        warm = round(s.warmup_epochs * self.x.steps_per_epoch)
        looks = (max(LEAST, warm + self.total // 5), max(LEAST, self.total // 2), self.total)
        if vitals.updates not in looks or vitals.said.keys() & {"dead_classes", "no_gradient", "not_falling"}:
            return
        half = vitals.updates // 2  # of a short run the first and the last would be the same
        if half and not_falling(vitals.first[:half], vitals.last[-half:], self.constant_loss):
            rate = self.x.plans[m][phase].groups[-1].lr
            was, now = np.mean(vitals.first[:half]), np.mean(vitals.last[-half:])
            self.note(
                m, "not_falling",
                f"the loss has not clearly fallen in {vitals.updates:,} updates ({was:.2f} to {now:.2f}; one answer "
                f"for all images has {self.constant_loss:.2f}): give a lower or higher optimizer.lr (the head's "
                f"rate is {rate:g}), more updates, and look whether the labels are those of the pictures",
            )  # fmt: skip

    def validated(self, rows: Sequence[Mapping[str, Any]], logits: np.ndarray | None) -> None:
        """Takes in the end of an epoch.

        Args:
          rows: each member's, of its history.
          logits: on validation, `[members, N, outputs]`; None without validation.
        """
        step, half = rows[0]["step"], max(LEAST, self.total // 2)
        look = step == self.total or step - self.x.steps_per_epoch < half <= step
        for m, row in enumerate(rows):
            said = self.vitals[m].said
            if logits is not None and "dead_classes" not in said and "constant" not in said and constant(logits[m]):
                self.note(
                    m, "constant",
                    "the network answers the same for every validation image: lower optimizer.lr and "
                    "optimizer.weight_decay, and look at augmented.png whether it sees the pictures",
                )  # fmt: skip
            if not look:
                continue
            if logits is not None:
                self.compare_with_chance(m, "validation", row["val_correct"], self.x.data.labels("val"))
            if row.get("given") == 0 and "none_given" not in said and self.x.config.semi.threshold > 0:
                self.note(
                    m, "none_given",
                    "in this epoch no unlabeled image was sure enough to be learned from: lower semi.threshold "
                    f"({self.x.config.semi.threshold:g}), or train longer",
                )  # fmt: skip
        self.tell()

    def tested(self, m: int, result: Mapping[str, Any], labels: np.ndarray) -> None:
        """Takes in the test of a member that has no validation."""
        self.compare_with_chance(m, "test", result["correct"], labels)

    def compare_with_chance(self, m: int, split: str, correct: int, labels: np.ndarray) -> None:
        if "chance" in self.vitals[m].said or not at_chance(correct, labels):
            return
        counts = np.bincount(labels)
        accuracy, share = correct / len(labels), counts.max() / len(labels)
        self.note(
            m, "chance",
            f"{split} accuracy {accuracy:.1%} of {len(labels):,} is not above chance ({share:.1%}, by always answering "
            f"{self.names[int(counts.argmax())]}; binomial test): train longer (epochs) or more groups "
            "(transfer.train), ask tljax.suggest for a rate, and look whether the labels are those of the pictures",
        )  # fmt: skip


def constant_loss(targets: np.ndarray, classes: int, smoothing: float) -> float:
    """The mean loss of the best answer that is one for all images: the entropy of the classes.

    Args:
      targets: int `[N]` or probabilities `[N, classes]`.
      classes: how many there are.
      smoothing: of labels, 0 to 1.
    """
    shares = np.bincount(targets, minlength=classes) / len(targets) if targets.ndim == 1 else targets.mean(0)
    return float(special.entr((1 - smoothing) * shares.astype(np.float64) + smoothing / classes).sum())


def not_falling(first: Sequence[float], last: Sequence[float], constant: float) -> bool:
    """Whether losses of the last updates are no lower than those of the first, by two standard errors, and no lower
    than what one answer for all images has. Losses that are not finite are another matter: False."""
    count = min(len(first), len(last))
    if count < 4 or not np.isfinite([*first, *last]).all():
        return False
    was, now = np.asarray(first[:count]), np.asarray(last[-count:])
    error = math.sqrt((was.var(ddof=1) + now.var(ddof=1)) / count)
    return bool(was.mean() - now.mean() <= 2 * error and now.mean() > UNLEARNED * constant)


def constant(logits: np.ndarray) -> bool:
    """Whether finite logits `[N, outputs]` of several images are one row, up to rounding."""
    if len(logits) < 2 or not np.isfinite(logits).all():
        return False
    return bool((np.ptp(logits, axis=0) <= 1e-6 * np.abs(logits).max()).all())


def at_chance(correct: int, labels: np.ndarray) -> bool:
    """Whether as many right answers are no more than always giving the most frequent of the labels `[N]` would have
    (one-sided binomial test), among images enough to tell: a network that is right half way between chance and always
    would do so badly at most once in 40 times, however few images there are.
    """
    seen, share = len(labels), np.bincount(labels).max() / len(labels)
    by_chance = special.bdtrc(correct - 1, seen, share) if correct else 1.0
    return bool(share < 1 and by_chance > LEVEL and special.bdtr(correct, seen, (1 + share) / 2) <= MISTAKEN)


def doubts(x: Experiment, known: np.ndarray, m: int) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """What can be said of a member before its first update: kind, message and what else the entry has."""
    names, s = x.data.source.classes, x.members[m].config.schedule
    lost = [name for name, count in zip(names, known, strict=True) if not count]
    if lost and len(lost) == len(names) - 1:
        yield (
            "one_class",
            f"all training images are of {names[int(known.argmax())]}, so nothing can be learned: give another "
            "data.split or data.labels, or data.stratify=True",
            {"classes": lost},
        )
    elif lost:
        yield (
            "no_images",
            f"class{'es' * (len(lost) > 1)} {shorten(lost, NAMES)}: no training image, so no image will be taken for "
            "one; give another data.split or data.labels, or data.stratify=True",
            {"classes": lost},
        )
    devices = 1 if x.config.cross_replica_bn else x.replicas.devices
    batch_norms = any(mode.use_batch for plan in x.plans[m] for mode in plan.modes.values())
    if batch_norms and x.batch_size < 2 * x.config.accumulate * devices:
        parts = f" in {x.config.accumulate} parts" * (x.config.accumulate > 1)
        parts += f" on {devices} devices" * (devices > 1)
        yield (
            "one_example",
            f"batch norm takes its statistics from single images (batch_size={x.batch_size}{parts}), and evaluation "
            "does not: give a larger batch_size or fewer accumulate, or transfer.bn=eval",
            {},
        )
    before = {split: x.trained_before(split) for split in ("val", "test") if x.earlier and split in x.data.splits}
    if seen := {split: found for split, found in before.items() if found.any()}:
        split, found = list(seen.items())[-1]
        name = x.data.source.names[x.data.splits[split][int(found.argmax())]]
        words = " and ".join(f"{found.sum():,} of {len(found):,} {split} images" for split, found in seen.items())
        yield (
            "trained_before",
            f"{x.origin['source']} and the runs before it, where the weights come from, trained on {words}, such as "
            f"{name!r}: what is said of them is no test; give that run's data.split, data.split_seed and data.val",
            {"images": {split: int(found.sum()) for split, found in seen.items()}},
        )
    if x.model.rectified and x.model.num_classes == 1:
        yield (
            "one_sided",
            f"the logits of {x.config.model.name} are never below 0, so that loss.name=sigmoid cannot be sure of "
            f"{names[0]}: say loss.name=softmax",
            {},
        )
    for phase, span in enumerate(x.phases[m]) if s.name == "step" or s.warmup_epochs else ():
        first, last = span.first * x.steps_per_epoch, span.last * x.steps_per_epoch
        factors = np.asarray(jax.jit(jax.vmap(x.schedule(phase, m)))(np.arange(last - first)))
        where = f"updates {first + 1:,} to {last:,}"
        if factors.max() < RISEN:
            yield (
                "warm_up",
                f"schedule.warmup_epochs={s.warmup_epochs:g} is too long for {where}: the rate reaches "
                f"{factors.max():.0%} of what is asked for; give fewer, or more epochs",
                {},
            )
        elif (dying := int((factors < DYING).sum())) > len(factors) / 2:
            yield (
                "no_rate",
                f"the schedule trains nothing in {dying:,} of the {where}: its factor on the rates is "
                f"{np.median(factors):.0e} and less; give a larger schedule.step_epochs ({s.step_epochs:g}) or "
                f"schedule.factor ({s.factor:g})",
                {},
            )
