"""The same numbers in a form that XLA's CPU backend is fast at. `layers.py` alone calls this.

What was tried, and what it gave, stands in docs/cpu.md.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Sides = tuple[tuple[int, int], tuple[int, int]]


def windows(x: jax.Array, window: int, stride: int, sides: Sides) -> list[jax.Array]:
    """The `window ** 2` strided slices of `[B, H, W, C]` that a pooling compares, row by row, -inf around."""
    lowest = jnp.array(-jnp.inf, x.dtype)
    # The barrier keeps the padding out of the loops that read it nine times: bounds checks would stop vectorisation.
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *sides, (0, 0)), constant_values=lowest))
    height, width = ((size - window) // stride * stride + 1 for size in x.shape[1:3])
    return [x[:, i : i + height : stride, j : j + width : stride] for i in range(window) for j in range(window)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: int, stride: int, sides: Sides) -> jax.Array:
    """Max pooling of `[B, H, W, C]` by slices, 8 times as fast, backward, as XLA's select-and-scatter.

    The gradient goes to the first of equal values, as torch's and XLA's does.
    """
    return functools.reduce(jnp.maximum, windows(x, window, stride, sides))


def _forward(x: jax.Array, window: int, stride: int, sides: Sides) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    best, *others = windows(x, window, stride, sides)
    where = jnp.zeros(best.shape, jnp.uint8)  # which slice the maximum lies in
    for n, other in enumerate(others, 1):
        where = jnp.where(other > best, jnp.uint8(n), where)
        best = jnp.maximum(best, other)
    return best, (where, jnp.zeros((0, *x.shape[1:3], 0), x.dtype))


def _backward(
    window: int, stride: int, sides: Sides, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array]:
    where, shape_only = kept
    (batch, rows, columns, channels), (_, height, width, _) = g.shape, shape_only.shape
    (top, bottom), (left, right) = sides
    # Padded input pixel (stride * q + a, stride * r + b) gets from the windows (q - i // stride, r - j // stride), for
    # i and j that leave the remainders a and b: no scattering, each pixel gathers its few windows.
    reach = (window - 1) // stride
    high, wide = -(-(height + top + bottom) // stride), -(-(width + left + right) // stride)
    room = ((0, 0), (reach, high - rows), (reach, wide - columns), (0, 0))
    g, where = jax.lax.optimization_barrier((jnp.pad(g, room), jnp.pad(where, room, constant_values=255)))

    def gather(i: int, j: int) -> jax.Array:
        at = (
            slice(reach - i // stride, reach - i // stride + high),
            slice(reach - j // stride, reach - j // stride + wide),
        )
        return jnp.where(where[:, *at] == i * window + j, g[:, *at], 0)

    def pixels(a: int, b: int) -> jax.Array:
        parts: Sequence[jax.Array] = [gather(i, j) for i in range(a, window, stride) for j in range(b, window, stride)]
        return functools.reduce(jnp.add, parts, jnp.zeros((batch, high, wide, channels), g.dtype))

    lines = [jnp.stack([pixels(a, b) for b in range(stride)], axis=3) for a in range(stride)]
    padded = jnp.stack(lines, axis=2).reshape(batch, high * stride, wide * stride, channels)
    return (padded[:, top : top + height, left : left + width],)


max_pool.defvjp(_forward, _backward)
