"""Ctrl-C and SIGTERM as a request, so that a run can save before it leaves."""

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


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
    """A handler of signals that raises `Stopped`, once that will be heard.

    What is raised in a destructor, or in what JAX and others have Python call around a collection of garbage, is
    printed and forgotten.
    """
    deaf = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in deaf or frame.f_code.co_name == "__del__":
            later = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
            later.daemon = True
            later.start()
            return
        frame = frame.f_back
    raise Stopped(number)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has SIGINT and SIGTERM handled so; outside of the main thread whoever runs us there handles them."""
    before = {}
    with contextlib.suppress(ValueError):
        for number in SIGNALS:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


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
