import contextlib
import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tljax.data.decode import Unreadable, decode, has_plugin

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def scene(height=120, width=180):
    """A smooth picture in which no two corners are alike."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return np.stack([200 * x + 20, 180 * y + 40, 110 + 90 * np.sin(9 * x + 4 * y)], -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def by_torchvision(data, resize):
    """`Resize(resize)(Image.open(...).convert('RGB'))`, as torchvision computes the size."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(resize * long / short)
    size = (resize, new_long) if width <= height else (new_long, resize)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


@pytest.mark.parametrize("height, width", [(120, 180), (180, 120), (64, 64), (33, 47), (64, 101), (1, 1), (1, 2)])
def test_pixels_and_size_are_torchvisions(height, width):
    data = encoded(scene(height, width))
    assert np.array_equal(decode(data, short_side=64), by_torchvision(data, 64))


@pytest.mark.parametrize("kind, options", [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {}), ("WEBP", {"lossless": True}),
    ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("JPEG2000", {}), ("AVIF", {}),
])  # fmt: skip
def test_formats(kind, options):
    data = encoded(scene(), kind, **options)
    assert np.array_equal(decode(data, short_side=64), by_torchvision(data, 64))


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P", "YCbCr"])
def test_modes_that_convert_as_in_torchvision(mode):
    image = Image.fromarray(scene()).convert(mode)
    data = encoded(image, {"CMYK": "JPEG", "YCbCr": "TIFF"}.get(mode, "PNG"))
    result = decode(data, short_side=64)
    assert np.array_equal(result, by_torchvision(data, 64))
    if mode in ("CMYK", "YCbCr", "P"):  # and the colors are those of the picture
        assert np.abs(result.astype(int) - by_torchvision(encoded(scene()), 64)).mean() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_clipped(kind):
    gray = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    result = decode(encoded(Image.fromarray(gray), kind), short_side=64)
    assert np.array_equal(result[..., 0], result[..., 2])
    assert np.abs(result[..., 0] - gray / 257.0).max() <= 0.51


def test_big_endian_and_float_gray():
    gray = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pgm = b"P5 64 64 65535\n" + gray.astype(">u2").tobytes()
    assert np.abs(decode(pgm, short_side=64)[..., 1] - gray / 257.0).max() <= 0.51
    unit = Image.fromarray((gray / 65535).astype(np.float32))
    assert np.abs(decode(encoded(unit, "TIFF"), short_side=64)[..., 1] - gray / 257.0).max() <= 0.51


def test_transparent_parts_are_white_whatever_lies_beneath():
    rgba = np.dstack([scene(64, 64), np.full((64, 64), 255, np.uint8)])
    rgba[:32, :, 3] = 0
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("LA"), Image.fromarray(rgba).convert("PA")):
        result = decode(encoded(image, "TIFF" if image.mode == "PA" else "PNG"), short_side=64)
        assert (result[:32] == 255).all()
        assert (result[32:] < 255).any(axis=-1).all()
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([9, 9, 9, 200, 30, 40])
    palette.paste(0, (0, 0, 64, 32))
    for transparency in (0, b"\x00\xff"):
        result = decode(encoded(palette, transparency=transparency), short_side=64)
        assert (result[:32] == 255).all()
        assert (result[32:] == (200, 30, 40)).all()
    key = Image.fromarray(np.where(np.arange(64)[:, None, None] < 32, 7, scene(64, 64) // 2 + 20).astype(np.uint8))
    assert (decode(encoded(key, transparency=(7, 7, 7)), short_side=64)[:32] == 255).all()
    opaque = rgba.copy()
    opaque[..., 3] = 255
    assert np.array_equal(decode(encoded(opaque), short_side=64), scene(64, 64))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data, short_side=64), by_torchvision(encoded(upright), 64))


def test_a_damaged_exif_block_does_not_cost_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(scene(), "JPEG", exif=exif)
    at = good.index(b"Exif\0\0") + 6
    for damage in (b"XX*\0\x08\0\0\0", b"MM\0*\xff\xff\xff\xff"):
        data = good[:at] + damage + good[at + 8 :]
        assert decode(data, short_side=64).shape in {(64, 96, 3), (96, 64, 3)}


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first(kind):
    frames = [Image.new("RGB", (40, 30), color) for color in ((250, 10, 20), (10, 250, 20), (20, 10, 250))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode(data, short_side=30).astype(int) - (250, 10, 20)).max() < 6


@pytest.mark.parametrize("height, width", [(40, 500), (500, 40), (33, 301)])
def test_of_a_long_picture_the_middle_as_if_resized_whole(height, width):
    data = encoded(scene(height, width))
    whole = by_torchvision(data, 32)
    result = decode(data, short_side=32, max_aspect=2.0)
    axis = int(np.argmax(whole.shape[:2]))
    assert result.shape[axis] == 64
    assert result.shape[1 - axis] == 32
    start = round((whole.shape[axis] - 64) / 2)
    middle = whole.take(range(start, start + 64), axis=axis)
    assert np.abs(result.astype(int) - middle).max() <= 1  # Pillow holds the box in float32
    assert (result != middle).mean() < 0.01


def test_a_line_a_pixel_wide_allocates_no_more_than_its_middle():
    gray = Image.new("L", (1, 3_000_000), 90)
    assert decode(encoded(gray), short_side=256).shape == (512, 256, 3)


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "an empty file"),
        (b"hello", "not an image"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "a HEIC picture, which needs pillow-heif|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (bytes(5000), "not an image"),
        (png_header(12_000, 9_000), "12000x9000 is more than 100 megapixels"),
        (png_header(60_000, 60_000), "more than 100 megapixels"),
        (png_header(0, 5), "damaged|not an image|without pixels"),
        (encoded(scene(), "JPEG")[:-400], "damaged: .*truncated"),
        (encoded(scene(), "JPEG")[:200], "damaged|not an image"),
        (encoded(scene())[:-300], "damaged"),
        (encoded(scene(), "GIF")[:900], "damaged"),
        (encoded(scene(), "WEBP")[:300], "damaged|not an image"),
        (encoded(scene(), "TIFF")[:-3000], "damaged|not an image"),
        (b"\xff\xd8" + b"\xff\xda" * 600, "more than 500 scans"),
        (np.zeros((4, 4, 3), np.int64), "an array of int64"),
        (np.zeros((0, 4, 3), np.uint8), "without pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_has_a_reason_of_one_line(data, reason):
    with pytest.raises(Unreadable, match=reason) as caught:
        decode(data, short_side=32)
    assert "\n" not in caught.value.reason
    assert len(caught.value.reason) < 160


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "ICO"])
def test_damage_anywhere_ends_in_a_picture_or_a_reason(kind):
    rng = np.random.default_rng(7)
    good = np.frombuffer(encoded(scene(40, 50), kind), np.uint8)
    for _ in range(60):
        data = good.copy()
        where = rng.integers(0, len(data), rng.integers(1, 9))
        data[where] = rng.integers(0, 256, len(where))
        data = data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data
        with contextlib.suppress(Unreadable):  # and nothing else
            result = decode(data.tobytes(), short_side=16, max_pixels=1_000_000)
            assert result.dtype == np.uint8
            assert min(result.shape[:2]) == 16
            assert result.shape[2] == 3


def test_pillows_warnings_stay_inside_and_the_filters_come_back(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # Pillow warns above this, and refuses above twice this
    odd = [encoded(scene(20, 20)), encoded(scene(20, 40))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)

        def work():
            for data in odd * 50:
                try:
                    decode(data, short_side=16)
                except Unreadable as error:
                    reasons.add(error.reason)

        reasons: set[str] = set()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
    assert reasons == {"more than 100 megapixels"}  # what Pillow refused


def test_decoded_arrays_take_the_same_path():
    picture = scene()
    assert np.array_equal(decode(picture, short_side=64), by_torchvision(encoded(picture), 64))
    small = scene(64, 96)
    assert np.array_equal(decode(small, short_side=64), small)
    assert decode(picture[..., :1], short_side=64).shape == (64, 96, 3)
    assert decode(picture[..., 0], short_side=64).shape == (64, 96, 3)


def center_crop(image, crop):
    """torchvision's CenterCrop for pictures that are large enough."""
    height, width = image.shape[:2]
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    return image[top : top + crop, left : left + crop]


@pytest.mark.real_data
def test_evaluation_pixels_are_torchvisions_on_50_real_images(shared):
    """Resize(256) + CenterCrop(224) + Normalize: mean difference within 1/255, 99.9% of pixels within 3/255."""
    folder = shared / "data" / "oxford_pets_3breeds" / "images"
    files = sorted(folder.glob("*_1[0-9].jpg")) + sorted(folder.glob("*_2[0-9].jpg"))
    assert len(files) >= 50
    sizes = set()
    for file in files[:50]:
        data = file.read_bytes()
        with Image.open(file) as image:
            sizes.add(image.size)
        ours = center_crop(decode(data, short_side=256), 224)
        theirs = center_crop(by_torchvision(data, 256), 224)
        difference = np.abs((ours / np.float32(255) - MEAN) / STD - (theirs / np.float32(255) - MEAN) / STD) * STD
        assert difference.mean() <= 1 / 255
        assert (difference <= 3 / 255).mean() >= 0.999
    assert len(sizes) > 10


@pytest.mark.peer
@pytest.mark.real_data
def test_evaluation_pixels_equal_torchvision_itself(shared, torchvision):
    transforms = torchvision.transforms
    chain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    for file in sorted((shared / "data" / "oxford_pets_3breeds" / "images").glob("*_1[0-9].jpg")):
        ours = center_crop(decode(file.read_bytes(), short_side=256), 224)
        with Image.open(file) as image:
            assert np.array_equal(ours, np.asarray(chain(image.convert("RGB"))))


@pytest.mark.parametrize("form", ["file", "array", "turned"])
def test_a_box_is_cut_from_the_upright_picture(form):
    picture, box = scene(120, 180), np.array([0.25, 0.5, 0.75, 1.0], np.float32)
    if form == "turned":
        lying = Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encoded(lying, "PNG", exif=exif)
    else:
        data = encoded(picture) if form == "file" else picture
    cut = decode(data, short_side=32, box=box)
    assert np.array_equal(cut, by_torchvision(encoded(picture[30:90, 90:180]), 32))


@given(st.tuples(*[st.integers(1, 60)] * 2), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_box_is_cut_at_the_pixels_that_its_corners_name(size, drawn):
    """As the fraction of the picture in float32, which is what sources keep."""
    top, left, h, w = (int(u * (n - 1)) for u, n in zip(drawn, (*size, *size), strict=True))
    bottom, right = min(top + h + 1, size[0]), min(left + w + 1, size[1])
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    box = np.array([top / size[0], left / size[1], bottom / size[0], right / size[1]], np.float32)
    cut = picture[top:bottom, left:right]
    assert np.array_equal(decode(picture, short_side=7, box=box), decode(np.ascontiguousarray(cut), short_side=7))


def test_a_box_thinner_than_a_pixel_is_one():
    assert decode(scene(10, 10), short_side=4, box=np.array([0.99, 0.99, 1, 1], np.float32)).shape == (4, 4, 3)


@pytest.mark.parametrize(
    "kind, start",
    [
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"),
        ("JPEG XL", b"\xff\x0a"),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ],
)
def test_formats_of_the_extra_are_refused_with_the_library_that_reads_them(kind, start):
    with pytest.raises(Unreadable, match="damaged" if has_plugin(kind) else f"a {kind} picture, which needs pillow-"):
        decode(start + bytes(200), short_side=8)


@pytest.mark.parametrize("kind, name, suffix", [("HEIC", "HEIF", "heic"), ("JPEG XL", "JXL", "jxl")])
def test_formats_of_the_extra_are_read_where_it_is_installed(tmp_path, kind, name, suffix):
    if not has_plugin(kind):
        pytest.skip(f"{kind} needs the extra [formats]")
    picture = Image.new("RGB", (40, 30), (200, 40, 30))
    picture.save(tmp_path / f"x.{suffix}", format=name, quality=95)
    found = decode((tmp_path / f"x.{suffix}").read_bytes(), short_side=30)
    assert found.shape == (30, 40, 3)
    assert np.abs(found.astype(int) - (200, 40, 30)).max() < 16


@pytest.mark.parametrize("brands", [b"avifmif1avif", b"mif1\0\0\0\0avif", b"avis\0\0\0\0msf1"])
def test_avif_is_not_taken_for_heic(brands):
    with pytest.raises(Unreadable, match=r"^(?!.*HEIC)"):
        decode(b"\0\0\0\x18ftyp" + brands + bytes(200), short_side=8)
