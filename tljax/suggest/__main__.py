"""`python -m tljax.suggest --config FILE`: before training, what to train at which rate, and what is wrong in the data.

    python -m tljax.suggest --config configs/folder.py --config.data.source=folder:photos
    python -m tljax.suggest --config configs/folder.py --backbones=squeezenet1_0=FILE,resnet18:layer3=FILE

Features of each backbone, a cross-validated linear probe on them, LogME; short runs at several learning rates; classes
with few images, copies, labels that are likely wrong. Ends with a config that can be run, and a reason for each choice.
The labels of the test are not read.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from rich.console import Console

from tljax.core.errors import UserError, counted
from tljax.core.process import keep_compilations, quiet_libraries
from tljax.core.xla_flags import tune_cpu
from tljax.report.console import make_console
from tljax.run_dir.files import write_json, write_whole
from tljax.settings.command_line import CONFIGS, parse, run_flags
from tljax.suggest.suggestion import (
    LEVEL,
    BackboneScore,
    Suggestion,
    best_of,
    config_file,
    differ,
    p_value,
    record,
    share,
    tell,
    why_backbone,
    why_plan,
    why_rate,
)

if TYPE_CHECKING:  # they bring JAX: a mistake is answered at once
    from tljax.data.duplicates import Copies
    from tljax.data.load import Data
    from tljax.suggest.trial import Backbone, Trial

HEAD_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
SGD = 10.0  # Adam's rates times this
FOLDS = 5
FEW, IMBALANCE = 10, 3.0
UNLIKE = 0.01  # chance of saying that validation is unlike train where it is not
RIVALS = 3
UPDATES = 100  # of a short run that trains more than the head


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
      config: as `tljax/settings/fields.py` describes.
      backbones: to choose among; None for those whose weights are here.
      images: training (and validation) images that are used at most, of each class in proportion; 2 of each class all
        the same.
      epochs: of the short runs; 0: as many as make the config's number of updates, for more than the head up to 100.
      layers: whether the head alone, and the last stage with it, are tried beside the config's own plan.
      console: where to print.

    Raises:
      UserError: for whatever the user can mend.
    """
    from tljax.core import shared_cache
    from tljax.data import duplicates
    from tljax.suggest import trial
    from tljax.train.checks import check
    from tljax.train.recipe import choose

    console = console or make_console()
    if config.run != "train":
        raise UserError(f"config.run={config.run!r} is nothing to suggest for; start from configs/folder.py")
    if config.transfer.phases:
        raise UserError("transfer.phases has several plans; say one with transfer.train, and leave the phases out")
    config, _ = choose(config, look=False)
    check(config)
    backbones = backbones or trial.available(config)
    for backbone in backbones:
        trial.train_of(config, backbone)  # a mistake is told before minutes have passed
    quiet = Console(quiet=True)
    with tempfile.TemporaryDirectory(prefix="tljax-suggest-") as place, shared_cache.sharing():
        folder, looked, found = Path(place), [], None
        for backbone in backbones:
            one = look(config, backbone, images=images, folder=folder, console=quiet if looked else console)
            looked.append(one)
            console.print(f"{backbone}: probed in {one.seconds:.0f} s", markup=False)
            if found is None:
                found = duplicates.find(one.seen.whole.data)
        assert found is not None
        looked.sort(key=lambda one: (-int(one.probed.right.sum()), one.probed.loss))
        sealed = [one.seen.whole.data.sealed for one in looked]

        def try_plan(one: BackboneScore, train: str) -> "Trial":
            alone = train == "head"
            rates = [rate * (SGD if config.optimizer.name == "sgd" else 1) for rate in (HEAD_RATES if alone else RATES)]
            short, began = epochs or short_epochs(config, one, alone=alone), time.perf_counter()
            tried = trial.try_rates(
                config, one.backbone, train, rates, epochs=short, images=images, folder=folder, console=quiet
            )
            words = f"{len(rates)} rates tried in {time.perf_counter() - began:.0f} s"
            console.print(f"{one.backbone}, training {train}: {words}", markup=False)
            return tried

        rivals = [
            (one, try_plan(one, trial.train_of(config, one.backbone))) for one in not_significantly_different(looked)
        ]
        best, first = max(rivals, key=lambda pair: best_of(pair[1]).sum())
        data, tried = best.seen.whole.data, [first]
        more = ("head", trial.last_stage_of(config, best.backbone)) if layers else ()
        tried += [try_plan(best, train) for train in dict.fromkeys(more) if train != first.train]
    chosen = choose_plan(tried)
    fields = trial.network_fields(config, best.backbone)
    fields |= {"transfer.train": chosen.train, "optimizer.lr": chosen.rates[chosen.chosen],
               "optimizer.lr_groups": config.optimizer.lr_groups, "population.lr": ()}  # fmt: skip
    told = found.as_dict(data.source.names)
    from tljax.suggest.probe import suspects

    return Suggestion(
        fields=fields,
        reasons=[why_backbone(looked, best, rivals), why_plan(tried, chosen), why_rate(chosen)],
        looked=looked,
        best=best,
        rivals=rivals,
        trials=tried,
        chosen=chosen,
        suspects=suspects(best.probed),
        problems=problems(data, trained_on(config, data)) + unlike(best, found.copies["val"]["train"]),
        duplicates=told,
        test_labels_read=sum(one.reads.total() for one in sealed),
    )


def look(config: Any, backbone: "Backbone", *, images: int, folder: Path, console: Console) -> BackboneScore:
    """Features of one backbone, and what they are worth. Copies of one picture are never divided between folds."""
    from tljax.data.duplicates import prints_of
    from tljax.suggest import trial
    from tljax.suggest.probe import cross_validate, log_me, make_folds

    began = time.perf_counter()
    seen = trial.features_of(config, backbone, images=images, folder=folder, console=console)
    data = seen.x.data
    classes, labels = np.unique(data.labels("train"), return_inverse=True)
    least = int(np.bincount(labels).min())
    if len(classes) < 2 or least < 2:
        name = data.source.classes[classes[int(np.bincount(labels).argmin())]]
        raise UserError(f"class {name!r} has {least} labeled training image; cross-validation needs 2 of each")
    _, copies = np.unique(prints_of(data.pixels).digests[data.splits["train"]], return_inverse=True)
    folds = make_folds(labels, min(FOLDS, least), groups=copies)
    probed = cross_validate(seen.features, labels, folds)
    return BackboneScore(backbone, seen, probed, log_me(seen.features, labels), time.perf_counter() - began)


def not_significantly_different(looked: Sequence[BackboneScore]) -> list[BackboneScore]:
    """The most accurate probe, and the next ones that may be as good for all that these images say, `RIVALS` at most.

    A probe sees what the features hold, not how well a network's own head learns it: between these, short runs decide.
    """
    first = looked[0].probed.right
    return [looked[0], *(one for one in looked[1:] if p_value(first, one.probed.right) >= LEVEL)][:RIVALS]


def short_epochs(config: Any, one: BackboneScore, *, alone: bool) -> int:
    """As many epochs on some of the images as make the updates that the config's make on all: the best rate depends on
    their number. On kept features of the head they cost little; other plans get `UPDATES`, or 3 epochs of more images.
    """
    whole, part = (len(x.data.splits["train"]) for x in (one.seen.whole, one.seen.x))
    passes = config.epochs * (config.epoch_steps or one.seen.whole.steps_per_pass) / one.seen.whole.steps_per_pass
    wanted = max(1, round(passes * whole / part))
    return wanted if alone else min(wanted, max(3, UPDATES // one.seen.x.steps_per_epoch))


def choose_plan(tried: "Sequence[Trial]") -> "Trial":
    """The config's own plan, unless another one was better on the same images, in no more epochs (McNemar's test)."""
    chosen = tried[0]
    for other in tried[1:]:
        if other.epochs <= chosen.epochs and best_of(other).sum() > best_of(chosen).sum() and differ(other, chosen):
            chosen = other
    return chosen


def trained_on(config: Any, data: "Data") -> np.ndarray:
    """The classes of the labeled images that a run of the config would train on, int `[N]`: validation images that are
    drawn here alone (`trial.try_fields`) are among them."""
    from tljax.data.load import open_data

    listed = open_data(config.data, seed=config.seed)
    images = listed.splits["train"]
    labels = listed.source.labels[images[data.pixels.held[images]]]
    return labels[labels >= 0]


def unlike(one: BackboneScore, copied: "Copies") -> list[str]:
    """That validation images are harder than training images, if more so than by chance; of a split that was drawn here
    it is chance.

    Args:
      one: a backbone.
      copied: which validation images are in train, too; they are left out.
    """
    from tljax.metrics.significance import less_often_right
    from tljax.suggest.probe import held_out
    from tljax.suggest.trial import has_own_validation

    data = one.seen.x.data
    if not has_own_validation(one.seen.whole):
        return []
    names, labels = np.unique(data.labels("train"), return_inverse=True)
    known = np.isin(data.labels("val"), names)
    known &= ~np.isin(data.splits["val"], copied.images[copied.any])
    if not known.any():
        return []
    theirs = np.searchsorted(names, data.labels("val")[known])
    answers = held_out(one.seen.features, labels, one.seen.validation[known], strength=one.probed.strength)
    chance = less_often_right(one.probed.right, labels, answers == theirs, theirs)
    if chance >= UNLIKE:
        return []
    train, validation = share(one.probed.right), share(answers == theirs)
    return [
        f"validation is unlike train: a probe gets right {train} of training images in cross-validation, "
        f"{validation} of validation images (p = {chance:.1g}, class by class); other cameras, places or patients, or "
        "nearly the same pictures many times in train: see which of the two is like what you will ask about"
    ]


def problems(data: "Data", labels: np.ndarray) -> list[str]:
    """What counts alone say of the training images, by their labels, and the files that cannot be read."""
    found, names = [], data.source.classes
    counts = np.bincount(labels, minlength=len(names))
    few = [f"{names[i]} {counts[i]}" for i in np.argsort(counts, kind="stable") if counts[i] < FEW]
    if few:
        found.append(f"classes with fewer than {FEW} training images: {', '.join(few)}")
    if counts.min() and counts.max() >= IMBALANCE * counts.min():
        most, least = int(counts.argmax()), int(counts.argmin())
        found.append(f"imbalance: {names[most]} has {counts[most]:,} training images, {names[least]} "
                     f"{counts[least]:,}; accuracy says little of the small ones: look at it by class")  # fmt: skip
    if data.skipped:
        examples = "; ".join(f"{name!r}: {reason}" for name, reason in data.skipped[:3])
        found.append(f"{counted(len(data.skipped), 'file')} skipped: {examples}")
    return found


def make_flags() -> flags.FlagValues:
    """The flags beside `--config`."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "backbones", None, "NAME[:LAST_STAGE][=WEIGHTS], several with commas between; by default the config's and "
        "ImageNet's whose weights are here already; only what is named is downloaded", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("out", "suggested.py", "the config file to write; a .json beside it has all numbers",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_bool("overwrite", False, "replace that file", flag_values=values)
    flags.DEFINE_integer("images", 1000, "training images, and validation images, that are used at most",
                         lower_bound=10, flag_values=values)  # fmt: skip
    flags.DEFINE_integer("epochs", 0, "of the short runs; 0: as many as make the config's number of updates, for more "
                         "than the head up to 100", lower_bound=0, flag_values=values)  # fmt: skip
    flags.DEFINE_bool("layers", True, "try the head alone and the last stage with it, beside the config's own plan",
                      flag_values=values)  # fmt: skip
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for a mistake of the user's, 128 + the signal if interrupted."""
    quiet_libraries()
    return run_flags(argv, make_flags(), __doc__, dispatch)


def dispatch(argv: Sequence[str], values: flags.FlagValues) -> None:
    config, _ = parse(argv, values, default=CONFIGS / "folder.py")
    out = Path(values.out)
    if out.suffix != ".py" or not out.absolute().parent.is_dir():
        raise UserError(f"--out={out} is not a .py file in a folder that exists")
    if out.exists() and not values.overwrite:
        raise UserError(f"{out} exists; give another --out, or --overwrite to replace it")
    tune_cpu()
    from tljax.suggest.trial import read_backbones  # JAX after the flags

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
