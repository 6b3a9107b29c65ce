"""SqueezeNet 1.0 and 1.1 as torchvision builds them (Iandola et al. 2016)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.models.layers import (
    ForwardContext,
    conv,
    dropout,
    head_inits,
    kaiming_uniform_fan_in,
    max_pool,
    parameter_dtype,
)
from tljax.models.network import Network

# Fire modules by their index in torchvision's `features`, and the index of the pooling that follows, if any.
FIRES = {
    "1.0": {2: 3, 3: 4, 4: 5, 5: 7, 6: 8, 7: 9, 8: 10, 9: 12},
    "1.1": {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12},
}
POOL_AFTER = {"1.0": (4, 8), "1.1": (3, 5)}
SQUEEZE = {2: 16, 3: 16, 4: 32, 5: 32, 6: 48, 7: 48, 8: 64, 9: 64}


class Fire(nn.Module):
    """Squeezes to few channels by 1x1, expands by 1x1 and 3x3 side by side."""

    squeeze_width: int
    dtype: Any

    def setup(self):
        kwargs: dict[str, Any] = dict(use_bias=True, kernel_init=kaiming_uniform_fan_in, dtype=self.dtype)
        self.squeeze = conv(self.squeeze_width, 1, **kwargs)
        self.expand1x1 = conv(4 * self.squeeze_width, 1, **kwargs)
        self.expand3x3 = conv(4 * self.squeeze_width, 3, padding=1, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(self.squeeze(x))
        parts = [self.expand1x1(x), self.expand3x3(x)]
        self.sow("intermediates", "before_relu", jnp.concatenate(parts, axis=-1))
        out = jnp.concatenate([nn.relu(part) for part in parts], axis=-1)
        self.sow("intermediates", "out", out)
        return out


class SqueezeNet(Network):
    """SqueezeNet; groups `stem`, `fire2` ... `fire9`, `head`. It has no batch norm.

    Attributes:
      version: '1.0' or '1.1'.
      dropout: dropout before the head's convolution.
    """

    version: str = "1.0"
    dropout: float = 0.5

    @property
    def all_stages(self) -> tuple[str, ...]:
        return ("stem", *(f"fire{i}" for i in FIRES[self.version]), "head")

    @property
    def rectified(self) -> bool:
        return True

    def group_of(self, path: Sequence[str]) -> str:
        top, _, index = path[0].partition("_")
        if top == "classifier":
            return "head"
        fires = {str(position): f"fire{i}" for i, position in FIRES[self.version].items()}
        return fires.get(index, "stem" if index == "0" else path[0])

    def setup(self):
        kernel, width, padding = (7, 96, 0) if self.version == "1.0" else (3, 64, 0)
        kwargs: dict[str, Any] = dict(use_bias=True, dtype=self.dtype)
        features: dict[str, nn.Module] = {
            "0": conv(width, kernel, stride=2, padding=padding, kernel_init=kaiming_uniform_fan_in, **kwargs)
        }
        channels = width
        for group in self.groups[1:-1]:
            i = int(group[4:])
            features[str(FIRES[self.version][i])] = Fire(SQUEEZE[i], self.dtype)
            channels = 8 * SQUEEZE[i]
        self.features = features
        self.classifier = {"1": conv(self.num_classes, 1, **head_inits(self.head_init, channels), **kwargs)}

    def run_stem(self, x: jax.Array, forward: ForwardContext, group: str) -> jax.Array:
        del forward, group
        x = self.features["0"](x)
        self.sow("intermediates", "stem_before_relu", x)
        x = nn.relu(x)
        self.sow("intermediates", "stem_relu", x)
        return max_pool(x, ceil=True)

    def run_fire(self, x: jax.Array, forward: ForwardContext, group: str) -> jax.Array:
        del forward
        i = int(group[4:])
        x = self.features[str(FIRES[self.version][i])](x)
        return max_pool(x, ceil=True) if i in POOL_AFTER[self.version] else x

    def run_head(self, x: jax.Array, forward: ForwardContext, group: str) -> jax.Array:
        del group
        x = nn.relu(self.classifier["1"](dropout(x, self.dropout, forward.keys)))
        return x.astype(parameter_dtype(self.dtype)).mean((1, 2)).astype(self.dtype)
