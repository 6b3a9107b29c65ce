"""The small Xception of Keras's tutorial "Image classification from scratch", as it stands there today.

https://keras.io/examples/vision/image_classification_from_scratch/ (Chollet). The tutorial divides pixels by 255 in the
network; here that is preprocessing: `data.mean=(0, 0, 0)`, `data.std=(1, 1, 1)`.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from tljax.models.layers import (
    BatchNorm,
    ForwardContext,
    conv,
    depthwise_conv,
    dropout,
    head_inits,
    max_pool,
    parameter_dtype,
)
from tljax.models.network import Network

glorot_uniform = nn.initializers.glorot_uniform()


def glorot_uniform_depthwise(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Keras's Glorot uniform of a depthwise kernel, whose fans it counts as area x channels, and area."""
    area, channels = shape[0] * shape[1], shape[3]
    bound = math.sqrt(6 / (area * channels + area))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class SeparableConv(nn.Module):
    """3x3 on each channel, then 1x1 over the channels with a bias; 'same' padding."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (3, 3, 1, x.shape[-1])
        kernel = self.param("depthwise", glorot_uniform_depthwise, shape, parameter_dtype(self.dtype))
        x = depthwise_conv(x, kernel.astype(self.dtype))
        return conv(
            self.features, 1, use_bias=True, kernel_init=glorot_uniform, dtype=self.dtype, name="pointwise"
        )(x)  # fmt: skip


class MiniXception(Network):
    """The tutorial's `make_model`. Every layer with parameters is a group of its own, so that each can start fresh.

    The groups, in Keras's order: `conv1`, `norm1`; for i = 1 to 3 `sep{i}a`, `norm{i}a`, `sep{i}b`, `norm{i}b` and
    `short{i}`, the 1x1 convolution of the shortcut; `sep4`, `norm4`; `head`.

    Attributes:
      sizes: channels of the three blocks.
      width: channels of the first convolution; a small relative has `sizes` in proportion.
      dropout: dropout before the head.
    """

    sizes: tuple[int, ...] = (256, 512, 728)
    width: int = 128
    dropout: float = 0.25

    @property
    def all_stages(self) -> tuple[str, ...]:
        return ("stem", *(f"block{i + 1}" for i in range(len(self.sizes))), "exit", "pool", "head")

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(group for stage in self.stages for group in self._layers(stage))

    def _layers(self, stage: str) -> tuple[str, ...]:
        if stage.startswith("block"):
            i = stage[5:]
            return f"sep{i}a", f"norm{i}a", f"sep{i}b", f"norm{i}b", f"short{i}"
        last = len(self.sizes) + 1
        own = {"stem": ("conv1", "norm1"), "exit": (f"sep{last}", f"norm{last}"), "pool": ()}
        return own.get(stage, (stage,))

    def stage_of(self, group: str) -> str:
        return next((stage for stage in self.all_stages if group in self._layers(stage)), group)

    def group_of(self, path: Sequence[str]) -> str:
        return path[0]

    def channels(self, size: int) -> int:
        """A width of the original, in proportion to `width`."""
        return max(1, size * self.width // 128)

    def setup(self):
        kwargs: dict[str, Any] = dict(use_bias=True, kernel_init=glorot_uniform, dtype=self.dtype)
        layers: dict[str, nn.Module] = {"conv1": conv(self.width, 3, stride=2, padding="same", **kwargs)}
        for i, size in enumerate(self.sizes, 1):
            size = self.channels(size)
            layers |= {f"sep{i}{x}": SeparableConv(size, self.dtype) for x in "ab"}
            layers[f"short{i}"] = conv(size, 1, stride=2, **kwargs)
        layers[f"sep{len(self.sizes) + 1}"] = SeparableConv(self.channels(1024), self.dtype)
        init: dict[str, Any] = (
            head_inits("normal", size) if self.head_init == "normal" else {"kernel_init": glorot_uniform}
        )
        layers["head"] = nn.Dense(self.num_classes, **init, dtype=self.dtype, param_dtype=parameter_dtype(self.dtype))
        for name, layer in layers.items():
            setattr(self, name, layer)
        for name in self.groups:
            if name.startswith(
                "norm"
            ):  # Keras: momentum 0.99, epsilon 1e-3, and no correction of the variance it keeps
                setattr(self, name, BatchNorm(self.dtype, epsilon=1e-3, momentum=0.01, unbiased=False))

    def _norm(self, name: str, x: jax.Array, forward: ForwardContext) -> jax.Array:
        return getattr(self, name)(x, forward.mode(name), forward)

    def _relu(self, stage: str, x: jax.Array) -> jax.Array:
        self.sow("intermediates", f"{stage}_before_relu", x)
        x = nn.relu(x)
        self.sow("intermediates", f"{stage}_relu", x)
        return x

    def run_stem(self, x: jax.Array, forward: ForwardContext, stage: str) -> jax.Array:
        del stage
        return self._relu("stem", self._norm("norm1", self.conv1(x), forward))

    def run_block(self, x: jax.Array, forward: ForwardContext, stage: str) -> jax.Array:
        i, y = stage[5:], x
        for part in "ab":
            y = self._norm(f"norm{i}{part}", getattr(self, f"sep{i}{part}")(nn.relu(y)), forward)
        return max_pool(y, padding="same") + getattr(self, f"short{i}")(x)

    def run_exit(self, x: jax.Array, forward: ForwardContext, stage: str) -> jax.Array:
        convolution, norm = self._layers(stage)
        return self._relu(stage, self._norm(norm, getattr(self, convolution)(x), forward))

    def run_pool(self, x: jax.Array, forward: ForwardContext, stage: str) -> jax.Array:
        del forward, stage
        return x.astype(parameter_dtype(self.dtype)).mean((1, 2)).astype(self.dtype)

    def run_head(self, x: jax.Array, forward: ForwardContext, stage: str) -> jax.Array:
        del stage
        return self.head(dropout(x, self.dropout, forward.keys))
