"""What a finished run is worth on labeled images: its own, by what it left of them, or any others."""

import contextlib
import dataclasses
import difflib
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tljax.core.errors import UserError, counted, few, shorten
from tljax.data import content
from tljax.data.folder import ASK, open_labeled
from tljax.data.load import check_labels, named_folders, open_source
from tljax.data.pixels import content_of
from tljax.data.source import Source
from tljax.inference import batch_predict
from tljax.inference.batch_predict import Picture
from tljax.inference.classifier import Classifier
from tljax.metrics.accuracy import by_class, chose_epoch, confusion, predictions, score, wilson_interval
from tljax.metrics.calibration import FITTED, reliability
from tljax.metrics.losses import make_loss
from tljax.report import console as console_lib
from tljax.run_dir import files as folders
from tljax.run_dir.files import PREDICTIONS, SPLITS
from tljax.settings.build import SOURCES


class FinishedRun(Protocol):
    """A run's folder and what lies in it, as `tljax.api.Run` has them."""

    @property
    def workdir(self) -> Path: ...

    @property
    def result(self) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a run is worth on labeled images. Prints as one line.

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


def of_images(
    run: FinishedRun, network: Classifier, images: str | Path, *, split: str | None, batch_size: int
) -> Evaluation:
    """Asks a run about a folder of images by class, or another source. See `tljax.evaluate`."""
    classes = tuple(run.result["classes"])
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


def _labeled(run: FinishedRun, images: Any) -> Source:
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


def _met(run: FinishedRun, digests: Sequence[bytes], spec: str = "", names: Sequence[str] = ()) -> dict[str, Any]:
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


def of_own_images(run: FinishedRun, split: str | None) -> Evaluation:
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
    run: FinishedRun, names: tuple[str, ...], logits: np.ndarray, labels: np.ndarray,
    calibration: Mapping[str, Any] | None, *, trained_on: np.ndarray | None, chose: int,
    skipped: Sequence[tuple[str, str]] = (), unknown: Mapping[str, int] | None = None, notes: Sequence[str] = (),
) -> Evaluation:  # fmt: skip
    classes = tuple(run.result["classes"])
    found = score(logits, labels, make_loss(run.result["config"]["loss"]["name"]))
    low, high = found.as_dict()["interval95"]
    return Evaluation(
        names, labels, predictions(logits), classes, found.accuracy, found.correct, found.seen, (low, high),
        by_class(logits, labels, classes), calibration, tuple(skipped), chose, trained_on, unknown or {}, tuple(notes),
    )  # fmt: skip
