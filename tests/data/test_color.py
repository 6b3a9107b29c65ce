"""Colors: torchvision's arithmetic on floats, draws that depend on the key alone, each switch off by default."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.core.errors import UserError
from tljax.data import color
from tljax.data.augment import Augmentation, make_views
from tljax.data.color import Color

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def picture():
    return jnp.asarray(np.random.default_rng(0).uniform(size=(13, 17, 3)), jnp.float32)


def test_nothing_happens_by_default(picture):
    assert not Color().changes
    assert not Augmentation(8, crop="center", flip=False).random
    np.testing.assert_array_equal(Color()(KEY, picture), picture)


def test_factors_by_hand(picture):
    x = np.asarray(picture, np.float64)
    gray = x @ np.array(color.LUMINANCE)
    half = jnp.float32(0.5)
    np.testing.assert_allclose(color.brightness(picture, jnp.float32(1.5)), np.minimum(1.5 * x, 1), atol=1e-6)
    np.testing.assert_allclose(color.contrast(picture, half), 0.5 * x + 0.5 * gray.mean(), atol=1e-6)
    np.testing.assert_allclose(color.saturation(picture, half), 0.5 * x + 0.5 * gray[..., None], atol=1e-6)


def test_a_third_of_the_circle_swaps_channels(picture):
    turned = color.hue(picture, jnp.float32(1 / 3))
    np.testing.assert_allclose(turned, picture[..., [2, 0, 1]], atol=1e-5)
    np.testing.assert_allclose(color.hue(picture, jnp.float32(0)), picture, atol=1e-6)
    gray = jnp.full((2, 2, 3), 0.4)
    np.testing.assert_allclose(color.hue(gray, jnp.float32(0.2)), gray, atol=1e-6)


def test_certain_changes_are_not_random(picture):
    assert not Color(grayscale=1.0, invert=1.0).random
    assert Color(invert=0.5).random
    out = np.asarray(Color(grayscale=1.0, invert=1.0)(KEY, picture))
    expected = 1 - np.asarray(picture) @ np.array(color.LUMINANCE, np.float32)
    np.testing.assert_allclose(out, np.repeat(expected[..., None], 3, -1), atol=1e-6)


def test_an_inversion_takes_about_half(picture):
    run = jax.jit(jax.vmap(Color(invert=0.5), in_axes=(0, None)))
    out = np.asarray(run(jax.random.split(KEY, 400), picture))
    inverted = (np.abs(out - (1 - np.asarray(picture))[None]) < 1e-6).all((1, 2, 3))
    same = (out == np.asarray(picture)[None]).all((1, 2, 3))
    assert (inverted ^ same).all()
    assert 150 < inverted.sum() < 250


def test_a_blur_of_deviation_one(picture):
    """Against the sum written out, edges mirrored without repeating them."""
    out = np.asarray(color.gaussian_blur(picture, jnp.float32(1), side=5))
    w = np.exp(-0.5 * np.arange(-2, 3) ** 2)
    w /= w.sum()
    wide = np.pad(np.asarray(picture, np.float64), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = sum(
        w[i] * w[j] * wide[i : i + picture.shape[0], j : j + picture.shape[1]] for i in range(5) for j in range(5)
    )
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_all_jitters_come_in_any_order(picture):
    """Brightness and contrast do not commute where values are cut: both results occur."""
    jitter = Color(brightness=0.9, contrast=0.9)
    run = jax.jit(jitter)
    seen = set()
    for key in jax.random.split(KEY, 12):
        bright, contrasty = jitter._factors(jax.random.split(key, 5)[0])[:2]
        one = color.contrast(color.brightness(picture, bright), contrasty)
        other = color.brightness(color.contrast(picture, contrasty), bright)
        out = run(key, picture)
        gaps = [float(jnp.abs(out - way).max()) for way in (one, other)]
        assert min(gaps) < 1e-5
        seen.add(int(np.argmin(gaps)))
    assert seen == {0, 1}


def test_colors_before_or_after_normalization():
    """After it, what lies outside of 0 to 1 is cut: the network sees another distribution than in evaluation."""
    pictures = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)
    sizes, keys = np.full((4, 2), 9, np.int32), jax.random.split(KEY, 4)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    plain = {"size": 9, "crop": "center", "flip": False}
    normal = make_views(Augmentation(**plain), mean, std)(keys, pictures, sizes)
    first, last = (
        make_views(Augmentation(**plain, color=Color(brightness=0.01), color_after_normalization=after), mean, std)(
            keys, pictures, sizes
        )
        for after in (False, True)
    )
    assert float(jnp.abs(first - normal).max()) < 0.05
    assert float(last.min()) == 0
    assert float(last.max()) == 1
    assert float(normal.min()) < -1.9


@pytest.mark.parametrize(
    "options", [{"brightness": -0.1}, {"hue": 0.6}, {"grayscale": 1.5}, {"invert": -1.0}, {"blur": 4}, {"blur": -1}]
)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(UserError, match=f"augment.{next(iter(options))}"):
        Color(**options)


def test_a_kernel_larger_than_the_picture_is_refused(picture):
    with pytest.raises(UserError, match=r"augment.blur=27 is more than a picture of 13 x 17"):
        Color(blur=27)(KEY, picture)


@pytest.mark.peer
@pytest.mark.parametrize("low", [0.0, -2.0])  # what was normalized before lies outside of 0 to 1
def test_each_change_is_torchvisions(torchvision, low):
    import torch

    functional = torchvision.transforms.functional
    x = np.random.default_rng(0).uniform(low, 1 - low, size=(21, 25, 3)).astype(np.float32)
    theirs = torch.from_numpy(x).permute(2, 0, 1)
    cases = [
        *((change, getattr(functional, f"adjust_{change}"), f) for change in ("brightness", "contrast", "saturation")
          for f in (0.0, 0.7, 1.4)),
        *(("hue", functional.adjust_hue, f) for f in (-0.5, -0.05, 0.3)),
    ]  # fmt: skip
    for name, change, factor in cases:
        expected = change(theirs, factor).permute(1, 2, 0).numpy()
        ours = getattr(color, name)(jnp.asarray(x), jnp.float32(factor))
        np.testing.assert_allclose(ours, expected, atol=2e-5, err_msg=f"{name} {factor}")
    for side, sigma in ((3, 0.4), (9, 2.0)):
        expected = functional.gaussian_blur(theirs, [side, side], [sigma, sigma]).permute(1, 2, 0).numpy()
        ours = color.gaussian_blur(jnp.asarray(x), jnp.float32(sigma), side=side)
        np.testing.assert_allclose(ours, expected, atol=2e-6)
    gray = functional.rgb_to_grayscale(theirs, 3).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(Color(grayscale=1.0)(KEY, jnp.asarray(x)), gray, atol=1e-6)
    np.testing.assert_allclose(Color(invert=1.0)(KEY, jnp.asarray(x)), 1 - x, atol=1e-6)
