"""What a run ran on."""

import functools
import importlib.metadata
import platform
from typing import Any

import jax

from tljax.core.xla_flags import is_deterministic

PACKAGES = ("tljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that decide on numbers."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def device() -> dict[str, Any]:
    """The accelerators, how many there are, and the machine around them."""
    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
        "deterministic": jax.default_backend() != "gpu" or is_deterministic(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
