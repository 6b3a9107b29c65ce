"""Images that occur in two splits: the same pixels, or nearly the same picture."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
from PIL import Image
from scipy import fft

from tljax.data.labels import HIDDEN
from tljax.data.load import Data
from tljax.data.pixels import Pixels
from tljax.memo import is_sharing, shared

# Measured on 2,344 cartoons and 600 photographs. Copies saved again as JPEG of quality 50, halved, darkened or
# mirrored are all found, 99.6% of those with 2% cut off, 82 to 91% with 5%. 7 of 180,000 pairs of photographs are
# found, each the same picture; 35 of 2.7 million pairs of cartoons, all but one the same drawing, some in other
# colours. By the bits alone 23 pairs of cartoons more would be, most of different drawings.
BITS = 8  # of 63 that may differ
CORRELATION = 0.95  # of what the bits are the signs of
EXAMPLES = 20
_SIDE, _KEPT = 32, 8
_BASIS: Any = fft.dct(np.eye(_SIDE, dtype=np.float32), axis=0, norm="ortho")[:_KEPT]
_BLOCK = 1 << 22  # pairs that are compared at once


@dataclasses.dataclass(frozen=True)
class Prints:
    """What images are recognised by, by their index in the source.

    Attributes:
      digests: of decoded pixels: a picture that was saved again without loss, or with other metadata, is the same;
        bytes `[N]`.
      waves: the lowest frequencies of the picture as 32 x 32 grey, of length 1; zeros where it has no contrast; float32
        `[N, 63]`.
      mirrored: those of the mirrored picture.
    """

    digests: np.ndarray
    waves: np.ndarray
    mirrored: np.ndarray


def prints_of(pixels: Pixels) -> Prints:
    """Takes half a millisecond per image; runs that share their pixels share this."""

    def make() -> Prints:
        digests = np.zeros(len(pixels.sizes), "S16")
        waves = np.zeros((len(pixels.sizes), _KEPT, _KEPT), np.float32)
        for index in np.flatnonzero(pixels.held).tolist():
            image = pixels.image(index)
            digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
            digest.update(image.data)
            digests[index] = digest.digest()
            grey = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
            waves[index] = _BASIS @ np.asarray(grey, np.float32) @ _BASIS.T
        turned = waves * np.where(np.arange(_KEPT) % 2, -1, 1).astype(np.float32)
        return Prints(digests, _of_length_1(waves), _of_length_1(turned))

    return shared(f"prints {pixels.digest}" if is_sharing() else "", make)


def _of_length_1(waves: np.ndarray) -> np.ndarray:
    waves = waves.reshape(-1, _KEPT**2)[:, 1:]
    length = np.linalg.norm(waves, axis=1, keepdims=True)
    return np.where(length > _SIDE / 4, waves / np.maximum(length, 1), 0)  # a contrast of a quarter of a grey level


@dataclasses.dataclass(frozen=True)
class Copies:
    """Of some images `[n]`, what each is likest to among others.

    Attributes:
      images: indices into the source.
      of: the index of the other image, -1 for none.
      exact: whether their pixels are equal.
      bits: how many of 63 differ.
    """

    images: np.ndarray
    of: np.ndarray
    exact: np.ndarray
    bits: np.ndarray

    @property
    def any(self) -> np.ndarray:
        return self.of >= 0

    def as_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Counts for result.json, and some examples: name, name of the other, `exact` or bits."""
        order = np.flatnonzero(self.any)
        order = order[np.lexsort((order, self.bits[order], ~self.exact[order]))][:EXAMPLES]
        return {
            "images": len(self.images),
            "exact": int(self.exact.sum()),
            "near": int((self.any & ~self.exact).sum()),
            "examples": [
                [names[self.images[i]], names[self.of[i]], "exact" if self.exact[i] else int(self.bits[i])]
                for i in order
            ],
        }


def copies(prints: Prints, images: np.ndarray, others: np.ndarray) -> Copies:
    """Looks for each of `images` among `others`, indices that have none in common."""
    first = {digest: index for index, digest in zip(others[::-1], prints.digests[others[::-1]], strict=True)}
    same = np.array([first.get(digest, -1) for digest in prints.digests[images]], np.int64)
    of, least = np.full(len(images), -1, np.int64), np.full(len(images), BITS + 1, np.uint8)
    theirs, bits = prints.waves[others], _bits(prints.waves[others])
    step = max(1, _BLOCK // len(others))
    for begin in range(0, len(images), step):
        rows = slice(begin, begin + step)
        for waves in (prints.waves[images[rows]], prints.mirrored[images[rows]]):
            differ = np.bitwise_count(_bits(waves)[:, None] ^ bits)
            if differ.min() > BITS:
                continue
            differ[waves @ theirs.T < CORRELATION] = BITS + 1
            best = differ.argmin(axis=1)
            fewest = differ[np.arange(len(best)), best]
            better = fewest < least[rows]
            of[rows][better], least[rows][better] = others[best[better]], fewest[better]
    exact = same >= 0
    return Copies(images, np.where(exact, same, of), exact, np.where(exact, 0, least))


def _bits(waves: np.ndarray) -> np.ndarray:
    """The signs of 63 frequencies, uint64 `[n]`: a perceptual hash."""
    return np.packbits(np.pad(waves > 0, ((0, 0), (1, 0))), axis=1).view(np.uint64)[:, 0]


@dataclasses.dataclass(frozen=True)
class Found:
    """Which images occur twice.

    Attributes:
      copies: by split that is evaluated (`val`, `test`), by the split that they were found in: `train` (with a label or
        without), `val`.
      contradictions: names of training images with the pixels of one with another label, as far as labels are known.
    """

    copies: dict[str, dict[str, Copies]]
    contradictions: list[str]

    def as_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """For result.json."""
        told = {"val": "validation"}
        return {
            told.get(split, split): {told.get(name, name): found.as_dict(names) for name, found in among.items()}
            for split, among in self.copies.items()
        } | {"contradictions_in_train": self.contradictions}


def find(data: Data) -> Found:
    """Looks at pixels alone, and at the labels of training images.

    Training images that were cut to their boxes are compared as they were cut.
    """
    prints, splits = prints_of(data.pixels), data.splits
    wanted = {"val": {"train": data.pool}, "test": {"train": data.pool, "val": splits.get("val")}}
    found = {
        split: {name: copies(prints, splits[split], others) for name, others in among.items() if others is not None}
        for split, among in wanted.items()
        if split in splits
    }
    known = data.pool[data.source.labels[data.pool] != HIDDEN]
    labels, (_, group) = data.source.labels[known], np.unique(prints.digests[known], return_inverse=True)
    low, high = np.full(len(known), labels.max()), np.zeros(len(known), labels.dtype)
    np.minimum.at(low, group, labels)
    np.maximum.at(high, group, labels)
    return Found(found, [data.source.names[i] for i in known[(low < high)[group]]])
