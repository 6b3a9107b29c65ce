"""What a study's finished runs found: one row per cell, with the doubt in it."""

import dataclasses
import functools
import itertools
import json
import statistics as numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tljax.losses import predictions, wilson_interval
from tljax.studies import statistics
from tljax.studies.jobs import Job, Run
from tljax.studies.runner import failure
from tljax.studies.study import Cell, Claim, Study, number
from tljax.workdir import read_result

Result = dict[str, Any]
PValues = dict[tuple[str, str], float]
SPLITS = {"test": "test", "val": "validation"}  # their names in predictions.npz and in result.json
NOTHING = (np.empty(0), np.empty((0, 0)))


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


def measure(name: str) -> Measure:
    """A column by name: `test`, `validation`, `validation@EPOCH`, `best by test`, `epoch`, `lr`, `seconds`."""
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
            "best test accuracy among epochs (chosen by looking)", True, lambda r: r["best_by_test"]["accuracy"]
        ),
        "epoch": Measure("epoch", False, lambda r: r["validation"] and r["validation"]["best_epoch"], chosen=True),
        "lr": Measure("learning rate", False, lambda r: r["config"]["optimizer"]["lr"], chosen=True),
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
        with np.load(self.folder / "predictions.npz") as file:
            return Predictions(file[f"{split}_names"], file[f"{split}_labels"], file[f"{split}_logits"])


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

    def values(self, name: str) -> list[float]:
        """A measure, by seed."""
        found = (measure(name).value(f.result) for f in self.found)
        return [value for value in found if value is not None]

    def mean(self, name: str) -> float | None:
        values = self.values(name)
        return sum(values) / len(values) if values else None

    def counts(self, name: str) -> tuple[float, int] | None:
        """Right answers, on average over seeds, and test images, for a measure that is of test images."""
        place = {"test": "test", "best by test": "best_by_test"}.get(name)
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
        found = [f.predictions(split) for f in self.found if f.result[SPLITS[split]]]
        if not found or any(not np.array_equal(one.names, found[0].names) for one in found[1:]):
            return None
        return found[0].names, np.stack([predictions(one.logits) == one.labels for one in found])


@dataclasses.dataclass(frozen=True)
class Findings:
    """A study, and what was found for each of its cells."""

    study: Study
    rows: tuple[Row, ...]

    @functools.cached_property
    def paired(self) -> "PValues":
        """P-values of all pairs of our rows that were tested on the same images, corrected for their number (Holm)."""
        names = [row.cell.name for row in self.rows]
        return self.compare("test", tuple(itertools.combinations(names, 2)))

    def compare(self, split: str, pairs: Iterable[tuple[str, str]]) -> "PValues":
        """P-values of pairs of rows that answered the same images of a split, corrected for their number (Holm)."""
        values, right = {}, {row.cell.name: row.right(split) for row in self.rows}
        for a, b in pairs:
            (names, first), (others, second) = right[a] or NOTHING, right[b] or NOTHING
            if len(names) and np.array_equal(names, others):
                values[a, b] = statistics.mcnemar(first, second)
        return statistics.holm(values)


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
                if (result := read_result(where)) is not None:
                    candidates.append(Found(run, where, result))
                    continue
                missing += 1
                if failure(job.key, folder).is_file():
                    failed.append(json.loads(failure(job.key, folder).read_text())["error"])
            if candidates:
                tried = tried or [(_searched(one.run), one.result["history"]) for one in candidates]
                found.append(max(candidates, key=_validated))
        rows.append(Row(cell, tuple(found), tuple(tried), missing, tuple(dict.fromkeys(failed))))
    return Findings(study, tuple(rows))


def _searched(run: Run) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {value:g}" for name, value in run.searched.items()) or run.cell


def _validated(found: Found) -> float:
    """By what a search chooses: validation, and where a report looked at the test images instead, those."""
    validation = found.result["validation"]
    if validation is not None:
        return validation["accuracy"]
    return found.result["best_by_test"]["accuracy"] if "best_by_test" in found.result else 0.0


def compare_published(study: Study) -> dict[tuple[str, str], float]:
    """P-values of all pairs of published rows, corrected; empty where their test set is unknown."""
    name, size = study.measures[0], study.test_size
    if size is None:
        return {}
    correct = {c.name: round(number(c.published[name]) * size) for c in study.cells if name in c.published}
    return statistics.holm(
        {
            (a, b): statistics.two_proportions(correct[a], size, correct[b], size)
            for a, b in itertools.combinations(correct, 2)
        }
    )


def against_published(study: Study, row: Row) -> float | None:
    """The p-value that our row and the published one are equally good; None where one of them is not known."""
    name = study.measures[0]
    text, counts = row.cell.published.get(name), row.counts(name)
    if text is None or study.test_size is None or counts is None:
        return None
    correct, seen = counts
    return statistics.two_proportions(round(correct), seen, round(number(text) * study.test_size), study.test_size)


def verdict(values: Mapping[tuple[str, str], float], accuracy: Mapping[str, float], whose: str) -> str:
    """One sentence: which of the differences between rows are larger than noise."""
    if not values:
        return f"{whose}: nothing to compare."
    larger = [
        f"{better} over {worse} (p {p_words(p)})"
        for (a, b), p in sorted(values.items(), key=lambda item: item[1])
        if p < statistics.LEVEL
        for better, worse in [(a, b) if accuracy[a] > accuracy[b] else (b, a)]
    ]
    total = f"{len(values)} pair{'s' if len(values) > 1 else ''} of rows"
    if not larger:
        return f"{whose}: none of the differences between {total} is larger than noise."
    shown = "; ".join(larger[:6]) + (f"; and {len(larger) - 6} more" if len(larger) > 6 else "")
    return f"{whose}: of {total}, {len(larger)} differ by more than noise: {shown}."


def judge(claim: Claim, found: Findings) -> str:
    """Whether what a report says held here."""
    by_name = {row.cell.name: row for row in found.rows}
    ours, others = (
        by_name[claim.better].mean(claim.measure), [by_name[name].mean(claim.measure) for name in claim.than]
    )  # fmt: skip
    if ours is None or None in others:
        return "not run yet"
    pairs = [(claim.better, name) for name in claim.than]
    split = {"test": "test", "best by test": "test", "validation": "val"}.get(claim.measure)
    values = found.compare(split, pairs) if split else {}
    clear = [pair for pair in pairs if values.get(pair, 1.0) < statistics.LEVEL]
    if claim.alike:
        return "did not hold: they differ by more than noise" if clear else "held: no difference larger than noise"
    beaten = sum(ours > other for other in others if other is not None)
    if beaten < len(others):
        return f"did not hold: better than {beaten} of {len(others)}"
    if not values:
        return "held in order; not tested against noise, for want of the same images' answers"
    return "held" if len(clear) == len(others) else f"held in order, beyond noise against {len(clear)} of {len(others)}"


def transfer_words(found: Findings) -> list[str]:
    """For each pair of rows with and without pretrained weights, what these gave; negative transfer by its name."""
    by_name = {row.cell.name: row for row in found.rows}
    split = "test" if any(row.counts("test") for row in found.rows) else "val"
    values, told = found.compare(split, found.study.transfers), []
    for pair in found.study.transfers:
        ours, others = (by_name[name].mean(SPLITS[split]) for name in pair)
        if ours is None or others is None:
            continue
        p = values.get(pair)
        clear = p is not None and p < statistics.LEVEL
        meaning = ("transfer helps" if ours > others else "negative transfer") if clear else "not larger than noise"
        points = f"{100 * (ours - others):+.2f} points of {SPLITS[split]} accuracy over {pair[1]}"
        told.append(f"{pair[0]}: {points}" + (f" (p {p_words(p)})" if p is not None else "") + f": {meaning}.")
    return told


def p_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
