"""The networks by name."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.core.errors import UserError
from tljax.models.layers import BatchNormMode, ForwardContext
from tljax.models.network import Network
from tljax.models.resnet import ResNet
from tljax.models.squeezenet import SqueezeNet
from tljax.models.xception import MiniXception

__all__ = [
    "MODELS", "BatchNormMode", "ForwardContext", "Network", "check_side", "create_model", "init_variables",
    "variable_shapes",
]  # fmt: skip

MODELS: dict[str, tuple[type[Network], dict[str, Any]]] = {
    "resnet18": (ResNet, dict(blocks=(2, 2, 2, 2))),
    "resnet34": (ResNet, dict(blocks=(3, 4, 6, 3))),
    "resnet50": (ResNet, dict(blocks=(3, 4, 6, 3), bottleneck=True)),
    "resnet101": (ResNet, dict(blocks=(3, 4, 23, 3), bottleneck=True)),
    "resnet152": (ResNet, dict(blocks=(3, 8, 36, 3), bottleneck=True)),
    "squeezenet1_0": (SqueezeNet, dict(version="1.0")),
    "squeezenet1_1": (SqueezeNet, dict(version="1.1")),
    "mini_xception": (MiniXception, dict()),
}


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    last_stage: str | None = None,
    width: int | None = None,
    blocks: Sequence[int] | None = None,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    dtype: str = "float32",
    head_init: str = "torch",
) -> Network:
    """Makes a network.

    Args:
      name: a key of `MODELS`.
      num_classes: outputs of the head.
      last_stage: the last stage before the head; None for all.
      width: channels of the first convolution, for a small relative of a ResNet or of `mini_xception`.
      blocks: blocks per layer, likewise; also fewer layers.
      dropout: dropout before the head; None for the original's.
      stochastic_depth: stochastic depth of a ResNet; None for none.
      dtype: 'float32', 'bfloat16', or 'float64' under x64.
      head_init: 'torch' or 'normal', see `layers.head_inits`.

    Raises:
      UserError: for a name, a stage or an option that the network does not have.
    """
    if name not in MODELS:
        raise UserError(f"model.name={name!r} is not known; there are {', '.join(MODELS)}")
    if head_init not in ("torch", "normal"):
        raise UserError(f"model.head_init={head_init!r} is not one of torch, normal")
    if dtype not in ("float32", "bfloat16", "float64"):
        raise UserError(f"model.dtype={dtype!r} is not one of float32, bfloat16, float64")
    if dtype == "float64" and not getattr(jax.config, "jax_enable_x64", False):
        raise UserError("model.dtype=float64 needs JAX_ENABLE_X64=1 in the environment")
    if width is not None and width < 1:
        raise UserError(f"model.width={width} is not a positive number of channels")
    if blocks is not None and (not 1 <= len(blocks) <= 4 or not all(isinstance(n, int) and n > 0 for n in blocks)):
        raise UserError(
            f"model.blocks={tuple(blocks)} is not one to four positive numbers of blocks, as in (2, 2, 2, 2)"
        )
    for option, rate in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
        if rate is not None and not 0 <= rate < 1:
            raise UserError(f"model.{option}={rate} is not in 0 <= {option} < 1")
    kind, options = MODELS[name]
    given = {
        k: v
        for k, v in dict(
            width=width,
            blocks=tuple(blocks) if blocks is not None else None,
            dropout=dropout,
            stochastic_depth=stochastic_depth,
        ).items()
        if v is not None
    }
    for option in given:
        if option not in kind.__dataclass_fields__:
            raise UserError(f"model.{option} does not apply to {name}")
    model = kind(num_classes=num_classes, dtype=dtype, head_init=head_init, **{**options, **given})
    if last_stage is not None and last_stage not in model.trunk:
        raise UserError(
            f"model.last_stage={last_stage!r} is not a stage of {name} before its head; "
            f"there are {', '.join(model.trunk)}"
        )
    return model.clone(last_stage=last_stage)


def init_variables(model: Network, key: jax.Array) -> dict[str, Any]:
    """Fresh `{'params': ..., 'batch_stats': ...}`; the second is empty for a network without batch norm."""
    init = _init(model)  # type: ignore[arg-type]  # Flax freezes its modules, which then have a hash
    return _collections(init(key, _images()))


def variable_shapes(model: Network) -> dict[str, Any]:
    """`init_variables` as `jax.ShapeDtypeStruct`s; nothing is computed."""
    init = _init(model)  # type: ignore[arg-type]
    return _collections(jax.eval_shape(init, jax.random.key(0), _images()))


def check_side(model: Network, name: str, side: int) -> None:
    """Raises UserError for pictures of `side` pixels that are too small for a network to leave anything of."""
    if side < SIDE and not _takes(model, side):  # type: ignore[arg-type]
        least = next(n for n in range(side + 1, SIDE + 1) if _takes(model, n))  # type: ignore[arg-type]
        raise UserError(f"data.size={side} is too small for model.name={name}; it takes {least} pixels and more")


@functools.lru_cache(maxsize=256)
def _takes(model: Network, side: int) -> bool:
    """Whether some of a picture arrives at the head."""
    picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    last = "pool" if "pool" in model.stages else "head"
    try:
        seen: Any = jax.eval_shape(lambda v, x: model.apply(v, x, stop_stage=last), variable_shapes(model), picture)
    except (ValueError, TypeError, ZeroDivisionError):  # windows that are larger than what there is
        return False
    return 0 not in seen.shape


@functools.lru_cache(maxsize=16)
def _init(model: Network) -> Callable[..., Any]:
    """A model's initialization, traced and compiled once for all runs of a process."""
    # It runs once or twice: to optimize its code takes seconds, and saves none.
    return jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})


SIDE = 64  # of what parameters are made for; none depends on it, and every network takes it


def _images() -> jax.Array:
    return jnp.zeros((1, SIDE, SIDE, 3))


def _collections(variables: Any) -> dict[str, Any]:
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
