"""Every image decoded once and kept as uint8: in memory where it fits, else in a memory-mapped file."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
import PIL

from tljax.core.errors import UserError, counted
from tljax.core.host_memory import available_memory
from tljax.data.decode import PLUGINS, UNKNOWN, Levels, decode, has_more_pictures, has_plugin, largest, may_be_wide
from tljax.data.reading import MAX_ASPECT, Unreadable
from tljax.data.source import Source

# A cache file is the pixels, then a JSON record, the record's length in 8 bytes, and this.
_MAGIC = b"tljaxpx1"
_CONTENT = "S32"
LOW_CONTRAST = 16  # of 256 values: a picture whose lightest and darkest lie closer shows next to nothing
_IN_FLIGHT = 4  # decoded images waiting for their turn, per worker

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Decoded images of different sizes, end to end in one buffer.

    Attributes:
      buffer: uint8 `[total bytes]`; an array, or a memory map opened for reading.
      offsets: int64 `[N]`, where the image of each index in the source begins.
      sizes: int32 `[N, 2]`, height and width; zeros for images that are not held.
      skipped: (name, reason) of images that were asked for and could not be read, in the order of their indices.
      flat: names of images without contrast, in the same order.
      paged: names of files with more than one picture, of which the first is held.
      levels: what was white.
      contents: digests of the files, or of what else the source gave, that they were decoded from: bytes `[N]`, empty
        for images that are not held; None where it is not known.
    """

    buffer: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()
    flat: tuple[str, ...] = ()
    paged: tuple[str, ...] = ()
    levels: Levels = UNKNOWN
    contents: np.ndarray | None = None

    def image(self, index: int) -> np.ndarray:
        """One picture, a view, uint8 `[h, w, 3]`. Raises KeyError for an image that is not held."""
        height, width = (int(side) for side in self.sizes[index])
        if not height:
            raise KeyError(f"image {index} was not decoded")
        start = int(self.offsets[index])
        return self.buffer[start : start + height * width * 3].reshape(height, width, 3)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the buffer, taken a piece at a time."""
        digest = hashlib.blake2b()
        for start in range(0, self.buffer.size, 1 << 26):
            digest.update(np.ascontiguousarray(self.buffer[start : start + (1 << 26)]).data)
        return digest.hexdigest()

    @property
    def held(self) -> np.ndarray:
        """bool `[N]`: which images of the source are here."""
        return self.sizes[:, 0] > 0


def find_levels(
    source: Source, indices: np.ndarray, *, workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Levels:  # fmt: skip
    """What is white in a set of images: the largest value of all, rounded up to a power of two.

    Only files that can have more than 8 bits are decoded for that; of the others the first bytes are read, where the
    source has a way to.

    Args:
      source: where they come from.
      indices: the training images. What cannot be read says nothing.
      workers, progress: as for `decode_all`; progress is told of images that are decoded here.
    """
    if source.narrow:
        return UNKNOWN
    head = getattr(source.read, "head", source.read)

    def wide(index: int) -> bool:
        try:
            found = head(index)
        except OSError:
            return False
        return may_be_wide(found[:32]) if isinstance(found, bytes) else found.dtype != np.uint8

    def most(index: int) -> tuple[int, float]:
        try:
            return largest(source.read(index))
        except (Unreadable, OSError):
            return 0, 0.0

    workers = max(1, workers or _processors())
    tops, found = (0, 0.0), np.unique(np.asarray(indices, np.int64)).tolist()
    with ThreadPoolExecutor(workers, thread_name_prefix="levels") as pool:
        found = [index for index, yes in _in_order(pool, wide, found, 1024) if yes]
        for done, (_, top) in enumerate(_in_order(pool, most, found, _IN_FLIGHT * workers), 1):
            tops = max(tops[0], top[0]), max(tops[1], top[1])
            if progress:
                progress(done, len(found))
    return Levels.of(*tops)


def decode_all(
    source: Source,
    indices: np.ndarray,
    *,
    short_side: int,
    max_aspect: float = MAX_ASPECT,
    boxes: np.ndarray | None = None,
    levels: Levels = UNKNOWN,
    workers: int | None = None,
    memory_bytes: int | None = None,
    spill: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Decodes images in parallel threads; the result does not depend on how many.

    Args:
      source: where they come from.
      indices: which to decode; duplicates are decoded once.
      short_side: see `decode`.
      max_aspect: see `decode`.
      boxes: what to cut each image of the source to, `[N, 4]` as `decode` takes it, NaN for nothing; None for none.
      levels: see `decode`.
      workers: threads; by default one per processor this process may use.
      memory_bytes: the most to hold in memory; by default half of what is available.
      spill: the file to go on in when the images outgrow that. It is used again without decoding while it holds what
        would be decoded (same images, sizes, times of change and Pillow), replaced when it does not, and appears only
        when complete. Its folder is created.
      progress: called with (done, total) in the calling thread after each image.

    Raises:
      UserError: the images outgrow the memory and there is no `spill`, or no room for it, or it is another's file.
    """
    wanted = np.unique(np.asarray(indices, np.int64))
    key = key_of(source, wanted, short_side, boxes, max_aspect=max_aspect, levels=levels) if spill else ""
    if spill and (kept := _reopen(Path(spill), key, len(source), wanted)):
        if progress:
            progress(len(wanted), len(wanted))
        return dataclasses.replace(kept, levels=levels)

    sizes = np.zeros((len(source), 2), np.int32)
    contents = np.zeros(len(source), _CONTENT)
    skipped: list[tuple[str, str]] = []
    flat: list[str] = []
    paged: set[int] = set()
    workers = max(1, workers or _processors())
    limit = available_memory() // 2 if memory_bytes is None else memory_bytes
    # No image is larger than this, and pages that are never written take no memory.
    largest = short_side * max(short_side, int(short_side * max_aspect)) * 3
    try:
        memory = np.empty(min(limit, largest * len(wanted)), np.uint8)
    except MemoryError:
        memory = np.empty(0, np.uint8)

    def work(index: int) -> np.ndarray | str:
        try:
            box = None if boxes is None or np.isnan(boxes[index]).any() else boxes[index]
            data = source.read(index)
            contents[index] = content_of(data)
            if isinstance(data, bytes) and has_more_pictures(data):
                paged.add(index)
            return decode(data, short_side=short_side, max_aspect=max_aspect, box=box, levels=levels)
        except Unreadable as error:
            return error.reason
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"

    total = 0
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        stack.callback(pool.shutdown, cancel_futures=True)
        file: _CacheFile | None = None
        for done, (index, result) in enumerate(_in_order(pool, work, wanted.tolist(), _IN_FLIGHT * workers), 1):
            if isinstance(result, str):
                skipped.append((source.names[index], result))
                contents[index] = b""
                paged.discard(index)
            else:
                sizes[index] = result.shape[:2]
                if int(result.max()) - int(result.min()) < LOW_CONTRAST:
                    flat.append(source.names[index])
                if file is None and total + result.size > memory.size:
                    file = stack.enter_context(_CacheFile(_place_to_spill(spill, total, done - 1, len(wanted)), key))
                    file.write(memory[:total].data)
                    memory = np.empty(0, np.uint8)
                if file is None:
                    memory[total : total + result.size] = result.reshape(-1)
                else:
                    file.write(result.data)
                total += result.size
            if progress:
                progress(done, len(wanted))
        several = tuple(source.names[index] for index in sorted(paged))
        if file is not None:
            file.finish(sizes[wanted], contents[wanted], skipped=skipped, flat=flat, paged=several)
            memory = np.memmap(file.path, np.uint8, "r", shape=(total,))
    return Pixels(memory[:total], _offsets(sizes), sizes, tuple(skipped), tuple(flat), several, levels, contents)


def content_of(data: bytes | np.ndarray) -> bytes:
    """A digest of what a source gives for an image, whatever its name, place and times; hexadecimal."""
    shape = b"" if isinstance(data, bytes) else repr((data.shape, data.dtype.str)).encode()
    whole = data if isinstance(data, bytes) else np.ascontiguousarray(data).data
    digest = hashlib.blake2b(shape, digest_size=16)
    digest.update(whole)
    return digest.hexdigest().encode()


def drop(splits: Mapping[str, np.ndarray], pixels: Pixels) -> dict[str, np.ndarray]:
    """The splits without images that could not be read. Raises UserError for a split that is left empty."""
    left = {name: members[pixels.held[members]] for name, members in splits.items()}
    for name, members in left.items():
        if not members.size:
            example = f", such as {pixels.skipped[0][0]!r}: {pixels.skipped[0][1]}" if pixels.skipped else ""
            raise UserError(f"none of the {counted(len(splits[name]), 'image')} of {name} can be read{example}")
    return left


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], _Result], indices: list[int], window: int
) -> Iterator[tuple[int, _Result]]:
    """`pool.map`, but with no more than `window` results or tasks waiting."""
    pending: deque[tuple[int, Future]] = deque()
    for index in indices:
        if len(pending) == window:
            first, future = pending.popleft()
            yield first, future.result()
        pending.append((index, pool.submit(work, index)))
    for index, future in pending:
        yield index, future.result()


def _offsets(sizes: np.ndarray) -> np.ndarray:
    ends = np.cumsum(sizes[:, 0].astype(np.int64) * sizes[:, 1] * 3)
    return np.concatenate([[0], ends[:-1]]).astype(np.int64)


def key_of(
    source: Source, wanted: np.ndarray, short_side: int, boxes: np.ndarray | None, *, max_aspect: float = MAX_ASPECT,
    levels: Levels = UNKNOWN,
) -> str:  # fmt: skip
    """A digest of all that the decoded images depend on, short of reading every file."""
    digest = hashlib.sha256(f"{PIL.__version__} {short_side} {max_aspect} {len(source)} {tuple(levels)}".encode())
    digest.update("".join(kind for kind in PLUGINS if has_plugin(kind)).encode())
    digest.update(b"" if boxes is None else boxes[wanted].tobytes())
    stamp = getattr(source.read, "stamp", None)
    for index in wanted.tolist():
        digest.update(repr((index, source.names[index], stamp(index) if stamp else None)).encode())
    if stamp is None:  # no files to ask: a few images stand for all
        for index in wanted[:: max(1, len(wanted) // 16)].tolist():
            with contextlib.suppress(OSError):
                example = source.read(index)
                digest.update(example if isinstance(example, bytes) else example.tobytes())
    return digest.hexdigest()


def _place_to_spill(spill: Path | None, total: int, done: int, count: int) -> Path:
    if spill is None:
        need = f"about {total / done * count / 1e9:.1f} GB, more" if done else "more memory"
        raise UserError(
            f"the {count} decoded images need {need} than this machine can give; name a file for them, or "
            "use a smaller size"
        )
    return Path(spill)


class _CacheFile:
    """Writes a cache file under another name and gives it its own when it is complete."""

    def __init__(self, path: Path, key: str):
        self.path = path
        self._key = key
        self._temporary, self._digest = "", hashlib.blake2b()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not _is_cache(self.path):
                raise UserError(f"{str(self.path)!r} is no cache of decoded images and will not be replaced; move it")
            self._sweep()
            handle, self._temporary = tempfile.mkstemp(".tmp", self.path.name + ".", self.path.parent)
            self._file = os.fdopen(handle, "wb")
        except OSError as error:
            raise self._no_room(error) from None
        return self

    def _sweep(self) -> None:
        """Removes what killed runs left behind; a run that is still writing touches its file all the time."""
        for old in self.path.parent.glob(f"{self.path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > 3600:
                    old.unlink()

    def write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        try:
            self._file.write(data)
            self._digest.update(data)
        except OSError as error:
            raise self._no_room(error) from None

    def finish(self, sizes: np.ndarray, contents: np.ndarray, **told: Sequence[Any]) -> None:
        """Appends the record (sizes and contents in the order of the images asked for, and what is to be told of them)
        and moves the file into its place."""
        assert self._file is not None
        found = {
            "key": self._key, "digest": self._digest.hexdigest(), "sizes": sizes.tolist(),
            "contents": [content.decode() for content in contents], **told,
        }  # fmt: skip
        record = json.dumps(found).encode()
        self.write(record + len(record).to_bytes(8, "little") + _MAGIC)
        try:
            self._file.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._no_room(error) from None

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):  # gone where it has its final name
            os.unlink(self._temporary)

    def _no_room(self, error: OSError) -> UserError:
        return UserError(
            f"cannot keep the decoded images in {str(self.path)!r}: {error.strerror or error}; make room, "
            "or name a file on another disk"
        )


def _is_cache(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(len(_MAGIC), path.stat().st_size), os.SEEK_END)
        return file.read() == _MAGIC


def _reopen(path: Path, key: str, count: int, wanted: np.ndarray) -> Pixels | None:
    """What the cache file holds, or None where it is absent, incomplete, damaged, or about other images."""
    try:
        if not _is_cache(path):
            return None
        with open(path, "rb") as file:
            end = file.seek(-len(_MAGIC) - 8, os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            file.seek(end - length)
            record = json.loads(file.read(length))
        if record["key"] != key:
            return None
        sizes = np.zeros((count, 2), np.int32)
        sizes[wanted] = record["sizes"]
        contents = np.zeros(count, _CONTENT)
        contents[wanted] = record["contents"]
        total = int((sizes[:, 0].astype(np.int64) * sizes[:, 1] * 3).sum())
        if total != end - length:
            return None
        buffer = np.memmap(path, np.uint8, "r", shape=(total,))
        if hashlib.blake2b(buffer.data).hexdigest() != record["digest"]:
            return None
        skipped = tuple((name, reason) for name, reason in record["skipped"])
        flat, paged = tuple(record["flat"]), tuple(record["paged"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Pixels(buffer, _offsets(sizes), sizes, skipped, flat, paged, contents=contents)
