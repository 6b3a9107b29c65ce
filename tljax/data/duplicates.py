"""Images that occur in two splits: the same pixels, or nearly the same picture."""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
from PIL import Image
from scipy import fft

from tljax.core.shared_cache import is_sharing, shared
from tljax.data.labels import UNLABELED
from tljax.data.load import Data
from tljax.data.pixels import Pixels

# A first look, by frequencies of gray, compares all with all. It takes two fruits on white, or two X-rays, for one
# picture: what is alike in them is the layout. A second look lays the likest over each other, in color.
BITS = 8  # of 63 that may differ
CORRELATION = 0.95  # of what the bits are the signs of
LIKEST = 4  # that are looked at again
LEFT = 0.02  # of the variance of a picture of 12 x 12, what a sure copy leaves unexplained at most
CROWD = 0.05  # of the others; where more seem alike, it is their layout
LEFT_IN_CROWD = 0.003
UNSURE = 0.02  # of the images; of more that only seem alike, the layout is
ZOOMS = (1, 0.97, 1.03, 0.95, 1.05)  # a copy may be cut
LEFT_WITHOUT_ZOOM = 0.1  # beyond which no cut explains it
GRAY = 3  # levels that the channels of a gray picture may lie apart
EXAMPLES = 20
_SIDE, _KEPT = 32, 8
_BASIS: Any = fft.dct(np.eye(_SIDE, dtype=np.float32), axis=0, norm="ortho")[:_KEPT]
_BLOCK = 1 << 22  # pairs that are compared at once
_SECOND_LOOKS = 256  # at once
_SMALL = 12
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]


@dataclasses.dataclass(frozen=True)
class Prints:
    """What images are recognized by, by their index in the source.

    Attributes:
      digests: of decoded pixels: a picture that was saved again without loss, or with other metadata, is the same;
        bytes `[N]`.
      waves: the lowest frequencies of the picture as 32 x 32 gray, of length 1; zeros where it has no contrast; float32
        `[N, 63]`.
      mirrored: those of the mirrored picture.
      pixels: what they are of.
    """

    digests: np.ndarray
    waves: np.ndarray
    mirrored: np.ndarray
    pixels: Pixels
    _thumbnails: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    def thumbnails(self, indices: np.ndarray) -> np.ndarray:
        """float32 `[n, 3, 32, 32]` of 0 to 255; made when asked for, and kept: few images are like another."""
        for index in set(indices.tolist()) - self._thumbnails.keys():
            small = Image.fromarray(self.pixels.image(index)).resize((_SIDE, _SIDE), Image.Resampling.BOX)
            self._thumbnails[index] = np.asarray(small).transpose(2, 0, 1)
        return np.stack([self._thumbnails[index] for index in indices.tolist()]).astype(np.float32)


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
            gray = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
            waves[index] = _BASIS @ np.asarray(gray, np.float32) @ _BASIS.T
        turned = waves * np.where(np.arange(_KEPT) % 2, -1, 1).astype(np.float32)
        return Prints(digests, _of_length_1(waves), _of_length_1(turned), pixels)

    return shared(f"prints {pixels.digest}" if is_sharing() else "", make)


def _of_length_1(waves: np.ndarray) -> np.ndarray:
    waves = waves.reshape(-1, _KEPT**2)[:, 1:]
    length = np.linalg.norm(waves, axis=1, keepdims=True)
    return np.where(length > _SIDE / 4, waves / np.maximum(length, 1), 0)  # a contrast of a quarter of a gray level


@dataclasses.dataclass(frozen=True)
class Copies:
    """Of some images `[n]`, what each is likest to among others.

    Attributes:
      images: indices into the source.
      of: the index of the other image, -1 for none.
      exact: whether their pixels are equal.
      bits: how many of 63 differ.
      layout: how many only have the layout of another one, so that it is not known whether they are near copies.
    """

    images: np.ndarray
    of: np.ndarray
    exact: np.ndarray
    bits: np.ndarray
    layout: int = 0

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
            "same_layout": self.layout,
            "examples": [
                [names[self.images[i]], names[self.of[i]], "exact" if self.exact[i] else int(self.bits[i])]
                for i in order
            ],
        }


def copies(prints: Prints, images: np.ndarray, others: np.ndarray) -> Copies:
    """Looks for each of `images` among `others`, indices that have none in common."""
    first = {digest: index for index, digest in zip(others[::-1], prints.digests[others[::-1]], strict=True)}
    same = np.array([first.get(digest, -1) for digest in prints.digests[images]], np.int64)
    exact = same >= 0
    of, least = np.full(len(images), -1, np.int64), np.full(len(images), BITS + 1, np.uint8)
    left, alike = np.full(len(images), np.inf), np.zeros(len(images), np.int64)
    theirs, bits = prints.waves[others], _bits(prints.waves[others])
    step = max(1, _BLOCK // len(others))
    for begin in range(0, len(images), step):
        block = np.arange(begin, min(begin + step, len(images)))
        pairs = [np.zeros((4, 0), np.int64)]  # position of the image, that of the other, whether mirrored, bits
        for mirrored, waves in enumerate((prints.waves[images[block]], prints.mirrored[images[block]])):
            differ = np.bitwise_count(_bits(waves)[:, None] ^ bits)
            rows = np.flatnonzero((differ.min(axis=1) <= BITS) & ~exact[block])
            likeness = np.where(differ[rows] <= BITS, waves[rows] @ theirs.T, 0)
            alike[block[rows]] += (likeness >= CORRELATION).sum(axis=1)
            for row, like in zip(rows, likeness, strict=True):
                best = np.argpartition(-like, min(LIKEST, len(like)) - 1)[:LIKEST]
                best = best[like[best] >= CORRELATION]
                where = np.full_like(best, block[row])
                pairs.append(np.stack([where, best, np.full_like(best, mirrored), differ[row, best]]))
        i, j, mirrored, count = np.concatenate(pairs, axis=1)
        rest = _unexplained(prints, images[i], others[j], mirrored == 1)
        order = np.argsort(-rest, kind="stable")  # of several the last one stays, which is the likest
        i, j, count, rest = i[order], j[order], count[order], rest[order]
        of[i], least[i], left[i] = others[j], count, rest
    unsure = (of >= 0) & (left > np.where(alike > max(LIKEST - 1, CROWD * len(others)), LEFT_IN_CROWD, LEFT))
    layout = int(unsure.sum()) if unsure.sum() > max(1, UNSURE * len(images)) else 0
    if layout:
        of[unsure], least[unsure] = -1, BITS + 1
    return Copies(images, np.where(exact, same, of), exact, np.where(exact, 0, least), layout)


def _unexplained(prints: Prints, images: np.ndarray, others: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """What share of each other picture is explained by no change of brightness or contrast, cut or shift, `[n]`."""
    left = np.ones(len(images))
    for begin in range(0, len(images), _SECOND_LOOKS):
        some = slice(begin, begin + _SECOND_LOOKS)
        own, theirs = prints.thumbnails(images[some]), prints.thumbnails(others[some])
        own = np.where(mirrored[some, None, None, None], own[..., ::-1], own)
        gray = np.minimum(_color(own), _color(theirs)) <= GRAY
        for picture in (own, theirs):  # a gray copy has no color to compare
            picture[gray] = (picture[gray] * _LUMA).sum(axis=1, keepdims=True)
        target = (_window(1) @ theirs @ _window(1).T).reshape(len(own), -1)
        for zoom in ZOOMS:
            unsure = np.flatnonzero((zoom == 1) | ((left[some] > LEFT_IN_CROWD) & (left[some] < LEFT_WITHOUT_ZOOM)))
            rest = _residual(_window(zoom) @ own[unsure] @ _window(zoom).T, target[unsure])
            left[begin + unsure] = np.minimum(left[begin + unsure], rest)
    return left


def _color(pictures: np.ndarray) -> np.ndarray:
    """How many levels two channels lie apart at most, `[n]`."""
    return np.abs(np.diff(_window(1) @ pictures @ _window(1).T, axis=1)).max(axis=(1, 2, 3))


def _residual(own: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The share of the variance of `target` `[n, 3 * 12 * 12]` that no fit of `own` `[n, 3, 12, 12]` explains."""
    down, across = np.gradient(own, axis=2), np.gradient(own, axis=3)
    place = np.linspace(-1, 1, _SMALL, dtype=np.float32)
    terms = [np.ones_like(own), own, down, across, down * place[:, None], across * place]
    design = np.stack(terms, axis=1).reshape(len(own), len(terms), target.shape[1])
    gram = (design @ design.transpose(0, 2, 1)).astype(np.float64) + np.eye(len(terms))
    fitted = np.linalg.solve(gram, design @ target[:, :, None]).astype(np.float32)
    rest = target - (fitted.transpose(0, 2, 1) @ design)[:, 0]
    spread = ((target - target.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return np.where(fitted[:, 1, 0] > 0, np.minimum((rest**2).sum(axis=1) / np.maximum(spread, 1), 1), 1)


@functools.cache
def _window(zoom: float) -> np.ndarray:
    """`[12, 32]`: means over the 12 parts of a window of this relative length around the middle of 32 pixels."""
    edges = _SIDE / 2 * (1 + zoom * np.linspace(-1, 1, _SMALL + 1))[:, None]
    pixels = np.arange(_SIDE)
    ends = np.clip(edges - pixels, 0, 1)  # of each pixel, how much lies before an edge
    ends[:, 0] += np.minimum(edges[:, 0], 0)  # beyond the picture its border goes on
    ends[:, -1] += np.maximum(edges[:, 0] - _SIDE, 0)
    parts = np.diff(ends, axis=0)
    return (parts / parts.sum(axis=1, keepdims=True)).astype(np.float32)


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
    known = data.pool[data.source.labels[data.pool] != UNLABELED]
    labels, (_, group) = data.source.labels[known], np.unique(prints.digests[known], return_inverse=True)
    low, high = np.full(len(known), labels.max()), np.zeros(len(known), labels.dtype)
    np.minimum.at(low, group, labels)
    np.maximum.at(high, group, labels)
    return Found(found, [data.source.names[i] for i in known[(low < high)[group]]])
