"""Ctrl-C and SIGTERM as a request, so that a run can save before it leaves."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A signal came; everything up to this step is saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"{signal.Signals(number).name}: saved at step {step}; the same command goes on from there")
        self.number = number


class Stopped(KeyboardInterrupt):
    """A signal came where nobody listens."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.1  # seconds


def obey(number: int, frame: FrameType | None) -> None:
    """A handler of signals that raises `Stopped`."""
    del frame
    raise Stopped(number)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has SIGINT and SIGTERM handled so; outside of the main thread whoever runs us there handles them.

    What is raised in a destructor, in the callback of a weak reference or around a collection of garbage, where JAX has
    Python call it, Python prints and forgets. There `Stopped` is not lost: the signal comes again.
    """
    before, hook = {}, sys.unraisablehook

    def again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped):
            later = threading.Timer(AGAIN, os.kill, (os.getpid(), unraisable.exc_value.number))
            later.daemon = True
            later.start()
        else:
            hook(unraisable)

    sys.unraisablehook = again
    with contextlib.suppress(ValueError):
        for number in SIGNALS:
            if signal.getsignal(number) is not None:  # another one's, not Python's, which could not be put back
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
        if sys.unraisablehook is again:
            sys.unraisablehook = hook


@contextlib.contextmanager
def listen() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list instead of obeying; a second one is obeyed at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            obey(number, frame)
        else:
            caught.append(number)

    with handled(note):
        yield caught
