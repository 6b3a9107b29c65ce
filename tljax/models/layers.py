"""Layers that compute what torch's compute: explicit padding, masked batch norm, per-example dropout, pooling.

Whatever is chosen by shape or backend is chosen here, so that the model files read like the papers' tables.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.core.rng import Stream, depth_keys, streams
from tljax.core.xla_flags import is_deterministic
from tljax.models import cpu

Padding = int | Literal["same"]
"""Of a convolution or pooling: torch's, so many on each side; or Keras's 'same', as few as give ceil(side / stride)."""

TORCH_MOMENTUM = 0.1  # the share of the new batch; Flax's own layer counts the other way round
EPSILON = 1e-5

_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """What is traced within is made of convolutions and poolings as such, whatever this machine is fast at: for
    programs that run elsewhere, without gradients."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def on_cpu() -> bool:
    """Whether to take the forms that XLA's CPU backend is fast at."""
    return jax.default_backend() == "cpu" and not _plain.get()


@dataclasses.dataclass(frozen=True)
class BatchNormMode:
    """The three switches of a batch norm.

    Attributes:
      use_batch: normalize with the statistics of the batch, else with the running ones.
      update: move the running statistics towards those of the batch.
      train_affine: scale and bias are trained. The optimizer acts on this one; the layer itself does not.
    """

    use_batch: bool
    update: bool
    train_affine: bool

    def __str__(self) -> str:
        return "+".join(
            name
            for name, on in (
                ("batch", self.use_batch),
                ("running", not self.use_batch),
                ("update", self.update),
                ("affine", self.train_affine),
            )
            if on
        )


EVAL = BatchNormMode(use_batch=False, update=False, train_affine=False)


@dataclasses.dataclass(frozen=True)
class ForwardContext:
    """What one forward pass needs beyond parameters and images. The default is a plain evaluation.

    Attributes:
      bn: batch-norm mode by group; groups that are absent evaluate.
      mask: which examples are real, float `[B]` of 0 and 1; None where all are. Batch statistics see real ones only.
      keys: one random key per example, `[B]`, for dropout and stochastic depth; None turns both off.
      axis_name: the mapped axis over which batch statistics are shared; None keeps them per replica.
    """

    bn: Mapping[str, BatchNormMode] = dataclasses.field(default_factory=dict)
    mask: jax.Array | None = None
    keys: jax.Array | None = None
    axis_name: str | None = None

    def mode(self, group: str) -> BatchNormMode:
        return self.bn.get(group, EVAL)


def new_layer_init(fan_in: int) -> Any:
    """torch's default for a new `nn.Linear` or `nn.Conv2d`, weight and bias alike: U(-b, b), b = 1 / sqrt(fan_in).

    All heads use it by default: it is what replacing the last layer gives in PyTorch.
    """
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def head_inits(name: str, fan_in: int) -> dict[str, Any]:
    """`kernel_init` and `bias_init` of a head: 'torch' as `new_layer_init`, or 'normal': N(0, 0.01) and no bias, as
    torchvision's SqueezeNets begin, whose classes are then not dead behind the last ReLU."""
    if name == "normal":
        return {"kernel_init": nn.initializers.normal(0.01), "bias_init": nn.initializers.zeros}
    return {"kernel_init": new_layer_init(fan_in), "bias_init": new_layer_init(fan_in)}


kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # torchvision's ResNets
kaiming_uniform_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")  # torchvision's SqueezeNets


def conv(
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: Padding = 0,
    use_bias: bool = False,
    kernel_init: Any = kaiming_normal_fan_out,
    bias_init: Any = nn.initializers.zeros,
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> nn.Conv:
    """A square convolution, NHWC, with torch's symmetric padding; Keras's 'same' differs from it under strides."""
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        "SAME" if padding == "same" else [(padding, padding)] * 2,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        param_dtype=parameter_dtype(dtype),
        conv_general_dilated=cpu.conv if on_cpu() else None,
        name=name,
    )


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Each channel of `[B, H, W, C]` with its own square kernel of `[odd, odd, 1, C]`; the sides stay as they are."""
    if on_cpu():
        return cpu.depthwise_conv(x, kernel)
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


def parameter_dtype(dtype: Any) -> Any:
    """Parameters and statistics are float32 under bfloat16 compute, else of the compute type itself."""
    return jnp.promote_types(dtype, jnp.float32)


class BatchNorm(nn.Module):
    """Batch norm with torch's statistics and three separate switches.

    The variance that normalizes is biased, the one that enters the running variance unbiased (`n / (n - 1)`), as in
    torch. Statistics are taken in two passes, over real examples only, in float32 or better.

    Attributes:
      dtype: of the result.
      epsilon: added to the variance.
      momentum: the share of the new batch in a running statistic.
      unbiased: what enters the running variance is corrected; Keras does not.
    """

    dtype: Any = jnp.float32
    epsilon: float = EPSILON
    momentum: float = TORCH_MOMENTUM
    unbiased: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, mode: BatchNormMode, forward: ForwardContext) -> jax.Array:
        """`[B, H, W, C]` to the same."""
        channels, kept = x.shape[-1], parameter_dtype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, (channels,), kept)
        bias = self.param("bias", nn.initializers.zeros, (channels,), kept)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), kept)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), kept)
        mean, var = running_mean.value, running_var.value
        if not self.is_initializing() and (mode.use_batch or mode.update):
            batch_mean, batch_var, count = batch_statistics(x.astype(kept), forward)
            if mode.update:
                new_var = batch_var * (count / jnp.maximum(count - 1, 1)) if self.unbiased else batch_var
                for old, new in ((running_mean, batch_mean), (running_var, new_var)):
                    moved = (1 - self.momentum) * old.value + self.momentum * jax.lax.stop_gradient(new)
                    old.value = jnp.where(count > 0, moved, old.value)
            if mode.use_batch:
                mean, var = batch_mean, batch_var
        multiplier = scale * jax.lax.rsqrt(var + self.epsilon)
        y = (x.astype(kept) - row(mean)) * row(multiplier) + row(bias)
        return y.astype(self.dtype)


def row(per_channel: jax.Array) -> jax.Array:
    return per_channel[None, None, None, :]


def batch_statistics(x: jax.Array, forward: ForwardContext) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean `[C]`, biased variance `[C]` and number of values per channel of `[B, H, W, C]`, real examples only."""
    weight = jnp.ones(x.shape[0], x.dtype) if forward.mask is None else forward.mask.astype(x.dtype)
    weight = weight[:, None, None, None]

    def total(values: jax.Array) -> jax.Array:
        values = values.sum((0, 1, 2))
        return values if forward.axis_name is None else jax.lax.psum(values, forward.axis_name)

    count = total(weight)[0] * (x.shape[1] * x.shape[2])
    divisor = jnp.maximum(count, 1)
    mean = total(x * weight) / divisor
    return mean, total(jnp.square(x - row(mean)) * weight) / divisor, count


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Drops with one key per example `[B]`, so that neither batch layout nor devices change what is dropped."""
    if keys is None or rate == 0:
        return x
    keys = streams(keys, Stream.DROPOUT)
    width = next((w for w in (1, 2, 4, 8) if (2**w * rate).is_integer()), None)
    if width is not None:  # few bits say it exactly, and cost a fraction of a 32-bit draw per element
        keep = jax.vmap(lambda key: random_fields(key, x.shape[1:], width))(keys) >= int(2**width * rate)
    else:
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def random_fields(key: jax.Array, shape: Sequence[int], width: int) -> jax.Array:
    """Uniform uint32 `shape` below `2 ** width`, which divides 32; `jax.random.bits` spends 32 bits on each uint8."""
    count, shifts = math.prod(shape), jnp.arange(0, 32, width, dtype=jnp.uint32)
    words = jax.random.bits(key, (-(-count // len(shifts)),), jnp.uint32)
    fields = (words[:, None] >> shifts[None, :]) & jnp.uint32(2**width - 1)
    return fields.reshape(-1)[:count].reshape(shape)


def stochastic_depth(x: jax.Array, rate: float, keys: jax.Array | None, number: int) -> jax.Array:
    """Drops a residual branch `[B, ...]` of whole examples, one key each; what is kept is scaled by `1 / (1 - rate)`,
    as torchvision does. `number` tells blocks apart."""
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(depth_keys(keys, number))
    return jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x / (1 - rate), jnp.zeros_like(x))


def max_pool(x: jax.Array, *, window: int = 3, stride: int = 2, padding: Padding = 0, ceil: bool = False) -> jax.Array:
    """torch's MaxPool2d; `ceil` is its `ceil_mode`, which lets the last window hang over the lower right edge."""
    sides: Any
    if isinstance(padding, str):
        sides = jax.lax.padtype_to_pads(x.shape[1:3], (window, window), (stride, stride), padding)
    else:
        over = [-(size + 2 * padding - window) % stride if ceil else 0 for size in x.shape[1:3]]
        sides = [(padding, padding + more) for more in over]
    if on_cpu() or (is_deterministic() and not _plain.get()):  # XLA's own scatters backward, then value by value
        return cpu.max_pool(x, window, stride, tuple(sides))
    return nn.max_pool(x, (window, window), (stride, stride), sides)
