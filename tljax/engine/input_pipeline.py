"""What the network is fed with: pictures or kept features, from the host or lying on the devices."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tljax.data.batches import (
    Batch,
    center_crops,
    in_order,
    num_batches,
    padded_shape_of,
    prefetch,
    shuffled,
    trailing,
    whole_pictures,
)
from tljax.data.load import Data
from tljax.distributed.parallel import Replicas, all_reduce_max, replicate, to_host
from tljax.engine.oom_guard import free_bytes


class Features(NamedTuple):
    """What a frozen part of the network puts out: `[n, views, ...]`, and which images that is of, int `[n]`."""

    values: np.ndarray
    images: np.ndarray


@dataclasses.dataclass
class InputPipeline:
    """Some images, as batches; an epoch here is one pass over them.

    Attributes:
      data: the images.
      indices: which of them.
      batch_size: rows of a global batch.
      training: whole pictures, to be augmented, in an order drawn anew each epoch; else central squares in order.
      views: `(keys, images, sizes) -> inputs`, for training.
      plain: the same without anything random, for training images beside their copies.
      normalize: `images -> inputs`, for evaluation.
      crop: side of the squares.
      seed: of the order.
      features: of at least these images; None to feed pictures.
      placement: 'host', 'device', or 'auto'.
      copies: how often each training image comes augmented, after it came plain; 0: once, augmented.
      offset: of kept views, the one that epoch 0 sees.
      resident: all inputs, on the devices, where `placed` put them there.
    """

    data: Data
    indices: np.ndarray
    batch_size: int
    training: bool
    views: Callable[..., jax.Array]
    plain: Callable[..., jax.Array]
    normalize: Callable[[Any], jax.Array]
    crop: int
    seed: int
    features: Features | None = None
    placement: str = "auto"
    copies: int = 0
    offset: int = 0
    resident: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        indices = self.indices
        held = indices if self.features is None else self.features.images
        self._images = len(self.data.source.names)
        self._rows = np.zeros(self._images, np.int32)
        self._rows[held] = np.arange(len(held), dtype=np.int32)
        self._canvas = padded_shape_of(self.data.pixels, indices) if self.training else (self.crop, self.crop)

    def placed(self) -> "InputPipeline":
        """The same with its inputs on the devices, where `placement` asks for that; all processes call it together."""
        picture = int(np.prod(self._canvas)) * 3
        size = len(self.indices) * picture if self.features is None else self.features.values.nbytes
        on_device = self.placement == "device" or (
            self.placement == "auto" and not all_reduce_max(not fits_on_device(size))
        )
        return dataclasses.replace(self, resident=replicate(self._everything())) if on_device else self

    @property
    def count(self) -> int:
        """Examples of an epoch."""
        return len(self.indices) * (1 + self.copies)

    def _everything(self) -> dict[str, np.ndarray]:
        """All inputs at once, in the order of their rows, for the devices."""
        if self.features is not None:
            return {"feature": np.asarray(self.features.values)}
        return self._pictures({"index": self.indices, "mask": np.ones(len(self.indices), np.float32)})

    def _pictures(self, batch: Batch) -> Batch:
        batch = batch | {"index": batch["index"] % self._images}
        if self.training:
            return whole_pictures(self.data.pixels, batch, self._canvas)
        return center_crops(self.data.pixels, batch, self.crop)

    def batches(
        self, *, epoch: int = 0, start: int = 0, rows: np.ndarray | None = None, shuffle: bool = True
    ) -> Iterator[Batch]:
        """One epoch, from batch `start`; `rows` as for `train_batches`. Evaluation is never shuffled.

        Copy c of image i has the index i + c x images, and so a key of its own.
        """
        labels = np.concatenate([self.data.targets] * (1 + self.copies))
        indices = np.concatenate([self.indices + c * self._images for c in range(1 + self.copies)])
        options: dict[str, Any] = {"batch_size": self.batch_size, "start": start, "rows": rows}
        if self.training and shuffle:
            found = shuffled(labels, indices, seed=self.seed, epoch=epoch, **options)
        else:
            found = in_order(labels, indices, **options)
        for batch in found:
            row = self._rows[batch["index"] % self._images]
            if self.resident:
                yield batch | {"row": row}
            elif self.features is not None:
                views = self.features.values.shape[1]
                yield batch | {"feature": self.features.values[row, (epoch + self.offset) % views]}
            else:
                yield batch | self._pictures(batch)

    def shards(
        self, replicas: Replicas, *, epoch: int = 0, start: int = 0, shuffle: bool = True
    ) -> Iterator[dict[str, Any]]:
        """The same, laid out for this process's devices, with what lies on them."""
        for batch in self.batches(epoch=epoch, start=start, rows=replicas.rows(self.batch_size), shuffle=shuffle):
            yield replicas.shard(batch, epoch=epoch) | ({"resident": self.resident} if self.resident else {})

    def inputs(self, keys: jax.Array, batch: Any) -> jax.Array:
        """On the device: the keys of examples `[B]`, and a batch with what is resident in it -> the network's input."""
        if "resident" in batch:
            taken = {name: values[batch["row"]] for name, values in batch["resident"].items()}
            if "feature" in taken:
                view = (batch["epoch"] + self.offset) % taken["feature"].shape[1]
                taken["feature"] = jax.lax.dynamic_index_in_dim(taken["feature"], view, 1, keepdims=False)
            batch = {**batch, **taken}
        if "feature" in batch:
            return batch["feature"]
        if self.training:
            found = self.views(keys, batch["image"], batch["size"])
            if not self.copies:
                return found
            first = (batch["index"] < self._images)[:, None, None, None]
            return jnp.where(first, self.plain(keys, batch["image"], batch["size"]), found)
        return self.normalize(batch["image"])


def repeat(feed: Any, replicas: Replicas, *, start: int = 0) -> Iterator[dict[str, Any]]:
    """A feed's shards pass after pass, from batch `start` counted since the first one."""
    number, first = divmod(start, num_batches(feed.count, feed.batch_size))
    yield from feed.shards(replicas, epoch=number, start=first)
    for later in itertools.count(number + 1):
        yield from feed.shards(replicas, epoch=later)


def predict_all(
    step: Callable[..., Any], feed: InputPipeline, variables: Any, key: jax.Array, replicas: Replicas, *, view: int = 0
) -> Iterator[np.ndarray]:
    """What a parallel forward step gives for every image of a feed, in order, a batch at a time."""
    left, shards = len(feed.indices), prefetch(feed.shards(replicas, epoch=view, shuffle=False))
    for out in trailing((step(variables, shard, key) for shard in shards), steps_ahead()):
        values = replicas.unshard(to_host(out))[: min(feed.batch_size, left)]
        left -= len(values)
        yield values


def steps_ahead() -> int:
    """How many steps are dispatched before the host waits for one: enough to keep a device busy, few enough to bound
    the memory. None on a CPU, where a step takes its temporary memory when it is dispatched."""
    return 0 if jax.default_backend() == "cpu" else 2


def fits_on_device(size: int) -> bool:
    """Whether `size` bytes are a small part of what each local device has left; never on a CPU, where it is the host's
    own memory."""
    if jax.default_backend() == "cpu":
        return False
    return size < 0.3 * free_bytes()
