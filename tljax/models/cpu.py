"""The same numbers in a form that XLA's CPU backend is fast at, and, of max pooling, that a GPU repeats bit for bit.
`layers.py` alone calls this.

What was tried, and what it gave, stands in docs/cpu.md.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Sides = tuple[tuple[int, int], tuple[int, int]]


def windows(x: jax.Array, window: int, stride: int, sides: Sides) -> list[jax.Array]:
    """The `window ** 2` strided slices of `[B, H, W, C]` that a pooling compares, row by row, -inf around."""
    lowest = jnp.array(-jnp.inf, x.dtype)
    # The barrier keeps the padding out of the loops that read it nine times: bounds checks would stop vectorization.
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


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Each channel of `[B, H, W, C]` with its own kernel of `[odd, odd, 1, C]`: shifted copies, weighted and summed."""
    height, width, (rows, columns) = x.shape[1], x.shape[2], (side // 2 for side in kernel.shape[:2])
    # The barrier keeps the padding out of the loops that read it, as in `windows`.
    wide = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0))))
    shifts = (
        wide[:, i : i + height, j : j + width] * kernel[i, j][None, None]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )
    return functools.reduce(jnp.add, shifts)


def conv(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], sides: str | Sequence[tuple[int, int]], **same: Any
) -> jax.Array:
    """`lax.conv_general_dilated` as flax calls it for an undilated NHWC convolution in one group.

    Its gradients are written as the convolutions that Eigen computes. XLA rewrites gradients so by itself, but not
    within a loop (`lax.map`, `lax.scan`): there they took 200 times as long.
    """
    if isinstance(sides, str):
        sides = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, sides)
    return _conv(x, kernel, tuple(strides), tuple(sides))


def _plain(x: jax.Array, kernel: jax.Array, sides: Any, **more: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, more.pop("strides", (1, 1)), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"), **more
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], sides: Sides) -> jax.Array:
    return _plain(x, kernel, sides, strides=strides)


def _conv_forward(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], sides: Sides) -> tuple[jax.Array, Any]:
    return _conv(x, kernel, strides, sides), (x, kernel)


def _conv_backward(
    strides: tuple[int, int], sides: Sides, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    of_input, of_kernel = [], []
    for side, size, out, stride, (low, _) in zip(
        x.shape[1:3], kernel.shape[:2], dy.shape[1:3], strides, sides, strict=True
    ):
        spread = (out - 1) * stride + 1  # of the outputs, laid over the inputs
        of_input.append((size - 1 - low, side + low - spread))
        of_kernel.append((low, size - 1 - side - low + spread))
    mirrored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = _plain(dy, mirrored, of_input, lhs_dilation=strides)
    # Channels in the place of images, images in that of channels, the gradient in that of the kernel.
    dw = _plain(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), of_kernel, rhs_dilation=strides)
    return dx, dw.transpose(1, 2, 0, 3)


_conv.defvjp(_conv_forward, _conv_backward)
