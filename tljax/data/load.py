"""From what the config says of the data to decoded pixels and splits."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tljax.data import pixels as pixels_lib
from tljax.data.folder import open_folder
from tljax.data.pets import open_pets
from tljax.data.pixels import Pixels
from tljax.data.shapes import open_shapes
from tljax.data.source import Source
from tljax.data.splits import make_splits
from tljax.errors import UserError
from tljax.workdir import SPILL


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run trains and is tested on: indices by split into one source, and its pixels."""

    source: Source
    pixels: Pixels
    splits: dict[str, np.ndarray]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of every file that was passed over or could not be read."""
        return [*self.source.skipped, *self.pixels.skipped]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of which images, by name and class, are in which split."""
        digest = hashlib.sha256(repr(self.source.classes).encode())
        for split, members in sorted(self.splits.items()):
            named = [(self.source.names[i], int(self.source.labels[i])) for i in members]
            digest.update(repr((split, named)).encode())
        return digest.hexdigest()

    @functools.cached_property
    def pixels_digest(self) -> str:
        """A digest of the decoded images, taken a piece at a time."""
        digest, buffer = hashlib.blake2b(), self.pixels.buffer
        for start in range(0, buffer.size, 1 << 26):
            digest.update(np.ascontiguousarray(buffer[start : start + (1 << 26)]).data)
        return digest.hexdigest()

    def labels(self, split: str) -> np.ndarray:
        return self.source.labels[self.splits[split]]


def open_source(spec: str, *, label: str = "", tfds_dir: str = "", seed: int = 0) -> Source:
    """Opens `folder:PATH`, `pets:PATH`, `tfds:NAME` or `shapes:TASK`.

    Raises:
      UserError: for another form, or whatever the source finds wrong.
    """
    kind, colon, where = spec.partition(":")
    options: dict[str, Any] = {"label": label} if label else {}
    if kind == "tfds" and where:
        from tljax.data.tfds import open_tfds  # TFDS takes a second to import

        return open_tfds(where, data_dir=tfds_dir or None, **options)
    if kind == "folder" and where:
        return open_folder(where, **options)
    if kind == "pets" and where:
        return open_pets(where, **options)
    if kind == "shapes" and colon:
        return open_shapes(where, seed=seed)
    raise UserError(f"data.source={spec!r} is not one of folder:PATH, pets:PATH, tfds:NAME, shapes:TASK")


def open_data(config: Any, *, seed: int) -> tuple[Source, dict[str, np.ndarray]]:
    """Lists and splits; reads no image.

    Args:
      config: `config.data`.
      seed: draws the procedural tasks.

    Raises:
      UserError: for whatever does not fit, an empty split among it.
    """
    source = open_source(config.source, label=config.label, tfds_dir=config.tfds_dir, seed=seed)
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
    return source, splits


def decode_data(
    config: Any,
    source: Source,
    splits: dict[str, np.ndarray],
    *,
    resize: int,
    workdir: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> Data:
    """Decodes every image of the splits once.

    Args:
      config: `config.data`.
      source: the images.
      splits: indices into it.
      resize: short side in pixels to keep.
      workdir: where decoded images lie that outgrow the memory; None forbids that.
      progress: called with images decoded and images in all.

    Raises:
      UserError: when a split has no image that can be read, or boxes are asked for and there are none.
    """
    boxes = None
    if config.boxes:
        if source.boxes is None:
            raise UserError(f"data.boxes=True, but {source.spec} knows no boxes")
        boxes = np.full_like(source.boxes, np.nan)
        boxes[splits["train"]] = source.boxes[splits["train"]]
    decoded = pixels_lib.decode_all(
        source,
        np.concatenate(list(splits.values())),
        short_side=resize,
        boxes=boxes,
        workers=config.workers or None,
        memory_bytes=int(config.memory_gb * 2**30) or None,
        spill=workdir and workdir / SPILL,
        progress=progress,
    )
    return Data(source, decoded, pixels_lib.drop(splits, decoded))
