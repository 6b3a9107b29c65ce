"""RandAugment (Cubuk et al. 2020) on the device, with torchvision's operations, ranges and rounding to whole values.

A picture is float `[H, W, 3]` with whole values from 0 to 255. Geometry is sampled bilinearly; black comes in.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tljax.core.errors import UserError
from tljax.data.color import luminance
from tljax.data.geometry import rotate_map, sample

STRONGEST = 30  # magnitudes are 0 to 30, torchvision's 31 bins
OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """So many operations, one after the other, each drawn evenly from `OPERATIONS` and in a direction drawn evenly.

    Attributes:
      operations: how many; 0 for none.
      magnitude: how strong, 0 to 30.
    """

    operations: int = 0
    magnitude: float = 9.0

    def __post_init__(self):
        if self.operations < 0:
            raise UserError(f"the operations of RandAugment are {self.operations}; 0 for none, or more")
        if not 0 <= self.magnitude <= STRONGEST:
            raise UserError(f"the magnitude of RandAugment is {self.magnitude}, not from 0 to {STRONGEST}")

    def __call__(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """One random key, one picture -> the picture changed."""
        x = jnp.round(x)
        for step in range(self.operations):
            which_key, sign_key = jax.random.split(jax.random.fold_in(key, step))
            which = jax.random.randint(which_key, (), 0, len(OPERATIONS))
            sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
            x = operate(which, sign * self.magnitude / STRONGEST, x)
        return x


def operate(which: jax.Array | int, strength: jax.Array | float, x: jax.Array) -> jax.Array:
    """One operation, by its place in `OPERATIONS`; `strength` is -1 to 1, its sign counts where there are two ways."""
    # All five moves are one map, so that pictures of a batch that differ in theirs are sampled once. Colors are
    # branches: over a batch each is computed for all.
    x = _moved(which, strength, x)
    colors: list[Callable[[jax.Array], jax.Array]] = [
        lambda x: x,
        lambda x: _blend(x, jnp.zeros(()), 1 + 0.9 * strength),
        lambda x: _blend(x, jnp.floor(luminance(x)), 1 + 0.9 * strength),
        lambda x: _blend(x, jnp.floor(luminance(x)).mean(), 1 + 0.9 * strength),
        lambda x: _blend(x, _smoothed(x), 1 + 0.9 * strength),
        lambda x: _posterized(x, jnp.abs(strength)),
        lambda x: jnp.where(x >= 255 * (1 - jnp.abs(strength)), 255 - x, x),
        autocontrast,
        equalize,
    ]
    first = OPERATIONS.index("Brightness")
    branches = [lambda x, change=change: change(x).astype(x.dtype) for change in colors]
    return jax.lax.switch(jnp.maximum(jnp.asarray(which) - first + 1, 0), branches, x)


def _moved(which: jax.Array | int, strength: jax.Array | float, x: jax.Array) -> jax.Array:
    """Shears are about the upper left corner, turns about the center."""
    size = jnp.asarray(x.shape[:2], jnp.int32)
    keep = jnp.array([[1.0, 0, 0], [0, 1, 0]])

    def only(name: str, amount: jax.Array | float) -> jax.Array:
        return jnp.where(jnp.asarray(which) == OPERATIONS.index(name), amount, 0.0)

    def along(length: int) -> jax.Array:  # whole pixels, as torchvision has it
        return jnp.trunc(strength * jnp.float32(150 / 331 * length))

    shear_x, shear_y = only("ShearX", 0.3 * strength), only("ShearY", 0.3 * strength)
    affine = jnp.stack(
        [
            jnp.stack([jnp.float32(1), shear_y, 0.5 * shear_y - only("TranslateY", along(x.shape[0]))]),
            jnp.stack([shear_x, jnp.float32(1), 0.5 * shear_x - only("TranslateX", along(x.shape[1]))]),
        ]
    )
    affine = rotate_map(affine, only("Rotate", 30.0 * strength), size)
    stays = (affine == keep).all()
    return jnp.where(stays, x, jnp.round(sample(x, size, affine, (x.shape[0], x.shape[1]))))


def _blend(x: jax.Array, other: jax.Array, factor: jax.Array | float) -> jax.Array:
    return jnp.floor(jnp.clip(factor * x + (1 - factor) * other, 0, 255))


def _smoothed(x: jax.Array) -> jax.Array:
    """A mean over 3 x 3 pixels in which the middle counts five times; the picture's edge stays."""
    height, width = x.shape[:2]
    around = sum(x[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    inner = jnp.round((around + 4 * x[1:-1, 1:-1]) / 13)
    return x.at[1:-1, 1:-1].set(inner)


def _posterized(x: jax.Array, strength: jax.Array | float) -> jax.Array:
    """8 bits at no strength, 4 at full."""
    step = 2 ** jnp.round(4 * strength)
    return jnp.floor(x / step) * step


def autocontrast(x: jax.Array) -> jax.Array:
    """Each channel stretched from 0 to 255; one of a single value stays."""
    low, high = x.min((0, 1), keepdims=True), x.max((0, 1), keepdims=True)
    flat = high == low
    stretched = (x - low) * (255 / jnp.where(flat, 1, high - low))
    return jnp.where(flat, x, jnp.floor(jnp.clip(stretched, 0, 255)))


def equalize(x: jax.Array) -> jax.Array:
    """Each channel with as many pixels at every value as can be; by a table of 256 values."""

    def one(channel: jax.Array) -> jax.Array:
        values = channel.astype(jnp.int32)
        counts = jnp.zeros(256, jnp.int32).at[values.reshape(-1)].add(1)
        step = (values.size - counts[values.max()]) // 255
        table = (jnp.cumsum(counts) + step // 2) // jnp.maximum(step, 1)
        table = jnp.clip(jnp.concatenate([jnp.zeros(1, table.dtype), table[:-1]]), 0, 255)
        return jnp.where(step == 0, channel, table[values].astype(channel.dtype))

    return jax.vmap(one, in_axes=-1, out_axes=-1)(x)
