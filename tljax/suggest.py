"""`python -m tljax.suggest --config FILE`: before training, what to train at which rate, and what is wrong in the data.

    python -m tljax.suggest --config configs/folder.py --config.data.source=folder:photos
    python -m tljax.suggest --config configs/folder.py --backbones=squeezenet1_0=FILE,resnet18:layer3=FILE

Features of each backbone, a cross-validated linear probe on them, LogME; short runs at several learning rates; classes
with few images, copies, labels that are likely wrong. Ends with a config that can be run, and a reason for each choice.
The labels of the test are not read.
"""

import dataclasses
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from rich.console import Console

from tljax.command_line import exit_status, parse
from tljax.errors import UserError
from tljax.machine import tune_cpu
from tljax.main import DEFAULT, keep_compilations, quiet_libraries
from tljax.report.console import make_console, percent, print_duplicates, print_table
from tljax.workdir import write_json, write_whole

if TYPE_CHECKING:  # they bring JAX: a mistake is answered at once
    from tljax.data.load import Data
    from tljax.probe import Probed, Suspect
    from tljax.trial import Backbone, Seen, Trial

HEAD_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
SGD = 10.0  # Adam's rates times this
FOLDS = 5
FEW, IMBALANCE = 10, 3.0
LEVEL = 0.05
SHOWN = 10
RIVALS = 3
UPDATES = 100  # of a short run that trains more than the head


@dataclasses.dataclass(frozen=True)
class Looked:
    """A backbone and what its features are worth."""

    backbone: "Backbone"
    seen: "Seen"
    probed: "Probed"
    log_me: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """What is suggested, why, and what it rests on.

    Attributes:
      fields: of the config that differ, by dotted name.
      reasons: sentences with their numbers.
      looked: the backbones, the most accurate probe first.
      best: the chosen one.
      rivals: short runs of the config's own plan, by backbone: of the most accurate probe, and of those that are not
        told apart from it.
      trials: short runs with the chosen one; the first is that of the config's own plan.
      chosen: the trial whose groups and rate are suggested.
      suspects: labels that are likely wrong, by the chosen backbone's features.
      problems: of the data, in words.
      duplicates: images that occur in two splits, as result.json has them.
      test_labels_read: how often.
    """

    fields: dict[str, Any]
    reasons: list[str]
    looked: list[Looked]
    best: Looked
    rivals: "list[tuple[Looked, Trial]]"
    trials: "list[Trial]"
    chosen: "Trial"
    suspects: "list[Suspect]"
    problems: list[str]
    duplicates: dict[str, Any]
    test_labels_read: int

    @property
    def all_trials(self) -> "list[tuple[Looked, Trial]]":
        """Every short run, the chosen backbone's last."""
        others = [(one, tried) for one, tried in self.rivals if one is not self.best]
        return [*others, *((self.best, tried) for tried in self.trials)]


def suggest(
    config: Any,
    backbones: "Sequence[Backbone] | None" = None,
    *,
    images: int = 1000,
    epochs: int = 0,
    layers: bool = True,
    console: Console | None = None,
) -> Suggestion:
    """Looks at the data, tries what is there, says what to do.

    Args:
      config: as `configs/common.py` describes.
      backbones: to choose among; None for those whose weights are here.
      images: training (and validation) images that are used at most, of each class in proportion.
      epochs: of the short runs; 0: as many as make the config's number of updates, for more than the head up to 100.
      layers: whether the head alone, and the last stage with it, are tried beside the config's own plan.
      console: where to print.

    Raises:
      UserError: for whatever the user can mend.
    """
    from tljax import memo, trial
    from tljax.checks import check
    from tljax.data import duplicates

    console = console or make_console()
    if config.run != "train":
        raise UserError(f"config.run={config.run!r} is nothing to suggest for; start from configs/folder.py")
    if config.transfer.phases:
        raise UserError("transfer.phases has several plans; say one with transfer.train, and leave the phases out")
    check(config)
    backbones = backbones or trial.available(config)
    for backbone in backbones:
        trial.train_of(config, backbone)  # a mistake is told before minutes have passed
    quiet = Console(quiet=True)
    with tempfile.TemporaryDirectory(prefix="tljax-suggest-") as place, memo.sharing():
        folder, looked, found = Path(place), [], None
        for backbone in backbones:
            one = look(config, backbone, images=images, folder=folder, console=quiet if looked else console)
            looked.append(one)
            if found is None:
                found = duplicates.find(one.seen.whole.data)
        assert found is not None
        looked.sort(key=lambda one: (-int(one.probed.right.sum()), one.probed.loss))
        sealed = [one.seen.whole.data.sealed for one in looked]

        def try_plan(one: Looked, train: str) -> "Trial":
            alone = train == "head"
            rates = [rate * (SGD if config.optimizer.name == "sgd" else 1) for rate in (HEAD_RATES if alone else RATES)]
            short = epochs or short_epochs(config, one, alone=alone)
            return trial.try_rates(
                config, one.backbone, train, rates, epochs=short, images=images, folder=folder, console=quiet
            )

        rivals = [(one, try_plan(one, trial.train_of(config, one.backbone))) for one in not_told_apart(looked)]
        best, first = max(rivals, key=lambda pair: best_of(pair[1]).sum())
        data, tried = best.seen.whole.data, [first]
        more = ("head", trial.last_stage_of(config, best.backbone)) if layers else ()
        tried += [try_plan(best, train) for train in dict.fromkeys(more) if train != first.train]
    chosen = choose_plan(tried)
    fields = trial.network_fields(config, best.backbone)
    fields |= {"transfer.train": chosen.train, "optimizer.lr": chosen.rates[chosen.chosen], "population.lr": ()}
    told = found.as_dict(data.source.names)
    from tljax.probe import suspects

    return Suggestion(
        fields=fields,
        reasons=[why_backbone(looked, best, rivals), why_plan(tried, chosen), why_rate(chosen)],
        looked=looked,
        best=best,
        rivals=rivals,
        trials=tried,
        chosen=chosen,
        suspects=suspects(best.probed),
        problems=problems(data),
        duplicates=told,
        test_labels_read=sum(one.reads.total() for one in sealed),
    )


def look(config: Any, backbone: "Backbone", *, images: int, folder: Path, console: Console) -> Looked:
    """Features of one backbone, and what they are worth. Copies of one picture are never divided between folds."""
    from tljax import trial
    from tljax.data.duplicates import prints_of
    from tljax.probe import cross_validate, log_me, make_folds

    began = time.perf_counter()
    seen = trial.features_of(config, backbone, images=images, folder=folder, console=console)
    data = seen.x.data
    classes, labels = np.unique(data.labels("train"), return_inverse=True)
    least = int(np.bincount(labels).min())
    if len(classes) < 2 or least < 2:
        name = data.source.classes[classes[int(np.bincount(labels).argmin())]]
        raise UserError(f"class {name!r} has {least} labelled training image; cross-validation needs 2 of each")
    _, copies = np.unique(prints_of(data.pixels).digests[data.splits["train"]], return_inverse=True)
    folds = make_folds(labels, min(FOLDS, least), groups=copies)
    probed = cross_validate(seen.features, labels, folds)
    return Looked(backbone, seen, probed, log_me(seen.features, labels), time.perf_counter() - began)


def not_told_apart(looked: Sequence[Looked]) -> list[Looked]:
    """The most accurate probe, and the next ones that may be as good for all that these images say, `RIVALS` at most.

    A probe sees what the features hold, not how well a network's own head learns it: between these, short runs decide.
    """
    first = looked[0].probed.right
    return [looked[0], *(one for one in looked[1:] if p_value(first, one.probed.right) >= LEVEL)][:RIVALS]


def short_epochs(config: Any, one: Looked, *, alone: bool) -> int:
    """As many epochs on some of the images as make the updates that the config's make on all: the best rate depends on
    their number. On kept features of the head they cost little; other plans get `UPDATES`, or 3 epochs of more images.
    """
    whole, part = (len(x.data.splits["train"]) for x in (one.seen.whole, one.seen.x))
    wanted = max(1, round(config.epochs * whole / part))
    return wanted if alone else min(wanted, max(3, UPDATES // one.seen.x.steps_per_epoch))


def choose_plan(tried: "Sequence[Trial]") -> "Trial":
    """The config's own plan, unless another one was better on the same images, in no more epochs (McNemar's test)."""
    chosen = tried[0]
    for other in tried[1:]:
        if other.epochs <= chosen.epochs and best_of(other).sum() > best_of(chosen).sum() and differ(other, chosen):
            chosen = other
    return chosen


def best_of(trial: "Trial") -> np.ndarray:
    """Which validation images the chosen rate got right."""
    return trial.right[trial.chosen]


def differ(first: "Trial", second: "Trial") -> bool:
    return p_value(best_of(first), best_of(second)) < LEVEL


def p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Of two rows of right and wrong answers about the same images being equally good."""
    from tljax.studies.statistics import mcnemar

    return mcnemar(first[None], second[None])


def why_backbone(looked: Sequence[Looked], best: Looked, rivals: "Sequence[tuple[Looked, Trial]]") -> str:
    words = [f"{one.backbone} {share(one.probed.right)}" for one in looked]
    text = f"{best.backbone}: probes in cross-validation: {'; '.join(words)}"
    if len(looked) == 1:
        return f"{text}; no other one was there to compare"
    if len(rivals) == 1:
        text += "; the first is told apart from all others"
    else:
        words = [f"{one.backbone} {share(best_of(trial))}" for one, trial in rivals]
        text += f"; these are not told apart, so short runs decide, validation: {'; '.join(words)}"
        if close := [one for one, tried in rivals if one is not best and not _apart(rivals, best, tried)]:
            text += f"; still not told apart from {', '.join(str(one.backbone) for one in close)}"
    return f"{text}; LogME is highest for {max(looked, key=lambda one: one.log_me).backbone}"


def _apart(rivals: "Sequence[tuple[Looked, Trial]]", best: Looked, tried: "Trial") -> bool:
    return differ(next(trial for one, trial in rivals if one is best), tried)


def why_plan(tried: "Sequence[Trial]", chosen: "Trial") -> str:
    def words(one: "Trial") -> str:
        return f"{one.train} {share(best_of(one))} after {one.epochs} epochs or fewer"

    others = [one for one in tried if one is not chosen]
    if not others:
        return f"transfer.train={chosen.train}: as the config says; nothing else was tried"
    text = f"transfer.train={chosen.train}: on {chosen.images:,} images, validation: {words(chosen)}; "
    text += "; ".join(words(one) for one in others)
    if chosen is not tried[0]:
        return (
            f"{text}; better than the config's {tried[0].train} (p = {p_value(best_of(chosen), best_of(tried[0])):.2g})"
        )
    better = [one for one in others if best_of(one).sum() > best_of(chosen).sum()]
    if not better:
        return f"{text}; as the config says"
    return f"{text}; as the config says: the difference to {better[0].train} may be chance, or its longer training"


def why_rate(chosen: "Trial") -> str:
    places, at = chosen.plateau, chosen.chosen
    text = f"optimizer.lr={chosen.rates[at]:g}: {share(chosen.right[at])} of validation"
    low, high = chosen.rates[places[0]], chosen.rates[places[-1]]
    text += (
        f"; {low:g} to {high:g} are within one standard error of the best, this is their middle" if low < high else ""
    )
    if at in (0, len(chosen.rates) - 1):
        text += "; it is the last rate that was tried on this side"
    return text + f" ({chosen.epochs} epochs on {chosen.images:,} images, nothing random in them)"


def share(right: np.ndarray) -> str:
    from tljax.losses import wilson_interval

    return percent(int(right.sum()), len(right), wilson_interval(int(right.sum()), len(right)))


def problems(data: "Data") -> list[str]:
    """What counts alone say of the training images, and the files that cannot be read."""
    found, names = [], data.source.classes
    counts = np.bincount(data.labels("train"), minlength=len(names))
    few = [f"{names[i]} {counts[i]}" for i in np.argsort(counts, kind="stable") if counts[i] < FEW]
    if few:
        found.append(f"classes with fewer than {FEW} training images: {', '.join(few)}")
    if counts.min() and counts.max() >= IMBALANCE * counts.min():
        most, least = int(counts.argmax()), int(counts.argmin())
        found.append(f"imbalance: {names[most]} has {counts[most]:,} training images, {names[least]} "
                     f"{counts[least]:,}; accuracy says little of the small ones: look at it by class")  # fmt: skip
    if data.skipped:
        examples = "; ".join(f"{name!r}: {reason}" for name, reason in data.skipped[:3])
        found.append(f"{len(data.skipped):,} files skipped: {examples}")
    return found


def tell(console: Console, found: Suggestion) -> None:
    """Prints tables, problems and reasons."""
    rows = [
        {
            "backbone": str(one.backbone), "probe": share(one.probed.right), "loss": f"{one.probed.loss:.3f}",
            "strength": f"{one.probed.strength:g}", "LogME": f"{one.log_me:.3f}",
            "features": f"{one.seen.features.shape[1]:,}", "seconds": f"{one.seconds:.0f}",
        }
        for one in found.looked
    ]  # fmt: skip
    count = len(found.looked[0].probed.labels)
    print_table(console, f"Backbones, on {count:,} training images, cross-validated", rows)
    for who, one in found.all_trials:
        rows = [
            {
                "rate": f"{rate:g}", "validation": share(one.right[i]), "loss": f"{one.losses[i]:.3f}",
                "best epoch": str(one.best_epochs[i]),
                "": "chosen" if i == one.chosen else "as good" if i in one.plateau else "",
            }
            for i, rate in enumerate(one.rates)
        ]  # fmt: skip
        title = f"{who.backbone}, {one.train}: {one.epochs} epochs on {one.images:,} images"
        print_table(console, title, rows)
    for text in found.problems:
        console.print(text, markup=False)
    print_duplicates(console, found.duplicates)
    data, best = found.best.seen.x.data, found.best
    if found.suspects:
        console.print(f"{len(found.suspects):,} of {count:,} labels may be wrong, as the probe sees it; look at these:")
        names, images = np.unique(data.labels("train")), data.splits["train"]
        for one in found.suspects[:SHOWN]:
            given = data.source.classes[names[best.probed.labels[one.image]]]
            console.print(
                f"  {data.source.names[images[one.image]]}: {given} ({one.given:.0%}), looks like "
                f"{data.source.classes[names[one.likely]]} ({one.other:.0%})", markup=False,
            )  # fmt: skip
    console.print("\nSuggested, and why:")
    for text in found.reasons:
        console.print(f"  {text}", markup=False)
    console.print(f"  test labels read: {found.test_labels_read}")


def config_file(config: Any, found: Suggestion, out: Path) -> str:
    """A config's source: the suggestion, and all else that differs from `configs/common.py`."""
    from configs import common
    from tljax.trial import with_fields
    from tljax.workdir import flatten

    wanted, usual = flatten(with_fields(config, found.fields).to_dict()), flatten(common.get_config().to_dict())
    lines = [f"    config.{name} = {wanted[name]!r}" for name in usual if wanted[name] != usual[name]]
    wrap = textwrap.TextWrapper(118, subsequent_indent="  ", break_long_words=False)
    reasons = "\n".join(wrap.fill(f"- {text}") for text in found.reasons)
    reasons = reasons.replace("\\", "\\\\").replace('"""', "'''")
    told = f'"""Suggested by tljax.\n\n    python -m tljax.main --config {out}\n\n{reasons}\n"""'
    body = "\n".join(["    config = common.get_config()", *lines, "    return config"])
    return f"{told}\n\nfrom configs import common\n\n\ndef get_config():\n{body}\n"


def record(found: Suggestion) -> dict[str, Any]:
    """All of it, for JSON."""
    best = found.best
    data, classes = best.seen.x.data, best.seen.x.data.source.classes
    names, images = np.unique(data.labels("train")), data.splits["train"]
    return {
        "fields": found.fields,
        "reasons": found.reasons,
        "backbones": [
            {
                "backbone": str(one.backbone), "weights": one.backbone.weights, "correct": int(one.probed.right.sum()),
                "seen": len(one.probed.right), "losses": {f"{k:g}": v for k, v in one.probed.losses.items()},
                "strength": one.probed.strength, "log_me": one.log_me,
            }
            for one in found.looked
        ],
        "trials": [
            {
                "backbone": str(who.backbone), "train": one.train, "epochs": one.epochs, "images": one.images,
                "seen": one.right.shape[1],
                "rates": [
                    {
                        "lr": rate, "correct": int(one.right[i].sum()), "best_epoch": one.best_epochs[i],
                        "val_loss": one.losses[i] if np.isfinite(one.losses[i]) else None,
                    }
                    for i, rate in enumerate(one.rates)
                ],
            }
            for who, one in found.all_trials
        ],
        "problems": found.problems,
        "duplicates": found.duplicates,
        "suspects": [
            {
                "image": data.source.names[images[one.image]], "label": classes[names[best.probed.labels[one.image]]],
                "likely": classes[names[one.likely]], "probability": one.given, "probability_likely": one.other,
            }
            for one in found.suspects
        ],
        "test_labels_read": found.test_labels_read,
    }  # fmt: skip


def make_flags() -> flags.FlagValues:
    """The flags beside `--config`."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "backbones", None, "NAME[:LAST_STAGE][=WEIGHTS], several with commas between; by default the config's and "
        "ImageNet's whose weights are here already; only what is named is downloaded", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("out", "suggested.py", "the config file to write; a .json beside it has all numbers",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_integer("images", 1000, "training images, and validation images, that are used at most",
                         lower_bound=10, flag_values=values)  # fmt: skip
    flags.DEFINE_integer("epochs", 0, "of the short runs; 0: as many as make the config's number of updates, for more "
                         "than the head up to 100", lower_bound=0, flag_values=values)  # fmt: skip
    flags.DEFINE_bool("layers", True, "try the head alone and the last stage with it, beside the config's own plan",
                      flag_values=values)  # fmt: skip
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for a mistake of the user's, 128 + the signal if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    quiet_libraries()
    values = make_flags()
    if {"-h", "--help", "-help"} & set(argv[1:]):
        print(f"{__doc__}\n{values.get_help()}")
        return 0
    return exit_status(lambda: dispatch(argv, values))


def dispatch(argv: Sequence[str], values: flags.FlagValues) -> None:
    config, _ = parse(argv, values, default=DEFAULT.with_name("folder.py"))
    out = Path(values.out)
    if out.suffix != ".py" or not out.absolute().parent.is_dir():
        raise UserError(f"--out={out} is not a .py file in a folder that exists")
    tune_cpu()
    from tljax.trial import read_backbones  # JAX after the flags

    keep_compilations()
    chosen = None if values.backbones is None else read_backbones(values.backbones)
    console, began = make_console(), time.perf_counter()
    found = suggest(
        config, chosen, images=values.images, epochs=values.epochs, layers=values.layers, console=console
    )  # fmt: skip
    tell(console, found)
    try:
        write_whole(out, config_file(config, found, out))
        write_json(out.with_suffix(".json"), record(found))
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror or error}") from None
    console.print(f"{time.perf_counter() - began:.0f} s; run it: python -m tljax.main --config {out}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
