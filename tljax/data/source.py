"""What every place that images come from looks like, before a single one is decoded."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Source:
    """Labeled images, listed but not read.

    Attributes:
      spec: what the user wrote, such as `folder:photos`.
      names: one name per image, unique and stable (a path relative to the source's root, with `/`); sorted, so that
        an index means the same image on every machine.
      labels: class indices, int32 `[N]`.
      classes: class names, in the order of the labels.
      read: index -> the bytes of an encoded image file, or pixels, as `decode` takes both. Safe to call from
        several threads. May raise OSError.
      splits: the source's own splits, by the names `train`, `val`, `test`; empty where it has none.
      boxes: `(ymin, xmin, ymax, xmax)` as fractions of the picture, float32 `[N, 4]`, NaN where unknown; None where
        the source has none at all.
      skipped: (name, reason) of files that were passed over while listing.
      narrow: whether all images are known to have 8 bits per value.
      notes: what was decided while listing that may be meant otherwise, in words.
    """

    spec: str
    names: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    read: Callable[[int], bytes | np.ndarray]
    splits: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    boxes: np.ndarray | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    narrow: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


class Joined:
    """Reads the images of one source, and after them those of another, as `Source.read` does.

    It has the `stamp` of files where both have it.
    """

    def __init__(self, first: Callable[[int], bytes | np.ndarray], count: int, second: Callable[[int], bytes]):
        self._parts = first, second
        self._count = count
        if all(hasattr(part, "stamp") for part in self._parts):
            self.stamp = functools.partial(self._ask, "stamp")

    def __call__(self, index: int) -> bytes | np.ndarray:
        """One image, of `count` of the first and those of the second."""
        return self._ask("", index)

    def head(self, index: int) -> bytes | np.ndarray:
        """Its first bytes, or all of it from a source that has no way to them."""
        return self._ask("head", index)

    def _ask(self, name: str, index: int) -> Any:
        part, place = (self._parts[0], index) if index < self._count else (self._parts[1], index - self._count)
        return getattr(part, name, part)(place) if name else part(place)
