"""tljax from Python: what the commands do, as functions that give back objects.

A mistake raises `tljax.errors.UserError`, a ValueError of one line, before anything is trained; Ctrl-C, or a notebook's
stop button, raises `tljax.interrupt.Interrupted` once everything is saved, and the same `fit` goes on from there.

No call leaves the process other than it was: see `tljax.guest`, and `setup_process` for a process that is tljax's own.
"""

import dataclasses
import functools
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from tljax import classifier as classifiers
from tljax import predict as asking
from tljax import runs
from tljax import workdir as folders
from tljax.checks import check
from tljax.convert.pretrained import FILES
from tljax.data.load import check_labels, few, open_data, open_source
from tljax.errors import UserError
from tljax.evaluation import FITTED, by_class, chose_epoch, confusion, images_in_words, reliability
from tljax.experiment import head_outputs, outline, plans_of
from tljax.fields import config
from tljax.finish import PREDICTIONS, SPLITS
from tljax.guest import visiting
from tljax.losses import make_loss, predictions, score
from tljax.machine import tune_cpu
from tljax.main import keep_compilations, quiet_libraries
from tljax.models import variable_shapes
from tljax.predict import Answer, Picture
from tljax.recipe import Choice, choose
from tljax.report import console as console_lib
from tljax.transfer.initial import find_weights
from tljax.transfer.plan import Phase, Plan, plan_tables

Image = str | Path | bytes | np.ndarray | PIL.Image.Image
"""A file, a folder with all in it, a pattern; the bytes of a file; pixels as `tljax.data.reading.from_array`
takes them, such as uint8 `[H, W, 3]`; a Pillow image."""

__all__ = ["Evaluation", "Outlook", "Run", "config", "evaluate", "fit", "load", "plan", "predict", "setup_process"]


def setup_process() -> None:
    """Sets this process up for good as the commands do: for a notebook or script that does nothing else.

    Quiet libraries, malloc that keeps freed memory, XLA's libraries, compiled programs kept on disk. Nothing else here
    changes the process beyond its own call. Call it before JAX computes; later it comes too late to count in full.
    """
    quiet_libraries()
    tune_cpu()
    keep_compilations()


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What a run would train. Prints as a run prints it, a table in a notebook.

    Attributes:
      phases: stretches of epochs.
      plans: of each phase; of a population's first member.
      members: of a population; 1 for a single run.
      classes: the data's.
      images: how many, by split.
      counts: by split, how many of each class, as far as they have labels.
      notes: what was decided of the data that may be meant otherwise, and what it lacks.
      chosen: what the config left open, with its reasons; rates that come from looking at images are provisional.
    """

    phases: tuple[Phase, ...]
    plans: tuple[Plan, ...]
    members: int
    classes: tuple[str, ...]
    images: Mapping[str, int]
    counts: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()
    chosen: tuple[Choice, ...] = ()

    @property
    def trainable(self) -> int:
        """How many numbers train in the last phase."""
        return self.plans[-1].trainable

    @property
    def _tables(self) -> list[tuple[str, list[dict[str, str]]]]:
        rows = console_lib.class_rows(self.classes, self.counts)
        tables = plan_tables(self.phases, self.plans, members=self.members)
        return [*tables, ("Images by class", rows)] if rows else tables

    @property
    def _words(self) -> str:
        return "\n".join((console_lib.image_words(self.images, self.classes, self.counts), *self.notes))

    def __str__(self) -> str:
        console = console_lib.make_console()
        with console.capture() as captured:
            for title, rows in self._tables:
                console_lib.print_table(console, title, rows)
        return "\n".join([f"{captured.get()}{self._words}", *map(str, self.chosen)])

    def _repr_html_(self) -> str:
        parts = []
        for title, rows in self._tables:
            head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
            body = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) for row in rows)
            lines = "".join(f"<tr>{cells}</tr>" for cells in body)
            caption = f"<caption>{html.escape(title)}</caption>"
            parts.append(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>")
        parts += [f"<p>{html.escape(line)}</p>" for line in (*self._words.split("\n"), *map(str, self.chosen))]
        return "".join(parts)


@visiting()
def plan(config: Any) -> Outlook:
    """What `fit` would train; lists the images and finds the weights; decodes no image, downloads nothing.

    Raises:
      UserError: for whatever is wrong with the config, the plan or the data.
    """
    config, chosen = choose(_made(config), look=False)
    check(config)
    sketch = outline(config)
    if config.model.weights not in FILES:
        find_weights(config.model.weights, config.model.name)
    listed = open_data(config.data, seed=config.seed)
    classes = listed.source.classes
    model = sketch.build(num_classes=head_outputs(config, len(classes)))
    first, phases = sketch.members[0], sketch.phases[0]
    plans = plans_of(model, variable_shapes(model), first.config, phases, sketch.fresh)
    images = {name: len(members) for name, members in listed.splits.items()}
    counts = {split: tuple(count.tolist()) for split, count in listed.counts.items()}
    return Outlook(phases, plans, len(sketch.members), classes, images, counts, tuple(listed.notes), chosen)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: a single one, a population, or a teacher and its students.

    Attributes:
      workdir: its folder.
      result: what its result.json holds.
    """

    workdir: Path
    result: Mapping[str, Any] = dataclasses.field(repr=False)

    @functools.cached_property
    def classifier(self) -> classifiers.Classifier:
        """Its network. Raises UserError for a population, whose members have one each."""
        with visiting():
            return classifiers.load(self.workdir)

    @functools.cached_property
    def members(self) -> tuple["Run", ...]:
        """The members of a population, in the order of its table; none of a single run."""
        return tuple(load(self.workdir / row["folder"]) for row in self.result.get("members", ()))

    @property
    def settings(self) -> tuple[Mapping[str, Any], ...]:
        """What tells each member from the others, such as `{'lr': 0.001, 'seed': 1}`."""
        return tuple(row["settings"] for row in self.result.get("members", ()))

    @property
    def best(self) -> "Run":
        """The member that validation prefers; a single run itself."""
        return self.members[self.result["best_member"] or 0] if "members" in self.result else self

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row per epoch, as in metrics.csv."""
        return self.best.result["history"]

    def evaluate(self, images: str | Path | None = None, **options: Any) -> "Evaluation":
        """`tljax.evaluate` of this run."""
        return evaluate(self, images, **options)

    def predict(self, images: Image | Iterable[Image], **options: Any) -> list[Answer]:
        """`tljax.predict` of this run."""
        return predict(self, images, **options)

    def __str__(self) -> str:
        told = [name for name in SPLITS.values() if self.best.result[name]]
        which = f"{len(self.settings)} members, the best: " if self.settings else ""
        without = self.best.result.get("without_images", {})
        unseen = {name: console_lib.unseen_words(without, name) for name in told}
        words = (
            f"{images_in_words(self.best.result, name)} {_percent(self.best.result[name])}"
            f"{unseen[name] and '; '}{unseen[name]}"
            for name in told
        )
        return f"{self.workdir}: {which}{', '.join(words) or 'not tested'}"


@visiting()
def load(workdir: str | Path) -> Run:
    """A finished run of this folder.

    Raises:
      UserError: where there is none.
    """
    workdir = folders.named(workdir)
    result = folders.read_result(workdir)
    if result is None:
        raise UserError(f"{workdir} is not the folder of a finished run: it has no {folders.RESULT}")
    if "rows" in result:
        raise UserError(f"{workdir} is the demo's folder; give that of one of its runs")
    return Run(workdir, result)


@visiting()
def fit(config: Any, workdir: str | Path, *, overwrite: bool = False, quiet: bool = False) -> Run:
    """Trains, picks the best epoch by validation, tests once; of a run that was stopped what remains of that; a run of
    this config that is finished is loaded.

    Args:
      config: as `tljax.config` makes it.
      workdir: the run's folder.
      overwrite: throw away what is there.
      quiet: print nothing.

    Raises:
      UserError: for whatever can be mended, a folder with a run of another config among it.
      Interrupted: on SIGINT or SIGTERM, after saving.
    """
    workdir = folders.named(workdir)
    if _made(config).run != "train":
        raise UserError(f"config.run={config.run!r} is for the command line; say run='train'")
    try:
        runs.run(config, workdir, overwrite=overwrite, console=console_lib.make_console(quiet=quiet))
    except folders.Finished:
        pass
    return load(workdir)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a run is worth on labelled images. Prints as one line.

    Attributes:
      names: the images.
      labels: their classes, int `[N]`.
      predicted: what the run says, int `[N]`.
      classes: the run's, in the order of the labels.
      accuracy: share that is right.
      correct, seen: counts.
      interval95: of the accuracy, Wilson's.
      by_class: by class `accuracy`, `correct`, `seen`, `interval95`.
      chose_epoch: how many of the images chose the run's epoch, so that the accuracy is high by that choice.
      calibration: how far its confidence can be believed, as in result.json: `ece`, `bins`, `scaled`; None where it has
        numbers that are not finite.
      skipped: (name, reason) of files that could not be read.
    """

    names: tuple[str, ...]
    labels: np.ndarray = dataclasses.field(repr=False)
    predicted: np.ndarray = dataclasses.field(repr=False)
    classes: tuple[str, ...]
    accuracy: float
    correct: int
    seen: int
    interval95: tuple[float, float]
    by_class: Mapping[str, Any] = dataclasses.field(repr=False)
    calibration: Mapping[str, Any] | None = dataclasses.field(repr=False)
    skipped: tuple[tuple[str, str], ...] = ()
    chose_epoch: int = 0

    @property
    def unseen(self) -> tuple[str, ...]:
        """The classes that none of the images is of: the accuracy says nothing of them."""
        return tuple(name for name, share in self.by_class.items() if not share["seen"])

    @property
    def confusion(self) -> np.ndarray:
        """How many images of a class (row) were taken for which (column), int `[classes, outputs]`."""
        return confusion(self.predicted, self.labels, len(self.classes))

    def __str__(self) -> str:
        words = f"accuracy {console_lib.percent(self.correct, self.seen, self.interval95)}"
        if self.chose_epoch:
            some = "these images" if self.chose_epoch == self.seen else f"{self.chose_epoch:,} of these images"
            words += f" ({some} chose the epoch)"
        if self.unseen:
            words += f", no images of {few(self.unseen)}"
        if self.calibration:
            scaled = self.calibration["scaled"] or self.calibration
            words += f", calibration error {scaled['ece']:.1%}"
        return words + (f", {len(self.skipped):,} files skipped" if self.skipped else "")


@visiting()
def evaluate(
    run: Run | str | Path, images: str | Path | None = None, *, split: str | None = None, batch_size: int = 32
) -> Evaluation:
    """Accuracy with its interval, by class, and calibration.

    Args:
      run: a finished run, or its folder.
      images: a folder of folders of images by class, or another source, as `data.source` takes it, some or all of whose
        classes are the run's. None: what the run itself was tested on, as it was then; nothing is computed again.
      split: train, val or test of such a source, None for all its images; of the run itself val or test, None for the
        latter if there is one.
      batch_size: images that go through the network together.

    Raises:
      UserError: for classes that the run does not know, images that are not there, a population.
    """
    run = run if isinstance(run, Run) else load(run)
    if images is None:
        return _kept(run, split)
    network, own = run.classifier, run.result["config"]
    spec = str(images)
    spec = spec if spec.partition(":")[0] in ("folder", "pets", "tfds", "shapes") else f"folder:{spec}"
    d = own["data"]
    drawn = own["seed"] if d["shapes_seed"] is None else d["shapes_seed"]
    source = open_source(spec, label=d["label"], tfds_dir=d["tfds_dir"], seed=drawn)
    check_labels(source)
    classes = tuple(run.result["classes"])
    if strange := [name for name in source.classes if name not in classes]:
        known = f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
        unknown = ", ".join(map(repr, strange[:3]))
        raise UserError(f"{spec} has {unknown}, which {run.workdir} does not know; its classes are {known}")
    if split is not None and split not in source.splits:
        there = f"; it has {', '.join(source.splits)}" if source.splits else " nor any other"
        raise UserError(f"{spec} has no split {split!r}{there}")
    indices = np.arange(len(source)) if split is None else source.splits[split]
    pictures = [Picture(source.names[i], functools.partial(source.read, int(i))) for i in indices]
    found = list(asking.logits_of(network, pictures, batch_size=batch_size))
    read = [i for i, one in enumerate(found) if not isinstance(one, str)]
    bad = [(pictures[i].name, one) for i, one in enumerate(found) if isinstance(one, str)]
    if not read:
        raise UserError(f"none of the {len(found):,} images of {spec} can be read, such as {bad[0][0]!r}: {bad[0][1]}")
    places = np.array([classes.index(name) for name in source.classes], np.int32)
    logits = np.stack([found[i][0] for i in read])
    labels = places[source.labels[indices[read]]]
    fitted, calibration = (run.result["calibration"].get("validation") or {}).get("scaled"), None
    if np.isfinite(logits).all():
        how = fitted and {name: fitted[name] for name in FITTED if name in fitted}
        scaled = how and how | reliability(logits, labels, network.temperature)
        calibration = reliability(logits, labels) | {"scaled": scaled}
    names = tuple(pictures[i].name for i in read)
    return _evaluation(run, names, logits, labels, calibration, (*source.skipped, *bad), _chose(run, spec, names))


def _chose(run: Run, spec: str, names: Sequence[str]) -> int:
    """How many of a source's images are those that chose the run's epoch, by place and name."""
    if not chose_epoch(run.result):
        return 0
    try:
        (own,) = folders.read_arrays(run.workdir / PREDICTIONS, "val_names")
    except UserError:
        return 0

    def places(spec: str, names: Iterable[str]) -> set[str]:
        kind, _, path = spec.partition(":")
        root = os.path.realpath(path) if kind in ("folder", "pets") else spec
        return {os.path.join(root, name) for name in names}

    return len(places(spec, names) & places(run.result["config"]["data"]["source"], own.tolist()))


def _kept(run: Run, split: str | None) -> Evaluation:
    """Of the images that the run itself was evaluated on."""
    if "members" in run.result:
        raise UserError(f"{run.workdir} holds a population; evaluate its .best, or one of its .members")
    there = [name for name, word in SPLITS.items() if run.result[word] is not None]
    split = split or (there[-1] if there else "test")
    if split not in there:
        raise UserError(f"{run.workdir} was not evaluated on {split!r}"
                        + (f"; it was on {', '.join(there)}" if there else "; give images"))  # fmt: skip
    file, wanted = run.workdir / PREDICTIONS, (f"{split}_names", f"{split}_logits", f"{split}_labels")
    try:
        names, logits, labels = folders.read_arrays(file, *wanted)
    except UserError as reason:
        raise UserError(f"{file} is missing or damaged ({reason})") from None
    calibration = run.result["calibration"][SPLITS[split]]
    chose = len(names) if split == "val" and chose_epoch(run.result) else 0
    return _evaluation(run, tuple(names.tolist()), logits, labels, calibration, chose=chose)


def _evaluation(
    run: Run, names: tuple[str, ...], logits: np.ndarray, labels: np.ndarray, calibration: Mapping[str, Any] | None,
    skipped: Sequence[tuple[str, str]] = (), chose: int = 0,
) -> Evaluation:  # fmt: skip
    classes = tuple(run.result["classes"])
    found = score(logits, labels, make_loss(run.result["config"]["loss"]["name"]))
    low, high = found.as_dict()["interval95"]
    return Evaluation(
        names, labels, predictions(logits), classes, found.accuracy, found.correct, found.seen, (low, high),
        by_class(logits, labels, classes), calibration, tuple(skipped), chose,
    )  # fmt: skip


@visiting()
def predict(
    run: Run | str | Path,
    images: Image | Iterable[Image],
    *,
    top: int = 5,
    flips: bool = False,
    batch_size: int = 32,
) -> list[Answer]:
    """What a run says of pictures.

    Args:
      run: a finished run, or its folder.
      images: what to ask about: files, folders and patterns; bytes of files; pixels. One, or several.
      top: classes per answer.
      flips: whether each picture is also seen mirrored, and the probabilities of both averaged.
      batch_size: pictures that go through the network together.

    Returns:
      An `Answer` per picture, in order: `name`, `best` as (class, calibrated probability), and the `reason` of one that
      cannot be read.

    Raises:
      UserError: for a run or pattern that is not there, a population.
    """
    run = run if isinstance(run, Run) else load(run)
    for name, value in (("top", top), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r} is not a positive number")
    one = (
        not isinstance(images, Iterable)
        or isinstance(images, str | Path | bytes | PIL.Image.Image)
        or (isinstance(images, np.ndarray) and images.ndim < 4)
    )
    several: Any = [images] if one else images
    pictures: list[Picture] = []
    for number, image in enumerate(several):
        if isinstance(image, str | Path):
            pictures += asking.find_pictures([str(image)], bytes)
        elif isinstance(image, bytes | np.ndarray | PIL.Image.Image):
            pictures.append(Picture(f"picture {number}", lambda image=image: image))
        else:
            raise UserError(
                f"picture {number} is a {type(image).__name__}; give a file, bytes, an array of uint8, or Pillow's"
            )
    if not pictures:
        raise UserError("no pictures there; name files, folders or patterns")
    return list(asking.ask(run.classifier, pictures, batch_size=batch_size, top=top, flips=flips))


def _made(config: Any) -> Any:
    """A config, and nothing else."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"config is {config!r:.40}; make one by tljax.config('folder:photos')")
    return config


def _percent(found: Mapping[str, Any]) -> str:
    return console_lib.percent(found["correct"], found["seen"], found["interval95"])
