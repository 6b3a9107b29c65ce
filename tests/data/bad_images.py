"""Files that were found, or could be, where images were looked for: whole ones of odd kinds, broken ones, hostile ones.

`kinds()` has their bytes, each with what must become of it; `litter` puts what is no file of bytes into a folder.
"""

import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features

SIZE = (40, 30)  # of whole pictures, width and height
COLORS = ((200, 40, 30), (40, 180, 60), (30, 60, 210), (230, 220, 60))  # of the four quarters, from the top left


class Kind(NamedTuple):
    """A file, and what must become of it.

    Attributes:
      data: its bytes.
      read: whether it is a picture; None where either will do, as long as it is a picture or a reason.
      quarters: the colors that are then seen, None for those of `picture`; `()` where they are not looked at.
      reason: a regular expression for the reason that it was not read.
    """

    data: bytes
    read: bool | None
    quarters: tuple[tuple[int, int, int], ...] | None = ()
    reason: str = ""


def picture(width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    """Four quarters of plain colors."""
    image = Image.new("RGB", (width, height))
    x, y = -(-width // 2), -(-height // 2)
    for color, corner in zip(COLORS, ((0, 0), (x, 0), (0, y), (x, y)), strict=True):
        image.paste(color, (*corner, width, height))
    return image


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or picture()).save(file, kind, **options)
    return file.getvalue()


def kinds() -> dict[str, Kind]:
    """All kinds, by file name."""
    found: dict[str, Kind] = {}
    for part in (_no_images, _jpegs, _pngs, _other_formats, _shapes):
        for name, kind in part():
            assert name not in found, name
            found[name] = kind
    return found


def _no_images() -> Iterator[tuple[str, Kind]]:
    def skipped(data: bytes, reason: str) -> Kind:
        return Kind(data, read=False, reason=reason)

    unknown = "not an image"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("cat.jpg", encoded("JPEG"))
    yield "empty.jpg", skipped(b"", "an empty file")
    yield "one zero byte.jpg", skipped(b"\0", unknown)
    yield "zero bytes.jpg", skipped(bytes(20_000), unknown)
    yield "all ones.png", skipped(b"\xff" * 20_000, unknown)
    yield "noise.png", skipped(np.random.default_rng(0).bytes(20_000), unknown)
    yield "text.jpg", skipped(b"a cat sat on the mat\n" * 50, unknown)
    yield "web page.jpg", skipped(b"<!DOCTYPE html>\n<html>404</html>", "a web page")
    yield "drawing.png", skipped(b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', unknown)
    yield "archive.jpg", skipped(archive.getvalue(), unknown)
    yield "document.jpg", skipped(b"%PDF-1.7\n1 0 obj <</Type /Catalog>>", unknown)
    yield "postscript.jpg", skipped(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", unknown)
    yield "program.jpg", skipped(b"\x7fELF\x02\x01\x01" + bytes(200), unknown)
    yield "pickle.png", skipped(b"cos\nsystem\n(S'touch harm'\ntR.", unknown)
    yield "targa.jpg", skipped(struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 2, 24, 0) + bytes(12), unknown)
    yield "layers.jpg", skipped(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30, 40, 8, 3) + bytes(99), unknown)
    yield "phone.jpg", skipped(b"\0\0\0\x18ftypheic" + bytes(100), "HEIC")
    yield "film.gif", skipped(b"\0\0\0\x18ftypisom" + bytes(100), unknown)


def _segments(data: bytes) -> dict[int, int]:
    """Where the segments of a JPEG begin, by their marker; the first of each kind."""
    at, found = 2, {}
    while data[at] == 0xFF:
        found.setdefault(data[at + 1], at)
        if data[at + 1] == 0xDA:
            break
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return found


def _jpegs() -> Iterator[tuple[str, Kind]]:
    jpeg, grown = encoded("JPEG", quality=95, subsampling=0), encoded("JPEG", progressive=True)
    at = _segments(jpeg)
    damaged = "damaged|not an image"
    for name, marker in (("APP0", 0xE0), ("DQT", 0xDB), ("SOF", 0xC0), ("DHT", 0xC4), ("SOS", 0xDA)):
        for where, extra in (("before", 0), ("in", 6)):
            yield f"cut {where} {name}.jpg", Kind(jpeg[: at[marker] + extra], read=False, reason=damaged)
    yield "cut after SOI.jpg", Kind(jpeg[:2], read=False, reason=damaged)
    yield "cut in its scan.jpg", Kind(jpeg[: at[0xDA] + 60], read=False, reason="truncated")
    yield "cut in a late scan.jpg", Kind(grown[: len(grown) * 3 // 4], read=None)
    yield "cut before EOI.jpg", Kind(jpeg[:-2], read=None)
    yield "more after its end.jpg", Kind(jpeg + b"<html>" * 1000, read=True, quarters=None)
    yield "something before it.jpg", Kind(b"HTTP/1.1 200 OK\r\n\r\n" + jpeg, read=False, reason="not an image")
    yield "wrong magic.jpg", Kind(b"\xff\xd7" + jpeg[2:], read=False, reason="not an image")
    yield "progressive.jpg", Kind(grown, read=True, quarters=None)
    yield "gray.jpg", Kind(encoded("JPEG", picture().convert("L")), read=True)
    yield "CMYK.jpg", Kind(encoded("JPEG", picture().convert("CMYK"), quality=95), read=True, quarters=None)
    yield "PNG inside.jpg", Kind(encoded("PNG"), read=True, quarters=None)
    yield (
        "several pictures.jpg",
        Kind(encoded("MPO", save_all=True, append_images=[picture(8, 8)], quality=95), read=True, quarters=None),
    )
    for name, size in (("no height", (0, 40)), ("no width", (30, 0))):
        yield f"{name}.jpg", Kind(_resized(jpeg, at[0xC0], *size), read=False, reason="damaged|without pixels|not an")
    yield "says 65500 x 65500.jpg", Kind(_resized(jpeg, at[0xC0], 65_500, 65_500), read=False, reason="megapixels")
    yield "says twice its height.jpg", Kind(_resized(jpeg, at[0xC0], 60, 40), read=None)
    yield "700 scans.jpg", Kind(jpeg[:-2] + jpeg[at[0xDA] : -2] * 700, read=False, reason="scans")
    for name, marker, read in (("lossless", 0xC3, False), ("12 bits", 0xC1, None), ("arithmetic, damaged", 0xC9, None)):
        sof = bytes([0xFF, marker, *jpeg[at[0xC0] + 2 : at[0xC0] + 4], 12 if name == "12 bits" else 8])
        yield f"{name}.jpg", Kind(jpeg[: at[0xC0]] + sof + jpeg[at[0xC0] + 5 :], read=read, reason=damaged)
    # A progressive scan of mean values alone, all zero: its coder writes no byte for a flat gray.
    header = bytes.fromhex("ffd8 ffdb0043 00") + bytes([1] * 64)
    frame, scan = struct.pack(">2sHBHHBBBB", b"\xff\xca", 11, 8, 30, 40, 1, 1, 0x11, 0), b"\xff\xda\0\x08\1\1\0\0\0\0"
    yield "arithmetic.jpg", Kind(header + frame + scan + b"\xff\xd9", read=None, quarters=((128,) * 3,) * 4)
    for turn, quarters in ((3, (3, 2, 1, 0)), (6, (2, 0, 3, 1)), (8, (1, 3, 0, 2))):
        exif = Image.Exif()
        exif[0x0112] = turn
        seen = tuple(COLORS[q] for q in quarters)
        yield f"turned {turn}.jpg", Kind(encoded("JPEG", exif=exif, quality=95), read=True, quarters=seen)
    exif = Image.Exif()
    exif[0x0112] = 99
    nowhere = encoded("JPEG", exif=exif, quality=95)
    where = nowhere.index(b"Exif\0\0") + 6
    yield "turned nowhere.jpg", Kind(nowhere, read=True, quarters=None)
    yield "damaged EXIF.jpg", Kind(nowhere[:where] + b"MM\0*\xff\xff\xff\xff" + nowhere[where + 8 :], read=True,
                                   quarters=None)  # fmt: skip
    profile = b"\xff\xe2" + struct.pack(">H", 16) + b"ICC_PROFILE\0\1\xff"
    yield "a profile of 255 parts, one there.jpg", Kind(jpeg[:2] + profile + jpeg[2:], read=True, quarters=None)


def _resized(jpeg: bytes, sof: int, height: int, width: int) -> bytes:
    return jpeg[: sof + 5] + struct.pack(">HH", height, width) + jpeg[sof + 9 :]


def _chunk(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2, interlaced: int = 0) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _pngs() -> Iterator[tuple[str, Kind]]:
    png, rows = encoded("PNG"), b"".join(b"\0" + row.tobytes() for row in np.asarray(picture()))
    damaged, end = "damaged|not an image", png.index(b"IEND") - 4
    at = png.index(b"IDAT") - 4
    for name, where in (("in its signature", 5), ("in IHDR", 20), ("before IDAT", at), ("in IDAT", at + 30)):
        yield f"cut {name}.png", Kind(png[:where], read=False, reason=damaged)
    yield "cut before IEND.png", Kind(png[:end], read=None)
    yield "wrong signature.png", Kind(b"\x88" + png[1:], read=False, reason="not an image")
    yield "by hand.png", Kind(_png(*SIZE, _chunk(b"IDAT", zlib.compress(rows))), read=True, quarters=None)
    yield "wrong sum of IHDR.png", Kind(png[:29] + bytes(4) + png[33:], read=False, reason=damaged)
    yield "wrong sum of IDAT.png", Kind(png[: end - 4] + bytes(4) + png[end:], read=None)
    yield "no IDAT.png", Kind(_png(*SIZE), read=False, reason=damaged)
    yield "half of its rows.png", Kind(_png(*SIZE, _chunk(b"IDAT", zlib.compress(rows[: len(rows) // 2]))), read=None)
    bomb = zlib.compress(bytes(50_000_000), 9)
    yield "50 MB in IDAT.png", Kind(_png(*SIZE, _chunk(b"IDAT", bomb)), read=None)
    text = _chunk(b"zTXt", b"note\0\0" + bomb)
    yield "50 MB of text.png", Kind(_png(*SIZE, text, _chunk(b"IDAT", zlib.compress(rows))), read=None)
    profile = _chunk(b"iCCP", b"note\0\0" + bomb)
    yield "50 MB of profile.png", Kind(_png(*SIZE, profile, _chunk(b"IDAT", zlib.compress(rows))), read=None)
    for size in ((0, 5), (5, 0)):
        yield f"{size[0]} x {size[1]}.png", Kind(_png(*size), read=False, reason="damaged|without pixels|not an")
    for size in ((20_000, 20_000), (2**31 - 1, 2**31 - 1)):
        data = _png(*size, _chunk(b"IDAT", zlib.compress(bytes(1000))))
        yield f"says {size[0]} x {size[1]}.png", Kind(data, read=False, reason="megapixels|damaged")
    yield "7 bits.png", Kind(_png(*SIZE, _chunk(b"IDAT", zlib.compress(rows)), depth=7), read=False, reason=damaged)
    yield "kind of color 5.png", Kind(_png(*SIZE, _chunk(b"IDAT", b""), color=5), read=False, reason=damaged)
    gray = np.asarray(picture().convert("L"))
    yield "16 bits of gray.png", Kind(encoded("PNG", Image.fromarray(gray.astype(np.uint16) * 257)), read=True)
    wide = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in np.asarray(picture()).reshape(SIZE[1], -1))
    yield (
        "16 bits of color.png",
        Kind(_png(*SIZE, _chunk(b"IDAT", zlib.compress(wide)), depth=16), read=True, quarters=None),
    )
    yield "one bit.png", Kind(encoded("PNG", picture().convert("1")), read=True)
    few = picture().quantize(4)
    white = ((255,) * 3, *COLORS[1:])
    place = few.getpixel((0, 0))
    yield "palette.png", Kind(encoded("PNG", few), read=True, quarters=None)
    yield "palette with transparency.png", Kind(encoded("PNG", few, transparency=place), read=True, quarters=white)
    short = encoded("PNG", few).replace(b"PLTE", b"PLTX")
    yield "palette without colors.png", Kind(short, read=None)
    clear = picture().convert("RGBA")
    clear.paste((1, 2, 3, 0), (0, 0, 20, 15))
    yield "transparent.png", Kind(encoded("PNG", clear), read=True, quarters=white)
    yield "transparent gray.png", Kind(encoded("PNG", clear.convert("LA")), read=True)
    frames = [Image.new("RGB", SIZE, color) for color in COLORS]
    first = (COLORS[0],) * 4
    yield (
        "animated.png",
        Kind(encoded("PNG", frames[0], save_all=True, append_images=frames[1:]), read=True, quarters=first),
    )
    one = _png(1, 1, _chunk(b"IDAT", zlib.compress(b"\0\x80\x40\x20")), interlaced=1)
    yield "interlaced.png", Kind(one, read=True, quarters=((0x80, 0x40, 0x20),) * 4)


def _other_formats() -> Iterator[tuple[str, Kind]]:
    frames = [Image.new("RGB", SIZE, color) for color in COLORS]
    animated: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    first, damaged = (COLORS[0],) * 4, "damaged|not an image"

    gif = encoded("GIF")
    yield "picture.gif", Kind(gif, read=True, quarters=None)
    yield "animated.gif", Kind(encoded("GIF", frames[0], **animated), read=True, quarters=first)
    yield "cut in its header.gif", Kind(gif[:8], read=False, reason=damaged)
    yield "cut in its data.gif", Kind(gif[:-20], read=None)
    yield "no frame.gif", Kind(gif[:13] + b";", read=None)
    yield "screen of 65535.gif", Kind(gif[:6] + b"\xff" * 4 + gif[10:], read=False, reason="megapixels")

    bmp = encoded("BMP")
    upward = bytearray(bmp)
    upward[22:26] = struct.pack("<i", -SIZE[1])
    yield "picture.bmp", Kind(bmp, read=True, quarters=None)
    yield "from the top.bmp", Kind(bytes(upward), read=True, quarters=tuple(COLORS[q] for q in (2, 3, 0, 1)))
    yield "cut.bmp", Kind(bmp[:-500], read=False, reason=damaged)
    yield "says 50000 x 50000.bmp", Kind(bmp[:18] + struct.pack("<ii", 50_000, 50_000) + bmp[26:], read=False,
                                         reason="megapixels")  # fmt: skip

    webp = encoded("WEBP", lossless=True)
    yield "picture.webp", Kind(webp, read=True, quarters=None)
    yield "animated.webp", Kind(encoded("WEBP", frames[0], lossless=True, **animated), read=True, quarters=first)
    yield "cut.webp", Kind(webp[: len(webp) // 2], read=False, reason=damaged)
    yield "wrong length.webp", Kind(webp[:4] + b"\xff\xff\xff\x7f" + webp[8:], read=None)

    tiff = encoded("TIFF")
    lab = np.dstack([np.full(SIZE[::-1], value, np.uint8) for value in (138, 81, 70)])  # a red
    yield "picture.tiff", Kind(tiff, read=True, quarters=None)
    yield "Lab.tiff", Kind(encoded("TIFF", Image.fromarray(lab, "LAB")), read=None)
    yield "CMYK.tiff", Kind(encoded("TIFF", picture().convert("CMYK")), read=True, quarters=None)
    yield "pages.tiff", Kind(encoded("TIFF", frames[0], **animated), read=True, quarters=first)
    gray = np.asarray(picture().convert("L"))
    yield "16 bits.tiff", Kind(encoded("TIFF", Image.fromarray(gray.astype(np.uint16) * 257)), read=True)
    yield "floats.tiff", Kind(encoded("TIFF", Image.fromarray(gray.astype(np.float32) / 255)), read=True)
    nothing = np.full(SIZE[::-1], np.nan, np.float32)
    yield "NaN.tiff", Kind(encoded("TIFF", Image.fromarray(nothing)), read=True)
    yield "packed.tiff", Kind(encoded("TIFF", compression="tiff_lzw"), read=True, quarters=None)
    yield "JPEG inside.tiff", Kind(encoded("TIFF", compression="jpeg"), read=None)
    yield "cut.tiff", Kind(tiff[: len(tiff) // 2], read=False, reason=damaged)
    yield "directory at the end of the world.tiff", Kind(tiff[:4] + b"\xff\xff\xff\xff" + tiff[8:], read=False,
                                                         reason=damaged)  # fmt: skip
    yield "directory that is its own next.tiff", Kind(_circle(tiff), read=None)
    yield "says 60000 x 60000.tiff", Kind(_tagged(_tagged(tiff, 256, 60_000), 257, 60_000), read=False,
                                          reason="megapixels")  # fmt: skip
    yield "4 billion samples.tiff", Kind(_tagged(tiff, 277, 2**16 - 1), read=False, reason=damaged)

    yield "picture.ppm", Kind(encoded("PPM"), read=True, quarters=None)
    yield "in letters.ppm", Kind(b"P3 2 1 255 255 0 0 0 0 255\n", read=True, quarters=((255, 0, 0), (0, 0, 255)) * 2)
    yield "says 9999999 x 9999999.ppm", Kind(b"P6 9999999 9999999 255\n" + bytes(99), read=False, reason="megapixels")
    yield "below zero.ppm", Kind(b"P6 -4 4 255\n" + bytes(99), read=False, reason=damaged)
    yield "no deepest value.ppm", Kind(b"P6 4 4 0\n" + bytes(48), read=False, reason=damaged)
    yield "endless number.ppm", Kind(b"P6 " + b"9" * 100_000 + b" 4 255\n", read=False, reason=damaged)
    yield "short.ppm", Kind(b"P6 40 30 255\n" + bytes(99), read=False, reason=damaged)

    ico = encoded("ICO", sizes=[(16, 16)])
    yield "picture.ico", Kind(ico, read=True)
    yield "no picture.ico", Kind(ico[:4] + bytes(2), read=False, reason=damaged)
    yield "elsewhere.ico", Kind(ico[:18] + b"\xff\xff\xff\x7f" + ico[22:], read=False, reason=damaged)
    for name, kind, module in (("jp2", "JPEG2000", "jpg_2000"), ("avif", "AVIF", "avif")):
        if features.check(module):
            data = encoded(kind)
            yield f"picture.{name}", Kind(data, read=True, quarters=None if name == "avif" else ())
            yield f"cut.{name}", Kind(data[: len(data) // 2], read=None)
            yield f"cut early.{name}", Kind(data[:40], read=False, reason=damaged)


def _entries(tiff: bytes) -> tuple[int, int]:
    (start,) = struct.unpack("<I", tiff[4:8])
    (count,) = struct.unpack("<H", tiff[start : start + 2])
    return start, count


def _circle(tiff: bytes) -> bytes:
    start, count = _entries(tiff)
    after = start + 2 + 12 * count
    return tiff[:after] + struct.pack("<I", start) + tiff[after + 4 :]


def _tagged(tiff: bytes, tag: int, value: int) -> bytes:
    """Another value of a tag, as a 32-bit number in place."""
    start, count = _entries(tiff)
    for i in range(count):
        at = start + 2 + 12 * i
        if struct.unpack("<H", tiff[at : at + 2])[0] == tag:
            return tiff[: at + 2] + struct.pack("<HII", 4, 1, value) + tiff[at + 12 :]
    raise ValueError(f"no tag {tag}")


def _shapes() -> Iterator[tuple[str, Kind]]:
    yield "1 x 1.png", Kind(encoded("PNG", Image.new("RGB", (1, 1), COLORS[2])), read=True, quarters=(COLORS[2],) * 4)
    for width, height in ((20_000, 1), (1, 20_000), (2, 9_000)):
        image = Image.new("RGB", (width, height), COLORS[1])
        yield f"{width} x {height}.png", Kind(encoded("PNG", image), read=True, quarters=(COLORS[1],) * 4)
    yield "20000 x 1.gif", Kind(encoded("GIF", Image.new("RGB", (20_000, 1), COLORS[1])), read=True)


NAMES = (
    "new\nline.png", "<img src=x onerror=alert(1)>.png", "&amp;.png", "[bold]red.png", "a | b.png", "-rf.png", " .png",
    "%s%n.png", "\x1b[31mred.png", "\u202egnp.exe.png", "猫.png", "'; DROP TABLE.png", "x" * 250 + ".png",
    "$(reboot).png",
)  # fmt: skip


def litter(folder: Path) -> dict[str, str]:
    """What only a file system can hold, put into a folder; {name: why it is skipped}."""
    whole = encoded("PNG")

    def device(path: Path) -> None:
        path.symlink_to("/dev/zero")

    def socket_at(path: Path) -> None:
        before = os.getcwd()
        os.chdir(path.parent)  # the address of a socket has room for a short name alone
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
        finally:
            os.chdir(before)

    def sparse(path: Path) -> None:
        with path.open("wb") as file:
            file.write(whole)
            file.truncate(5 << 30)

    def locked(path: Path) -> None:
        if os.geteuid():
            path.write_bytes(whole)
            path.chmod(0)
        else:  # nothing is locked for root; this file opens and cannot be read
            path.symlink_to("/proc/self/mem")

    made: dict[str, tuple[Callable[[Path], Any], str]] = {
        "a folder.jpg": (Path.mkdir, "a folder, not an image"),
        "a broken link.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "a broken link"),
        "a link to itself.jpg": (lambda path: path.symlink_to(path.name), "a broken link"),
        "a pipe.jpg": (os.mkfifo, "not a regular file"),
        "a device.jpg": (device, "not a regular file"),
        "a socket.jpg": (socket_at, "not a regular file"),
        "5 GB of nothing.png": (sparse, "larger than 1 GiB"),
        "locked.png": (locked, "cannot be read"),
    }
    for name, (make, _) in made.items():
        make(folder / name)
    return {name: reason for name, (_, reason) in made.items()}
