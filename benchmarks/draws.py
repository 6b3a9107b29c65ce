"""Which images a run of `defaults.py` trains on and which it is tested on: a function of set, size and seed alone.

A draw is a folder as a user has it, `train/CLASS/...` and `test/CLASS/...`, of symbolic links. Every side reads that
folder, and divides the images of `train` as its own default does.
"""

import dataclasses
import os
import zlib
from pathlib import Path

import numpy as np

from tljax.data.load import open_source
from tljax.data.source import Source

TESTED = 300  # test images at most, and
TESTED_SHARE = 0.3  # at most this share of a set that has no test images of its own
MOST = 400  # training images of the size "all"
SIZES = ("5", "10", "30", "all")  # images per class


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """One set of images. `seen`: the weights were trained on its pictures, those it is tested on among them."""

    source: str
    judges: bool
    seen: bool = False


SETS = {
    "pacs_cartoon": ImageSet("folder:pacs_cartoon", judges=False),
    "oxford_pets_3breeds": ImageSet("pets:oxford_pets_3breeds", judges=False),
    "ants_bees": ImageSet("folder:ants_bees", judges=True),
    "cats_dogs": ImageSet("folder:cats_dogs", judges=True),
    "pets37_sample": ImageSet("folder:pets37_sample", judges=True),
    "stanford_dogs_1000": ImageSet("folder:stanford_dogs_1000", judges=True, seen=True),
}


class TooFew(ValueError):
    """A size that the set does not have; says why."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """Indices into the source's images, sorted; `train` is all that the user has."""

    set: str
    size: str
    seed: int
    train: np.ndarray
    test: np.ndarray


def open_set(data: Path, name: str) -> Source:
    """Lists a set's images; `data` is the folder that holds all sets."""
    kind, _, folder = SETS[name].source.partition(":")
    return open_source(f"{kind}:{data / folder}", label="", tfds_dir="", seed=0)


def make_draw(source: Source, name: str, size: str, seed: int) -> Draw:
    """Draws the images of one size ("all", or a number per class) with one seed.

    The test depends on set and seed alone, and each class has one random order that all sizes take the first of. Where
    the set has images for testing (`test`, or else `val`), the test comes from them, elsewhere from all.

    Raises:
      TooFew: for a size that some class does not have, or that is more than "all".
    """
    official = next((source.splits[part] for part in ("test", "val") if part in source.splits), None)
    if official is None:
        everything = np.arange(len(source))
        test = _spread(source, everything, min(TESTED, int(TESTED_SHARE * len(source))), name, seed)
        pool = np.setdiff1d(everything, test)
    else:
        test = _spread(source, official, TESTED, name, seed)
        pool = source.splits["train"]
    most = _spread(source, pool, MOST, name, seed)
    if size == "all":
        return Draw(name, size, seed, most, test)
    per_class = int(size)
    least = int(np.bincount(source.labels[pool], minlength=len(source.classes)).min())
    if per_class > least:
        raise TooFew(f"{name}, {size} per class: the smallest class has {least} training images")
    if per_class * len(source.classes) > len(most):
        raise TooFew(f"{name}, {size} per class: more than the {len(most)} images of the size all")
    train = [order[:per_class] for order in _orders(source, pool, name, seed)]
    return Draw(name, size, seed, np.sort(np.concatenate(train)), test)


def _orders(source: Source, pool: np.ndarray, name: str, seed: int) -> list[np.ndarray]:
    """The pool's images of each class in a random order that sizes share."""
    orders = []
    for label, cls in enumerate(source.classes):
        rng = np.random.default_rng([seed, zlib.crc32(f"{name}/{cls}".encode())])
        orders.append(rng.permutation(pool[source.labels[pool] == label]))
    return orders


def _spread(source: Source, pool: np.ndarray, count: int, name: str, seed: int) -> np.ndarray:
    """`count` images of the pool, or all, each class in proportion and with one at least; sorted."""
    orders = _orders(source, pool, name, seed)
    # The first of each class, then whichever is least far into its class.
    ranked = sorted((i and (i + 0.5) / len(order), c, i) for c, order in enumerate(orders) for i in range(len(order)))
    return np.sort(np.array([orders[c][i] for _, c, i in ranked[:count]], np.int64))


def link(source: Source, draw: Draw, folder: Path) -> None:
    """Writes a draw as `folder/{train,test}/CLASS/NAME`, symbolic links to the set's files."""
    root = Path(source.spec.partition(":")[2]).resolve()
    for part, members in (("train", draw.train), ("test", draw.test)):
        for i in members:
            target = root / source.names[i]
            place = folder / part / source.classes[source.labels[i]] / target.name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(target, place)
