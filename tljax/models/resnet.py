"""ResNet-18 to -152 as torchvision builds them (He et al. 2015; the stride sits on the 3x3 of a bottleneck: v1.5)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from tljax.models.layers import (
    BatchNorm,
    BatchNormMode,
    ForwardContext,
    conv,
    dropout,
    head_inits,
    max_pool,
    parameter_dtype,
    stochastic_depth,
)
from tljax.models.network import Network


class Block(nn.Module):
    """A residual block; `layer2_0/conv1` here is torchvision's `layer2.0.conv1`.

    In training its branch is left out for an example with the probability `drop_rate`; `number` tells its draws from
    those of other blocks.
    """

    width: int
    bottleneck: bool
    stride: int
    project: bool
    dtype: Any
    drop_rate: float = 0.0
    number: int = 0

    def setup(self):
        if self.bottleneck:
            shapes = ((self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1))
        else:
            shapes = ((self.width, 3, self.stride), (self.width, 3, 1))
        for i, (features, kernel, stride) in enumerate(shapes, 1):
            setattr(self, f"conv{i}", conv(features, kernel, stride=stride, padding=kernel // 2, dtype=self.dtype))
            setattr(self, f"bn{i}", BatchNorm(self.dtype))
        if self.project:
            self.downsample = [conv(shapes[-1][0], 1, stride=self.stride, dtype=self.dtype), BatchNorm(self.dtype)]

    def __call__(self, x: jax.Array, mode: BatchNormMode, forward: ForwardContext) -> jax.Array:
        y, last = x, 3 if self.bottleneck else 2
        for i in range(1, last + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y), mode, forward)
            y = nn.relu(y) if i < last else y
        if self.project:
            x = self.downsample[1](self.downsample[0](x), mode, forward)
        out = x + stochastic_depth(y, self.drop_rate, forward.keys, self.number)
        self.sow("intermediates", "before_relu", out)
        out = nn.relu(out)
        self.sow("intermediates", "out", out)
        return out


class ResNet(Network):
    """A ResNet of four layers of blocks.

    Attributes:
      blocks: number of blocks per layer.
      bottleneck: blocks of 1x1, 3x3, 1x1 whose output is four times as wide.
      width: channels of the stem and of layer1; each later layer doubles them.
      dropout: dropout before the head.
      stochastic_depth: the probability that the last block's branch is left out in training, falling linearly to the
        first one's (Huang et al. 2016), which is that over the number of blocks.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    @property
    def all_stages(self) -> tuple[str, ...]:
        return ("stem", *(f"layer{i + 1}" for i in range(len(self.blocks))), "pool", "head")

    def group_of(self, path: Sequence[str]) -> str:
        top = path[0].partition("_")[0]
        return {"conv1": "stem", "bn1": "stem", "fc": "head"}.get(top, top)

    def setup(self):
        self.conv1 = conv(self.width, 7, stride=2, padding=3, dtype=self.dtype)
        self.bn1 = BatchNorm(self.dtype)
        channels, number, count = self.width, 0, sum(self.blocks)
        for i, depth in enumerate(self.blocks[: len(self.groups) - 2]):
            width, stride, out = (
                self.width * 2**i,
                1 if i == 0 else 2,
                self.width * 2**i * (4 if self.bottleneck else 1),
            )
            setattr(
                self,
                f"layer{i + 1}",
                [
                    Block(
                        width,
                        self.bottleneck,
                        stride if j == 0 else 1,
                        j == 0 and (stride > 1 or channels != out),
                        self.dtype,
                        self.stochastic_depth * (number + j + 1) / count,
                        number + j,
                    )
                    for j in range(depth)
                ],
            )
            channels, number = out, number + depth
        self.fc = nn.Dense(
            self.num_classes,
            **head_inits(self.head_init, channels),
            dtype=self.dtype,
            param_dtype=parameter_dtype(self.dtype),
        )

    def run_stem(self, x: jax.Array, forward: ForwardContext, group: str) -> jax.Array:
        x = self.bn1(self.conv1(x), forward.mode(group), forward)
        self.sow("intermediates", "stem_before_relu", x)
        x = nn.relu(x)
        self.sow("intermediates", "stem_relu", x)
        return max_pool(x, padding=1)

    def run_layer(self, x: jax.Array, forward: ForwardContext, group: str) -> jax.Array:
        for block in getattr(self, group):
            x = block(x, forward.mode(group), forward)
        return x

    def run_pool(self, x: jax.Array, forward: ForwardContext, group: str) -> jax.Array:
        del forward, group
        return x.astype(parameter_dtype(self.dtype)).mean((1, 2)).astype(self.dtype)

    def run_head(self, x: jax.Array, forward: ForwardContext, group: str) -> jax.Array:
        del group
        return self.fc(dropout(x, self.dropout, forward.keys))
