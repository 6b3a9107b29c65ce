"""Pictures of every mode and form that files come in, for whoever holds that all read them alike."""

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tljax.data.decode import has_plugin

ORIENTATION = 0x0112


class Odd(NamedTuple):
    """A picture.

    Attributes:
      data: the bytes of a file.
      pixels: the same picture as somebody has it in an array.
    """

    data: bytes
    pixels: np.ndarray


def scene(height: int = 50, width: int = 64) -> np.ndarray:
    """A smooth picture in which no two corners are alike."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return np.stack([200 * x + 20, 180 * y + 40, 110 + 90 * np.sin(9 * x + 4 * y)], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make() -> dict[str, Odd]:
    """By a name that says what is odd."""
    color = Image.fromarray(scene())
    gray = color.convert("L")
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (50, 1)))
    veiled, gray_veiled = color.copy(), gray.convert("LA")
    veiled.putalpha(alpha)
    gray_veiled.putalpha(alpha)
    wide = np.asarray(gray).astype(np.uint16) * 257
    palette = color.quantize(16)
    turned = {f"turned {n} {kind}": (color, kind, {"exif": _exif(n), **more})
              for n, kind, more in ((6, "JPEG", {"quality": 95}), (3, "PNG", {}), (8, "WEBP", {"lossless": True}),
                                    (5, "TIFF", {}), (7, "PNG", {}))}  # fmt: skip
    saved: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        **turned,
        "gray": (gray, "PNG", {}),
        "black and white": (gray.convert("1"), "PNG", {}),
        "gray and alpha": (gray_veiled, "PNG", {}),
        "gray and alpha, turned": (gray_veiled, "PNG", {"exif": _exif(6)}),
        "alpha": (veiled, "PNG", {}),
        "alpha webp": (veiled, "WEBP", {"lossless": True}),
        "alpha tiff": (veiled, "TIFF", {}),
        "palette": (palette, "PNG", {}),
        "palette gif": (palette, "GIF", {}),
        "palette, transparent entry": (palette, "PNG", {"transparency": 3}),
        "palette gif, transparent entry": (palette, "GIF", {"transparency": 3}),
        "palette, alpha by entry": (palette, "PNG", {"transparency": bytes(range(0, 256, 16))}),
        "color key": (color, "PNG", {"transparency": tuple(int(v) for v in scene()[10, 10])}),
        "gray key": (gray, "PNG", {"transparency": int(np.asarray(gray)[10, 10])}),
        "CMYK": (color.convert("CMYK"), "JPEG", {"quality": 95}),
        "CMYK tiff": (color.convert("CMYK"), "TIFF", {}),
        "YCbCr": (color.convert("YCbCr"), "TIFF", {}),
        "16 bits": (Image.fromarray(wide), "PNG", {}),
        "16 bits tiff": (Image.fromarray(wide), "TIFF", {}),
        "16 bits, turned": (Image.fromarray(wide), "PNG", {"exif": _exif(8)}),
        "16 bits, gray key": (Image.fromarray(wide), "PNG", {"transparency": int(wide[10, 10])}),
        "16 bits pgm": (Image.fromarray(wide), "PPM", {}),
        "32 bits": (Image.fromarray(wide.astype(np.int32)), "TIFF", {}),
        "float to 1": (Image.fromarray((np.asarray(gray) / 255).astype(np.float32)), "TIFF", {}),
        "float to 255": (Image.fromarray(np.asarray(gray).astype(np.float32)), "TIFF", {}),
        "long": (Image.fromarray(scene(40, 200)), "PNG", {}),
    }
    for kind, form in (("HEIC", "HEIF"), ("JPEG XL", "JXL")):
        if has_plugin(kind):
            saved |= {kind: (color, form, {}), f"{kind}, turned": (color, form, {"exif": _exif(6).tobytes()}),
                      f"{kind}, alpha": (veiled, form, {})}  # fmt: skip
    found = {name: Odd(data, _pixels(data)) for name, (image, kind, options) in saved.items()
             for data in [encoded(image, kind, **options)]}  # fmt: skip
    big_endian = b"P5 64 50 65535\n" + wide.astype(">u2").tobytes()
    return found | {"big-endian": Odd(big_endian, wide), "16 bits of color": _deep(scene())}


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def _pixels(data: bytes) -> np.ndarray:
    """As NumPy has a picture that is turned upright; of modes whose numbers are no colors, converted before."""
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    key = image.info.get("transparency")
    if key is not None and image.mode.startswith("I"):  # which no array of gray can say
        pixels = np.asarray(image)
        return np.stack([pixels, np.where(pixels == key, 0, 65535).astype(np.uint16)], -1)
    kept = image.mode in ("1", "L", "LA", "RGB", "RGBA", "F") or image.mode.startswith("I")
    return np.asarray(image if kept and not (key is not None) else image.convert("RGBA"))


def _deep(pixels: np.ndarray) -> Odd:
    """A PNG of 16-bit colors, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    wide = pixels.astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return Odd(b"\x89PNG\r\n\x1a\n" + b"".join(parts), wide)
