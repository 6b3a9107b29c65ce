"""Augmentation: torchvision's boxes, exact geometry, draws that depend on the key alone."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tljax.core.errors import UserError
from tljax.data import augment
from tljax.data.augment import Augmentation, make_augment, make_normalize
from tljax.data.geometry import crop_map, flip_map, rotate_map, sample

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def torchvision_get_params(rng, height, width):
    """`RandomResizedCrop.get_params`, line by line."""
    log_ratio = np.log(RATIO)
    for _ in range(10):
        target = height * width * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    if width / height < RATIO[0]:
        w, h = width, round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w, h = round(height * RATIO[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("height,width", [(256, 341), (256, 512), (300, 40)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    """10,000 draws; the largest gap between two distribution functions (Kolmogorov-Smirnov) at a level of 1e-4."""
    count = 10_000
    rng = np.random.default_rng(0)
    theirs = np.array([torchvision_get_params(rng, height, width) for _ in range(count)])
    draw = jax.jit(
        jax.vmap(lambda key: augment.random_resized_box(key, jnp.array([height, width]), scale=SCALE, ratio=RATIO))
    )
    ours = np.asarray(draw(jax.random.split(jax.random.key(0), count)))
    limit = math.sqrt(-math.log(1e-4 / 2) / 2 * 2 / count)
    quantities = {"top": 0, "left": 1, "height": 2, "width": 3}
    for name, column in quantities.items():
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        values = np.union1d(a, b)
        gap = np.abs(np.searchsorted(a, values, "right") - np.searchsorted(b, values, "right")).max() / count
        assert gap < limit, name
    assert (ours[:, 0] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((90, 72), Image.Resampling.BICUBIC))


def on_canvas(picture, height=80, width=100):
    canvas = np.full((height, width, 3), 255, np.uint8)  # what lies beyond the picture must never be seen
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    return canvas, np.array(picture.shape[:2], np.int32)


def test_a_crop_of_the_same_size_copies_pixels(picture):
    image, size = on_canvas(picture)
    out = sample(image, size, crop_map(jnp.array([3, 5, 40, 40]), 40), 40)
    np.testing.assert_array_equal(out, picture[3:43, 5:45])


@pytest.mark.parametrize("box", [(0, 0, 72, 90), (10, 20, 30, 24), (40, 50, 32, 40)])
def test_an_enlarged_crop_equals_pillows(picture, box):
    top, left, h, w = box
    image, size = on_canvas(picture)
    ours = sample(image, size, crop_map(jnp.array(box), 96), 96)
    cut = Image.fromarray(picture[top : top + h, left : left + w])
    theirs = np.asarray(cut.resize((96, 96), Image.Resampling.BILINEAR), np.float32)
    inner = slice(4, -4)  # at a crop's edge Pillow does not see the pixels beyond it, we do
    assert np.abs(np.asarray(ours) - theirs)[inner, inner].max() <= 1.5


def test_a_flip_mirrors(picture):
    image, size = on_canvas(picture)
    affine = crop_map(jnp.array([0, 0, 64, 64]), 64)
    plain = sample(image, size, affine, 64)
    np.testing.assert_array_equal(sample(image, size, flip_map(affine, jnp.array(True), 64), 64), plain[:, ::-1])
    np.testing.assert_array_equal(sample(image, size, flip_map(affine, jnp.array(False), 64), 64), plain)


def test_quarter_turns_are_exact_and_counter_clockwise(picture):
    square = picture[:64, :64]
    image, size = on_canvas(square)
    whole = crop_map(jnp.array([0, 0, 64, 64]), 64)
    for turns in range(4):
        out = sample(image, size, rotate_map(whole, jnp.float32(90 * turns), jnp.array([64, 64])), 64)
        np.testing.assert_allclose(out, np.rot90(square, turns), atol=0.05)


@pytest.mark.parametrize("degrees", [-10.0, 7.0])
def test_rotation_equals_pillows(picture, degrees):
    image, size = on_canvas(picture)
    affine = rotate_map(crop_map(jnp.array([0, 0, 72, 72]), 72), jnp.float32(degrees), size)
    ours = np.asarray(sample(image, size, affine, 72))
    theirs = np.asarray(Image.fromarray(picture).rotate(degrees, Image.Resampling.BILINEAR), np.float32)[:72, :72]
    differences = np.abs(ours - theirs).max(-1)
    assert np.mean(differences <= 2) > 0.97  # Pillow cuts the border hard, we half a pixel out
    assert np.median(differences) <= 1


def test_each_draw_depends_on_its_key_alone(picture):
    image, size = on_canvas(picture)
    run = jax.jit(make_augment(Augmentation(32, rotation=10.0)))
    keys = jax.random.split(jax.random.key(1), 6)
    images, sizes = np.stack([image] * 6), np.stack([size] * 6)
    views = np.asarray(run(keys, images, sizes))
    np.testing.assert_array_equal(views[2:4], run(keys[2:4], images[2:4], sizes[2:4]))
    assert len({view.tobytes() for view in views}) == 6


@pytest.mark.parametrize("crop", ["random", "center"])
def test_windows_are_cut_without_resampling(picture, crop):
    image, size = on_canvas(picture)
    run = jax.jit(make_augment(Augmentation(64, crop=crop, flip=False)))
    views = np.asarray(run(jax.random.split(jax.random.key(0), 40), np.stack([image] * 40), np.stack([size] * 40)))
    windows = {
        picture[t : t + 64, s : s + 64].astype(np.float32).tobytes(): (t, s) for t in range(9) for s in range(27)
    }
    places = {windows[view.tobytes()] for view in views}
    if crop == "center":
        assert places == {(4, 13)}
    else:
        assert len(places) > 25


def test_normalize():
    out = make_normalize((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))(np.full((1, 1, 1, 3), 255, np.uint8))
    np.testing.assert_allclose(out, np.array([1.0, 3.0, 0.5]).reshape(1, 1, 1, 3), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"crop": "squash"},
        {"scale": (0.5, 0.1)},
        {"scale": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"rotation": -1.0},
        {"rotation": 270.0},
    ],
)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(UserError, match=f"augment.{next(iter(options))}"):
        Augmentation(32, **options)


def test_random_functions_take_their_key_first():
    for name, function in inspect.getmembers(augment, inspect.isfunction):
        parameters = list(inspect.signature(function).parameters)
        if "key" in parameters:
            assert parameters[0] == "key", name
