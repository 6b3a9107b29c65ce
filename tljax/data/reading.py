"""How a picture is read: one answer for files, bytes, Pillow images and arrays, in training and ever after.

    see("cat.jpg", metadata["preprocessing"])        uint8 [crop, crop, 3], what the network takes

This file needs Pillow and NumPy alone: an export has a copy of it beside the network.

* EXIF orientation is applied.
* Transparent parts become white: alpha is composited on white, a color key or a palette's transparent entry likewise.
* Palettes, CMYK, YCbCr and black-and-white become RGB as Pillow converts them; ICC profiles are not looked at.
* Gray becomes RGB with three equal channels. Values of more than 8 bits are scaled so that `white` becomes 255, and
  cut there; `white` is 2^n - 1 for data of n bits, whatever the files could hold.
* Floats are scaled so that `float_white` becomes 255; where that is not known, 1 if the picture has nothing above 1,
  else 255. An array of floats that fits neither is refused.
"""

import contextlib
import io
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

# Formats that photographs come in. Without a list Pillow would also try those that start another program (EPS runs
# Ghostscript) or take almost any bytes for an image (TGA).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB", "JPEG2000", "AVIF", "ICO")
PLUGINS = ("HEIF", "JXL")  # of pillow-heif and pillow-jxl-plugin, where somebody has imported and registered them
MAX_ASPECT = 2.0  # of a longer picture only the middle is kept
WHITE = 65535  # of 16 bits
ROUNDED = 1.001  # times white: floats that were computed may lie as far above it
DIM = 16  # of 255: floats above 1 that do not reach it are more likely something else than a picture
ORIENTATION = 0x0112  # EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_loading = threading.Lock()  # one Pillow image may be asked about twice, in two threads


class Unreadable(ValueError):
    """This is no picture that can be used; `reason` says why in one line."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def see(picture: Any, how: Mapping[str, Any]) -> np.ndarray:
    """What evaluation shows the network of a picture.

    Args:
      picture: a path, the bytes of a file, a Pillow image, or an array as `from_array` takes it.
      how: `resize`, `crop`, and where they are known `white` and `float_white`.

    Returns:
      uint8 `[crop, crop, 3]`.

    Raises:
      Unreadable, OSError, and what else Pillow's readers raise: for what is no picture.
    """
    levels = {"white": how.get("white") or WHITE, "float_white": how.get("float_white")}
    if isinstance(picture, np.ndarray):
        image = from_array(picture, **levels)
    elif isinstance(picture, Image.Image):
        load(picture, shared=True)
        image = from_image(picture, **levels)
    else:
        file = io.BytesIO(picture) if isinstance(picture, bytes) else os.fspath(picture)
        with Image.open(file, formats=[*FORMATS, *(name for name in PLUGINS if name in Image.OPEN)]) as opened:
            opened.load()
            image = from_image(opened, **levels)
    square = np.zeros((how["crop"], how["crop"], 3), np.uint8)
    put_central_square(np.asarray(fit(image, how["resize"])), square)
    return square


def load(image: Image.Image, *, shared: bool) -> None:
    """Reads a Pillow image's pixels; of one that others may hold, too, one at a time."""
    with _loading if shared else contextlib.nullcontext():
        image.load()


def from_image(image: Image.Image, *, white: int = WHITE, float_white: float | None = None) -> Image.Image:
    """A loaded Pillow image -> upright RGB. Of several frames the one at hand."""
    turn = _turn(image)
    if is_wide(image):
        picture = _to_rgb(np.asarray(image), white, float_white)
        key = image.info.get("transparency")
        if isinstance(key, int) and image.mode != "F":
            picture[np.asarray(image) == key] = 255
        image = Image.fromarray(picture)
    elif image.has_transparency_data:
        image = _on_white(image.convert("RGBA"))
    image = image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy
    return image if turn is None else image.transpose(turn)


def from_array(data: np.ndarray, *, white: int = WHITE, float_white: float | None = None) -> Image.Image:
    """Pixels -> RGB. They are upright.

    Args:
      data: `[H, W]` or `[H, W, 1]` gray, `[H, W, 2]` gray and alpha, `[H, W, 3]` RGB, `[H, W, 4]` RGB and alpha: bool,
        uint8, uint16, float; gray also int32, as Pillow gives it. Alpha goes to the type's largest value, of floats 1.
      white: of integers of more than 8 bits.
      float_white: of floats.

    Raises:
      Unreadable: another type or shape, or floats that are no pixels.
    """
    kind, shape = data.dtype, data.shape
    size = kind.itemsize  # of either order of bytes
    known = kind.kind in "bf" or (kind.kind == "u" and size <= 2) or (kind.kind == "i" and size == 4 and data.ndim == 2)
    if not known or data.ndim not in (2, 3) or (data.ndim == 3 and not 1 <= shape[2] <= 4):
        raise Unreadable(f"an array of {kind} {list(shape)}, not uint8 [H, W, 3]")
    if 0 in shape:
        raise Unreadable("a picture without pixels")
    if kind.kind == "f" and not (np.isfinite(data).all() and data.min() >= 0):
        raise Unreadable(
            "floats that are below 0 or not finite; give pixels from 0 up, as they were before normalization"
        )
    data = data[..., None] if data.ndim == 2 else data
    alpha = data[..., -1:] if data.shape[2] in (2, 4) else None
    colors = data if alpha is None else data[..., :-1]
    if kind.kind == "f" and (reason := _beyond(float(colors.max()), float_white)):
        raise Unreadable(f"floats up to {colors.max():g}, {reason}; give pixels in that range, or uint8")
    picture = _to_rgb(colors, white, float_white)
    if alpha is None:
        return Image.fromarray(picture)
    most = {"f": 1.0, "b": 1}.get(kind.kind) or np.iinfo(kind).max
    cover = np.rint(np.nan_to_num(alpha.astype(np.float32)).clip(0, most) * (255 / most)).astype(np.uint8)
    return _on_white(Image.fromarray(np.concatenate([picture, cover], axis=2)))


def _beyond(most: float, white: float | None) -> str:
    """Why floats with this largest value are no pixels: it is above white, or far below the white that it would be read
    with. Empty where they are."""
    if white is not None:
        return "" if most <= white * ROUNDED else f"more than the run's white, {white:g}"
    return "" if most <= ROUNDED or DIM <= most <= 255 * ROUNDED else "neither from 0 to 1 nor from 0 to 255"


def largest(data: np.ndarray) -> tuple[int, float]:
    """The largest value of pixels, alpha apart: of integers of more than 8 bits, and of floats; else 0."""
    data = data[..., :-1] if data.ndim == 3 and data.shape[2] in (2, 4) else data
    if data.dtype.kind == "f":
        return 0, float(np.max(data, where=np.isfinite(data), initial=0))
    return (0 if data.dtype.itemsize == 1 else max(0, int(data.max(initial=0)))), 0.0


def fit(image: Image.Image, short_side: int, max_aspect: float = MAX_ASPECT) -> Image.Image:
    """Resizes a picture by its shorter side, antialiased and bilinear, as torchvision's `Resize(int)` does on Pillow.

    Of one that is longer than `max_aspect` times its width only the middle is kept.
    """
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


def put_central_square(image: np.ndarray, target: np.ndarray) -> None:
    """Puts the center of a picture `[H, W, 3]` into a square of zeros, as torchvision's `CenterCrop` does."""
    crop = len(target)
    (top, into_top, height), (left, into_left, width) = (_center(side, crop) for side in image.shape[:2])
    target[into_top : into_top + height, into_left : into_left + width] = image[top : top + height, left : left + width]


def _center(side: int, crop: int) -> tuple[int, int, int]:
    """(first pixel taken, where it is put, how many), with torchvision's rounding: half to even, smaller pad first."""
    if side < crop:
        return 0, (crop - side) // 2, side
    return round((side - crop) / 2.0), 0, crop


def is_wide(image: Image.Image) -> bool:
    """Whether its values have more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def _to_rgb(values: np.ndarray, white: int, float_white: float | None) -> np.ndarray:
    """Values `[H, W]`, `[H, W, 1]` or `[H, W, 3]` of any type -> uint8 `[H, W, 3]`."""
    values = values[..., None] if values.ndim == 2 else values
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float32))
        values = values * np.float32(255 / (float_white or (1 if values.max() <= ROUNDED else 255)))
        values = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        wide = np.clip(values.astype(np.int64), 0, white)
        values = ((wide * 255 + white // 2) // white).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _on_white(image: Image.Image) -> Image.Image:
    if image.getchannel("A").getextrema()[0] != 255:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image)
        image = page
    return image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about orientation; the picture may be fine
        return None
