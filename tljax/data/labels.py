"""Which training images keep their labels, labels that were made up for the others, and the test's, kept apart."""

import collections
import dataclasses
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tljax.core.errors import UserError
from tljax.data.source import Source
from tljax.data.splits import permuted
from tljax.run_dir.files import read_arrays, write_arrays

UNLABELED = -1
"""The label of an image whose own is out of reach."""

_LABELS = 3  # a stream apart from those of the splits


class HeldOutLabels:
    """The labels of the test, which are nowhere else; each reading is counted, by its reason."""

    def __init__(self, labels: np.ndarray, split: str):
        """Takes labels by index in the source, and in words what the split knew of them."""
        self._labels, self.split = labels, split
        self.reads: collections.Counter[str] = collections.Counter()

    def read(self, images: np.ndarray, why: str) -> np.ndarray:
        """Labels of test images, indices into the source."""
        self.reads[why] += 1
        return self._labels[images]

    def count(self, images: np.ndarray, classes: int) -> np.ndarray:
        """How many test images each class has: no image's label, and no reading."""
        return np.bincount(self._labels[images], minlength=classes)

    def as_dict(self) -> dict[str, Any]:
        """For result.json."""
        return {"read": self.reads.total(), "by": dict(self.reads), "split": self.split}


def cut_labels(
    source: Source, train: np.ndarray, how: str, *, seed: int, stratify: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Divides training images into those that keep their label and those that do not.

    Larger shares contain smaller ones of the same seed.

    Args:
      source: the images.
      train: indices into it.
      how: `'all'`; a share such as `'10%'`, of each class if `stratify` (to the nearest image, at least one), else of
        all images together, so that a class may be left without any; or a number of images per class such as `'4'`.
      seed: not negative.
      stratify: whether a share is one of each class.

    Returns:
      Sorted indices: labeled, unlabeled.

    Raises:
      UserError: for another form, or where one of the two is left empty.
    """
    if how == "all":
        return train, train[:0]
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(%?)", how)
    number = Fraction(match[1]) if match else Fraction(0)
    if match is None or number <= 0 or (match[2] and number >= 100) or (not match[2] and number.denominator != 1):
        raise UserError(f"data.labels={how!r} is not 'all', a share such as '10%', or a number per class such as '4'")
    kept = []
    for _, order in permuted(source, train, purpose=_LABELS, seed=seed, stratify=stratify or not match[2]):
        count = max(1, int(number / 100 * len(order) + Fraction(1, 2))) if match[2] else int(number)
        kept.append(order[:count])
    labeled = np.sort(np.concatenate(kept))
    unlabeled = np.setdiff1d(train, labeled)
    if not len(unlabeled):
        raise UserError(f"data.labels={how!r} leaves none of the {len(train)} training images unlabeled; say 'all'")
    return labeled, unlabeled


@dataclasses.dataclass(frozen=True)
class PseudoLabels:
    """Labels that a network gave.

    Attributes:
      names: of images, `[n]`.
      targets: class indices, int32 `[n]`, or probabilities, float32 `[n, classes]`.
    """

    names: np.ndarray
    targets: np.ndarray

    def save(self, path: Path) -> None:
        """Writes a file that is whole or not there."""
        write_arrays(path, names=self.names, targets=self.targets)

    @classmethod
    def load(cls, path: Path) -> "PseudoLabels":
        """Raises UserError for a file that is not there, or is none of these."""
        try:
            found = cls(*read_arrays(path, "names", "targets"))
        except UserError as reason:
            raise UserError(f"data.pseudo={path} is no file of pseudo-labels (an .npz of names and targets): {reason}"
                            ) from None  # fmt: skip
        kinds = {1: np.integer, 2: np.floating}
        fits = found.names.ndim == 1 and found.targets.ndim in kinds and len(found.targets) == len(found.names)
        if not fits or not np.issubdtype(found.targets.dtype, kinds[found.targets.ndim]):
            raise UserError(
                f"data.pseudo={path} holds {found.names.shape} names and {found.targets.dtype} targets of "
                f"{found.targets.shape}; there is one int, or one row of probabilities, per name"
            )
        chances = found.targets if found.targets.ndim == 2 else np.ones((1, 1))
        if not (np.isfinite(chances).all() and (chances >= 0).all() and np.allclose(chances.sum(axis=1), 1, atol=1e-3)):
            raise UserError(f"data.pseudo={path} has rows that are no probabilities: not negative, with a sum of 1")
        return found


def give(
    source: Source, labeled: np.ndarray, unlabeled: np.ndarray, pseudo: PseudoLabels
) -> tuple[np.ndarray, np.ndarray]:
    """What a student trains on.

    Args:
      source: its labels are `UNLABELED` where they are out of reach.
      labeled: indices into it.
      unlabeled: likewise.
      pseudo: labels of some of the unlabeled ones.

    Returns:
      Sorted indices of the labeled and the pseudo-labeled images; targets by index in the source, int32 `[N]`, or
      float32 `[N, classes]` if the pseudo-labels are probabilities.

    Raises:
      UserError: for a name that is not among the unlabeled, or a label that is no class.
    """
    place = {source.names[i]: i for i in unlabeled}
    names, classes = pseudo.names.tolist(), len(source.classes)
    if unknown := [name for name in names if name not in place]:
        raise UserError(f"data.pseudo has a label for {unknown[0]!r}, which is not one of the unlabeled images")
    if len(set(names)) < len(names):
        raise UserError("data.pseudo has two labels for one image")
    given = pseudo.targets
    if given.ndim == 1 and len(given) and not 0 <= given.min() <= given.max() < classes:
        raise UserError(f"data.pseudo has a label beyond the {classes} classes")
    if given.ndim == 2 and given.shape[1] != classes:
        raise UserError(f"data.pseudo has {given.shape[1]} probabilities per image, but there are {classes} classes")
    where = np.array([place[name] for name in names], np.int64)
    if given.ndim == 1:
        targets = source.labels.copy()
        targets[where] = given
    else:
        targets = np.eye(classes, dtype=np.float32)[source.labels]
        targets[where] = given
    return np.sort(np.concatenate([labeled, where])), targets
