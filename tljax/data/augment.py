"""Augmentation on the device: pure functions of one key and one picture, mapped over a batch.

All geometry is one affine map from output pixels to the stored picture, sampled once: a crop, a flip and a rotation
together cost, and blur, no more than one of them. Pixel centres lie at whole numbers; a map is float32 `[2, 3]` and
takes `(y, x, 1)` of the output to `(y, x)` of the picture.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.data.colour import Colour
from tljax.errors import UserError

TRIES = 10  # torchvision's RandomResizedCrop.get_params


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    Attributes:
      size: side of the output, in pixels.
      crop: 'random_resized' (torchvision's RandomResizedCrop), 'random' (a window of `size`), or 'center'.
      scale: for 'random_resized', the range of the crop's share of the picture's area.
      ratio: likewise, the range of width / height.
      flip: mirrors left and right with probability one half.
      rotation: turns the whole picture, before the crop, by up to so many degrees either way; black comes in.
      turns: how many such angles are drawn; the picture is turned by their sum.
      colour: what happens to its colours, after all geometry.
      colour_last: after normalisation, where torchvision's colour transforms were not meant to be.
    """

    size: int
    crop: str = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    rotation: float = 0.0
    turns: int = 1
    colour: Colour = dataclasses.field(default_factory=Colour)
    colour_last: bool = False

    @property
    def random(self) -> bool:
        """Whether two views of a picture can differ."""
        return self.crop != "center" or self.flip or self.rotation > 0 or self.colour.random

    def __post_init__(self):
        if self.crop not in ("random_resized", "random", "center"):
            raise UserError(f"augment.crop={self.crop!r} is not one of random_resized, random, center")
        for name in ("scale", "ratio"):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(isinstance(value, int | float) for value in pair):
                raise UserError(f"augment.{name}={pair} is not two numbers, as in (0.5, 1.0)")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augment.scale={self.scale} is not two numbers 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"augment.ratio={self.ratio} is not two numbers 0 < low <= high")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"augment.rotation={self.rotation} is not between 0 and 180 degrees")
        if self.turns < 1:
            raise UserError(f"augment.turns={self.turns} is not 1 or more; augment.rotation=0 turns nothing")


def random_resized_box(key: jax.Array, size: jax.Array, *, scale: Sequence[float], ratio: Sequence[float]) -> jax.Array:
    """A crop box distributed as torchvision's `RandomResizedCrop.get_params`.

    Args:
      key: one random key.
      size: height and width of the picture, int `[2]`.
      scale: range of the box's area over the picture's.
      ratio: range of width / height, drawn uniformly in its logarithm.

    Returns:
      `(top, left, height, width)`, int32 `[4]`. The first of ten draws that fits is taken; if none does, the largest
      central box whose ratio is in range.
    """
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    low, high = jnp.log(jnp.asarray(ratio, jnp.float32))
    areas = height * width * jax.random.uniform(area_key, (TRIES,), minval=scale[0], maxval=scale[1])
    ratios = jnp.exp(jax.random.uniform(ratio_key, (TRIES,), minval=low, maxval=high))
    widths, heights = jnp.round(jnp.sqrt(areas * ratios)), jnp.round(jnp.sqrt(areas / ratios))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = jnp.argmax(fits)

    own = width / height
    whole_w = jnp.where(own > ratio[1], jnp.round(height * ratio[1]), width)
    whole_h = jnp.where(own < ratio[0], jnp.round(width / ratio[0]), height)
    h = jnp.where(fits[first], heights[first], whole_h).astype(jnp.int32)
    w = jnp.where(fits[first], widths[first], whole_w).astype(jnp.int32)
    top = jnp.where(fits[first], jax.random.randint(top_key, (), 0, size[0] - h + 1), (size[0] - h) // 2)
    left = jnp.where(fits[first], jax.random.randint(left_key, (), 0, size[1] - w + 1), (size[1] - w) // 2)
    return jnp.stack([top, left, h, w]).astype(jnp.int32)


def crop_map(box: jax.Array, size: int) -> jax.Array:
    """The map that shows `(top, left, height, width)` `[4]` on `[size, size]` pixels."""
    top, left, height, width = box.astype(jnp.float32)
    zero = jnp.float32(0)
    return jnp.stack(
        [
            jnp.stack([height / size, zero, top + 0.5 * height / size - 0.5]),
            jnp.stack([zero, width / size, left + 0.5 * width / size - 0.5]),
        ]
    )


def flip_map(affine: jax.Array, flip: jax.Array, size: int) -> jax.Array:
    """`affine` with the output mirrored left and right where `flip` is true."""
    y, x, shift = affine.T
    return jnp.where(flip, jnp.stack([y, -x, shift + (size - 1) * x], axis=1), affine)


def rotate_map(affine: jax.Array, degrees: jax.Array, size: jax.Array) -> jax.Array:
    """`affine` over a picture turned counter-clockwise about its centre; `size` is its height and width `[2]`."""
    radians = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    turn = jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])  # of (y, x), the y axis pointing down
    centre = (size.astype(jnp.float32) - 1) / 2
    shift = affine[:, 2] - centre
    return jnp.concatenate([turn @ affine[:, :2], (turn @ shift + centre)[:, None]], axis=1)


def sample(image: jax.Array, size: jax.Array, affine: jax.Array, out: int) -> jax.Array:
    """Samples a picture bilinearly.

    Args:
      image: uint8 `[H, W, 3]`, the picture at its top left.
      size: height and width of the picture on it, int `[2]`.
      affine: the map, `[2, 3]`.
      out: side of the output.

    Returns:
      float32 `[out, out, 3]`, 0 to 255; edge pixels reach half a pixel beyond their centres, black follows.
    """
    ys, xs = jnp.meshgrid(jnp.arange(out, dtype=jnp.float32), jnp.arange(out, dtype=jnp.float32), indexing="ij")
    y = affine[0, 0] * ys + affine[0, 1] * xs + affine[0, 2]
    x = affine[1, 0] * ys + affine[1, 1] * xs + affine[1, 2]
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    slack = 0.5 + 1e-3  # rounding must not blacken the edge of a crop that touches the picture's
    inside = (y >= -slack) & (y <= height - 1 + slack) & (x >= -slack) & (x <= width - 1 + slack)
    y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    y0, x0 = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    y1, x1 = jnp.minimum(y0 + 1, size[0] - 1), jnp.minimum(x0 + 1, size[1] - 1)
    wy, wx = (y - y0)[..., None], (x - x0)[..., None]

    def tap(rows: jax.Array, columns: jax.Array) -> jax.Array:
        return image[rows, columns].astype(jnp.float32)

    upper = tap(y0, x0) * (1 - wx) + tap(y0, x1) * wx
    lower = tap(y1, x0) * (1 - wx) + tap(y1, x1) * wx
    return (upper * (1 - wy) + lower * wy) * inside[..., None]


def augment_one(key: jax.Array, image: jax.Array, size: jax.Array, *, augmentation: Augmentation) -> jax.Array:
    """One training view: uint8 `[H, W, 3]` with its true `size` `[2]` to float32 `[out, out, 3]`, 0 to 255."""
    a = augmentation
    crop_key, flip_key, turn_key = jax.random.split(key, 3)
    if a.crop == "random_resized":
        box = random_resized_box(crop_key, size, scale=a.scale, ratio=a.ratio)
    else:
        room = size - a.size
        corner = (
            jax.random.randint(crop_key, (2,), 0, room + 1)
            if a.crop == "random"
            else jnp.round(room / 2).astype(jnp.int32)
        )
        box = jnp.concatenate([corner, jnp.full(2, a.size, corner.dtype)])
    affine = crop_map(box, a.size)
    if a.flip:
        affine = flip_map(affine, jax.random.bernoulli(flip_key), a.size)
    if a.rotation:
        degrees = jax.random.uniform(turn_key, (a.turns,), minval=-a.rotation, maxval=a.rotation)
        affine = rotate_map(affine, degrees.sum(), size)
    return sample(image, size, affine, a.size)


def make_augment(augmentation: Augmentation) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """`augment(keys [B], images uint8 [B, H, W, 3], sizes [B, 2]) -> float32 [B, size, size, 3]`, 0 to 255."""
    return jax.vmap(lambda key, image, size: augment_one(key, image, size, augmentation=augmentation))


def make_views(
    augmentation: Augmentation, mean: Sequence[float], std: Sequence[float]
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """`views(keys [B], images uint8 [B, H, W, 3], sizes [B, 2])`: what the network sees, float32, normalised."""
    geometry, normalize, colour = make_augment(augmentation), make_normalize(mean, std), augmentation.colour

    def change(keys: jax.Array, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda key, one: colour(jax.random.fold_in(key, 3), one))(keys, x)  # 0 to 2 are the geometry's

    def views(keys: jax.Array, images: jax.Array, sizes: jax.Array) -> jax.Array:
        x = geometry(keys, images, sizes)
        if colour.changes and not augmentation.colour_last:
            x = 255 * change(keys, x / 255)
        x = normalize(x)
        return change(keys, x) if colour.changes and augmentation.colour_last else x

    return views


def make_normalize(mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], jax.Array]:
    """`normalize(images [B, H, W, 3], 0 to 255)`: to 0 to 1, then minus `mean`, over `std`, per channel."""
    centre = jnp.asarray(mean, jnp.float32)[None, None, None, :]
    spread = jnp.asarray(std, jnp.float32)[None, None, None, :]
    return lambda images: (images.astype(jnp.float32) / 255 - centre) / spread
