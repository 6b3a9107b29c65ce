"""Decoded images -> batches of constant shape; a batch is a function of (seed, epoch, index) and of nothing else."""

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import numpy as np

from tljax.core.rng import shuffling
from tljax.data.pixels import Pixels
from tljax.data.reading import put_central_square

Batch = dict[str, np.ndarray]
"""What every batch holds, for B rows:

image: uint8 `[B, H, W, 3]`; the picture at the top left, zeros beyond it.
size: int32 `[B, 2]`, height and width of the picture within `image`.
label: int32 `[B]`, or float32 `[B, classes]` where labels are probabilities.
index: int32 `[B]`, the index in the source.
mask: float32 `[B]`, 1; 0 where the last batch is filled up. Such a row is a black picture that fills `image`, with
  label and index 0: nothing computed from its size divides by zero, and no sum under the mask sees it.
"""
Rows = slice | np.ndarray
_Item = TypeVar("_Item")


def num_batches(count: int, batch_size: int) -> int:
    """Batches in one pass over `count` images."""
    return -(-count // batch_size)


def padded_shape_of(pixels: Pixels, indices: np.ndarray) -> tuple[int, int]:
    """The smallest (height, width) in which each of these pictures fits."""
    height, width = pixels.sizes[indices].max(axis=0)
    return int(height), int(width)


def train_batches(
    pixels: Pixels,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    canvas: tuple[int, int] | None = None,
    start: int = 0,
    rows: Rows | None = None,
) -> Iterator[Batch]:
    """One epoch over whole pictures, in an order drawn from (seed, epoch).

    Args:
      pixels: the decoded images.
      labels: int `[N]`, by index in the source.
      indices: int `[n]`, the images of the epoch; each comes once.
      batch_size: rows of the global batch.
      seed: not negative.
      epoch: not negative.
      canvas: (height, width) of `image`; by default the smallest that holds every picture of `indices`.
      start: the number of the batch to begin with, for resuming within an epoch.
      rows: which rows of each global batch to assemble, as a slice or an index array; by
        default all. Rows beyond `batch_size` are filled up.

    Yields:
      Batches.
    """
    canvas = canvas or padded_shape_of(pixels, indices)
    for batch in shuffled(labels, indices, batch_size=batch_size, seed=seed, epoch=epoch, start=start, rows=rows):
        yield batch | whole_pictures(pixels, batch, canvas)


def shuffled(
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    rows: Rows | None = None,
) -> Iterator[Batch]:
    """`train_batches` without the pictures: label, index and mask of each batch."""
    order = shuffling(seed, epoch).permutation(np.asarray(indices, np.int64))
    yield from in_order(labels, order, batch_size=batch_size, start=start, rows=rows)


def in_order(
    labels: np.ndarray, indices: np.ndarray, *, batch_size: int, start: int = 0, rows: Rows | None = None
) -> Iterator[Batch]:
    """Label, index and mask of batches in the order of `indices`."""
    if rows is None or isinstance(rows, slice):
        rows = np.arange(batch_size)[rows or slice(None)]
    labels = np.asarray(labels, np.int32 if np.ndim(labels) == 1 else np.float32)
    for number in range(start, num_batches(len(indices), batch_size)):
        chosen = indices[number * batch_size : (number + 1) * batch_size]
        mask = (rows < len(chosen)).astype(np.float32)
        index = np.where(mask > 0, chosen[np.minimum(rows, len(chosen) - 1)], 0).astype(np.int32)
        label = np.where(mask.reshape(-1, *[1] * (labels.ndim - 1)) > 0, labels[index], 0)
        yield {"label": label.astype(labels.dtype), "index": index, "mask": mask}


def whole_pictures(pixels: Pixels, batch: Batch, canvas: tuple[int, int]) -> Batch:
    """`image` and `size` of a batch: whole pictures on a canvas of (height, width)."""

    def place(image: np.ndarray, target: np.ndarray) -> tuple[int, int]:
        target[: image.shape[0], : image.shape[1]] = image
        return image.shape[0], image.shape[1]

    return _pictures(pixels, batch, canvas, place)


def eval_batches(
    pixels: Pixels,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    batch_size: int,
    crop: int,
    rows: Rows | None = None,
) -> Iterator[Batch]:
    """Every picture once, in the order of `indices`, cut as by torchvision's `CenterCrop(crop)`.

    Args:
      pixels: the decoded images.
      labels: int `[N]`, by index in the source.
      indices: int `[n]`.
      batch_size: rows of the global batch.
      crop: side of the square; pictures that are smaller get zeros around them.
      rows: which rows of each global batch to assemble, as a slice or an index array; by
        default all. Rows beyond `batch_size` are filled up.

    Yields:
      Batches with `image` `[B, crop, crop, 3]`, `size` (crop, crop) throughout.
    """
    for batch in in_order(labels, np.asarray(indices, np.int64), batch_size=batch_size, rows=rows):
        yield batch | center_crops(pixels, batch, crop)


def center_crops(pixels: Pixels, batch: Batch, crop: int) -> Batch:
    """`image` and `size` of a batch: torchvision's `CenterCrop(crop)`."""

    def place(image: np.ndarray, target: np.ndarray) -> tuple[int, int]:
        put_central_square(image, target)
        return crop, crop

    return _pictures(pixels, batch, (crop, crop), place)


def _pictures(pixels: Pixels, batch: Batch, canvas: tuple[int, int], place: Callable[..., tuple[int, int]]) -> Batch:
    image = np.zeros((len(batch["index"]), *canvas, 3), np.uint8)
    size = np.tile(np.array(canvas, np.int32), (len(image), 1))
    for row in np.flatnonzero(batch["mask"]):
        size[row] = place(pixels.image(batch["index"][row]), image[row])
    return {"image": image, "size": size}


_END = object()


def prefetch(iterator: Iterator[_Item], depth: int = 2) -> Generator[_Item, None, None]:
    """Yields what `iterator` yields, which a thread computes up to `depth` items ahead.

    An exception in `iterator` is raised here, in its place. When the consumer stops early (`break`, an exception, or
    `close`), the thread ends and `iterator` is closed before control returns.
    """
    if depth < 1:
        raise ValueError(f"depth {depth} must be at least 1")
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        outcome: tuple[object, BaseException | None] = (_END, None)
        try:
            for item in iterator:
                ready.put((item, None))
                if stop.is_set():
                    break
        except BaseException as error:  # also SystemExit: it belongs to the consumer's thread
            outcome = (_END, error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        if not stop.is_set():
            ready.put(outcome)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        while thread.is_alive():  # a `put` may be waiting for room
            try:
                ready.get(timeout=0.01)
            except queue.Empty:
                pass
        thread.join()


def trailing(items: Iterator[_Item], behind: int) -> Iterator[_Item]:
    """Yields the items `behind` places late, so that what computes them runs ahead of who waits for them."""
    waiting: collections.deque[_Item] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > behind:
            yield waiting.popleft()
    yield from waiting
