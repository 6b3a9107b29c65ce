"""Lets a reader read one file of a stranger, and says what it did that it may not do.

Forbidden is all that is not named in `Watch.may`, by way of Python's audit events, which nothing in Python gets around:
they tell of files, processes, sockets, imports, compiled code and unpickled names before these happen.
"""

import contextlib
import dataclasses
import functools
import mmap
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tljax.core.errors import UserError, one_line

BYTES, SLACK = 256, 1 << 20  # memory: for each byte of the file, and besides
SECONDS, RATE = 5.0, 10e-6  # processor time: besides, and for each byte; instrumented code is slow
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(BaseException):
    """Raised at what a reader may not do, so that it does not happen; no `except Exception` swallows it."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
      arrays: what the first reader returned; None where the file was refused, or lost.
      losses: what no reader may do, in words; empty if all is well.
      memory: bytes, at the peak.
    """

    arrays: Mapping[str, np.ndarray] | None
    losses: tuple[str, ...]
    memory: int


class Watch:
    """Readers under watch; `folder` is empty and theirs alone.

    Each reader gets the file's path. The first returns arrays by name; one that refuses the file ends the attempt.
    """

    def __init__(self, folder: Path, *readers: Callable[[Path], Any]):
        self.path, self.readers = folder / "weights.pth", readers
        self.losses: list[str] = []
        "".encode("cp437")  # names in a zip; Python imports a codec when it is first needed
        install()

    def attempt(self, content: bytes) -> Outcome:
        self.path.write_bytes(content)
        self.losses, found = [], []
        tracing = tracemalloc.is_tracing()  # as in the fuzzer: each start of it takes a few kB for good
        if not tracing:
            tracemalloc.start()
        tracemalloc.reset_peak()
        before, began = tracemalloc.get_traced_memory()[0], time.thread_time()
        try:
            for read in self.readers:
                with listening(self.hear):
                    found.append(read(self.path))
        except UserError as error:
            self.check_refusal(error)
        except Forbidden:
            pass  # `hear` has noted it
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.losses.append(f"{type(error).__name__} instead of UserError: {one_line(error)[:200]}")
        seconds, memory = time.thread_time() - began, tracemalloc.get_traced_memory()[1] - before
        if not tracing:
            tracemalloc.stop()
        if memory > BYTES * len(content) + SLACK:
            self.losses.append(f"{memory} bytes of memory for a file of {len(content)}")
        if seconds > SECONDS + RATE * len(content):
            self.losses.append(f"{seconds:.1f} s of processor time for a file of {len(content)} bytes")
        if os.listdir(self.path.parent) != [self.path.name] or self.path.read_bytes() != content:
            self.losses.append("the folder of the file was changed")
        if found and not self.losses:
            self.check_arrays(found[0])
        return Outcome(None if self.losses or not found else found[0], tuple(self.losses), memory)

    def may(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "open":
            return str(args[0]) == str(self.path) and not args[2] & WRITING
        return event == "mmap.__new__" and args[2] == mmap.ACCESS_READ

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.may(event, args):
            self.losses.append(f"{event} {ascii(args)[:200]}")
            raise Forbidden(event)

    def check_refusal(self, error: UserError) -> None:
        message = str(error)
        if isinstance(error.__cause__, MemoryError):
            self.losses.append("all memory was asked for")
        if not message.startswith(str(self.path)) or not message.isprintable():
            self.losses.append(f"a refusal that is no line about the file: {ascii(message)[:200]}")
        if len(message) > len(str(self.path)) + 400:
            self.losses.append(f"a refusal of {len(message)} characters")

    def check_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        if not isinstance(arrays, Mapping):
            self.losses.append(f"a {type(arrays).__name__} instead of arrays")
            return
        for name, array in arrays.items():
            if array.flags.writeable:
                self.losses.append(f"{name} can be written to")
            if not within_file(array):
                self.losses.append(f"{name} lies outside of the file")


def within_file(array: np.ndarray) -> bool:
    """Whether all of an array lies in the part of a mapped file that it is cut from."""
    root: Any = array
    while (base := getattr(root, "base", None)) is not None and not isinstance(base, memoryview):
        root = base
    if base is None or not isinstance(base.obj, mmap.mmap):
        return False
    (low, high), (first, last) = np.lib.array_utils.byte_bounds(array), np.lib.array_utils.byte_bounds(root)
    return not array.size or first <= low <= high <= last


_ears: list[Callable[[str, tuple[Any, ...]], None]] = []


@functools.cache  # an audit hook cannot be taken away, so there is one for all
def install() -> None:
    sys.addaudithook(_heard)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if _ears:
        hear = _ears.pop()  # so that what it does itself is not heard
        try:
            hear(event, args)
        finally:
            _ears.append(hear)


@contextlib.contextmanager
def listening(hear: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    _ears.append(hear)
    try:
        yield
    finally:
        _ears.clear()
