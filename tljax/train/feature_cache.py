"""What the unchanging part of a network puts out, computed once per image and kept: in memory, else in a file."""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from rich.console import Console

from tljax.core.errors import UserError
from tljax.core.host_memory import available_memory
from tljax.core.rng import SECOND_VIEWS
from tljax.core.shared_cache import is_shared, is_sharing, shared
from tljax.distributed import parallel
from tljax.distributed.parallel import all_reduce_max
from tljax.engine.input_pipeline import Features, predict_all
from tljax.models import Network
from tljax.run_dir.files import write_json
from tljax.train.experiment import Experiment, augmentation


@dataclasses.dataclass(frozen=True)
class Kept:
    """The features of one phase.

    Attributes:
      record: what result.json says about them.
      splits: by split: train (of all training images, with labels or without) unless its images are augmented anew each
        epoch, val where there is one; where runs share, whatever else is evaluated.
    """

    record: dict[str, Any]
    splits: dict[str, Features]


def keep(
    x: Experiment,
    phase: int,
    variables: Any,
    *,
    workdir: Path,
    console: Console,
    pause: Callable[[int, int], bool] = lambda done, of: False,
) -> Kept | None:
    """Computes what a phase's constant prefix puts out, for the splits where that is exact or asked for, if any.

    Args:
      x: the experiment.
      phase: which of its phases begins.
      variables: replicated.
      workdir: where features lie that outgrow the memory.
      console: where to print.
      pause: called after each batch with views done and views in all, an image's each; it may raise. Where it says
        True, the view at hand is the last one of its split.

    Raises:
      UserError: when the disk has no room for features of views that were asked for.
    """
    cache, prefix_end = x.config.cache, x.frozen_prefix_end(phase)
    strong = {"strong": x.views} if x.joint and x.config.semi.strong_ops else {}
    views = {"train": x.views} | strong | dict.fromkeys(("val", "test", "unlabeled") if is_sharing() else ("val",), 1)
    views = {name: n for name, n in views.items() if n and name in (*x.data.splits, "strong")}
    # Of all training images, so that runs with other labels share them.
    wanted = {name: x.data.pool if name in ("train", "strong", "unlabeled") else x.data.splits[name] for name in views}
    if prefix_end is None or cache.features == "off" or not views:
        return None
    one = shape_of_one(x, prefix_end, parallel.unreplicate(variables))
    images = {name: len(wanted[name]) * n for name, n in views.items()}

    @functools.cache
    def key(name: str) -> str:
        return _key(x, name, prefix_end, wanted[name], views[name], variables)

    of_one = one.size * one.dtype.itemsize
    needed = sum(images.values()) * of_one
    # What an earlier run has put in memory takes no more of it.
    new = sum(0 if is_sharing() and is_shared(key(name)) else n for name, n in images.items()) * of_one
    spill = needed > int(cache.memory_gb * 2**30) if cache.memory_gb else new > available_memory() // 2
    spill = bool(all_reduce_max(spill))
    below = x.model.stages[: x.model.stages.index(prefix_end)]
    names = [group for group in x.model.groups if x.model.stage_of(group) in below]
    prefix = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
    slower = jax.default_backend() != "cpu"  # to read from a disk than to compute again
    if spill and slower and not cache.views:
        console.print(f"{prefix}: {needed / 1e9:.1f} GB of features do not fit in memory and are not kept")
        return None
    began, where = time.perf_counter(), "file" if spill else "memory"
    total, done = sum(images.values()), 0

    def count(views: int) -> bool:
        nonlocal done
        done += views
        return pause(done, total)

    try:
        found = {
            name: Features(
                _features_of(x, phase, name, wanted[name], n, one, variables, key, workdir if spill else None, count),
                wanted[name],
            )
            for name, n in views.items()
        }
    except UserError as error:
        if cache.views:
            raise
        discard(workdir)
        console.print(f"{prefix}: {error}; their outputs are computed anew each epoch", markup=False)
        return None
    seconds = time.perf_counter() - began
    used = found["train"].values.shape[1] if "train" in found else x.views
    total = sum(features.values.shape[0] * features.values.shape[1] for features in found.values())
    if not augmentation(x.config).random:
        why = "exact: nothing random"
    elif used:
        why = f"{used} fixed view{'s' if used > 1 else ''} of each training image"
    else:
        why = "for validation: nothing random"
    console.print(
        f"{prefix} never change: their outputs are kept in {where} ({why}); {total:,} views, "
        f"{total * of_one / 1e6:,.0f} MB, {seconds:.0f} s"
    )
    record = {
        "prefix": names, "end": prefix_end, "splits": list(found), "views": used, "bytes": total * of_one, "in": where,
        "seconds": seconds,
    }  # fmt: skip
    return Kept(record, found)


def _key(x: Experiment, name: str, prefix_end: str, wanted: np.ndarray, views: int, variables: Any) -> str:
    """What tells features of images from all others."""
    training, strong = name in ("train", "strong"), name == "strong"
    inputs = {
        **x.preprocessing,
        "pixels": x.data.pixels.digest,
        "images": [x.data.source.names[i] for i in wanted],
        "views": views,
        "augment": (repr(augmentation(x.config, strong=strong)), strong and SECOND_VIEWS, x.views_seed)
        if training
        else "",
    }
    return digest(x.model, prefix_end, parallel.unreplicate(variables), inputs)


def shape_of_one(x: Experiment, prefix_end: str | None, variables: Any) -> Any:
    """The shape `[1, ...]` and type of what the constant prefix, which ends at `prefix_end`, puts out for one image."""
    side = x.config.data.size
    return jax.eval_shape(lambda v: x.model.apply(v, jnp.zeros((1, side, side, 3)), stop_stage=prefix_end), variables)


def _features_of(
    x: Experiment,
    phase: int,
    name: str,
    wanted: np.ndarray,
    views: int,
    one: Any,
    variables: Any,
    key_of: Callable[[str], str],
    folder: Path | None,
    count: Callable[[int], bool],
) -> np.ndarray:
    """Features `[n, views, ...]` of images, in a file of `folder` if given; `one` has the shape and type of a batch of
    one."""
    training, strong, file = name in ("train", "strong"), name == "strong", None
    pictures = x.feed(wanted, training=training, strong=strong, once=True)
    key = jax.random.key(x.views_seed)
    if strong:
        key = jax.random.fold_in(key, SECOND_VIEWS)
    if folder is not None:
        file = folder / f"features-{name}-{jax.process_index()}.npy"
        found = reopen(file, key_of(name), one.dtype)
        if not all_reduce_max(found is None):
            assert found is not None
            return found
    step = parallel.eval_step(x.forward_step(phase, pictures, stop_stage=x.frozen_prefix_end(phase)))

    def outputs() -> Iterator[tuple[int, int, np.ndarray]]:
        for view in range(views):
            first, enough = 0, False
            for values in predict_all(step, pictures, variables, key, x.replicas, view=view):
                yield first, view, values
                first += len(values)
                enough = count(len(values))
            if enough:
                return

    def make() -> np.ndarray:
        shape = (len(wanted), views, *one.shape[1:])
        return collect(outputs(), shape, one.dtype, file=file, key="" if file is None else key_of(name))

    # A file goes when its run ends.
    return shared(key_of(name), make) if file is None and is_sharing() else make()


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
        for path in sorted(path for path in flat if model.stage_of(model.group_of(path)) in below):
            found.update(repr(path).encode() + np.asarray(flat[path]).tobytes())
    return found.hexdigest()


def reopen(path: Path, key: str, dtype: Any) -> np.ndarray | None:
    """The features that a file of this key holds, undamaged, or None."""
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        if record["key"] != key or record["digest"] != _file_digest(path):
            return None
        return _mapped(path, dtype)
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
      outputs: (first row, view, features `[n, ...]`), view by view; it may end after any.
      shape: images, views, then the shape of one image's features.
      dtype: theirs.
      file: where to keep them; None for memory. It appears when it is complete.
      key: what the file is asked for by.

    Returns:
      The views that there are.

    Raises:
      UserError: when the disk has no room.
    """
    if file is None:
        kept = np.empty(shape, dtype)
        return kept[:, : _fill(kept, outputs)]
    part = file.with_name(file.name + ".part")
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        reserve(part, size + 4096)
        kept = np.lib.format.open_memmap(part, "w+", dtype, shape)
        if (views := _fill(kept, outputs)) < shape[1]:
            return kept[:, :views]  # under no key: who asks for all views computes them
        kept.flush()
        file.with_suffix(".json").unlink(missing_ok=True)
        os.replace(part, file)
        write_json(file.with_suffix(".json"), {"key": key, "digest": _file_digest(file)})
        return _mapped(file, dtype)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"cannot keep {size / 1e9:.1f} GB of features in {str(file)!r}: {error.strerror or error}; make room, or "
            f"raise cache.memory_gb"
        ) from None


def reserve(path: Path, size: int) -> None:
    """Takes room for a file: a map over a full disk would end the process. Raises OSError in all processes or in none:
    they compute features together."""
    failed = None
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else None
    except OSError as error:
        failed = error
    if all_reduce_max(failed is not None):
        raise failed or OSError("another process has no room")


def discard(workdir: Path) -> None:
    """Removes the feature files of a run that needs them no more."""
    for file in workdir.glob("features-*"):
        file.unlink(missing_ok=True)


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    """An array file; its header cannot name bfloat16, which comes back as bytes of the same size."""
    return np.load(path, mmap_mode="r", allow_pickle=False).view(dtype)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _fill(kept: np.ndarray, outputs: Iterator[tuple[int, int, np.ndarray]]) -> int:
    """Writes features where they belong; returns of how many views."""
    view = -1
    for first, view, values in outputs:
        kept[first : first + len(values), view] = values
    return view + 1
