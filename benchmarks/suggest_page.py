"""docs/results/suggest.md, made from the cases that `suggest.py` recorded."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.defaults_page import right_of
from tljax.metrics.accuracy import wilson_interval
from tljax.metrics.significance import LEVEL, mean_interval
from tljax.settings.fields import get_config
from tljax.study.table import as_table
from tljax.suggest.suggestion import p_value

Line = dict[str, Any]
RESNET = "resnet18:layer3"
NEW = ("ants, bees", "cats, dogs", "37 breeds")
DEFAULT: float = get_config().optimizer.lr


def written(right: np.ndarray) -> str:
    """Which images were right, bool `[N]`, as `right_of` reads it."""
    return "".join(map(str, right.astype(int)))


def read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """What suggest said of some data, and what full runs gave.

    Attributes:
      name, seed: the case, and which split of it.
      images: that train.
      backbone, lr: what suggest said.
      by_probe, by_log_me: the backbone with the most accurate probe, and with the highest LogME.
      rates: of the full runs.
      val, test: which images full runs got right, by backbone bool `[rates, N]`, each at its best epoch.
    """

    name: str
    seed: int
    images: int
    backbone: str
    lr: float
    by_probe: str
    by_log_me: str
    rates: tuple[float, ...]
    val: dict[str, np.ndarray]
    test: dict[str, np.ndarray]

    @classmethod
    def of(cls, line: Line) -> "Case":
        val, test = (
            {who: np.stack([right_of({"right": row}) for row in right[split]]) for who, right in line["right"].items()}
            for split in ("val", "test")
        )
        return cls(line["case"], line["seed"], line["images"], line["backbone"], line["lr"], line["by_probe"],
                   line["by_log_me"], tuple(line["rates"]), val, test)  # fmt: skip

    @property
    def is_new(self) -> bool:
        """Whether its set had no part in choosing how suggest works."""
        return self.name.startswith(NEW)

    @property
    def trains_last_stage(self) -> bool:
        return "last stage" in self.name

    def swept(self, backbone: str) -> int:
        """Which rate of full runs validation prefers."""
        return int(self.val[backbone].sum(1).argmax())

    def accuracy(self, backbone: str, rate: int) -> float:
        """On the test."""
        return float(self.test[backbone][rate].mean())

    @property
    def best(self) -> str:
        """The backbone that is better on the test, each at the rate that validation prefers."""
        return max(self.test, key=lambda who: self.accuracy(who, self.swept(who)))

    @property
    def backbones_p(self) -> float:
        first, second = (self.test[who][self.swept(who)] for who in self.test)
        return p_value(first, second)

    def is_right_rate(self, lr: float) -> bool:
        """Of the suggested backbone: not significantly worse on validation than the rate that is best there."""
        val = self.val[self.backbone]
        return p_value(val[self.swept(self.backbone)], val[self.rates.index(lr)]) >= LEVEL

    def regret(self, backbone: str, lr: float | None) -> float:
        """Points of test accuracy that are lost against both backbones swept in full, the better one by validation;
        None for the rate of a sweep."""
        chosen = max(self.val, key=lambda who: self.val[who].sum(1).max())
        rate = self.swept(backbone) if lr is None else self.rates.index(lr)
        return 100 * (self.accuracy(chosen, self.swept(chosen)) - self.accuracy(backbone, rate))


def best_constant(cases: Sequence[Case]) -> float:
    """The rate that would have been right most often for all of these; of equal ones that with the least regret."""
    return max(cases[0].rates, key=lambda lr: (sum(case.is_right_rate(lr) for case in cases),
                                               -sum(case.regret(case.backbone, lr) for case in cases)))  # fmt: skip


ABOUT = """# What suggest says, held against full runs

    python benchmarks/suggest.py --data ../shared/data --seed 1        (and --seed 2, another split)
    python benchmarks/suggest.py --page

Written by that program from [suggest.jsonl](suggest.jsonl), which has every answer; `make reviewer` holds that nothing
else stands here. A case is data and a plan. Full runs train SqueezeNet 1.0 and ResNet-18 cut at layer3, both with
ImageNet weights, at every rate (heads 1e-5 to 3e-2, last stage and head to 3e-3; Adam, 8 epochs, batches of 32, random
crops and flips in two kept views, 64 pixels where nothing else is said), and are tested once, at validation's rate and
epoch. Suggest sees training and validation images alone, without augmentation. Cases share images, so that every
interval here is narrower than it should be.
"""
BY_CASE = """## Case by case

Test accuracy in %, each backbone at the rate that validation prefers; p by McNemar; the rate that was suggested, the
best one on validation, and how many validation images these two and two constants get right. Bold: significantly worse.
"""
LABELS = """
## Labels that are wrong

Labels changed at random (`--labels`), SqueezeNet's features at 64 pixels; suspects by confident learning (Northcutt et
al. 2021) of the cross-validated probe's probabilities, the likeliest first.
"""
CHOICES: dict[str, Callable[[Case], str]] = {
    "suggest": lambda case: case.backbone,
    "the most accurate probe": lambda case: case.by_probe,
    "the highest LogME": lambda case: case.by_log_me,
    "ResNet-18, always": lambda case: RESNET,
}


def make_page(lines: Sequence[Line]) -> str:
    """The page; of sets whose cases have not run it says so."""
    cases = [Case.of(line) for line in lines if "case" in line]
    new, old = [case for case in cases if case.is_new], [case for case in cases if not case.is_new]
    parts = [
        ABOUT,
        "## Sets that had no part in how suggest works\n",
        _judged(new, old) if new else "Not run yet.\n",
        "## The sets that it was made on\n",
        _judged(old, old) if old else "Not run yet.\n",
        BY_CASE,
        _by_case(cases),
    ]
    if labels := [line for line in lines if "changed" in line]:
        parts += [LABELS, _labels(labels)]
    return "\n".join(parts) + "\n"


def _judged(cases: Sequence[Case], made_on: Sequence[Case]) -> str:
    text = _backbones(cases)
    for last, kind in ((False, "a head"), (True, "the last stage with the head")):
        some, chosen_on = ([c for c in part if c.trains_last_stage == last] for part in (cases, made_on))
        if some:
            text += "\n" + _rates(kind, some, chosen_on)
    return text


def _backbones(cases: Sequence[Case]) -> str:
    apart = [case for case in cases if case.backbones_p < LEVEL]
    head = [
        "which backbone",
        "right, where full runs tell the two apart",
        "right, or not significantly worse on the test",
    ]
    rows = []
    for name, choose in CHOICES.items():
        right = [choose(case) == case.best for case in apart]
        fine = [choose(case) == case.best or case.backbones_p >= LEVEL for case in cases]
        rows.append([name, _share(right), _share(fine)])
    return as_table(head, rows) + "\n"


def _rates(kind: str, cases: Sequence[Case], chosen_on: Sequence[Case]) -> str:
    constant = best_constant(chosen_on or cases)
    flattered = "" if chosen_on and chosen_on[0] not in cases else ", which these cases chose"
    head = [
        f"rate of {kind}",
        "not significantly worse than the best, on validation",
        "test accuracy lost against a sweep of both backbones",
    ]

    def row(name: str, lr: Callable[[Case], float]) -> list[str]:
        return [
            name,
            _share([c.is_right_rate(lr(c)) for c in cases]),
            _points([c.regret(c.backbone, lr(c)) for c in cases]),
        ]

    rows = [
        row("suggest", lambda c: c.lr),
        row(f"{constant:g}, always{flattered}", lambda c: constant),
        row(f"{DEFAULT:g}, always: the default", lambda c: DEFAULT),
        [f"ResNet-18 at {constant:g}, always", "", _points([c.regret(RESNET, constant) for c in cases])],
        ["ResNet-18, its rates swept", "", _points([c.regret(RESNET, None) for c in cases])],
    ]
    gained = [c.regret(c.backbone, constant) - c.regret(c.backbone, c.lr) for c in cases]
    return as_table(head, rows) + (
        f"\n\nPoints, the mean over {len(cases)} cases with Student's 95% interval. Of the suggested backbone, "
        f"the suggested rate gains {_points(gained)} points over {constant:g}.\n"
    )


def _by_case(cases: Sequence[Case]) -> str:
    head = [
        "case", "split", "images", "SqueezeNet", "ResNet-18", "p", "suggested", "by the probe", "by LogME",
        "rate", "best", "right at these", "at 1e-3", "at 1e-2",
    ]  # fmt: skip
    rows = []
    for c in sorted(cases, key=lambda c: (not c.is_new, c.trains_last_stage, c.name, c.seed)):
        squeezenet = next(who for who in c.test if who != RESNET)
        val, p = c.val[c.backbone], c.backbones_p
        right = {lr: str(int(row.sum())) for lr, row in zip(c.rates, val, strict=True)}
        accuracies = [f"{100 * c.accuracy(who, c.swept(who)):.1f}" for who in (squeezenet, RESNET)]
        rows.append([
            c.name, str(c.seed), str(c.images), *accuracies, "<0.001" if p < 0.001 else f"{p:.2g}",
            _bold(_short(c.backbone), p < LEVEL and c.backbone != c.best), _short(c.by_probe), _short(c.by_log_me),
            _bold(f"{c.lr:g}", not c.is_right_rate(c.lr)), f"{c.rates[c.swept(c.backbone)]:g}",
            f"{right[c.lr]}, {val.sum(1).max()} of {val.shape[1]}", right[1e-3], right.get(1e-2, "-"),
        ])  # fmt: skip
    return as_table(head, rows)


def _labels(lines: Sequence[Line]) -> str:
    head = ["data", "images", "changed", "suspects", "of them changed", "changed among as many first suspects"]
    rows = [
        [
            line["data"], str(line["of"]), str(line["changed"]), str(line["suspects"]),
            _part(line["found"], line["suspects"]), _part(line["among_the_first"], line["changed"]),
        ]
        for line in lines
    ]  # fmt: skip
    return as_table(head, rows)


def _share(right: Sequence[bool]) -> str:
    if not right:
        return "-"
    low, high = wilson_interval(sum(right), len(right))
    return f"{sum(right)} of {len(right)} ({100 * low:.0f} to {100 * high:.0f}%)"


def _points(values: Sequence[float]) -> str:
    found = mean_interval(values)
    return f"{np.mean(values):.1f} ({found[0]:.1f} to {found[1]:.1f})" if found else f"{np.mean(values):.1f}"


def _part(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.0f}%)" if whole else "0"


def _short(backbone: str) -> str:
    return "ResNet" if backbone == RESNET else "SqueezeNet"


def _bold(text: str, wrong: bool) -> str:
    return f"**{text}**" if wrong else text
