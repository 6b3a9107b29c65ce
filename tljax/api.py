"""tljax from Python: what the commands do, as functions that give back objects.

A mistake raises `tljax.core.errors.UserError`, a ValueError of one line, before anything is trained; Ctrl-C, or a
notebook's stop button, raises `tljax.core.signals.Interrupted` once everything is saved, and the same `fit` goes on
from there.

No call leaves the process other than it was: see `tljax.core.guest`, and `setup_process` for a process that is
tljax's own.
"""

import contextlib
import dataclasses
import difflib
import functools
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from tljax.core.errors import UserError, counted, few, one_line, shorten, told
from tljax.core.guest import visiting
from tljax.core.process import keep_compilations, quiet_libraries
from tljax.core.xla_flags import tune_cpu
from tljax.data import content
from tljax.data.folder import ASK, open_labeled
from tljax.data.load import check_labels, listing_once, named_folders, open_data, open_source
from tljax.data.pixels import content_of
from tljax.data.source import Source
from tljax.inference import batch_predict
from tljax.inference import classifier as classifiers
from tljax.inference.batch_predict import Answer, Picture
from tljax.metrics.accuracy import (
    by_class,
    chose_epoch,
    confusion,
    images_in_words,
    predictions,
    score,
    wilson_interval,
)
from tljax.metrics.calibration import FITTED, reliability
from tljax.metrics.losses import make_loss
from tljax.models import variable_shapes
from tljax.report import console as console_lib
from tljax.run_dir import files as folders
from tljax.run_dir.files import PREDICTIONS, SPLITS
from tljax.settings.build import SOURCES, config
from tljax.settings.validate import check_fields
from tljax.train import runs
from tljax.train.checks import check
from tljax.train.recipe import DEFAULTS, Choice, choose
from tljax.train.setup import head_outputs, outline, plans_of
from tljax.transfer.plan import Phase, Plan, plan_tables
from tljax.weights.hub import FILES
from tljax.weights.initial import find_weights

Image = str | Path | bytes | bytearray | memoryview | BinaryIO | np.ndarray | PIL.Image.Image
"""A file, a folder with all in it, a pattern; the bytes of a file, or a file opened for reading bytes; pixels as
`tljax.data.reading.from_array` takes them, such as uint8 `[H, W, 3]`; a Pillow image."""

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
    with listing_once():
        return _plan(_made(config))


def _plan(config: Any) -> Outlook:
    config, chosen = choose(config, look=False)
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
    notes = (*listed.notes, *listed.lacking("train"))
    return Outlook(phases, plans, len(sketch.members), classes, images, counts, notes, chosen)


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
        rows = self.result.get("members", ())
        found = [load(self.workdir / row["folder"]) for row in rows]
        return tuple(
            Run(one.workdir, {**one.result, "settings": row["settings"]}) for one, row in zip(found, rows, strict=True)
        )

    @property
    def settings(self) -> Mapping[str, Any] | tuple[Mapping[str, Any], ...]:
        """Of a member what tells it from the others, such as `{'lr': 0.001, 'seed': 1}`; of a population that of each
        member; empty of a single run."""
        if "members" in self.result:
            return tuple(row["settings"] for row in self.result["members"])
        return self.result.get("settings", {})

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
        which = f"{counted(len(self.settings), 'member')}, the best: " if "members" in self.result else ""
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
    _check_switch("overwrite", overwrite)
    _check_switch("quiet", quiet)
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
      skipped: (name, reason) of files that could not be read, or have no label.
      trained_on: which of the images the run trained on, bool `[N]`, by what is in their files: a copy that was saved
        again is not known. None of a run whose older version did not record that.
      unknown: how many images there are of each class that the run does not know; they are left out of all else.
      notes: what was decided of the images that may be meant otherwise, in words.
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
    trained_on: np.ndarray | None = dataclasses.field(default=None, repr=False)
    unknown: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
            words += f" ({self._some(self.chose_epoch)} chose the epoch)"
        if self.trained_on is None:
            words += ", not known how many of these images the run trained on"
        elif self.trained_on.any():
            words += f", the run trained on {self._some(int(self.trained_on.sum()))}"
            right = (self.predicted == self.labels)[~self.trained_on]
            if right.size:
                correct = int(right.sum())
                others = console_lib.percent(correct, right.size, wilson_interval(correct, right.size))
                words += f", accuracy on the others {others}"
        if self.unseen:
            words += f", no images of {few(self.unseen)}"
        if self.calibration:
            scaled = self.calibration["scaled"] or self.calibration
            words += f", calibration error {scaled['ece']:.1%}"
        if self.skipped:
            name, reason = self.skipped[0]
            words += f", {len(self.skipped):,} file{'s' * (len(self.skipped) > 1)} skipped, such as {name!r}: {reason}"
        return "; ".join((words, *self.notes))

    def _some(self, count: int) -> str:
        return "these images" if count == self.seen else f"{count:,} of these images"


@visiting()
def evaluate(
    run: Run | str | Path, images: str | Path | None = None, *, split: str | None = None, batch_size: int = 32
) -> Evaluation:
    """Accuracy with its interval, by class, and calibration.

    Args:
      run: a finished run, or its folder.
      images: a folder of folders of images by class, `test/CLASS/...` alone as well, or another source, as
        `data.source` takes it. Some of the run's classes will do; images of others are counted in `unknown`. None: what
        the run itself was tested on, as it was then; nothing is computed again.
      split: train, val or test of such a source, None for all its images; of the run itself val or test, None for the
        latter if there is one.
      batch_size: images that go through the network together.

    Raises:
      UserError: where no class is the run's, for images without labels or that are not there, a population.
    """
    run = run if isinstance(run, Run) else load(run)
    _check_positive("batch_size", batch_size)
    if split is not None and not isinstance(split, str):
        raise UserError(f"split={split!r} is not one of train, val, test, None")
    if images is None:
        return _kept(run, split)
    network, classes = run.classifier, tuple(run.result["classes"])
    source = _labeled(run, images)
    known = [name for name in source.classes if name in classes]
    if not known:
        raise UserError(f"{source.spec} has {few(source.classes)}: none is a class of {run.workdir}, which are "
                        f"{few(classes, 10)}{_meant(source.classes, classes)}; {ASK}")  # fmt: skip
    if split is not None and split not in source.splits:
        there = f"; it has {', '.join(source.splits)}" if source.splits else " nor any other"
        raise UserError(f"{source.spec} has no split {split!r}{there}")
    indices = np.arange(len(source)) if split is None else source.splits[split]
    places = np.array([classes.index(name) if name in known else -1 for name in source.classes], np.int32)
    labels = places[source.labels[indices]]
    strange = np.bincount(source.labels[indices[labels < 0]], minlength=len(places))
    unknown = {name: int(count) for name, count in zip(source.classes, strange, strict=True) if count}
    notes = list(source.notes)
    if unknown:
        counts = shorten([f"{name!r} ({counted(count, 'image')})" for name, count in unknown.items()], 5)
        notes.append(f"no class of the run, left out: {counts}{_meant(unknown, [*set(classes) - set(known)])}")
    indices, labels = indices[labels >= 0], labels[labels >= 0]
    if not indices.size:
        raise UserError(f"{split} of {source.spec} has no images of the classes of {run.workdir}: {notes[-1]}")
    contents: dict[int, bytes] = {}

    def read(index: int) -> bytes | np.ndarray:
        found = source.read(index)
        contents[index] = content_of(found)
        return found

    pictures = [Picture(source.names[i], functools.partial(read, i)) for i in indices.tolist()]
    found = list(batch_predict.logits_of(network, pictures, batch_size=batch_size))
    right = [i for i, one in enumerate(found) if not isinstance(one, str)]
    bad = [(pictures[i].name, one) for i, one in enumerate(found) if isinstance(one, str)]
    if not right:
        raise UserError(
            f"none of the {counted(len(found), 'image')} of {source.spec} can be read, such as {bad[0][0]!r}: "
            f"{bad[0][1]}"
        )
    logits, labels = np.stack([found[i][0] for i in right]), labels[right]
    fitted, calibration = (run.result["calibration"].get("validation") or {}).get("scaled"), None
    if np.isfinite(logits).all():
        how = fitted and {name: fitted[name] for name in FITTED if name in fitted}
        scaled = how and how | reliability(logits, labels, network.temperature)
        calibration = reliability(logits, labels) | {"scaled": scaled}
    names = tuple(pictures[i].name for i in right)
    digests = [contents[int(indices[i])] for i in right]
    notes += _two_labels(digests, labels, names)
    return _evaluation(
        run, names, logits, labels, calibration, skipped=(*source.skipped, *bad), unknown=unknown, notes=notes,
        **_met(run, digests, source.spec, names),
    )  # fmt: skip


def _two_labels(digests: Sequence[bytes], labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """A note where one file lies under several labels: at most one of them can be right."""
    by_label: dict[bytes, dict[int, str]] = {}
    for digest, label, name in zip(digests, labels.tolist(), names, strict=True):
        by_label.setdefault(digest, {}).setdefault(label, name)
    both = [list(found.values()) for found in by_label.values() if len(found) > 1]
    if not both:
        return []
    lie = "lies" if len(both) == 1 else "lie"
    return [f"{counted(len(both), 'picture')} {lie} under two labels, such as {both[0][0]!r} and {both[0][1]!r}"]


def _labeled(run: Run, images: Any) -> Source:
    """The images that a run is asked about, read as its own are where they are of the same kind or place."""
    if not isinstance(images, str | Path):
        raise UserError(
            f"images is {images!r:.60}; give a folder with one folder of images per class, or a source such as "
            f"tfds:NAME; {ASK}"
        )
    d, spec = run.result["config"]["data"], str(images)
    if spec in ("", "folder:"):
        raise UserError(f"images is empty; give a folder ('.' for the current one); {ASK}")
    folders.check_nul("images", spec)
    if spec.partition(":")[0] not in SOURCES:
        spec = f"folder:{spec}"
    kind, _, where = spec.partition(":")
    own_kind, _, own = d["source"].partition(":")
    label = d["label"] if kind == own_kind else ""
    if kind != "folder":
        drawn = run.result["config"]["seed"] if d["shapes_seed"] is None else d["shapes_seed"]
        source = open_source(spec, label=label, tfds_dir=d["tfds_dir"], seed=drawn)
    else:
        if os.path.isfile(where):
            raise UserError(f"{where!r} is a file; give a folder with one folder of images per class; {ASK}")
        same = own_kind == kind and os.path.realpath(own) == os.path.realpath(where)
        named = named_folders(d) if same else {}
        source = open_labeled(where, run.result["classes"], label=label or "folder", named=named)
    check_labels(source)
    return source


def _meant(names: Iterable[str], classes: Sequence[str]) -> str:
    """The class that is likely meant by one of the names, in words."""
    folded = {name.casefold().strip(): name for name in classes}
    for name in names:
        if close := difflib.get_close_matches(name.casefold().strip(), folded, 1, 0.8):
            return f"; is {folded[close[0]]!r} meant by {name!r}?"
    return ""


def _met(run: Run, digests: Sequence[bytes], spec: str = "", names: Sequence[str] = ()) -> dict[str, Any]:
    """Which of the images, by the digests of their files, the network trained on, and how many chose its epoch.

    Of a run that an older version began the former is not known, and the latter by place and name.
    """
    trained, kept, own = content.trained_on(run.workdir), {}, np.array(())
    if chose_epoch(run.result):
        with contextlib.suppress(UserError):  # damaged: nobody can tell
            kept = content.of_run(run.workdir)
            (own,) = folders.read_arrays(run.workdir / PREDICTIONS, "val_names")
    if kept:
        val = {kept[name] for name in own.tolist() if name in kept}
        chose = sum(digest in val for digest in digests)
    else:
        chose = len(_places(spec, names) & _places(run.result["config"]["data"]["source"], own.tolist()))
    return {"trained_on": None if trained is None else np.array([one in trained for one in digests]), "chose": chose}


def _places(spec: str, names: Iterable[str]) -> set[str]:
    """Where images of a source lie, by their names."""
    kind, _, path = spec.partition(":")
    root = os.path.realpath(path) if kind in ("folder", "pets") else spec
    return {os.path.join(root, name) for name in names}


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
    kept = content.of_run(run.workdir)
    met = _met(run, [kept.get(name, b"") for name in names.tolist()])
    met["chose"] = len(names) if split == "val" and chose_epoch(run.result) else 0
    return _evaluation(run, tuple(names.tolist()), logits, labels, calibration, **met)


def _evaluation(
    run: Run, names: tuple[str, ...], logits: np.ndarray, labels: np.ndarray, calibration: Mapping[str, Any] | None,
    *, trained_on: np.ndarray | None, chose: int, skipped: Sequence[tuple[str, str]] = (),
    unknown: Mapping[str, int] | None = None, notes: Sequence[str] = (),
) -> Evaluation:  # fmt: skip
    classes = tuple(run.result["classes"])
    found = score(logits, labels, make_loss(run.result["config"]["loss"]["name"]))
    low, high = found.as_dict()["interval95"]
    return Evaluation(
        names, labels, predictions(logits), classes, found.accuracy, found.correct, found.seen, (low, high),
        by_class(logits, labels, classes), calibration, tuple(skipped), chose, trained_on, unknown or {}, tuple(notes),
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
      images: what to ask about: files, folders and patterns; bytes of files, or files opened for reading bytes; pixels.
        One, or several.
      top: classes per answer.
      flips: whether each picture is also seen mirrored, and the probabilities of both averaged.
      batch_size: pictures that go through the network together.

    Returns:
      An `Answer` per picture, in order: `name`, `best` as (class, calibrated probability), and the `reason` of one that
      cannot be read.

    Raises:
      UserError: for a run or pattern that is not there, a population, what is no picture.
    """
    _check_switch("flips", flips)
    run = run if isinstance(run, Run) else load(run)
    _check_positive("top", top)
    _check_positive("batch_size", batch_size)
    if isinstance(images, Mapping):  # whose keys would be asked about
        raise UserError(f"images is a {type(images).__name__}; give a file, folder or picture, or a list of them")
    one = (
        not isinstance(images, Iterable)
        or isinstance(images, str | Path | bytes | bytearray | memoryview | PIL.Image.Image)
        or hasattr(images, "read")
        or (isinstance(images, np.ndarray) and images.ndim < 4)
    )
    several: Any = [images] if one else images
    pictures: list[Picture] = []
    for number, image in enumerate(map(_content, several)):
        if isinstance(image, str | Path):
            folders.check_nul(f"picture {number}", str(image))
            pictures += batch_predict.find_pictures([str(image)], bytes)
        elif isinstance(image, bytes | np.ndarray | PIL.Image.Image):
            pictures.append(Picture(f"picture {number}", lambda image=image: image))
        else:
            raise UserError(
                f"picture {number} is a {type(image).__name__}; give a file, bytes, a NumPy array of uint8, or Pillow's"
            )
    if not pictures:
        raise UserError("no pictures there; name files, folders or patterns")
    return list(batch_predict.ask(run.classifier, pictures, batch_size=batch_size, top=top, flips=flips))


def _content(image: Any) -> Any:
    """The bytes of what holds some, a file that is open among it; anything else as it is."""
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if not hasattr(image, "read"):
        return image
    try:
        data = image.read()
    except (OSError, ValueError) as error:  # closed, opened for writing, or text that is none
        raise UserError(f"{image!r:.80} cannot be read: {one_line(error)}; open pictures by open(path, 'rb')") from None
    if not isinstance(data, bytes):
        raise UserError(f"{image!r:.80} is open for text; open pictures by open(path, 'rb')")
    return data


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UserError(f"{name}={told(value)} is not a positive whole number")


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):  # "no" would count as True
        raise UserError(f"{name}={told(value)} is not True or False")


def _made(config: Any) -> Any:
    """A config, and nothing else."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"config is {config!r:.40}; make one by tljax.config('folder:photos')")
    check_fields(config, opened=DEFAULTS)
    return config


def _percent(found: Mapping[str, Any]) -> str:
    return console_lib.percent(found["correct"], found["seen"], found["interval95"])
