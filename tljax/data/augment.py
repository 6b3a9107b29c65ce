"""Augmentation on the device: pure functions of one key and one picture, mapped over a batch.

All geometry is one affine map from output pixels to the stored picture, sampled once: a crop, a flip and a rotation
together cost, and blur, no more than one of them (`geometry.py`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.core.errors import UserError
from tljax.core.rng import AugmentStream, stream, streams
from tljax.data.color import Color
from tljax.data.geometry import crop_map, flip_map, random_resized_box, rotate_map, sample
from tljax.data.randaugment import RandAugment


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
      rotations: how many such angles are drawn; the picture is turned by their sum.
      color: what happens to its colors, after all geometry.
      color_after_normalization: after normalization, where torchvision's color transforms were not meant to be.
      rand: operations of RandAugment on the view, before its colors.
    """

    size: int
    crop: str = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    rotation: float = 0.0
    rotations: int = 1
    color: Color = dataclasses.field(default_factory=Color)
    color_after_normalization: bool = False
    rand: RandAugment = dataclasses.field(default_factory=RandAugment)

    @property
    def random(self) -> bool:
        """Whether two views of a picture can differ."""
        return self.crop != "center" or self.flip or self.rotation > 0 or self.color.random or self.rand.operations > 0

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
        if self.rotations < 1:
            raise UserError(f"protocol.rotations={self.rotations} is not 1 or more; augment.rotation=0 turns nothing")


def augment_one(key: jax.Array, image: jax.Array, size: jax.Array, *, augmentation: Augmentation) -> jax.Array:
    """One training view: uint8 `[H, W, 3]` with its true `size` `[2]` to float32 `[out, out, 3]`, 0 to 255."""
    a = augmentation
    crop_key, flip_key, turn_key = (
        stream(key, which) for which in (AugmentStream.CROP, AugmentStream.FLIP, AugmentStream.ROTATION)
    )
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
        degrees = jax.random.uniform(turn_key, (a.rotations,), minval=-a.rotation, maxval=a.rotation)
        affine = rotate_map(affine, degrees.sum(), size)
    return sample(image, size, affine, a.size)


def make_augment(augmentation: Augmentation) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """`augment(keys [B], images uint8 [B, H, W, 3], sizes [B, 2]) -> float32 [B, size, size, 3]`, 0 to 255."""
    return jax.vmap(lambda key, image, size: augment_one(key, image, size, augmentation=augmentation))


def make_views(
    augmentation: Augmentation, mean: Sequence[float], std: Sequence[float]
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """`views(keys [B], images uint8 [B, H, W, 3], sizes [B, 2])`: what the network sees, float32, normalized."""
    geometry, normalize, color = make_augment(augmentation), make_normalize(mean, std), augmentation.color

    def change(keys: jax.Array, x: jax.Array) -> jax.Array:
        return jax.vmap(color)(streams(keys, AugmentStream.COLOR), x)

    def views(keys: jax.Array, images: jax.Array, sizes: jax.Array) -> jax.Array:
        x = geometry(keys, images, sizes)
        if augmentation.rand.operations:
            x = jax.vmap(augmentation.rand)(streams(keys, AugmentStream.RAND_AUGMENT), x)
        if color.changes and not augmentation.color_after_normalization:
            x = 255 * change(keys, x / 255)
        x = normalize(x)
        return change(keys, x) if color.changes and augmentation.color_after_normalization else x

    return views


def make_normalize(mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], jax.Array]:
    """`normalize(images [B, H, W, 3], 0 to 255)`: to 0 to 1, then minus `mean`, over `std`, per channel."""
    center = jnp.asarray(mean, jnp.float32)[None, None, None, :]
    spread = jnp.asarray(std, jnp.float32)[None, None, None, :]
    return lambda images: (images.astype(jnp.float32) / 255 - center) / spread
