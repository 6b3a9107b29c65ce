"""The end of a run: back to the best epoch, one test, everything written down."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax.core.errors import UserError
from tljax.data.duplicates import Copies
from tljax.data.load import Data
from tljax.distributed import parallel
from tljax.engine.steps import combine, partition
from tljax.metrics.accuracy import by_class, chose_epoch, images_in_words, score, wilson_interval
from tljax.metrics.calibration import calibration, log_probabilities
from tljax.report import console as console_lib
from tljax.report import plots
from tljax.run_dir import files as folders
from tljax.run_dir import versions
from tljax.run_dir.checkpoint import saved_variables
from tljax.run_dir.files import PREDICTIONS, SPLITS
from tljax.semi import pseudo_labels
from tljax.train.best_epoch import merit
from tljax.train.feature_cache import discard
from tljax.train.recipe import Choice, as_record
from tljax.train.throughput import in_words, total
from tljax.train.trainer import Trainer

CALIBRATION = "calibration.png"


def finish(trainer: Trainer, choices: Sequence[Choice] = ()) -> dict[str, Any]:
    """Tests every member once, at its best epoch, and writes the results.

    A single run leaves result.json, predictions.npz, curves.png and calibration.png in its folder. Each member of a
    population leaves the same in a folder of its own under `members`, and the population's result.json has a row for
    each.
    """
    x, workdir = trainer.x, trainer.workdir
    trainer.checkpoints.wait()
    restore_best(trainer)
    # What it says of images without a label is for whoever wants to give them one.
    logits = {split: trainer.logits(split) for split in (*SPLITS, "unlabeled") if split in x.data.splits}
    labels = {split: x.data.labels(split, "the final test") for split in SPLITS if split in x.data.splits}
    twice = x.duplicates
    told = twice.as_dict(x.data.source.names)
    results = []
    for m in range(len(x.members)):
        folder = workdir / "members" / f"{m:03}" if x.population else workdir
        mine = {split: values[m] for split, values in logits.items()}
        result = member_result(trainer, m, mine, labels, twice.copies)
        result["duplicates"] |= told
        if x.population:
            result["settings"] = dict(x.members[m].settings)
        results.append(result)
        if jax.process_index() == 0:
            write_member(trainer, folder, result, mine, labels)
    trainer.diagnostics.tell()
    for m, step in enumerate(trainer.diverged):
        if step is not None:
            which = f"member {m:03} ({dict(x.members[m].settings)})" if x.population else "this run"
            words = "went wrong: its loss, gradient or parameters were not finite"
            trainer.console.print(f"step {step + 1:,} of {which} {words}", markup=False)
    if not x.population:
        console_lib.print_evaluation(trainer.console, results[0])
        final = results[0]
    else:
        final = population_result(trainer, results)
    final |= as_record(choices)
    if budget := trainer.budget:
        final["minutes"] = {"budget": budget.minutes, "seconds": budget.elapsed,
                            "updates": trainer.step, "of": x.last_step}  # fmt: skip
    console_lib.print_without_duplicates(trainer.console, final["duplicates"])
    if jax.process_index() == 0:
        folders.write_json(workdir / folders.RESULT, final)
        discard(workdir)
    if budget:
        trainer.console.print(f"{in_words(budget.elapsed)} of {budget.words}")
    trainer.console.print(f"{trainer.seconds:.0f} s; everything is in {workdir}", markup=False)
    return final


def restore_best(trainer: Trainer) -> None:
    """Puts the parameters and statistics of the best epoch into the state."""
    x, state = trainer.x, trainer.one_replica()
    if not x.population:
        best = trainer.best_row(0)
        if best["step"] != trainer.step:
            if best["epoch"] <= x.phases[0][trainer.phase].first:  # its prefix was another
                trainer.kept, trainer.evaluators = None, {}
            try:
                saved = saved_variables(trainer.workdir, best["step"])
            except UserError as reason:
                raise UserError(f"{reason}; epoch {best['epoch']}, the best, cannot be tested without it: give "
                                "--overwrite to train again") from None  # fmt: skip
            trainer.state = parallel.replicate(state.replace(semi={}, **saved))
    elif "val" in x.data.splits and x.config.select != "last":
        plan = x.plans[0][0]
        frozen = partition(x.model, plan, state.variables)[1]
        best, _ = partition(x.model, plan, state.best)
        trainer.state = parallel.replicate(state.replace(**combine(best, frozen)))


def member_result(
    trainer: Trainer,
    m: int,
    logits: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    copies: dict[str, dict[str, Copies]],
) -> dict[str, Any]:
    """What a single run finds, as plain values."""
    x, history = trainer.x, trainer.histories[m]
    best = trainer.best_row(m)
    result: dict[str, Any] = {"test": None, "validation": None}
    for split, name in SPLITS.items():
        if split in logits:
            result[name] = score(logits[split], labels[split], x.plain_loss).as_dict()
    if result["validation"] is None and result["test"] is not None:
        trainer.diagnostics.tested(m, result["test"], labels["test"])
    if "unlabeled" in logits:
        result["unlabelled"] = pseudo_label_report(x.config.semi, x.data, logits["unlabeled"])
    if result["validation"] is not None:
        last = {name: history[-1][f"val_{name}"] for name in ("accuracy", "correct", "seen")}
        chose = x.config.select != "last" and len(history) > 1
        result["validation"] |= {"best_epoch": best["epoch"], "last_epoch": last, "chose_epoch": chose}
    if x.config.select == "test":
        result["best_by_test"] = best_by_test(history)

    def without(split: str, found: np.ndarray) -> dict[str, Any] | None:
        rest = ~found
        own = logits[split][rest], labels[split][rest]
        return score(*own, x.plain_loss).as_dict() if found.any() and rest.any() else None

    classes = x.data.source.classes
    calibrated = calibration(logits, labels, chosen=chose_epoch(result))
    return result | {
        "calibration": {SPLITS[split]: found for split, found in calibrated.items()},
        "by_class": {SPLITS[split]: by_class(logits[split], known, classes) for split, known in labels.items()},
        "without_images": {SPLITS[split]: names for split, names in x.data.without_images.items() if split in SPLITS},
        "notes": x.data.notes,
        "duplicates": {
            "without": {SPLITS[split]: without(split, found["train"].any) for split, found in copies.items()}
        },
        "trained_before": {
            SPLITS[split]: {"images": int(found.sum()), "without": without(split, found)}
            for split, found in ((split, x.trained_before(split)) for split in labels)
        },
        "test_labels": x.data.sealed.as_dict(),
        "best_step": best["step"],
        "diverged_step": trainer.diverged[m],
        "warnings": trainer.diagnostics.entries(m),
        "train": {
            **total(trainer.clocks).speed,
            "first_step_seconds": trainer.first_step,
            "expected_seconds": trainer.forecast.total,
            "epochs": [
                clock.speed | {"seconds": clock.seconds + clock.cold_seconds, "validation_seconds": clock.validation}
                for clock in trainer.clocks
            ],
            "images": len(x.data.splits["train"]),
            "trainable_parameters": x.plans[m][-1].trainable,
        },
        "seconds": trainer.seconds,
        "features": trainer.features,
        "skipped": {"count": len(x.data.skipped), "files": [list(pair) for pair in x.data.skipped]},
        "low_contrast": {"count": len(x.data.pixels.flat), "files": list(x.data.pixels.flat)},
        "several_pictures": {"count": len(x.data.pixels.paged), "files": list(x.data.pixels.paged)},
        "classes": list(classes),
        "preprocessing": x.preprocessing,
        "weights": x.origin,
        "plan": [plan.as_rows() for plan in x.plans[m]],
        "history": history,
        "config": x.members[m].config.to_dict(),
        "versions": versions.versions(),
        "device": versions.device(),
    }


def pseudo_label_report(semi: Any, data: Data, logits: np.ndarray) -> dict[str, Any]:
    """What the labels would be worth that a network gives to unlabeled images: to all, or to those that its method
    is sure enough of. `semi` is `config.semi`."""
    found = log_probabilities(logits)
    how = "threshold" if semi.method in ("fixmatch", "flexmatch") else "all"
    chosen = pseudo_labels.select(found, how, threshold=semi.threshold)
    return pseudo_labels.tell(found, chosen, data.truth[data.splits["unlabeled"]], data.source.classes)


def best_by_test(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch with the highest test accuracy, which no honest run knows; for reports that chose so."""
    best = max(history, key=lambda row: (row["test_correct"] / row["test_seen"], -row["epoch"]))
    correct, seen = best["test_correct"], best["test_seen"]
    return {
        "accuracy": correct / seen, "correct": correct, "seen": seen, "epoch": best["epoch"],
        "interval95": list(wilson_interval(correct, seen)), "flag": "chosen by looking at the test images every epoch",
    }  # fmt: skip


def write_member(
    trainer: Trainer,
    folder: Path,
    result: dict[str, Any],
    logits: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
) -> None:
    """The files of a single run, or of one member."""
    data, predictions = trainer.x.data, {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, values in logits.items():
        names = np.array([data.source.names[i] for i in data.splits[split]])
        predictions |= {f"{split}_logits": values, f"{split}_names": names}
        if split in SPLITS:
            predictions[f"{split}_labels"] = labels[split]
    folders.write_arrays(folder / PREDICTIONS, **predictions)
    if trainer.x.config.pictures:
        chosen = next(row for row in result["history"] if row["step"] == result["best_step"])
        plots.save_curves(folder / "curves.png", result["history"], chosen)
        for name in ("test", "validation"):
            if found := result["calibration"].get(name):
                title = images_in_words(result, name)
                plots.save_reliability(folder / CALIBRATION, name, found, title=title)
                break
    if trainer.x.population:
        folders.write_csv(folder / folders.METRICS, result["history"])
        folders.write_json(folder / folders.RESULT, result)


def population_result(trainer: Trainer, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The members side by side, and which of them validation prefers by `merit`, the first of equals."""
    x, by = trainer.x, "validation" if "val" in trainer.x.data.splits else None
    rows = [
        {"settings": dict(member.settings), "folder": f"members/{m:03}"}
        | {name: result[name] for name in ("best_step", "diverged_step")}
        | {name: result[name] for name in SPLITS.values()}
        for m, (member, result) in enumerate(zip(x.members, results, strict=True))
    ]
    best = None
    if by:
        merits = [merit(row[by]["accuracy"], row[by]["loss"], x.config.select) for row in rows]
        best = max(range(len(rows)), key=lambda m: (*merits[m], -m))
    console_lib.print_table(
        trainer.console,
        "Members, each at its best epoch"
        + (", which the validation images chose" if by and rows[0][by]["chose_epoch"] else ""),
        [
            {axis: str(value) for axis, value in row["settings"].items()}
            | {
                name: console_lib.percent(row[name]["correct"], row[name]["seen"], row[name]["interval95"])
                for name in SPLITS.values()
                if row[name] is not None
            }
            | (
                {"best epoch": str(row[by]["best_epoch"]), "": "<- validation's choice" if m == best else ""}
                if by
                else {}
            )
            for m, row in enumerate(rows)
        ],
    )
    for name in SPLITS.values():
        if unseen := console_lib.unseen_words(results[0]["without_images"], name):
            trainer.console.print(unseen, markup=False)
    alike = (
        "train",
        "features",
        "skipped",
        "low_contrast",
        "several_pictures",
        "without_images",
        "notes",
        "classes",
        "preprocessing",
        "weights",
        "versions",
        "device",
        "test_labels",
    )
    common = {name: results[0][name] for name in alike}
    twice = {name: told for name, told in results[0]["duplicates"].items() if name != "without"}
    return {
        "members": rows, "best_member": best, "seconds": trainer.seconds, **common, "duplicates": twice,
        "warnings": trainer.diagnostics.by_kind, "config": x.config.to_dict(),
    }  # fmt: skip
