"""From what the config says of the data to decoded pixels and splits."""

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tljax.core.errors import UserError, counted, few
from tljax.core.shared_cache import is_sharing, shared
from tljax.data import labels
from tljax.data import pixels as pixels_lib
from tljax.data.folder import add_unlabeled, open_folder
from tljax.data.layout import FIELDS
from tljax.data.pets import open_pets
from tljax.data.pixels import Pixels
from tljax.data.shapes import open_shapes
from tljax.data.source import Source
from tljax.data.splits import make_splits
from tljax.run_dir.files import SPILL


@dataclasses.dataclass(frozen=True)
class DatasetIndex:
    """What a run trains and is tested on, before an image is read.

    Attributes:
      source: the images; labels that are out of reach, and those of the test, are `labels.UNLABELED`.
      splits: indices into it. Where some training images have no label, `unlabeled` are all of those, and `train` the
        labeled ones and those that were given a pseudo-label.
      targets: what training takes for labels, by index: int32 `[N]`, or probabilities, float32 `[N, classes]`.
      truth: the labels that the source has but for the test's, int32 `[N]`. For analysis after the fact, nothing else.
      sealed: the labels of the test.
    """

    source: Source
    splits: dict[str, np.ndarray]
    targets: np.ndarray
    truth: np.ndarray
    sealed: labels.HeldOutLabels

    @property
    def pool(self) -> np.ndarray:
        """All training images, with labels or without, sorted."""
        return np.union1d(self.splits["train"], self.splits.get("unlabeled", self.splits["train"]))

    @property
    def counts(self) -> dict[str, np.ndarray]:
        """How many images each class has in each split, int `[classes]`; of those that train, with labels."""
        n = len(self.source.classes)
        found = {"train": self.source.labels[self.splits["train"]]}
        found |= {"val": self.source.labels[self.splits["val"]]} if "val" in self.splits else {}
        counts = {split: np.bincount(known[known >= 0], minlength=n) for split, known in found.items()}
        if "test" in self.splits:
            counts["test"] = self.sealed.count(self.splits["test"], n)
        return counts

    @property
    def without_images(self) -> dict[str, list[str]]:
        """The classes without an image, by split; of splits that have such classes."""
        names = self.source.classes
        found = {split: [names[i] for i in np.flatnonzero(count == 0)] for split, count in self.counts.items()}
        return {split: missing for split, missing in found.items() if missing}

    @property
    def notes(self) -> list[str]:
        """What was decided of the images that may be meant otherwise, and what validation and test lack."""
        return [*self.source.notes, *self.lacking("val"), *self.lacking("test")]

    def lacking(self, split: str) -> list[str]:
        """What there is to say of a split that has no image of some classes; of train a run says it by itself."""
        words = {"train": "no labels to train on", "val": "validation says nothing of them",
                 "test": "the test says nothing of them"}  # fmt: skip
        missing = self.without_images.get(split)
        count = f"{counted(len(self.splits.get(split, ())), 'image')} for {counted(len(self.source.classes), 'class')}"
        return [f"{split} has {count} and none of {few(missing)}: {words[split]}"] if missing else []

    def check_trained(self, before: "DatasetIndex | None" = None) -> None:
        """Raises UserError for a class that has images and none to train on.

        A class that a set of TFDS names and has no image of is only noted. `before` is what was listed, before any file
        was read.
        """
        n = len(self.source.classes)
        there = np.bincount(self.truth[self.truth >= 0], minlength=n)
        if "test" in self.splits:
            there = there + self.sealed.count(self.splits["test"], n)
        trained = self.truth[self.pool]
        missing = np.flatnonzero((np.bincount(trained[trained >= 0], minlength=n) == 0) & (there > 0))
        if not missing.size:
            return
        names = [self.source.classes[i] for i in missing]
        words = f"{'classes' if len(names) > 1 else 'class'} {few(names)} without a training image"
        if before is None:
            raise UserError(f"{words} in {self.source.spec}: give train a larger share, more images, or leave it out")
        lost = [i for i in before.pool if self.truth[i] == missing[0]]
        why = dict(self.pixels.skipped) if isinstance(self, Data) else {}
        name = self.source.names[lost[0]]
        raise UserError(f"{words} in {self.source.spec}: none of the {counted(len(lost), 'file')} of {names[0]!r} can "
                        f"be read, such as {name!r}: {why.get(name, 'no image')}")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Data(DatasetIndex):
    """The same with its pixels."""

    pixels: Pixels

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of every file that was passed over or could not be read."""
        return [*self.source.skipped, *self.pixels.skipped]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of which images, by name and target, are in which split; of the test by name alone."""
        digest = hashlib.sha256(repr(self.source.classes).encode())
        for split, members in sorted(self.splits.items()):
            named = [(self.source.names[i], self.targets[i].tolist()) for i in members]
            digest.update(repr((split, named)).encode())
        return digest.hexdigest()

    @property
    def contents(self) -> np.ndarray:
        """Digests of what the images were decoded from, bytes `[N]`."""
        assert self.pixels.contents is not None
        return self.pixels.contents

    @functools.cached_property
    def content(self) -> str:
        """A digest of what is in which image, by name, of all splits."""
        digest = hashlib.sha256()
        for i in np.unique(np.concatenate(list(self.splits.values()))).tolist():
            digest.update(repr((self.source.names[i], bytes(self.contents[i]).decode())).encode())
        return digest.hexdigest()

    def labels(self, split: str, why: str = "") -> np.ndarray:
        """Of the images of a split. The test's are read for a reason, which result.json tells."""
        images = self.splits[split]
        return self.sealed.read(images, why) if split == "test" else self.source.labels[images]


def open_source(
    spec: str, *, label: str = "", tfds_dir: str = "", seed: int = 0, named: Mapping[str, str] | None = None,
    unlabeled: str = "",
) -> Source:  # fmt: skip
    """Opens `folder:PATH`, `pets:PATH`, `tfds:NAME` or `shapes:TASK`; `named` are the folders of a folder's splits,
    `unlabeled` those in it that are left out.

    Raises:
      UserError: for another form, or whatever the source finds wrong.
    """
    kind, colon, where = spec.partition(":")
    options: dict[str, Any] = {"label": label} if label else {}
    if named and kind in ("tfds", "pets", "shapes"):
        split, value = next(iter(named.items()))
        raise UserError(f"data.{FIELDS[split]}={value} names a folder of folder:PATH; {spec} has splits of its own, or "
                        "data.split draws them")  # fmt: skip
    if kind == "tfds" and where:
        from tljax.data.tfds import open_tfds  # TFDS takes a second to import

        return open_tfds(where, data_dir=tfds_dir or None, **options)
    if kind == "folder" and where:
        return open_folder(where, **options, named=named, unlabeled=unlabeled)
    if kind == "pets" and where:
        return open_pets(where, **options)
    if kind == "shapes" and colon:
        return open_shapes(where, seed=seed)
    if kind in ("folder", "pets") and colon:
        raise UserError(f"data.source={spec!r} names no folder; give one ('.' for the current one), as in {kind}:PATH")
    hint = f"; did you mean folder:{spec}?" if Path(spec).is_dir() else ""
    raise UserError(f"data.source={spec!r} is not one of folder:PATH, pets:PATH, tfds:NAME, shapes:TASK{hint}")


_listed: contextvars.ContextVar[dict[str, Source] | None] = contextvars.ContextVar("listed", default=None)


@contextlib.contextmanager
def listing_once() -> Iterator[None]:
    """Within it a source is listed once, however often `open_data` is called for it."""
    token = _listed.set({})
    try:
        yield
    finally:
        _listed.reset(token)


def check_labels(source: Source) -> None:
    """Raises UserError for a label that is none of the classes: JAX would take it for another, or for none, unseen."""
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= len(source.classes)))
    if wrong.size:
        raise UserError(
            f"{source.spec} gives {source.names[wrong[0]]!r} the label {source.labels[wrong[0]]}, but its "
            f"{len(source.classes)} classes are numbered from 0 to {len(source.classes) - 1}"
        )


def open_data(config: Any, *, seed: int) -> DatasetIndex:
    """Lists and splits; reads no image.

    Args:
      config: `config.data`.
      seed: draws, unless the config has seeds of their own for that, the procedural tasks and which images keep their
        labels.

    Raises:
      UserError: for whatever does not fit, an empty split among it.
    """
    drawn = seed if config.shapes_seed is None else config.shapes_seed
    named = named_folders(config)
    unlabeled_in = config.get("unlabeled") or ""  # a run of before there was such a field has none
    asked: dict[str, Any] = dict(
        label=config.label, tfds_dir=config.tfds_dir, seed=drawn, named=named, unlabeled=unlabeled_in
    )
    known_sources, key = _listed.get(), repr((config.source, asked))
    source = (known_sources or {}).get(key)
    if source is None:
        source = open_source(config.source, **asked)
        check_labels(source)
        if known_sources is not None:
            known_sources[key] = source
    split = config.split
    if split == "auto":
        split = "official" if source.splits else "70/20/10"
    splits = make_splits(
        source,
        split=split,
        val=config.val,
        per_class=config.per_class,
        seed=config.split_seed,
        stratify=config.stratify,
    )
    if config.per_class:
        kept = np.bincount(source.labels[splits["train"]], minlength=len(source.classes))
        if fewer := [name for name, n in zip(source.classes, kept.tolist(), strict=True) if n < config.per_class]:
            words = f"data.per_class={config.per_class}, but {few(fewer)} have fewer images to train on (the least "
            source = dataclasses.replace(source, notes=(*source.notes, f"{words}{kept.min():,})"))
    if source.splits and not split.startswith(("official", "kfold:")):
        if lost := [f"data.{FIELDS[name]}={named[name]}" for name in ("val", "test") if name in named]:
            raise UserError(f"data.split={split} divides all images anew and would ignore {' and '.join(lost)}; say "
                            "data.split=official")  # fmt: skip
        own = ", ".join(source.splits)
        pooled = f"the source's own splits ({own}) are put together, since data.split={split}"
        source = dataclasses.replace(source, notes=(*source.notes, pooled))
    if config.pseudo and config.labels == "all" and not unlabeled_in:
        raise UserError(f"data.pseudo={config.pseudo} has labels for unlabeled images, but data.labels=all")
    test = splits.get("test", np.empty(0, np.int64))
    sealed, truth = (
        labels.HeldOutLabels(source.labels, known_to_split(split, stratify=config.stratify)),
        source.labels.copy(),
    )
    truth[test] = labels.UNLABELED
    source, targets = dataclasses.replace(source, labels=truth), truth
    own = seed if config.labels_seed is None else config.labels_seed
    labeled, unlabeled = labels.cut_labels(source, splits["train"], config.labels, seed=own, stratify=config.stratify)
    if unlabeled_in:
        source, more = add_unlabeled(source, unlabeled_in)
        truth, unlabeled = source.labels, np.concatenate([unlabeled, more])
    if unlabeled.size:
        known = truth.copy()
        known[unlabeled] = labels.UNLABELED
        source, targets = dataclasses.replace(source, labels=known), known
        splits = {"train": labeled, "unlabeled": unlabeled} | {k: v for k, v in splits.items() if k != "train"}
        if config.pseudo:
            pseudo = labels.PseudoLabels.load(Path(config.pseudo))
            splits["train"], targets = labels.give(source, labeled, unlabeled, pseudo)
    listed = DatasetIndex(source, splits, targets, truth, sealed)
    listed.check_trained()
    return listed


def named_folders(config: Any) -> dict[str, str]:
    """The folders of splits that the config names, by split; a run of before there were such fields has none."""
    return {split: config.get(field) for split, field in FIELDS.items() if config.get(field)}


def known_to_split(split: str, *, stratify: bool) -> str:
    """What drawing a test knew of labels."""
    if split == "official" or split.startswith("kfold:"):
        return "the source's own"
    return "drawn class by class, knowing every image's class" if stratify else "drawn without labels"


def decode_data(
    config: Any,
    listed: DatasetIndex,
    *,
    resize: int,
    workdir: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> Data:
    """Decodes every image of the splits once.

    Args:
      config: `config.data`.
      listed: the images and their splits.
      resize: short side in pixels to keep.
      workdir: where decoded images lie that outgrow the memory; None forbids that.
      progress: called with images decoded and images in all.

    Raises:
      UserError: when a split has no image that can be read, or boxes are asked for and there are none.
    """
    source, boxes = listed.source, None
    if config.boxes:
        if source.boxes is None:
            raise UserError(f"data.boxes=True, but {source.spec} knows no boxes")
        boxes = np.full_like(source.boxes, np.nan)
        boxes[listed.pool] = source.boxes[listed.pool]
    wanted = np.unique(np.concatenate(list(listed.splits.values())))
    levels = pixels_lib.find_levels(source, listed.pool, workers=config.workers or None, progress=progress)

    def decode() -> Pixels:
        return pixels_lib.decode_all(
            source,
            wanted,
            short_side=resize,
            boxes=boxes,
            levels=levels,
            workers=config.workers or None,
            memory_bytes=int(config.memory_gb * 2**30) or None,
            spill=workdir and workdir / SPILL,
            progress=progress,
        )

    key = f"{source.spec} {pixels_lib.key_of(source, wanted, resize, boxes, levels=levels)}" if is_sharing() else ""
    decoded = shared(key, decode)
    splits = pixels_lib.drop(listed.splits, decoded)
    data = Data(source, splits, listed.targets, listed.truth, listed.sealed, decoded)
    data.check_trained(listed)
    return data
