"""A teacher trains on the labels there are and labels the others; students train on both, each the next one's teacher.

A round is an ordinary run in a folder of its own, `round-0` the first teacher's. So whatever a run can do a round can,
and a round that was interrupted goes on like any run.
"""

import collections
import contextlib
import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from tljax.core import shared_cache
from tljax.core.errors import UserError
from tljax.data import content
from tljax.data.labels import PseudoLabels
from tljax.data.load import DatasetIndex, open_data
from tljax.distributed.consensus import barrier
from tljax.metrics.calibration import fit_temperature, log_probabilities
from tljax.metrics.losses import outputs
from tljax.report import console as console_lib
from tljax.report import plots
from tljax.run_dir import files as folders
from tljax.run_dir.files import PREDICTIONS
from tljax.semi import pseudo_labels
from tljax.settings.fields import get_config
from tljax.train import single_run
from tljax.train.checks import check
from tljax.train.final_eval import CALIBRATION
from tljax.train.recipe import Choice, as_record, write_choices
from tljax.train.setup import outline

Record = dict[str, Any]


def run(
    config: Any,
    workdir: Path,
    *,
    overwrite: bool = False,
    console: Console | None = None,
    look_at_test: bool = False,
    choices: Sequence[Choice] = (),
) -> dict[str, Any]:
    """A teacher and its students; arguments, errors and exceptions are `single_run.run`'s.

    Returns:
      What `result.json` holds: that of the last student, the history of all rounds one after the other, and `rounds`:
      what each was given, how much of it was right, and how it did.
    """
    first = jax.process_index() == 0
    console = console or console_lib.make_console(quiet=not first)
    workdir = workdir.absolute()  # the config of a student names files in it
    check(config, look_at_test=look_at_test)
    for number in (0, 1):  # what a student cannot do is said before its teacher trains; later ones are alike
        own = config_of(config, number, workdir)
        check(own, look_at_test=look_at_test)
        outline(own)
    listed = open_data(config.data, seed=config.seed)
    if config.semi.calibrate and "val" not in listed.splits:
        raise UserError("semi.calibrate=True fits a temperature on validation images, and there are none")
    folders.check_free(workdir, config.to_dict(), overwrite=overwrite)
    if not overwrite:
        content.check_moved(workdir, config)
    rounds: list[Record] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(shared_cache.sharing())

        @functools.cache
        def claim() -> None:
            if first:
                stack.enter_context(folders.locked(workdir))
                folders.check_free(workdir, config.to_dict(), overwrite=overwrite)
                folders.claim(workdir, config.to_dict(), overwrite=overwrite)
                write_choices(workdir, config, choices)

        results = []
        for number in range(config.semi.rounds + 1):
            folder, own = workdir / f"round-{number}", config_of(config, number, workdir)
            given = label(config, number, workdir, listed) if number else None
            result = None if overwrite and not number else read_round(folder)
            if result is None:
                name = "the teacher" if not number else f"student {number} of {config.semi.rounds}"
                console.print(f"round {number}: {name}")
                if first and number:
                    follow(folder, own)
                barrier()
                result = single_run.run(
                    own, folder, overwrite=overwrite, console=console, look_at_test=look_at_test, before=claim,
                    decoded=workdir,
                )  # fmt: skip
            else:
                claim()
            barrier()
            results.append(result)
            passed = passed_on(workdir, number) if number and result["test"] else None
            rounds.append(record_of(number, result, given, passed))
        print_rounds(console, rounds, results[-1].get("without_images", {}))
        final = joined(config, results, rounds) | as_record(choices)
        if first:
            shutil.copyfile(workdir / f"round-{config.semi.rounds}" / PREDICTIONS, workdir / PREDICTIONS)
            if (drawn := workdir / f"round-{config.semi.rounds}" / CALIBRATION).exists():
                shutil.copyfile(drawn, workdir / CALIBRATION)
            if config.pictures:
                row = next(row for row in final["history"] if row["step"] == final["best_step"])
                plots.save_curves(workdir / "curves.png", final["history"], row)
            folders.write_csv(workdir / folders.METRICS, final["history"])
            folders.write_json(workdir / folders.RESULT, final)
    console.print(f"{final['seconds']:.0f} s; everything is in {workdir}", markup=False)
    return final


def config_of(config: Any, number: int, workdir: Path) -> Any:
    """The config of a round: 0 is the first teacher's."""
    own: Any = ConfigDict(config.to_dict())
    s = config.semi
    own.semi = get_config().semi
    own.data.shapes_seed = config.seed if config.data.shapes_seed is None else config.data.shapes_seed
    own.data.labels_seed = config.seed if config.data.labels_seed is None else config.data.labels_seed
    if config.cache.views and config.cache.seed is None:
        own.cache.seed = config.seed  # all rounds see the same views
    if not number:
        own.epochs = s.teacher_epochs or config.epochs
        if not s.teacher_noise:
            own.augment = get_config().augment
            own.augment.crop, own.augment.flip, own.cache.views = "center", False, 0
            own.model.dropout = 0.0
            own.model.stochastic_depth = 0.0 if config.model.stochastic_depth else None
    else:
        own.seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        own.data.pseudo = str(labels_file(workdir, number))
        if s.start == "teacher":
            own.model.weights, own.transfer.fresh = str(workdir / f"round-{number - 1}"), ""
    return own.lock()


def read_round(folder: Path) -> Record | None:
    """What a finished round found; None for one that is not finished."""
    result = folders.read_result(folder)
    if result is not None and (
        lost := {"history", "train", "validation", "test", "test_labels", "best_step", "seconds"} - result.keys()
    ):
        raise UserError(f"{folder / folders.RESULT} is damaged: it has no {sorted(lost)[0]}; remove it, and the round "
                        "ends once more")  # fmt: skip
    return result


def answers_of(file: Path, *names: str) -> list[np.ndarray]:
    """Predictions of a finished round."""
    try:
        return folders.read_arrays(file, *names)
    except UserError as reason:
        raise UserError(f"{file} is missing or damaged ({reason}); remove {file.with_name(folders.RESULT)}, "
                        "and the round ends once more") from None  # fmt: skip


def follow(folder: Path, own: Any) -> None:
    """Lets a round go on whose folder lies elsewhere now: its config names files beside it."""
    if not (folder / folders.CONFIG).exists():
        return
    there = folders.read_config(folder)
    for part, field in (("data", "pseudo"), ("model", "weights")):
        old, new = there[part].get(field), own[part][field]
        if old != new and old and new and Path(new).parent == folder.parent and Path(old).name == Path(new).name:
            there[part][field] = new
            folders.write_json(folder / folders.CONFIG, there)


def labels_file(workdir: Path, number: int) -> Path:
    return workdir / f"labels-{number}.npz"


def label(config: Any, number: int, workdir: Path, listed: DatasetIndex) -> Record:
    """Lets the round before label images for this one; returns what is told of the labels.

    With a growing number of images (`top`, `top_per_class`), round r of R gets r/R of `semi.share`.
    """
    s, file = config.semi, workdir / f"round-{number - 1}" / PREDICTIONS
    (names, logits), fitted = answers_of(file, "unlabeled_names", "unlabeled_logits"), {"temperature": 1.0}
    asked = {listed.source.names[i] for i in listed.splits["unlabeled"]}
    if not set(names.tolist()) <= asked or logits.shape != (
        len(names),
        outputs(config.loss.name, len(listed.source.classes)),
    ):
        raise UserError(f"{file} answers for other images or classes than this run has; remove "
                        f"{file.with_name(folders.RESULT)}, and the round ends once more")  # fmt: skip
    if not np.isfinite(logits).all():
        raise UserError(f"round {number - 1} answers with numbers that are not finite: its training has diverged; "
                        "lower optimizer.lr")  # fmt: skip
    if s.calibrate:
        fitted = fit_temperature(*answers_of(file, "val_logits", "val_labels")).as_dict()
    found = log_probabilities(logits, fitted["temperature"])
    options = {"share": s.share * number / s.rounds, "threshold": s.threshold, "seed": config.seed}
    chosen = pseudo_labels.select(found, s.select, **options)
    soft, hard = np.exp(found[chosen]).astype(np.float32), found[chosen].argmax(1).astype(np.int32)
    targets = soft if s.targets == "soft" else hard
    if jax.process_index() == 0:
        PseudoLabels(names[chosen], targets).save(labels_file(workdir, number))
    barrier()
    truth = dict(zip(listed.source.names, listed.truth, strict=True))
    told = pseudo_labels.tell(found, chosen, np.array([truth[name] for name in names]), listed.source.classes)
    return {**fitted, **told}


def passed_on(workdir: Path, number: int) -> Record:
    """What a student made of its teacher's mistakes on the test images."""
    teacher, student = (workdir / f"round-{one}" / PREDICTIONS for one in (number - 1, number))
    return pseudo_labels.passed_on(
        *answers_of(teacher, "test_logits"), *answers_of(student, "test_logits", "test_labels")
    )


def record_of(number: int, result: Record, given: Record | None, passed: Record | None) -> Record:
    """A round in result.json."""
    return {
        "round": number,
        "labels": given,
        "teacher": passed,
        "images": result["train"]["images"],
        "updates": result["history"][-1]["step"],
        "validation": result["validation"],
        "test": result["test"],
        "seconds": result["seconds"],
    }


def joined(config: Any, results: list[Record], rounds: list[Record]) -> Record:
    """The last round's result, with the epochs of all of them one after the other."""
    history, epoch, step = [], 0, 0
    for number, result in enumerate(results):
        before = epoch, step
        history += [
            row | {"round": number, "epoch": row["epoch"] + epoch, "step": row["step"] + step}
            for row in result["history"]
        ]
        epoch, step = history[-1]["epoch"], history[-1]["step"]
    last = results[-1]
    reads = sum((collections.Counter(result["test_labels"]["by"]) for result in results), collections.Counter())
    if last["test"] is not None:
        reads["what students made of their teachers' mistakes, after their tests"] = len(rounds) - 1
    validation = last["validation"] and last["validation"] | {
        "best_epoch": last["validation"]["best_epoch"] + before[0]
    }
    return last | {
        "validation": validation,
        "best_step": last["best_step"] + before[1],
        "history": history,
        "rounds": rounds,
        "warnings": [
            *(entry | {"round": number} for number, one in enumerate(results) for entry in one.get("warnings", ())),
            *without_labels(rounds),
        ],
        "test_labels": last["test_labels"] | {"read": reads.total(), "by": dict(reads)},
        "seconds": sum(result["seconds"] for result in results),
        "config": config.to_dict(),
    }


def without_labels(rounds: list[Record]) -> list[Record]:
    """The warning, if any, that students were given no label of their teacher's."""
    none = [one["round"] for one in rounds[1:] if not one["labels"]["given"]]
    words = (f"round {', '.join(map(str, none))} had no pseudo-label to learn from: lower semi.threshold, or raise "
             "semi.share")  # fmt: skip
    return [{"kind": "none_given", "message": words, "rounds": none}] if none else []


def print_rounds(console: Console, rounds: list[Record], without: Mapping[str, Sequence[str]]) -> None:
    """The table of all rounds, classes that it says nothing of, and what students made of their teachers' mistakes."""

    def row(one: Record) -> dict[str, str]:
        given = one["labels"]
        return {
            "round": str(one["round"]) + ("" if one["round"] else ", teacher"),
            "pseudo-labels": f"{given['given']:,} of {given['unlabelled']:,}" if given else "-",
            "right": "-" if not given or (share := pseudo_labels.share_right(given)) is None else f"{share:.1%}",
            "updates": f"{one['updates']:,}",
        } | {
            name: console_lib.percent(one[name]["correct"], one[name]["seen"], one[name]["interval95"])
            for name in ("validation", "test")
            if one[name] is not None
        }

    chose = any((one["validation"] or {}).get("chose_epoch") for one in rounds)
    title = "Rounds, each at its best epoch, which the validation images chose" if chose else "Rounds"
    console_lib.print_table(console, title, [row(one) for one in rounds])
    for name in ("validation", "test"):
        if unseen := console_lib.unseen_words(without, name):
            console.print(unseen, markup=False)
    for entry in without_labels(rounds):
        console.print(f"warning: {entry['message']}")
    for one in rounds[1:]:
        if "fit_images" in (one["labels"] or {}):  # semi.calibrate
            how = console_lib.fit_in_words(one["labels"])
            console.print(f"labels of round {one['round']}: their teacher's {how}", markup=False)
    for one in rounds[1:] if rounds[-1]["teacher"] else ():
        words = "of its teacher's {mistakes:,} mistakes on the test images {repeated:,} repeated, {mended:,} mended"
        console.print(f"student {one['round']}: {words}; {{new:,}} new".format(**one["teacher"]))
