"""Ctrl-C and SIGTERM as a request, so that a run can save before it leaves."""

import contextlib
import signal
from collections.abc import Iterator


class Interrupted(Exception):
    """A signal came; everything up to this step is saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"{signal.Signals(number).name}: saved at step {step}; the same command goes on from there")
        self.number = number


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nobody listens."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM end what is done by an exception, as Ctrl-C does."""

    def terminate(number: int, frame: object) -> None:
        del number, frame
        raise Terminated

    before = None
    with contextlib.suppress(ValueError):  # not the main thread: whoever runs us there handles signals
        before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def listen() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list instead of obeying; a second one is obeyed at once."""
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        del frame
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread: whoever runs us there handles signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
