"""What a finished run answered to the images it was tested on, and those images again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tljax.core.errors import UserError
from tljax.data import content
from tljax.data.labels import UNLABELED
from tljax.data.load import DatasetIndex, open_data
from tljax.data.pixels import content_of
from tljax.inference.classifier import Classifier
from tljax.metrics.accuracy import hard, predictions
from tljax.metrics.calibration import log_probabilities
from tljax.run_dir.files import PREDICTIONS, SPLITS, read_arrays


@dataclasses.dataclass(frozen=True)
class Answers:
    """A run's answers to its test images, or to those of validation where nothing was tested.

    Attributes:
      split: `test` or `val`.
      names: of the images with finite logits, `[N]`.
      labels: int `[N]`.
      logits: `[N, outputs]`.
      lost: images left out since their logits are not finite.
      temperature: that validation gave.
    """

    split: str
    names: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    lost: int
    temperature: float

    @property
    def predicted(self) -> np.ndarray:
        """Class indices, int `[N]`."""
        return predictions(self.logits)

    @property
    def shares(self) -> np.ndarray:
        """Calibrated probabilities, `[N, classes]`."""
        return np.exp(log_probabilities(self.logits, self.temperature))

    @property
    def losses(self) -> np.ndarray:
        """Cross-entropy by image, without temperature, as the run's own loss counts it, `[N]`."""
        return -log_probabilities(self.logits)[np.arange(len(self.labels)), self.labels]

    def most_confident(self, *, right: bool) -> np.ndarray:
        """Rows that are right, or wrong, the surest first; equally sure ones in the order of the test."""
        rows = np.flatnonzero((self.predicted == self.labels) == right)
        return rows[np.argsort(-log_probabilities(self.logits[rows], self.temperature).max(1), kind="stable")]

    @property
    def costliest(self) -> np.ndarray:
        """All rows, the highest loss first."""
        return np.argsort(-self.losses, kind="stable")


def read_answers(classifier: Classifier) -> Answers:
    """Raises UserError where the run left none that can be used."""
    split = next((split for split, name in reversed(SPLITS.items()) if classifier.result.get(name)), None)
    if split is None:
        raise UserError("the run had neither test nor validation images")
    path = classifier.workdir / PREDICTIONS
    try:
        parts = read_arrays(path, *(f"{split}_{part}" for part in ("names", "labels", "logits")))
    except UserError as reason:
        raise UserError(f"{path.name} cannot be read ({reason})") from None
    sane = np.isfinite(parts[2]).all(axis=1)
    if not sane.any():
        raise UserError(f"no logits of the {SPLITS[split]} images are finite")
    names, labels, logits = (part[sane] for part in parts)
    return Answers(split, names, labels, logits, int((~sane).sum()), classifier.temperature)


@dataclasses.dataclass(frozen=True)
class Images:
    """A finished run's images, listed again.

    Attributes:
      listed: source and splits.
      place: index in the source by name.
      contents: what the run knew to be in them, by name.
    """

    listed: DatasetIndex
    place: dict[str, int]
    contents: Mapping[str, bytes]

    def read(self, name: str) -> bytes | np.ndarray:
        """Raises OSError for an image that is not there any more, or is another one."""
        if name not in self.place:
            raise OSError("it is not among the run's images any more")
        data = self.listed.source.read(self.place[name])
        if self.contents.get(name, content_of(data)) != content_of(data):
            raise OSError("it is another picture than the run had under this name")
        return data

    def label(self, index: int) -> tuple[int, bool]:
        """The class that a training image was trained as, and whether that is a pseudo-label."""
        return int(hard(self.listed.targets[index : index + 1])[0]), self.listed.source.labels[index] == UNLABELED


def open_images(classifier: Classifier, source: str = "", answers: Answers | None = None) -> Images:
    """Lists a run's images again, without reading any.

    Args:
      classifier: the run.
      source: where they lie now, as `data.source`; empty for where they lay.
      answers: whose images must be in the split they were in.

    Raises:
      UserError: where they cannot be listed, or are others by now.
    """
    config: Any = ConfigDict(classifier.result["config"])
    config.data.source = source or config.data.source
    if config.data.pseudo and not Path(config.data.pseudo).is_absolute() and not Path(config.data.pseudo).exists():
        config.data.pseudo = str(classifier.workdir.parent / Path(config.data.pseudo).name)
    try:
        listed = open_data(config.data, seed=config.seed)
    except (AttributeError, OSError) as error:
        raise UserError(f"{config.data.source} cannot be opened: {error}") from None
    if list(listed.source.classes) != list(classifier.result["classes"]):
        raise UserError(f"{config.data.source} holds other classes than when the run was made")
    place = {name: i for i, name in enumerate(listed.source.names)}
    if answers is not None:
        now = {listed.source.names[i] for i in listed.splits.get(answers.split, ())}
        if gone := sorted(set(map(str, answers.names)) - now):
            raise UserError(
                f"{config.data.source} holds other images than when the run was made: {gone[0]!r} is not in its "
                f"{SPLITS[answers.split]} split any more"
            )
    return Images(listed, place, content.of_run(classifier.workdir))
