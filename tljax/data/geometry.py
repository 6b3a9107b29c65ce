"""Geometry of pictures: maps from output pixels to a stored picture, and sampling by them.

Pixel centers lie at whole numbers; a map is float32 `[2, 3]` and takes `(y, x, 1)` of the output to `(y, x)` of the
picture.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

TRIES = 10  # torchvision's RandomResizedCrop.get_params


def random_resized_box(key: jax.Array, size: jax.Array, *, scale: Sequence[float], ratio: Sequence[float]) -> jax.Array:
    """A crop box distributed as torchvision's `RandomResizedCrop.get_params`.

    Args:
      key: one random key.
      size: height and width of the picture, int `[2]`.
      scale: range of the box's area over the picture's.
      ratio: range of width / height, drawn uniformly in its logarithm.

    Returns:
      `(top, left, height, width)`, int32 `[4]`. The first of ten draws that fits is taken; if none does, the largest
      central box whose ratio is in range, at least a pixel wide and high.
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
    h = jnp.where(fits[first], heights[first], jnp.maximum(whole_h, 1)).astype(jnp.int32)
    w = jnp.where(fits[first], widths[first], jnp.maximum(whole_w, 1)).astype(jnp.int32)
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
    """`affine` over a picture turned counter-clockwise about its center; `size` is its height and width `[2]`."""
    radians = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    turn = jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])  # of (y, x), the y axis pointing down
    center = (size.astype(jnp.float32) - 1) / 2
    shift = affine[:, 2] - center
    return jnp.concatenate([turn @ affine[:, :2], (turn @ shift + center)[:, None]], axis=1)


def sample(image: jax.Array, size: jax.Array, affine: jax.Array, out: int | tuple[int, int]) -> jax.Array:
    """Samples a picture bilinearly.

    Args:
      image: `[H, W, 3]`, 0 to 255, the picture at its top left.
      size: height and width of the picture on it, int `[2]`.
      affine: the map, `[2, 3]`.
      out: side of the output, or its height and width.

    Returns:
      float32 `[height, width, 3]`, 0 to 255; edge pixels reach half a pixel beyond their centers, black follows.
    """
    sides = (out, out) if isinstance(out, int) else out
    ys, xs = jnp.meshgrid(*(jnp.arange(side, dtype=jnp.float32) for side in sides), indexing="ij")
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
