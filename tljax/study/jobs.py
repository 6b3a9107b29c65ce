"""From a study to the runs it consists of, and to the jobs that compute them: single runs, or populations of them."""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax.core.errors import UserError, one_line
from tljax.data.layout import split_in
from tljax.models import create_model, variable_shapes
from tljax.run_dir.files import FREE
from tljax.settings.dotted import flatten
from tljax.settings.fields import get_config
from tljax.settings.renamed import name_now
from tljax.study.scales import SCALES
from tljax.study.study import OF_CELL, Cell, Study
from tljax.transfer.plan import make_plan, prefix_end
from tljax.transfer.population import AXES, members_of

Fields = dict[str, Any]
"""A whole config by dotted names. `model.weights` may be `run:KEY`, the network that another run ends with."""

OF_RUN, OF_DATA = "run:", "data:"
DATASETS = {
    "pets": "tfds:oxford_iiit_pet",
    "pacs-cartoon": "folder:pacs_cartoon",
    "ants-bees": "folder:ants_bees",
    "cats-dogs-4000": "folder:cats_dogs",
    "glioma": "folder:glioma",
    "cars-bikes": "folder:cars_bikes",
    "stanford-dogs": "tfds:stanford_dogs",
    "cats-vs-dogs": "tfds:cats_vs_dogs",
}
"""Where the data of the reports is looked for unless the user says otherwise, by the name after `data:` in a study."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a cell.

    Attributes:
      cell: whose.
      seed: which of its seeds.
      searched: the values of the cell's search that it stands for.
      fields: its whole config.
      first: the run whose network it starts from, if any.
    """

    cell: str
    seed: int
    searched: Mapping[str, Any]
    fields: Fields
    first: "Run | None" = None

    @functools.cached_property
    def key(self) -> str:
        return key_of(self.fields)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is computed at once.

    Attributes:
      fields: the config of a single run, or of a population.
      members: the keys of its runs, in the population's order; of a single run its own, and those it stands for.
    """

    fields: Fields
    members: tuple[str, ...]

    @functools.cached_property
    def key(self) -> str:
        return key_of(self.fields)

    @property
    def after(self) -> str | None:
        """The key of the run whose network this one starts from."""
        weights = str(self.fields["model.weights"])
        return weights.removeprefix(OF_RUN) if weights.startswith(OF_RUN) else None

    @property
    def population(self) -> bool:
        return any(self.fields[f"population.{axis}"] for axis in AXES)

    def folder_of(self, run: str) -> str:
        """Where the files of one of its runs lie, under the folder of all runs."""
        return f"{self.key}/members/{self.members.index(run):03}" if self.population else self.key


def key_of(fields: Fields) -> str:
    """What tells a config from all others; fields that only change how fast it is do not count."""
    counts = {name: value for name, value in fields.items() if name not in FREE}
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:16]


def make_config(given: Mapping[str, Any], runs: Path = Path()) -> Any:
    """`tljax/settings/fields.py` with these fields set; networks of other runs are found in the folder `runs`.

    Raises:
      UserError: for a field that does not exist, or a value that does not fit.
    """
    config = get_config()
    config.stop_at_nan = False  # a rate at which networks diverge is a row like another
    for name, value in given.items():
        *path, last = name.split(".")
        if isinstance(value, str) and value.startswith(OF_RUN):
            value = str(runs / value.removeprefix(OF_RUN))
        try:
            node: Any = config
            for part in path:
                node = node[part]
            node[last] = tuple(value) if isinstance(value, list) else value
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{name}={value!r} does not fit a config: {one_line(error)}") from None
    return config


def check_given(given: Mapping[str, Any]) -> None:
    """Refuses overrides of fields that do not exist, that a study sets itself, or that do not fit.

    Raises:
      UserError: naming the field.
    """
    fields = flatten(get_config().to_dict())
    for name, value in given.items():
        if name not in fields:
            if now := name_now(name):
                raise UserError(f"--set {name}: this field is called {now} now")
            close = difflib.get_close_matches(name, fields, 1)
            raise UserError(
                f"--set {name}: a config has no such field" + (f"; did you mean {close[0]}?" if close else "")
            )
        if name in ("seed", "run") or name.startswith("population."):
            raise UserError(f"--set {name}: a study sets it itself")
        make_config({name: value})


def make_runs(
    study: Study, *, scale: str, seeds: int, data: Mapping[str, str], overrides: Mapping[str, Any]
) -> list[Run]:
    """All runs of a study, seed by seed, cells in their order.

    Args:
      study: which.
      scale: a key of `SCALES`.
      seeds: how many, from 0.
      data: where data sets are, by their names in `DATASETS`.
      overrides: fields over those of all cells.

    Raises:
      UserError: for a field that does not exist or a value that does not fit.
    """
    if unknown := data.keys() - DATASETS.keys():
        raise UserError(f"no data set is called {', '.join(sorted(unknown))}; there are {', '.join(DATASETS)}")
    make = functools.partial(_runs_of, study, scale=scale, data={**DATASETS, **data}, overrides=overrides)
    return [run for seed in range(seeds) for cell in study.cells for run in make(cell, seed=seed)]


def _runs_of(
    study: Study, cell: Cell, *, seed: int, scale: str, data: Mapping[str, str], overrides: Mapping[str, Any]
) -> Iterator[Run]:
    for values in itertools.product(*cell.search.values()):
        searched = dict(zip(cell.search, values, strict=True))
        given = {**study.base, **cell.settings, **searched, **overrides, "seed": seed}
        if str(own := cell.settings.get("model.weights", "")).startswith(OF_CELL):
            given["model.weights"] = own  # a file named by hand stands for weights that are fetched, not for a run's
        if (source := str(given.get("data.source", ""))).startswith(OF_DATA):
            given["data.source"] = data[source.removeprefix(OF_DATA)]
        given, before = SCALES[scale].change(given)
        if given.get("select") == "test":
            given = _validation_as_test(str(given.get("data.source", ""))) | given
        first = None if before is None else Run("pretraining", 0, {}, _whole(before))
        if (weights := str(given.get("model.weights", ""))).startswith(OF_CELL):
            base = study.cell(weights.removeprefix(OF_CELL))
            (first,) = _runs_of(study, base, seed=seed, scale=scale, data=data, overrides=overrides)
        if first is not None:
            given["model.weights"] = OF_RUN + first.key
        yield Run(cell.name, seed, searched, _whole(given), first)


@functools.cache
def _validation_as_test(source: str) -> Fields:
    """Of a folder of train and val alone, the field that makes val the test: reports that chose the epoch by the images
    that they tested on call them by either name."""
    kind, _, path = source.partition(":")
    try:
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir()) if kind == "folder" else []
    except OSError:  # told when it is opened
        return {}
    of_split = {name.split: folder for folder in names if (name := split_in(folder))}
    return {"data.test": of_split["val"]} if of_split.keys() == {"train", "val"} else {}


def _whole(given: Mapping[str, Any]) -> Fields:
    """All fields of a config, as they are written to JSON and read from it."""
    return json.loads(json.dumps(flatten(make_config(given).to_dict()))) | (
        {"model.weights": given["model.weights"]} if "model.weights" in given else {}
    )


def make_jobs(runs: Sequence[Run], *, in_one: bool = False, alike: Collection[str] = ()) -> list[Job]:
    """Groups runs into jobs; those that others start from come first.

    Runs that differ in nothing but what members of a population may differ in become one where that saves work: where
    they share a part of the network that never changes, whose output is then computed once for all.

    Args:
      runs: of one study or several; equal ones are computed once.
      in_one: group them also where they share nothing.
      alike: of single runs that differ in these fields alone, the first is computed and stands for all.
    """
    wanted: dict[str, Run] = {}
    for run in runs:
        if run.first is not None:
            wanted.setdefault(run.first.key, run.first)
    firsts = set(wanted)
    for run in runs:
        wanted.setdefault(run.key, run)
    groups: dict[str, list[Run]] = {}
    for run in wanted.values():
        single = run.fields["transfer.phases"] or run.fields["semi.method"] != "none"
        alone = run.key in firsts or single or not (in_one or shares(run.fields))
        rest = {name: value for name, value in run.fields.items() if name not in AXES.values()}
        groups.setdefault(run.key if alone else key_of(rest), []).append(run)
    jobs = [job for group in groups.values() for job in _jobs_of(group)]
    return _one_of_each(jobs, alike) if alike else jobs


def _one_of_each(jobs: Sequence[Job], alike: Collection[str]) -> list[Job]:
    kept: dict[str, Job] = {}
    for job in jobs:
        kind = job.key if job.population else key_of({k: v for k, v in job.fields.items() if k not in alike})
        first = kept.get(kind)
        kept[kind] = job if first is None else dataclasses.replace(first, members=(*first.members, *job.members))
    return list(kept.values())


def _jobs_of(runs: list[Run]) -> list[Job]:
    """One population where the runs are all combinations of their values, else a job for each value of an axis."""
    values = {
        axis: list(dict.fromkeys(run.fields[field] for run in runs))
        for axis, field in AXES.items()
        if len({run.fields[field] for run in runs}) > 1
    }
    if not values:
        (run,) = runs
        return [Job(run.fields, (run.key,))]
    if len(runs) < len(list(itertools.product(*values.values()))):
        axis = next(iter(values))
        parts = [[run for run in runs if run.fields[AXES[axis]] == value] for value in values[axis]]
        return [job for part in parts for job in _jobs_of(part)]
    fields = {
        **runs[0].fields,
        **{f"population.{axis}": found for axis, found in values.items()},
    }
    by_values = {tuple(run.fields[AXES[axis]] for axis in values): run.key for run in runs}
    members = members_of(make_config(fields))
    return [Job(fields, tuple(by_values[tuple(member.settings[axis] for axis in values)] for member in members))]


@functools.cache
def _prefix(name: str, width: Any, blocks: Any, last_stage: Any, train: str, bn: str) -> str | None:
    model = create_model(name, width=width, blocks=blocks, last_stage=last_stage)
    plan = make_plan(model, variable_shapes(model), train=train, bn=bn, lr=1.0, allow_fresh_frozen=True)
    return prefix_end(model, plan)


def shares(fields: Fields) -> bool:
    """Whether runs of this kind have a part of the network in common that never changes."""
    blocks = fields["model.blocks"]
    return _prefix(
        fields["model.name"], fields["model.width"], blocks and tuple(blocks), fields["model.last_stage"] or None,
        fields["transfer.train"], fields["transfer.bn"],
    ) is not None  # fmt: skip
