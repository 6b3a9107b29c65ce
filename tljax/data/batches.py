"""Decoded images -> batches of constant shape; a batch is a function of (seed, epoch, index) and of nothing else."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

import numpy as np

from tljax.data.pixels import Pixels

Batch = dict[str, np.ndarray]
"""What every batch holds, for B rows:

image: uint8 `[B, H, W, 3]`; the picture at the top left, zeros beyond it.
size: int32 `[B, 2]`, height and width of the picture within `image`.
label: int32 `[B]`.
index: int32 `[B]`, the index in the source.
mask: float32 `[B]`, 1; 0 where the last batch is filled up. Such a row is a black picture that fills `image`, with
  label and index 0: nothing computed from its size divides by zero, and no sum under the mask sees it.
"""
Rows = slice | np.ndarray
_Item = TypeVar("_Item")


def num_batches(count: int, batch_size: int) -> int:
    """Batches in one pass over `count` images."""
    return -(-count // batch_size)


def canvas_of(pixels: Pixels, indices: np.ndarray) -> tuple[int, int]:
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
    order = np.random.default_rng([seed, epoch]).permutation(np.asarray(indices, np.int64))
    height, width = canvas or canvas_of(pixels, order)

    def place(image: np.ndarray, target: np.ndarray) -> tuple[int, int]:
        target[: image.shape[0], : image.shape[1]] = image
        return image.shape[0], image.shape[1]

    for number in range(start, num_batches(len(order), batch_size)):
        chosen = order[number * batch_size : (number + 1) * batch_size]
        yield _assemble(pixels, labels, chosen, batch_size, (height, width), rows, place)


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
    indices = np.asarray(indices, np.int64)

    def place(image: np.ndarray, target: np.ndarray) -> tuple[int, int]:
        (top, into_top, height), (left, into_left, width) = (_centre(side, crop) for side in image.shape[:2])
        target[into_top : into_top + height, into_left : into_left + width] = image[
            top : top + height, left : left + width
        ]
        return crop, crop

    for number in range(num_batches(len(indices), batch_size)):
        chosen = indices[number * batch_size : (number + 1) * batch_size]
        yield _assemble(pixels, labels, chosen, batch_size, (crop, crop), rows, place)


def _centre(side: int, crop: int) -> tuple[int, int, int]:
    """(first pixel taken, where it is put, how many), with torchvision's rounding: half to even, smaller pad first."""
    if side < crop:
        return 0, (crop - side) // 2, side
    return round((side - crop) / 2.0), 0, crop


def _assemble(pixels, labels, chosen, batch_size, canvas, rows, place) -> Batch:
    if rows is None or isinstance(rows, slice):
        rows = np.arange(batch_size)[rows or slice(None)]
    mask = (rows < len(chosen)).astype(np.float32)
    index = np.where(mask > 0, chosen[np.minimum(rows, len(chosen) - 1)], 0).astype(np.int32)
    image = np.zeros((len(index), *canvas, 3), np.uint8)
    size = np.tile(np.array(canvas, np.int32), (len(index), 1))
    label = np.where(mask > 0, np.asarray(labels)[index], 0).astype(np.int32)
    for row in np.flatnonzero(mask):
        size[row] = place(pixels.image(index[row]), image[row])
    return {"image": image, "size": size, "label": label, "index": index, "mask": mask}


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
