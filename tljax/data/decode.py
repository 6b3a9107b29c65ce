"""One encoded image -> upright RGB, uint8, short side as asked.

The yardstick is torchvision: `Image.open(...).convert('RGB')`, then `Resize(short_side)` on Pillow. Where that reads a
picture other than a person sees it, the person is right: EXIF orientation is applied, transparent parts become white
(`convert` shows whatever colour lies beneath), and 16-bit grey is scaled (`convert` clips it at 255).
"""

import contextlib
import functools
import importlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, features

# Formats that photographs come in. Without a list Pillow would also try those that start another program (EPS runs
# Ghostscript) or take almost any bytes for an image (TGA).
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB", "JPEG2000", "AVIF", "ICO")
# What Pillow reads by a plugin alone, of the extra [formats]: the package, its module, and the name of its format.
PLUGINS = {"HEIC": ("pillow-heif", "pillow_heif", "HEIF"), "JPEG XL": ("pillow-jxl-plugin", "pillow_jxl", "JXL")}
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Progressive JPEGs have about ten scans; thousands in a small file are made to keep a decoder busy for hours.
_MOST_SCANS = 500


class Unreadable(ValueError):
    """These bytes are no image that can be used; `reason` says why in one line."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def decode(
    data: bytes | np.ndarray,
    *,
    short_side: int,
    max_aspect: float = 2.0,
    max_pixels: int = 100_000_000,
    box: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes and resizes one image.

    Reads JPEG (progressive, CMYK), PNG, GIF, BMP, WebP, TIFF, PPM, JPEG 2000, AVIF and ICO in all of Pillow's modes,
    and HEIC and JPEG XL where the extra `[formats]` is installed; of several frames the first. Safe to call from
    several threads.

    Args:
      data: the bytes of a file, or a decoded picture, uint8 `[H, W]` or `[H, W, 1 | 3 | 4]`.
      short_side: pixels of the shorter side of the result; the longer one becomes int(short_side * long / short), both
        by Pillow's antialiased bilinear filter, as in torchvision's `Resize(int)`.
      max_aspect: at least 1. Of a longer picture only the central part is kept, int(short_side * max_aspect) pixels
        long; it is that part of the whole picture resized, but for single pixels that differ by 1 of 255.
      max_pixels: pictures with more are refused before they are decoded. Pillow itself refuses 179 million.
      box: `(ymin, xmin, ymax, xmax)` in fractions of the upright picture, to which it is cut first; None for all of it.

    Returns:
      uint8 `[h, w, 3]`, min(h, w) = short_side, C-contiguous. A decoded picture that fits already is returned as it is.

    Raises:
      Unreadable: empty, truncated, damaged, too large, or no image at all.
    """
    if isinstance(data, np.ndarray):
        return _from_array(data, short_side, max_aspect, box)
    if not data:
        raise Unreadable("an empty file")
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > _MOST_SCANS:
        raise Unreadable(f"a JPEG with more than {_MOST_SCANS} scans")
    try:
        kind = _needs_plugin(data)
        if kind and not has_plugin(kind):
            raise Unreadable(f"a {kind} picture, which needs {PLUGINS[kind][0]} (pip install '.[formats]')")
        formats = (PLUGINS[kind][2],) if kind else _FORMATS
        with _quiet_pillow(), Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise Unreadable(f"{image.width}x{image.height} is more than {max_pixels / 1e6:g} megapixels")
            image.load()
            return np.array(_fit(_cut(_upright(_rgb(image), image), box), short_side, max_aspect))
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


def _from_array(data: np.ndarray, short_side: int, max_aspect: float, box: np.ndarray | None) -> np.ndarray:
    if data.dtype != np.uint8 or data.ndim not in (2, 3) or (data.ndim == 3 and data.shape[2] not in (1, 3, 4)):
        raise Unreadable(f"an array of {data.dtype} {list(data.shape)}, not uint8 [H, W, 3]")
    if 0 in data.shape:
        raise Unreadable("a picture without pixels")
    height, width = data.shape[:2]
    fits = min(height, width) == short_side and max(height, width) <= short_side * max_aspect
    if data.shape[2:] == (3,) and fits and box is None:
        return np.ascontiguousarray(data)
    image = Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data)
    return np.array(_fit(_cut(_rgb(image), box), short_side, max_aspect))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, also as 32-bit integers; wider values are rare and saturate
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":  # convention: 0..1, or else 0..255 as Pillow takes it
        grey = np.nan_to_num(np.asarray(image))
        grey = grey * 255 if grey.size and grey.max() <= 1 else grey
        image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image)
            image = page
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(opened.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about orientation; the picture may be fine
        turn = None
    return image if turn is None else image.transpose(turn)


def _cut(image: Image.Image, box: np.ndarray | None) -> Image.Image:
    """What lies in a box, at least a pixel of it."""
    if box is None:
        return image
    top, left, bottom, right = (float(end) for end in box)
    # Of a fraction that float32 rounded down, the pixel is the one that was named, not the one before it.
    x, y = int(left * image.width + 1e-3), int(top * image.height + 1e-3)
    x, y = min(x, image.width - 1), min(y, image.height - 1)
    return image.crop((x, y, max(x + 1, round(right * image.width)), max(y + 1, round(bottom * image.height))))


def _fit(image: Image.Image, short_side: int, max_aspect: float) -> Image.Image:
    short, long = sorted(image.size)
    if short < 1:
        raise Unreadable(f"a picture without pixels ({image.width}x{image.height})")
    length = int(short_side * long / short)
    kept = int(short_side * max_aspect)
    if length <= kept:
        span, box = length, None
    else:
        # Cut in coordinates of the result: the filter still reaches beyond the box, so the cut leaves no
        # edge. (Pillow keeps the box in float32, hence a few pixels that round the other way.)
        start, scale = round((length - kept) / 2.0), long / length
        span, box = kept, (start * scale, 0.0, (start + kept) * scale, float(short))
    if image.width > image.height:
        return image.resize((span, short_side), Image.Resampling.BILINEAR, box=box)
    box = box and (box[1], box[0], box[3], box[2])
    return image.resize((short_side, span), Image.Resampling.BILINEAR, box=box)


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
