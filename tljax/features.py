"""What the unchanging part of a network puts out, computed once per image and kept: in memory, else in a file."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from tljax.errors import UserError
from tljax.models import Network
from tljax.transfer.plan import Plan
from tljax.workdir import write_json


def prefix_end(model: Network, plan: Plan) -> str | None:
    """The first stage that training can change; None where that is the first of all, so that nothing can be kept."""
    constant = plan.constant_prefix
    changing = [stage for stage in model.stages if stage in model.groups and stage not in constant]
    return changing[0] if constant else None


def digest(model: Network, end: str, variables: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """A digest of all that features depend on.

    Args:
      model: the network.
      end: the stage that they are the input of.
      variables: parameters and statistics; those of the prefix count.
      inputs: what says how pixels become inputs, plain values.
    """
    below = set(model.stages[: model.stages.index(end)])
    found = hashlib.sha256(repr((model.clone(num_classes=0), end, sorted(inputs.items()))).encode())
    for name in ("params", "batch_stats"):
        flat: dict[Any, Any] = dict(traverse_util.flatten_dict(variables[name]))
        for path in sorted(path for path in flat if model.group_of(path) in below):
            found.update(repr(path).encode() + np.asarray(flat[path]).tobytes())
    return found.hexdigest()


def reopen(path: Path, key: str) -> np.ndarray | None:
    """The features that a file of this key holds, or None."""
    try:
        if json.loads(path.with_suffix(".json").read_bytes())["key"] != key:
            return None
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def collect(
    outputs: Iterator[tuple[int, int, np.ndarray]],
    shape: tuple[int, ...],
    dtype: Any,
    *,
    file: Path | None,
    key: str,
) -> np.ndarray:
    """Gathers features.

    Args:
      outputs: (first row, view, features `[n, ...]`).
      shape: images, views, then the shape of one image's features.
      dtype: theirs.
      file: where to keep them; None for memory. It appears when it is complete.
      key: what the file is asked for by.

    Raises:
      UserError: when the disk has no room.
    """
    if file is None:
        kept = np.empty(shape, dtype)
        _fill(kept, outputs)
        return kept
    part = file.with_name(file.name + ".part")
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        with part.open("wb") as reserved:  # a map over a full disk would end the process
            os.posix_fallocate(reserved.fileno(), 0, size + 4096) if hasattr(os, "posix_fallocate") else None
        kept = np.lib.format.open_memmap(part, "w+", dtype, shape)
        _fill(kept, outputs)
        kept.flush()
        file.with_suffix(".json").unlink(missing_ok=True)
        os.replace(part, file)
        write_json(file.with_suffix(".json"), {"key": key})
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"cannot keep {size / 1e9:.1f} GB of features in {str(file)!r}: {error.strerror or error}; make room, or "
            f"say cache.features=off"
        ) from None


def _fill(kept: np.ndarray, outputs: Iterator[tuple[int, int, np.ndarray]]) -> None:
    for first, view, values in outputs:
        kept[first : first + len(values), view] = values


def fits_on_device(size: int) -> bool:
    """Whether `size` bytes are a small part of what each local device has left; never on a CPU, where it is the host's
    own memory."""
    if jax.default_backend() == "cpu":
        return False
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    free = min(s.get("bytes_limit", 0) - s.get("bytes_in_use", 0) for s in stats)
    return size < 0.3 * free
