"""One picture -> upright RGB, uint8, short side as asked; whatever is wrong with it is a reason of one line.

The yardstick is torchvision: `Image.open(...).convert('RGB')`, then `Resize(short_side)` on Pillow. Where that reads a
picture other than a person sees it, the person is right; `reading` says where, and decides for all that read pictures.
"""

import contextlib
import functools
import importlib
import io
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features

from tljax.data import reading
from tljax.data.reading import FORMATS, MAX_ASPECT, WHITE, Unreadable

# What Pillow reads by a plugin alone, of the extra [formats]: the package, its module, and the name of its format.
PLUGINS = {"HEIC": ("pillow-heif", "pillow_heif", "HEIF"), "JPEG XL": ("pillow-jxl-plugin", "pillow_jxl", "JXL")}
# Progressive JPEGs have about ten scans; thousands in a small file are made to keep a decoder busy for hours.
_MOST_SCANS = 500


class Levels(NamedTuple):
    """What is white in a set of images, so that all of them are scaled alike.

    Attributes:
      white: of integers of more than 8 bits: 2**n - 1, for the n bits that are used, 8 at least.
      float_white: of floats: 1, 255, or 2**n - 1; None where each picture is to say (see `reading`).
    """

    white: int = WHITE
    float_white: float | None = None

    @classmethod
    def of(cls, largest: int, largest_float: float) -> "Levels":
        """Of data whose largest values these are; 0 where they have no such values."""
        white, float_white = _full(largest) if largest else WHITE, None
        if largest_float:
            float_white = 1.0 if largest_float <= reading.ROUNDED else float(_full(math.ceil(largest_float)))
        return cls(white, float_white)

    @property
    def words(self) -> str:
        """What is to be told; empty for what goes without saying."""
        told = []
        if self.white != WHITE:
            told.append(f"images of more than 8 bits use {self.white.bit_length()} of them: {self.white:,} is white")
        if self.float_white is not None:
            told.append(f"images of floats: {self.float_white:,g} is white")
        return "; ".join(told)


UNKNOWN = Levels()
"""Of images none of which says."""


def _full(value: int) -> int:
    return max(255, (1 << value.bit_length()) - 1)


def decode(
    data: bytes | np.ndarray | Image.Image,
    *,
    short_side: int,
    max_aspect: float = MAX_ASPECT,
    max_pixels: int = 100_000_000,
    box: np.ndarray | None = None,
    levels: Levels = UNKNOWN,
) -> np.ndarray:
    """Decodes and resizes one image.

    Reads JPEG (progressive, CMYK), PNG, GIF, BMP, WebP, TIFF, PPM, JPEG 2000, AVIF and ICO in all of Pillow's modes,
    and HEIC and JPEG XL where the extra `[formats]` is installed; of several frames the first. Safe to call from
    several threads.

    Args:
      data: the bytes of a file, a Pillow image, or pixels as `reading.from_array` takes them.
      short_side: pixels of the shorter side of the result; the longer one becomes int(short_side * long / short), both
        by Pillow's antialiased bilinear filter, as in torchvision's `Resize(int)`.
      max_aspect: at least 1. Of a longer picture only the central part is kept, int(short_side * max_aspect) pixels
        long; it is that part of the whole picture resized, but for single pixels that differ by 1 of 255.
      max_pixels: pictures with more are refused before they are decoded. Pillow itself refuses 179 million.
      box: `(ymin, xmin, ymax, xmax)` in fractions of the upright picture, to which it is cut first; None for all of it.
      levels: what is white where values have more than 8 bits.

    Returns:
      uint8 `[h, w, 3]`, min(h, w) = short_side, C-contiguous. A decoded picture that fits already is returned as it is.

    Raises:
      Unreadable: empty, truncated, damaged, too large, or no image at all.
    """
    if isinstance(data, np.ndarray) and box is None and _fits(data, short_side, max_aspect):
        return np.ascontiguousarray(data)

    def finish(image: Image.Image) -> np.ndarray:
        return np.array(reading.fit(_cut(image, box), short_side, max_aspect))

    with _reasons(data, max_pixels):
        if isinstance(data, np.ndarray):
            return finish(reading.from_array(data, **levels._asdict()))
        with _opened(data, max_pixels) as image:
            reading.load(image, shared=image is data)
            return finish(reading.from_image(image, **levels._asdict()))


def largest(data: bytes | np.ndarray | Image.Image, *, max_pixels: int = 100_000_000) -> tuple[int, float]:
    """The largest integer value where there are more than 8 bits, and the largest float; zeros where there are none.

    Raises:
      Unreadable: as `decode`.
    """
    with _reasons(data, max_pixels):
        if isinstance(data, np.ndarray):
            return reading.largest(data)
        with _opened(data, max_pixels) as image:
            if not reading.is_wide(image):
                return 0, 0.0
            reading.load(image, shared=image is data)
            return reading.largest(np.asarray(image))


def may_be_wide(head: bytes) -> bool:
    """Whether a file that begins so, with 32 bytes, can have values of more than 8 bits that are kept."""
    if head.startswith(b"\x89PNG"):
        return head[24:26] == b"\x10\x00"  # 16 bits, gray; of 16-bit colors Pillow keeps the upper 8
    return not head.startswith((b"\xff\xd8", b"GIF8", b"BM", b"RIFF"))


def has_more_pictures(data: bytes) -> bool:
    """Whether a file has further pages or frames, of which `decode` reads the first. Of a JPEG they are no matter: what
    cameras put behind the picture is not for people."""
    if not data.startswith((b"GIF8", b"II", b"MM", b"RIFF", b"\x89PNG")):
        return False
    with contextlib.suppress(Exception), _quiet_pillow(), _open(data) as image:  # damage is told by who decodes it
        image.seek(1)
        return True
    return False


def _fits(data: np.ndarray, short_side: int, max_aspect: float) -> bool:
    if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
        return False
    return min(data.shape[:2]) == short_side and max(data.shape[:2]) <= short_side * max_aspect


@contextlib.contextmanager
def _opened(data: bytes | Image.Image, max_pixels: int) -> Iterator[Image.Image]:
    """A picture of an allowed size, its pixels not read yet. What is wrong with a file's head is a reason already."""
    if isinstance(data, bytes):
        if not data:
            raise Unreadable("an empty file")
        if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > _MOST_SCANS:
            raise Unreadable(f"a JPEG with more than {_MOST_SCANS} scans")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet_pillow())
        # What somebody else has opened is theirs to close.
        image = stack.enter_context(_open(data)) if isinstance(data, bytes) else data
        if image.width * image.height > max_pixels:
            raise Unreadable(f"{image.width}x{image.height} is more than {max_pixels / 1e6:g} megapixels")
        yield image


def _open(data: bytes) -> Image.Image:
    kind = _needs_plugin(data)
    if kind and not has_plugin(kind):
        raise Unreadable(f"a {kind} picture, which needs {PLUGINS[kind][0]} (pip install '.[formats]')")
    return Image.open(io.BytesIO(data), formats=(PLUGINS[kind][2],) if kind else FORMATS)


@contextlib.contextmanager
def _reasons(data: Any, max_pixels: int) -> Iterator[None]:
    """Whatever Pillow raises becomes a reason."""
    try:
        yield
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {max_pixels / 1e6:g} megapixels") from None
    except Image.UnidentifiedImageError:
        raise Unreadable(_what_it_is(data)) from None
    except MemoryError:
        raise Unreadable("too large for the memory there is") from None
    except Exception as error:  # damaged files make Pillow's readers raise nearly every type there is
        reason = re.sub(r"\s+", " ", str(error)).strip()[:120] or type(error).__name__
        raise Unreadable(f"damaged: {reason}") from None


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_undo = contextlib.ExitStack()


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silences Pillow's warnings and log lines about odd files, whose outcome is an image or a reason.

    Filters belong to the whole process: were each thread to set and restore them by itself, the last one could restore
    another's. So the first to enter sets them and the last to leave restores them.
    """
    global _quiet_users
    with _quiet_lock:
        if not _quiet_users:
            _quiet_undo.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
            log = logging.getLogger("PIL")
            _quiet_undo.callback(log.setLevel, log.level)
            log.setLevel(logging.CRITICAL + 1)
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if not _quiet_users:
                _quiet_undo.close()


def _cut(image: Image.Image, box: np.ndarray | None) -> Image.Image:
    """What lies in a box, at least a pixel of it."""
    if box is None:
        return image
    top, left, bottom, right = (float(end) for end in box)
    # Of a fraction that float32 rounded down, the pixel is the one that was named, not the one before it.
    x, y = int(left * image.width + 1e-3), int(top * image.height + 1e-3)
    x, y = min(x, image.width - 1), min(y, image.height - 1)
    return image.crop((x, y, max(x + 1, round(right * image.width)), max(y + 1, round(bottom * image.height))))


def _needs_plugin(data: bytes) -> str:
    """HEIC or JPEG XL by its first bytes; empty for what Pillow itself may read."""
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "JPEG XL"
    size = int.from_bytes(data[:4], "big")
    brands = [data[i : i + 4] for i in (8, *range(16, min(size, 64), 4))] if data[4:8] == b"ftyp" else []
    heic = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"}
    return (
        "HEIC"
        if heic & set(brands) or (brands[:1] in ([b"mif1"], [b"msf1"]) and not {b"avif", b"avis"} & set(brands))
        else ""
    )


@functools.cache
def has_plugin(kind: str) -> bool:
    """Whether the plugin of a format is there; makes Pillow know of it."""
    try:
        module = importlib.import_module(PLUGINS[kind][1])
        if kind == "HEIC":
            module.register_heif_opener(thumbnails=False)
    except (ImportError, OSError):  # its own libraries may be missing
        return False
    Image.init()
    return PLUGINS[kind][2] in Image.OPEN


def _what_it_is(data: bytes) -> str:
    if data[4:8] == b"ftyp" and b"avif" in data[8:32] and not features.check("avif"):
        return "an AVIF picture, which this build of Pillow cannot read; save it as JPEG"
    if data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image"
    return "not an image that Pillow can read, or damaged in its first bytes"
