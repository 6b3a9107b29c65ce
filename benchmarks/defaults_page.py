"""docs/results/defaults.md, made from the runs that `defaults.py` recorded."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.draws import SETS, SIZES
from tljax.metrics.accuracy import wilson_interval
from tljax.metrics.significance import LEVEL, holm, mcnemar, mean_interval

OURS, BEFORE = "tljax", "tljax before"
BESIDE = ("tljax resnet18",)  # another network: shown, not compared
SLOWER = 1.2  # than before: more than this is said

ABOUT = """# The default, beside others' defaults

    make bench-defaults

Written by that program from [RECORD](RECORD), which has every test image's answer. A draw has so many
training images per class, drawn with its seed (all: at most 400), and at most 300 test images that no side trains on;
the seed also cuts the validation images, each side's own share of the training images, and seeds the training. All
sides start from SqueezeNet 1.0 with ImageNet weights and read the same files.

`tljax` is `configs/folder.py` on that folder; `tljax before` the head by Adam at 1e-3 for 10 epochs, the best by
validation, which it chose until 2026-11; the others are written in PyTorch after what fastai, torchvision's tutorial
and Keras's guide do (`benchmarks/peer_defaults.py` has every number and where it is from).

Accuracy is the mean over draws, with Student's 95% interval of that mean (of one draw: Wilson's). Seconds are a mean:
of ours the whole command, compiling into an empty cache; of the others without the start of their process. The last
column is ours less the best other recipe, which this same test has chosen and so flatters, with McNemar's p over the
test images of all draws, corrected over the table's rows (Holm).
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One set and size. `runs`: by recipe and seed; `tests`: by seed, the test images."""

    set: str
    size: str
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]]
    tests: Mapping[int, Sequence[int]]

    @property
    def name(self) -> str:
        return f"{self.set}, {self.size}" + ("" if self.size == "all" else " per class")

    def accuracies(self, recipe: str) -> dict[int, float]:
        """By seed."""
        return {seed: np.mean(right_of(run)) for seed, run in self.runs.get(recipe, {}).items()}

    def mean(self, recipe: str, seeds: Sequence[int] | None = None) -> float:
        """Mean accuracy over these seeds, or all there are."""
        found = self.accuracies(recipe)
        return float(np.mean([found[seed] for seed in (found if seeds is None else seeds)]))

    def seconds(self, recipe: str) -> float:
        return float(np.mean([run["seconds"] for run in self.runs[recipe].values()]))

    def whole(self, recipes: Sequence[str]) -> list[str]:
        """Recipes that have every draw that ours has."""
        ours = self.runs.get(OURS, {}).keys()
        return [recipe for recipe in recipes if ours and ours <= self.runs.get(recipe, {}).keys()]

    def best_other(self, recipes: Sequence[str]) -> str | None:
        """The most accurate of the other recipes on the draws that ours has; the first of equals."""
        seeds = [*self.runs.get(OURS, {})]
        others = [recipe for recipe in self.whole(recipes) if recipe not in (OURS, *BESIDE)]
        return max(others, key=lambda recipe: self.mean(recipe, seeds), default=None)

    def p_value(self, other: str) -> float:
        """That ours and another recipe are equally good (McNemar), over the draws that both have.

        An image that several draws are tested on is one image with several answers.
        """
        seeds = sorted(self.runs[OURS].keys() & self.runs[other].keys())
        images = sorted({image for seed in seeds for image in self.tests[seed]})
        place = {image: i for i, image in enumerate(images)}
        # An image that a draw was not tested on is wrong on both sides: no difference.
        answers = np.zeros((2, len(seeds), len(images)), bool)
        for side, recipe in enumerate((OURS, other)):
            for s, seed in enumerate(seeds):
                at = [place[image] for image in self.tests[seed]]
                answers[side, s, at] = right_of(self.runs[recipe][seed])
        return mcnemar(*answers)


def right_of(run: Mapping[str, Any]) -> np.ndarray:
    """Which test images a run got right, bool `[N]`."""
    return np.array([*run["right"]]) == "1"


def make_rows(lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The record's runs by set and size, in the order of both."""
    tests: dict[str, dict[int, Sequence[int]]] = {}
    runs: dict[tuple[str, str], dict[str, dict[int, Mapping[str, Any]]]] = {}
    for line in lines:
        if "test" in line:
            tests.setdefault(line["set"], {})[line["seed"]] = line["test"]
        elif "right" in line:
            row = runs.setdefault((line["set"], line["size"]), {})
            row.setdefault(line["recipe"], {})[line["seed"]] = line
    keys = sorted(runs, key=lambda key: ([*SETS].index(key[0]), SIZES.index(key[1])))
    return [Row(*key, runs[key], tests[key[0]]) for key in keys]


def cell(row: Row, recipe: str, draws: int) -> str:
    """Mean accuracy over draws with its interval, seconds, and how many draws where some are missing."""
    if recipe not in row.runs:
        return "-"
    values = [*row.accuracies(recipe).values()]
    interval = mean_interval(values, share=True)
    if interval is None:
        (run,) = row.runs[recipe].values()
        interval = wilson_interval(run["right"].count("1"), len(run["right"]))
    fewer = "" if len(values) == draws else f", {len(values)} of {draws} draws"
    low, high = (100 * end for end in interval)
    return f"{np.mean(values):.1%} ({low:.0f} to {high:.0f}), {row.seconds(recipe):.0f} s{fewer}"


def table(rows: Sequence[Row], recipes: Sequence[str], draws: int) -> list[str]:
    """A row for each set and size, a column for each recipe, and ours against the best other."""
    others = {row.name: row.best_other(recipes) for row in rows}
    corrected = corrected_p_values(rows, recipes)
    lines = [
        f"| set, images per class | images | classes | tested | {' | '.join(recipes)} | ours less the best other, p |",
        "|" + "---|" * (len(recipes) + 5),
    ]
    for row in rows:
        run = next(iter(next(iter(row.runs.values())).values()))
        other, verdict = others[row.name], "-"
        if other is not None:
            lead = 100 * (row.mean(OURS) - row.mean(other, [*row.runs[OURS]]))
            verdict = f"{lead:+.1f} on {other}, {small(corrected[row.name, ''])}"
        cells = " | ".join(cell(row, recipe, draws) for recipe in recipes)
        seen = " (seen by the weights)" if SETS[row.set].seen else ""
        lines.append(
            f"| {row.name}{seen} | {run['train']} | {run['classes']} | {len(run['right'])} | {cells} | {verdict} |"
        )
    return lines


def corrected_p_values(rows: Sequence[Row], recipes: Sequence[str]) -> dict[tuple[str, str], float]:
    """Of ours against the best other, by row, corrected over the rows (Holm)."""
    found = {}
    for row in rows:
        if (other := row.best_other(recipes)) is not None:
            found[row.name, ""] = row.p_value(other)
    return holm(found)


def small(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def sentences(rows: Sequence[Row], recipes: Sequence[str]) -> list[str]:
    """What the table says, each with what it rests on."""
    corrected = corrected_p_values(rows, recipes)
    compared = [row for row in rows if (row.name, "") in corrected]
    if not compared:
        return ["No row has ours and another recipe on the same draws: nothing is compared."]
    losing, below, above = [], [], []
    for row in compared:
        other, p = row.best_other(recipes), corrected[row.name, ""]
        assert other is not None
        lead = row.mean(OURS) - row.mean(other, [*row.runs[OURS]])
        words = f"{row.name} ({100 * lead:+.1f} on {other}, p {small(p)})"
        if lead < 0:
            losing.append(words)
        if p < LEVEL:
            (below if lead < 0 else above).append(words)
    said = [
        f"Rows where the best other recipe is ahead of ours, {len(losing)} of {len(compared)}: {listed(losing)}.",
        f"Of these significantly (McNemar, Holm over {len(compared)} rows, p < {LEVEL}): {listed(below)}. Ours is "
        f"significantly ahead of the best other in: {listed(above)}.",
    ]
    return [*said, *means(rows, recipes), *against_before(rows)]


def means(rows: Sequence[Row], recipes: Sequence[str]) -> list[str]:
    """Means over the rows that all recipes have whole."""
    common = [row for row in rows if len(row.whole(recipes)) == len(recipes)]
    if not common:
        return ["No row has every recipe on the same draws: there is no mean over rows."]
    found = {r: float(np.mean([row.mean(r, [*row.runs[OURS]]) for row in common])) for r in recipes}
    words = ", ".join(f"{recipe} {mean:.1%}" for recipe, mean in found.items())
    return [
        f"Mean over the {len(common)} of {len(rows)} rows that every recipe has on the same draws: {words}. No test."
    ]


def against_before(rows: Sequence[Row]) -> list[str]:
    """Ours beside what it was: accuracy with few images, and time."""
    both = [row for row in rows if BEFORE in row.whole([BEFORE])]
    few = [row for row in both if row.size != "all"]
    said = []
    if few:
        p = holm({(row.name, ""): row.p_value(BEFORE) for row in few})
        lead = {row.name: 100 * (row.mean(OURS) - row.mean(BEFORE, [*row.runs[OURS]])) for row in few}
        words = [f"{name} ({d:+.1f}, p {small(p[name, ''])})" for name, d in lead.items()]
        ahead = sum(d > 0 for d in lead.values())
        said.append(f"{OURS} against {BEFORE} where images per class are given, ahead in {ahead} of {len(few)} rows "
                    f"(McNemar, Holm over these): {listed(words)}.")  # fmt: skip
    if both:
        ratio = {row.name: row.seconds(OURS) / row.seconds(BEFORE) for row in both}
        slow = [f"{name} ({r:.2f})" for name, r in ratio.items() if r > SLOWER]
        low, high = min(ratio.values()), max(ratio.values())
        said.append(f"Seconds of {OURS} over those of {BEFORE}: {low:.2f} to {high:.2f}; "
                    f"more than {SLOWER} in: {listed(slow)}.")  # fmt: skip
    return said


def listed(words: Sequence[str]) -> str:
    return "; ".join(words) or "none"


def missing(lines: Sequence[Mapping[str, Any]], rows: Sequence[Row], recipes: Sequence[str], draws: int) -> list[str]:
    """Runs that are not there, and those that failed."""
    said = []
    for row in rows:
        lack = {r: draws - len(row.runs.get(r, {})) for r in recipes}
        if any(lack.values()):
            words = ", ".join(f"{recipe} {count}" for recipe, count in lack.items() if count)
            said.append(f"- {row.name}, of {draws} draws there lack: {words}")
    for run in lines:
        if "error" in run:
            said.append(f"- failed: {run['recipe']}, {run['set']} {run['size']}, seed {run['seed']}: {run['error']}")
    return said or ["- no run of these rows"]


def make_page(lines: Sequence[Mapping[str, Any]], recipes: Sequence[str], *, record: str) -> str:
    """The page in Markdown; `lines` are those of the file `record`, `recipes` the columns that have runs."""
    head, rows = lines[0], make_rows(lines)
    recipes = [recipe for recipe in recipes if any(recipe in row.runs for row in rows)]
    compared = [recipe for recipe in recipes if recipe not in BESIDE]
    runs = [each for row in rows for found in row.runs.values() for each in found.items()]
    draws = len({seed for seed, _ in runs})
    commits = sorted({run["commit"] for _, run in runs if "commit" in run})
    scaled = head["epochs scale"]
    trial = f" **The peers' epochs are {scaled:g} times their own: a trial.**" if scaled != 1 else ""
    cores = f"{head['cores of a run']} of {head['machine']['cores']} cores ({head['machine']['cpu']})"
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    page = [
        *ABOUT.replace("RECORD", record).splitlines(),
        "",
        f"{len(runs)} runs, of at most {draws} draws a row, each on {cores}; {versions}. Ours ran at "
        f"{listed(commits)}.{trial}",
    ]
    for judges, title, words in (
        (True, "Sets that judge", "No choice was made on these. The dogs' pictures are ImageNet's own: the weights "
         "were trained on them, those that are tested among them."),
        (False, "Sets that chose", "The recipe was chosen on these, so that they prove nothing."),
    ):  # fmt: skip
        part = [row for row in rows if SETS[row.set].judges == judges]
        page += ["", f"## {title}", "", words, ""]
        if not part:
            page.append("No runs yet.")
            continue
        page += [*table(part, recipes, draws), ""]
        page += [f"- {sentence}" for sentence in sentences(part, compared)]
        page += ["", "What is missing:", "", *missing([x for x in lines if x.get("set") in {r.set for r in part}], part,
                                                      recipes, draws)]  # fmt: skip
    return "\n".join(page) + "\n"
