"""What a study's finished runs found: one row per cell, with its confidence interval."""

import dataclasses
import functools
import itertools
import statistics as numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tljax.core.errors import UserError
from tljax.metrics import significance
from tljax.metrics.accuracy import predictions, wilson_interval
from tljax.run_dir.files import PREDICTIONS, RESULT, SPLITS, read_arrays, read_result
from tljax.semi.pseudo_labels import share_right
from tljax.study.jobs import Job, Run
from tljax.study.runner import why_failed
from tljax.study.study import Cell, Study
from tljax.train.best_epoch import merit

Result = dict[str, Any]
AGAIN = "to run it again, delete"


@dataclasses.dataclass(frozen=True)
class Measure:
    """A column.

    Attributes:
      title: its head.
      share: whether it is a share, shown in percent.
      value: of one run's result; None where it has none.
      chosen: whether it is something that was chosen, which has no mean over seeds.
    """

    title: str
    share: bool
    value: Callable[[Result], float | None]
    chosen: bool = False


def _given_right(result: Result) -> float | None:
    """Of the last round's pseudo-labels, or of the last epoch's where a network labels for itself."""
    found = result["rounds"][-1]["labels"] if "rounds" in result else result["history"][-1]
    return share_right(found)


def measure(name: str) -> Measure:
    """A column by name: `test`, `validation`, `validation@EPOCH`, `best by test`, `epoch`, `lr`, `given right`,
    `updates`, `seconds`."""
    if name.startswith("validation@"):
        epoch = int(name.partition("@")[2])
        return Measure(
            f"validation accuracy after epoch {epoch}",
            True,
            lambda r: r["history"][epoch - 1]["val_accuracy"] if len(r["history"]) >= epoch else None,
        )
    return {
        "test": Measure("test accuracy", True, lambda r: r["test"] and r["test"]["accuracy"]),
        "validation": Measure("validation accuracy", True, lambda r: r["validation"] and r["validation"]["accuracy"]),
        "best by test": Measure(
            "best test accuracy among epochs (chosen by looking)",
            True,
            lambda r: r["best_by_test"]["accuracy"] if "best_by_test" in r else None,
        ),
        "epoch": Measure("epoch", False, lambda r: r["validation"] and r["validation"]["best_epoch"], chosen=True),
        "lr": Measure("learning rate", False, lambda r: r["config"]["optimizer"]["lr"], chosen=True),
        "given right": Measure("pseudo-labels that were right", True, _given_right),
        "updates": Measure("updates", False, lambda r: r["history"][-1]["step"], chosen=True),
        "seconds": Measure(
            "seconds per epoch", False, lambda r: numbers.median(e["seconds"] for e in r["train"]["epochs"])
        ),
    }[name]


@dataclasses.dataclass(frozen=True)
class Found:
    """A finished run that counts for its cell."""

    run: Run
    folder: Path
    result: Result

    def predictions(self, split: str) -> "Predictions":
        """What it answered to the images of a split, `test` or `val`."""
        path = self.folder / PREDICTIONS
        try:
            return Predictions(*read_arrays(path, f"{split}_names", f"{split}_labels", f"{split}_logits"))
        except UserError as reason:
            raise UserError(f"{path} is missing or damaged ({reason}); {AGAIN} {self.folder}") from None


class Predictions(NamedTuple):
    """Names `[N]`, labels `[N]` and logits `[N, outputs]` of a split's images."""

    names: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
    """A cell and what was found for it, by seed.

    Attributes:
      cell: the cell.
      found: the run that counts, of every seed that is done.
      tried: of the first seed, what was searched in words and the history, for every run.
      missing: runs that are not done.
      failed: why, of those that failed.
    """

    cell: Cell
    found: tuple[Found, ...]
    tried: tuple[tuple[str, list[dict[str, Any]]], ...]
    missing: int
    failed: tuple[str, ...]

    def by_seed(self, name: str) -> dict[int, float]:
        """A measure."""
        found = {one.run.seed: measure(name).value(one.result) for one in self.found}
        return {seed: value for seed, value in found.items() if value is not None}

    def values(self, name: str) -> list[float]:
        """A measure, in the order of seeds."""
        return list(self.by_seed(name).values())

    def mean(self, name: str) -> float | None:
        values = self.values(name)
        return sum(values) / len(values) if values else None

    def counts(self, name: str) -> tuple[float, int] | None:
        """Right answers, on average over seeds, and images, for a measure that counts them."""
        place = {"test": "test", "best by test": "best_by_test", "validation": "validation"}.get(name)
        tests = [f.result[place] for f in self.found if f.result.get(place)] if place else []
        return (sum(t["correct"] for t in tests) / len(tests), tests[0]["seen"]) if tests else None

    @property
    def tested(self) -> tuple[float, int] | None:
        """Right answers of the honest test, on average over seeds, and test images."""
        return self.counts("test")

    def interval(self, name: str = "test") -> tuple[float, float] | None:
        """Wilson's 95% interval of the mean accuracy: what another test set of this size might have given."""
        counts = self.counts(name)
        return wilson_interval(round(counts[0]), counts[1]) if counts else None

    def right(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Names `[N]` of the images of a split, and which of them each seed got right, bool `[seeds, N]`.

        None where nothing of it was answered, or seeds had different images.
        """
        found = [f.predictions(split) for f in self.answered(split)]
        if not found or any(not np.array_equal(one.names, found[0].names) for one in found[1:]):
            return None
        return found[0].names, np.stack([predictions(one.logits) == one.labels for one in found])

    def answered(self, split: str) -> list[Found]:
        """Runs that answered a split, in the order of seeds."""
        return [f for f in self.found if f.result[SPLITS[split]]]

    def same_images(self, name: str) -> float:
        """The share of our test images, in a measure, that any other run of this protocol has too.

        1 of official splits; of random ones the share of all images that is tested; 0 where that is not known.
        """
        result, counts = self.found[0].result, self.counts(name)
        data = result["config"]["data"]
        if data["split"] == "official" and name != "validation":
            return 1.0
        parts = [result[split]["seen"] for split in SPLITS.values() if result[split]]
        if counts is None or data.get("labels", "all") not in ("", "all"):
            return 0.0
        return counts[1] / (result["train"]["images"] + sum(parts))


@dataclasses.dataclass(frozen=True)
class Findings:
    """A study, and what was found for each of its cells."""

    study: Study
    rows: tuple[Row, ...]
    _kept: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def measure(self) -> str:
        """In what all rows are compared: `test`, and where nothing was tested, `validation`."""
        return "test" if any(row.tested for row in self.rows) else "validation"

    def difference(self, a: str, b: str, name: str) -> significance.Difference | None:
        """By how much a row is higher than another in a measure, over the seeds that both have; None where none is."""
        first, second = self.row(a).by_seed(name), self.row(b).by_seed(name)
        seeds = [seed for seed in first if seed in second]
        if not seeds:
            return None
        return significance.paired([first[s] - second[s] for s in seeds], self._over_images(a, b, name, seeds))

    def _over_images(self, a: str, b: str, name: str, seeds: Sequence[int]) -> float:
        """Variance of a difference over test images: from the answers to the same ones, else of independent ones."""
        split = {"test": "test", "validation": "val"}.get(name)
        if split:
            first, second = self._right(a, split), self._right(b, split)
            if first and second and np.array_equal(first[0], second[0]):
                return significance.variance_over_images(
                    *(np.stack([of[1][s] for s in seeds]) for of in (first, second))
                )
        total = 0.0
        for row in (self.row(a), self.row(b)):
            counts = row.counts("validation" if name.startswith("validation@") else name)
            accuracy = row.mean(name)
            if counts and accuracy is not None:
                total += significance.binomial_variance(accuracy, counts[1])
        return total

    def _right(self, name: str, split: str) -> tuple[np.ndarray, dict[int, np.ndarray]] | None:
        """`Row.right` by seed; the files are read once for all that is compared."""
        if (name, split) not in self._kept:
            row = self.row(name)
            right = row.right(split)
            seeds = [found.run.seed for found in row.answered(split)]
            self._kept[name, split] = right and (right[0], dict(zip(seeds, right[1], strict=True)))
        return self._kept[name, split]

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.cell.name == name)


def collect(study: Study, runs: Sequence[Run], jobs: Sequence[Job], folder: Path) -> Findings:
    """What was found for a study so far.

    Args:
      study: which.
      runs: its runs.
      jobs: theirs.
      folder: of all runs.
    """
    job_of = {key: job for job in jobs for key in job.members}
    rows = []
    for cell in study.cells:
        found, tried, missing, failed = [], [], 0, []
        mine = [run for run in runs if run.cell == cell.name]
        for _, group in itertools.groupby(mine, key=lambda run: run.seed):
            candidates = []
            for run in group:
                job = job_of[run.key]
                where = folder / job.folder_of(run.key)
                try:
                    result, why = _finished(where), why_failed(job.key, folder)
                except UserError as damaged:  # the others still have their table
                    result, why = None, f"{damaged}; {AGAIN} {folder / job.key}"
                if result is not None:
                    candidates.append(Found(run, where, result))
                    continue
                missing += 1
                failed += [why] if why else []
            if candidates:
                tried = tried or [(_searched(one.run), one.result["history"]) for one in candidates]
                found.append(max(candidates, key=_validated))
        rows.append(Row(cell, tuple(found), tuple(tried), missing, tuple(dict.fromkeys(failed))))
    return Findings(study, tuple(rows))


def _finished(folder: Path) -> Result | None:
    result = read_result(folder)
    if result is not None and not {"history", "config", "test", "validation"} <= result.keys():
        raise UserError(f"{folder / RESULT} is damaged: it is no result of a run")
    return result


def _searched(run: Run) -> str:
    told = (
        f"{name.rpartition('.')[2]} {value if isinstance(value, str) else format(value, 'g')}"
        for name, value in run.searched.items()
    )
    return ", ".join(told) or run.cell


def _validated(found: Found) -> tuple[float, float]:
    """By what a search chooses: validation, and where a report looked at the test images instead, those."""
    validation = found.result["validation"]
    if validation is not None:
        return merit(validation["accuracy"], validation.get("loss"), found.result["config"]["select"])
    return (found.result["best_by_test"]["accuracy"] if "best_by_test" in found.result else 0.0), 0.0
