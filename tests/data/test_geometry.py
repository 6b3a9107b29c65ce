"""Where things land: what augmentation shows lies where the map by hand says, for any crop, flip and turn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.commands import QUICK
from tljax.data.augment import Augmentation, augment_one
from tljax.data.batches import center_crops
from tljax.data.geometry import crop_map, flip_map, random_resized_box, rotate_map, sample
from tljax.data.pixels import Pixels

CANVAS = 80
KEYS = st.integers(0, 2**32 - 1)
SIDES = st.tuples(st.integers(32, CANVAS), st.integers(32, CANVAS))
run_sample = jax.jit(sample, static_argnums=3)
# A float32 near 100 is known to 8e-6. In its older form XLA may compute a coordinate twice, with and without fused
# multiply-add; the two weights of a tap then miss a sum of 1 by so much on each axis, of values up to 255.
ROUNDING = 255 * 2 * 2 * 8e-6 if QUICK else 1e-3


@st.composite
def views(draw):
    """Size of a picture, a crop box in it, side of the view, whether it is mirrored, degrees of the turn."""
    height, width = draw(SIDES)
    h, w = draw(st.integers(8, height)), draw(st.integers(8, width))
    box = draw(st.integers(0, height - h)), draw(st.integers(0, width - w)), h, w
    return (height, width), box, draw(st.sampled_from([8, 17, 64])), draw(st.booleans()), draw(st.floats(-180, 180))


def land(points, size, box, out, flip, degrees):
    """Where points `[n, 2]` of the picture lie in the view: turned about its center, cut, enlarged, mirrored."""
    angle, center = np.deg2rad(degrees), (np.array(size) - 1) / 2
    y, x = (np.asarray(points, float) - center).T
    y, x = y * np.cos(angle) - x * np.sin(angle) + center[0], y * np.sin(angle) + x * np.cos(angle) + center[1]
    top, left, height, width = box
    y, x = (y + 0.5 - top) * out / height - 0.5, (x + 0.5 - left) * out / width - 0.5
    return np.stack([y, out - 1 - x if flip else x], axis=1)


def map_of(size, box, out, flip, degrees):
    """The composed map as augmentation makes it, from the view to the picture."""
    return rotate_map(
        flip_map(crop_map(jnp.array(box), out), jnp.array(flip), out), jnp.float32(degrees), jnp.array(size)
    )


def apply(affine, points):
    return np.asarray(points) @ np.asarray(affine, float)[:, :2].T + np.asarray(affine, float)[:, 2]


def come_from(view):
    """The picture's coordinates under each of the view's pixels, `[out, out, 2]`: `land` backwards."""
    out = view[2]
    origin, down, right = land([[0, 0], [1, 0], [0, 1]], *view)
    pixels = np.stack(np.meshgrid(np.arange(out), np.arange(out), indexing="ij"), axis=-1)
    return np.linalg.solve(np.stack([down - origin, right - origin], axis=1), (pixels - origin)[..., None])[..., 0]


@given(views(), st.lists(st.tuples(st.floats(-200, 200), st.floats(-200, 200)), min_size=1, max_size=9))
def test_the_map_leads_back_to_where_each_point_came_from(view, points):
    """The corners of the picture and of the crop among them; those of the crop are the view's own, unless turned."""
    (height, width), (top, left, h, w), out, flip, _ = view
    corners = [(top - 0.5, left - 0.5), (top + h - 0.5, left + w - 0.5)]
    points = np.array([*points, (0, 0), (height - 1, width - 1), *corners])
    np.testing.assert_allclose(apply(map_of(*view), land(points, *view)), points, atol=0.01)
    ends = apply(map_of(*view[:4], 0.0), [(-0.5, -0.5), (out - 0.5, out - 0.5)])
    columns = np.sort([left - 0.5, left + w - 0.5])[:: -1 if flip else 1]
    np.testing.assert_allclose(ends, np.stack([[top - 0.5, top + h - 0.5], columns], axis=1), atol=1e-3)


@given(views(), st.floats(-180, 180))
def test_mirrored_twice_and_turned_back_is_as_before(view, degrees):
    size, affine, out = jnp.array(view[0]), map_of(*view), view[2]
    true = jnp.array(True)
    np.testing.assert_allclose(flip_map(flip_map(affine, true, out), true, out), affine, atol=2e-3)
    turned = rotate_map(affine, jnp.float32(degrees), size)
    np.testing.assert_allclose(rotate_map(turned, jnp.float32(-degrees), size), affine, atol=2e-3)
    np.testing.assert_allclose(turned, map_of(*view[:4], view[4] + degrees), atol=2e-3)


@given(views(), st.data())
def test_a_box_is_seen_where_its_corners_land(view, data):
    """Each pixel of a view is the box's color, or the ground's, or black beyond the picture, as its place says."""
    (height, width), *_ = view
    top, bottom = sorted(data.draw(st.lists(st.integers(0, height - 1), min_size=2, max_size=2)))
    left, right = sorted(data.draw(st.lists(st.integers(0, width - 1), min_size=2, max_size=2)))
    image = np.full((CANVAS, CANVAS, 3), 255, np.uint8)  # beyond the picture, never to be seen
    image[:height, :width] = (10, 200, 30)
    image[top : bottom + 1, left : right + 1] = (90, 40, 250)
    seen = np.asarray(run_sample(image, np.array((height, width)), map_of(*view), view[2]))
    y, x = np.moveaxis(come_from(view), -1, 0)

    def depth(first, last, at):  # pixels within a span, negative beyond it
        return np.minimum(at - first, last - at)

    within = np.minimum(depth(-0.5, height - 0.5, y), depth(-0.5, width - 0.5, x))
    in_box = np.minimum(depth(top, bottom, y), depth(left, right, x))
    slack = 0.02
    for where, color in (
        (within < -slack, (0, 0, 0)),
        ((within > slack) & (in_box > slack), (90, 40, 250)),
        ((within > slack) & (in_box < -1 - slack), (10, 200, 30)),
    ):
        np.testing.assert_allclose(seen[where], np.broadcast_to(np.float32(color), seen[where].shape), atol=ROUNDING)


UNIT = st.floats(0, 1)


@given(
    SIDES, st.integers(24, 80), st.sampled_from([32, 64]), st.booleans(), st.floats(-180, 180), st.tuples(*[UNIT] * 5)
)
def test_a_spot_lands_where_it_should(size, h, out, flip, degrees, drawn):
    """Its center of light, within a quarter of a pixel, in a crop that holds it."""
    w = round(h * (0.6 + drawn[0]))
    sigma = 1.5 * max(1, h / out, w / out)
    spot = 3.5 * sigma + np.array(drawn[1:3]) * (np.array(size) - 1 - 7 * sigma)
    turned = land(spot[None], size, (0, 0, 1, 1), 1, False, degrees)[0]
    top, left = np.floor(turned - (0.4 + 0.2 * np.array(drawn[3:])) * (h, w)).astype(int)
    view = size, (top, left, h, w), out, flip, degrees
    y, x = np.mgrid[:CANVAS, :CANVAS]
    light = 255 * np.exp(-((y - spot[0]) ** 2 + (x - spot[1]) ** 2) / (2 * sigma**2))
    image = np.repeat(np.round(light)[..., None], 3, axis=-1).astype(np.uint8)
    seen = np.asarray(run_sample(image, np.array(size), map_of(*view), out))[..., 0]
    found = (np.mgrid[:out, :out] * seen).sum((1, 2)) / seen.sum()
    np.testing.assert_allclose(found, land(spot[None], *view)[0], atol=0.25)


@given(views(), st.integers(0, 2**32), st.tuples(*[st.integers(0, 255)] * 3))
def test_values_stay_in_range_and_a_single_color_stays(view, seed, color):
    """Black beyond the picture and nowhere else, whatever lies on the canvas there."""
    size = np.array(view[0])
    y, x = np.moveaxis(come_from(view), -1, 0)
    beyond = np.maximum(np.maximum(-0.5 - y, y - size[0] + 0.5), np.maximum(-0.5 - x, x - size[1] + 0.5))
    image = np.random.default_rng(seed).integers(0, 256, (CANVAS, CANVAS, 3), dtype=np.uint8)
    seen = np.asarray(run_sample(image, size, map_of(*view), view[2]))
    assert seen.min() >= 0 and seen.max() <= 255 + ROUNDING
    image[: size[0], : size[1]] = color
    seen = np.asarray(run_sample(image, size, map_of(*view), view[2]))
    inner = seen[beyond < -0.01]
    np.testing.assert_allclose(inner, np.broadcast_to(np.float32(color), inner.shape), atol=ROUNDING)
    assert not seen[beyond > 0.01].any()


@jax.jit
def boxes(key, size, scale, ratio):
    return jax.vmap(lambda key: random_resized_box(key, size, scale=scale, ratio=ratio))(jax.random.split(key, 50))


RATIO = st.floats(0.05, 20)


@given(
    KEYS, st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted), st.tuples(RATIO, RATIO).map(sorted),
)  # fmt: skip
def test_a_crop_lies_in_the_picture_with_the_share_and_the_ratio_asked_for(key, size, scale, ratio):
    """Before its sides are rounded to whole pixels; where none fits, as much of the middle as has the ratio."""
    found = boxes(jax.random.key(key), jnp.array(size), jnp.array(scale), jnp.array(ratio))
    top, left, h, w = np.asarray(found, float).T
    height, width = size
    assert (h >= 1).all() and (w >= 1).all()
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    more = 0.5 + 1e-3  # of a side, by rounding
    right_ratio = ((w + more) / np.maximum(h - more, 1e-9) >= ratio[0]) & ((w - more) / (h + more) <= ratio[1])
    areas = np.array(scale) * height * width
    right_share = ((w + more) * (h + more) >= areas[0]) & ((w - more) * (h - more) <= areas[1])
    central = (top == (height - h) // 2) & (left == (width - w) // 2) & ((h == height) | (w == width))
    assert ((right_ratio | (np.minimum(h, w) == 1)) & (right_share | central)).all()


AUGMENTATIONS = [
    Augmentation(24, rotation=30.0, scale=(0.3, 0.9)),
    Augmentation(16, flip=False, scale=(0.5, 0.5), ratio=(0.8, 2.0)),
    Augmentation(32, crop="random", rotation=5.0, rotations=3),
    Augmentation(20, crop="random"),
    Augmentation(32, crop="center", rotation=180.0, flip=False),
    Augmentation(15, crop="center", flip=False),
]


@functools.cache
def augmented(which):
    return jax.jit(functools.partial(augment_one, augmentation=AUGMENTATIONS[which]))


@given(st.sampled_from(range(len(AUGMENTATIONS))), KEYS, SIDES)
def test_a_view_is_the_crop_flip_and_turn_that_were_asked_for(which, key, size):
    """Red tells the row that a pixel of the view comes from, green the column, blue that it is of the picture."""
    a, (height, width) = AUGMENTATIONS[which], size
    image = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    image[:height, :width, 0], image[:height, :width, 1] = np.mgrid[:height, :width]
    image[:height, :width, 2] = 255
    seen = np.asarray(augmented(which)(jax.random.key(key), image, np.array(size)), float)
    inside = seen[..., 2] > 254.9
    assert not seen[~inside].any()
    # Where nothing is cut at the picture's edge the view tells its map.
    free = inside & (seen[..., :2] > 0.01).all(-1) & (seen[..., :2] < np.array(size) - 1.01).all(-1)
    rows, columns = np.nonzero(free)
    assume(np.ptp(rows) > 3 and np.ptp(columns) > 3)
    known = np.stack([rows, columns, np.ones(len(rows))], axis=1)
    affine = np.linalg.lstsq(known, seen[free][:, :2], rcond=None)[0].T
    np.testing.assert_allclose(known @ affine.T, seen[free][:, :2], atol=0.01)

    angle = np.arctan2(-affine[1, 0], affine[0, 0])
    assert abs(np.rad2deg(angle)) <= a.rotation * a.rotations + 0.1
    back = jnp.float32(-np.rad2deg(angle))
    straight = np.asarray(rotate_map(jnp.asarray(affine, jnp.float32), back, jnp.array(size)))
    np.testing.assert_allclose([straight[0, 1], straight[1, 0]], 0, atol=0.005)
    flipped = straight[1, 1] < 0
    assert a.flip or not flipped
    h, w = a.size * straight[0, 0], a.size * abs(straight[1, 1])
    ends = apply(straight, [(-0.5, -0.5), (a.size - 0.5, a.size - 0.5)])
    top, left = ends.min(axis=0) + 0.5
    np.testing.assert_allclose([top, left, h, w], np.round([top, left, h, w]), atol=0.15)
    top, left, h, w = np.round([top, left, h, w])
    assert 0 <= top <= height - h and 0 <= left <= width - w
    if a.crop != "random_resized":
        assert h == w == a.size
    else:
        assert a.ratio[0] <= (w + 0.5) / (h - 0.5) and (w - 0.5) / (h + 0.5) <= a.ratio[1]
        low, high = (share * height * width for share in a.scale)
        whole = h == height or w == width  # where none of ten draws fits
        assert ((h + 0.5) * (w + 0.5) >= low and (h - 0.5) * (w - 0.5) <= high) or whole
    if a.crop == "center":
        assert (top, left) == (round((height - a.size) / 2), round((width - a.size) / 2))


@given(SIDES, st.integers(0, 2**32))
def test_a_central_view_is_the_one_that_evaluation_cuts(size, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    canvas[: size[0], : size[1]] = picture
    which = len(AUGMENTATIONS) - 1
    side = AUGMENTATIONS[which].size
    top, left = (round((length - side) / 2) for length in size)
    cut = picture[top : top + side, left : left + side]
    np.testing.assert_array_equal(augmented(which)(jax.random.key(0), canvas, np.array(size)), cut)
    pixels = Pixels(picture.reshape(-1), np.zeros(1, np.int64), np.array([size], np.int32))
    batch = {"index": np.zeros(1, np.int32), "mask": np.ones(1, np.float32)}
    np.testing.assert_array_equal(center_crops(pixels, batch, side)["image"][0], cut)
