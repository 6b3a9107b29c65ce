"""Colors changed on the device: torchvision's transforms of float pictures, each a pure function of one picture.

A picture is float `[H, W, 3]`. torchvision takes 0 to 1 for its range and cuts what leaves it; a picture that was
normalized before is cut there too, which is what a transform in the wrong place of a pipeline does.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from tljax.core.errors import UserError

LUMINANCE = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
SIGMA = (0.1, 2.0)  # the range that torchvision's GaussianBlur draws from


@dataclasses.dataclass(frozen=True)
class Color:
    """What may happen to the colors of a training image, in this order.

    Attributes:
      brightness, contrast, saturation: factors drawn from `[max(0, 1 - value), 1 + value]` (torchvision's ColorJitter).
      hue: a shift drawn from `[-hue, hue]`, of a circle that is 1 long. The four come in an order drawn anew.
      gray: the probability of losing color.
      invert: the probability of `1 - picture`.
      blur: side of a Gaussian kernel whose deviation is drawn from 0.1 to 2 pixels; 0 for none.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    invert: float = 0.0
    blur: int = 0

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise UserError(f"augment.{name}={getattr(self, name)} is negative; it is 0 or more")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"augment.hue={self.hue} is not between 0 and 0.5, half the circle of colors")
        for name in ("grayscale", "invert"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name}={getattr(self, name)} is not a probability, 0 to 1")
        if self.blur < 0 or (self.blur and self.blur % 2 == 0):
            raise UserError(f"augment.blur={self.blur} is not an odd side of a kernel, nor 0 for none")

    @property
    def changes(self) -> bool:
        """Whether anything happens at all."""
        return self != Color()

    @property
    def random(self) -> bool:
        """Whether two views of a picture can differ."""
        return dataclasses.replace(self, grayscale=self.grayscale % 1, invert=self.invert % 1).changes

    def __call__(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """One random key, one picture -> the picture changed."""
        jitter_key, order_key, gray_key, invert_key, blur_key = jax.random.split(key, 5)
        jitters: list[Callable[[jax.Array], jax.Array]] = [
            functools.partial(_changed, change, factor)
            for change, factor in zip(JITTERS, self._factors(jitter_key), strict=True)
            if factor is not None
        ]
        if len(jitters) == 1:
            x = jitters[0](x)
        elif jitters:
            order = jax.random.permutation(order_key, len(jitters))
            for place in range(len(jitters)):
                x = jax.lax.switch(order[place], jitters, x)
        if self.grayscale:
            x = jnp.where(jax.random.bernoulli(gray_key, self.grayscale), jnp.broadcast_to(luminance(x), x.shape), x)
        if self.invert:
            x = jnp.where(jax.random.bernoulli(invert_key, self.invert), 1 - x, x)
        if self.blur:
            x = gaussian_blur(x, jax.random.uniform(blur_key, minval=SIGMA[0], maxval=SIGMA[1]), side=self.blur)
        return x

    def _factors(self, key: jax.Array) -> list[jax.Array | None]:
        """One drawn factor per jitter, None for those that are off."""
        ranges = [(max(0.0, 1 - v), 1 + v) if v else None for v in (self.brightness, self.contrast, self.saturation)]
        ranges.append((-self.hue, self.hue) if self.hue else None)
        return [
            jax.random.uniform(own, minval=ends[0], maxval=ends[1]) if ends else None
            for own, ends in zip(jax.random.split(key, 4), ranges, strict=True)
        ]


def _changed(change: Callable[[jax.Array, jax.Array], jax.Array], factor: jax.Array, x: jax.Array) -> jax.Array:
    return change(x, factor)


def luminance(x: jax.Array) -> jax.Array:
    """`[H, W, 3]` -> `[H, W, 1]`."""
    return (x * jnp.asarray(LUMINANCE, x.dtype)[None, None, :]).sum(-1, keepdims=True)


def blend(x: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
    """`other` at a factor of 0, `x` at 1, beyond it at more; cut to 0 to 1."""
    return jnp.clip(factor * x + (1 - factor) * other, 0, 1)


def brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    return blend(x, 0.0, factor)


def contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    return blend(x, luminance(x).mean(), factor)


def saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    return blend(x, luminance(x), factor)


def hue(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Turns the circle of colors, by way of hue, saturation and value."""
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    top, low = x.max(-1), x.min(-1)
    spread = jnp.where(top == low, 1.0, top - low)
    share = (top - low) / jnp.where(top == low, 1.0, top)
    red, green, blue = (top - r) / spread, (top - g) / spread, (top - b) / spread
    sector = jnp.where(top == r, blue - green, jnp.where(top == g, 2 + red - blue, 4 + green - red))
    sector = jnp.where(top == low, 0.0, sector)
    h = jnp.fmod(jnp.fmod(sector / 6 + 1, 1.0) + factor + 1, 1.0)
    whole = jnp.floor(h * 6)
    part = h * 6 - whole
    p = jnp.clip(top * (1 - share), 0, 1)
    q = jnp.clip(top * (1 - share * part), 0, 1)
    t = jnp.clip(top * (1 - share * (1 - part)), 0, 1)
    sixths = [(top, t, p), (q, top, p), (p, top, t), (p, q, top), (t, p, top), (top, p, q)]
    chosen = whole.astype(jnp.int32) % 6
    return jnp.stack([jnp.choose(chosen, [sixth[c] for sixth in sixths], mode="clip") for c in range(3)], axis=-1)


JITTERS: Sequence[Callable[[jax.Array, jax.Array], jax.Array]] = (brightness, contrast, saturation, hue)


def gaussian_blur(x: jax.Array, sigma: jax.Array, *, side: int) -> jax.Array:
    """A Gaussian of `side` x `side` pixels, the picture mirrored at its edges (their own pixels not repeated)."""
    reach = side // 2
    if reach >= min(x.shape[:2]):
        raise UserError(f"augment.blur={side} is more than a picture of {x.shape[0]} x {x.shape[1]} pixels can mirror")
    weights = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / sigma) ** 2).astype(x.dtype)
    weights /= weights.sum()
    x = jnp.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    x = functools.reduce(jnp.add, (weights[i] * x[i : i + x.shape[0] - 2 * reach] for i in range(side)))
    return functools.reduce(jnp.add, (weights[i] * x[:, i : i + x.shape[1] - 2 * reach] for i in range(side)))
