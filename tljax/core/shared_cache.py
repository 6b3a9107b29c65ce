"""What runs of one process may share: decoded images, and what a frozen part of a network puts out.

Off unless asked for: a study, or a teacher and its students, are many runs over the same images.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class Memo:
    """Values by key. Those that the run under way has not asked for make room when it asks for a new one."""

    def __init__(self):
        self._kept: dict[str, Any] = {}
        self._used: set[str] = set()

    def begin_run(self) -> None:
        self._used = set()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The value of a key, made if it is not there."""
        self._used.add(key)
        if key not in self._kept:
            self._kept = {name: value for name, value in self._kept.items() if name in self._used}
            self._kept[key] = make()
        return self._kept[key]


_active: list[Memo] = []


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Lets the runs within share; they must not change files that they read."""
    _active.append(_active[-1] if _active else Memo())
    try:
        yield
    finally:
        _active.pop()


def is_sharing() -> bool:
    return bool(_active)


def is_shared(key: str) -> bool:
    """Whether an earlier run made a value under this key that is still there."""
    return bool(_active) and key in _active[-1]


def begin_run() -> None:
    """Tells that another run begins."""
    if _active:
        _active[-1].begin_run()


def shared(key: str, make: Callable[[], Any]) -> Any:
    """What an earlier run made under this key, else made now, and kept if runs share."""
    return _active[-1].get(key, make) if _active else make()
