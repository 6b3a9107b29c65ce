"""What every place that images come from looks like, before a single one is decoded."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled images, listed but not read.

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
