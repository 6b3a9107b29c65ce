"""Memory that would run out, or has: what a step takes, what is free, and which batch would fit."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from tljax.core.errors import UserError
from tljax.core.host_memory import available_memory

MARGIN = 0.9  # of what is free: what a step takes is counted, what its allocator loses is not


def free_bytes() -> int:
    """Bytes that each local device could still give; on a CPU those of the host, divided among its devices. 0 where a
    device does not say."""
    if jax.default_backend() == "cpu":
        return available_memory() // jax.local_device_count()
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(0, min(s.get("bytes_limit", 0) - s.get("bytes_in_use", 0) for s in stats))


def step_bytes(step: Callable[..., Any], *arguments: Any) -> int:
    """What a parallel step takes on a device beside its arguments, as XLA counts it. The program is compiled once: a
    call with the same arguments uses it."""
    found = step.lower(*arguments).compile().memory_analysis()  # type: ignore[attr-defined]
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def check_fits_memory(step: Callable[..., Any], batches: Mapping[str, int], parts: int) -> Callable[..., Any]:
    """A parallel training step whose first call tells which batch is too large, and one that would fit.

    Args:
      step: `(state, shard, key) -> ...`, of `parallel.train_step`.
      batches: the examples of an update, by field of the config.
      parts: that each device's share of them is cut into.

    Returns:
      The same step. Its first call looks at XLA's count before it runs, and waits for the result, since memory that
      runs out may be noticed late. It raises UserError where there is too little.
    """
    warm = False

    def run(*arguments: Any) -> Any:
        nonlocal warm
        if warm:
            return step(*arguments)
        needed, free = step_bytes(step, *arguments), free_bytes()
        shapes = *jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), arguments[:2]), arguments[2]
        if free and needed > free:
            raise does_not_fit(step, shapes, batches, parts, needed=needed, free=free)
        try:
            found = jax.block_until_ready(step(*arguments))
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise does_not_fit(step, shapes, batches, parts, needed=needed, free=free) from None
            raise
        warm = True
        return found

    return run


def does_not_fit(
    step: Callable[..., Any], shapes: tuple[Any, Any, Any], batches: Mapping[str, int], parts: int,
    *, needed: int, free: int,
) -> UserError:  # fmt: skip
    """The error of a batch that is too large. What half of it takes says what an example does."""
    state, shard, key = shapes

    def half(path: Any, values: Any) -> jax.ShapeDtypeStruct:
        resident = any(getattr(part, "key", None) == "resident" for part in path)
        rows = () if resident or values.ndim < 2 else (max(parts, values.shape[1] // (2 * parts) * parts),)
        given = values.shape if not rows else (values.shape[0], *rows, *values.shape[2:])
        return jax.ShapeDtypeStruct(given, values.dtype)

    smaller = step_bytes(step, state, jax.tree_util.tree_map_with_path(half, shard), key)
    least = min(free or needed, needed)  # memory that ran out below the count was in pieces
    share = 0.5 + 0.5 * (MARGIN * least - smaller) / max(1, needed - smaller)  # of the batch
    words = ", ".join(f"{name}={count:,}" for name, count in batches.items())
    fits = {name: int(count * share) for name, count in batches.items()}
    if min(fits.values()) >= 1:
        fitting = " with ".join(f"{name}={2 ** int(math.log2(count))}" for name, count in fits.items())
        advice = f"by the same count {fitting} fits"
        if tuple(batches) == ("batch_size",):
            advice += f", or accumulate={parts * math.ceil(1 / share)}, which makes one update of as many parts"
    else:
        advice = "not even one example would fit; train fewer groups, or give a smaller data.size or network"
    return UserError(
        f"{words} does not fit: a training step takes {needed / 1e9:.3g} GB on each device, as XLA counts it, and "
        f"{free / 1e9:.3g} GB are free; {advice}"
    )
