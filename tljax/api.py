"""tljax from Python: what the commands do, as functions that give back objects.

A mistake raises `tljax.UserError`, a ValueError of one line, before anything is trained; Ctrl-C, or a
notebook's stop button, raises `tljax.Interrupted` once everything is saved, and the same `fit` goes on
from there.

No call leaves the process other than it was: see `tljax.core.guest`, and `setup_process` for a process that is
tljax's own.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from tljax.core.errors import UserError, counted, one_line, told
from tljax.core.guest import visiting
from tljax.core.process import keep_compilations, quiet_libraries
from tljax.core.xla_flags import tune_cpu
from tljax.data.load import listing_once, open_data
from tljax.inference import batch_predict, evaluation
from tljax.inference import classifier as classifiers
from tljax.inference.batch_predict import Answer, Picture
from tljax.inference.evaluation import Evaluation
from tljax.metrics.accuracy import (
    images_in_words,
)
from tljax.models import variable_shapes
from tljax.report import console as console_lib
from tljax.report.html import tables_page
from tljax.run_dir import files as folders
from tljax.run_dir.files import SPLITS
from tljax.settings.build import config
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
        return tables_page(self._tables, [*self._words.split("\n"), *map(str, self.chosen)])


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
        return evaluation.of_own_images(run, split)
    return evaluation.of_images(run, run.classifier, images, split=split, batch_size=batch_size)


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
