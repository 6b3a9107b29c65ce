"""Being a guest in other people's programs: what a call changes in the process, it puts back.

The commands own their process and set it up for good; see `setup_process` in `tljax.api`.
"""

import contextlib
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from tljax.core.xla_flags import choose_libraries

# Orbax logs with a traceback what it raises then, many times over; urllib3's retries of a download would bury the line
# that counts.
LEVELS = {"absl": logging.CRITICAL, "jax": logging.WARNING, "urllib3": logging.ERROR, "tensorflow": logging.ERROR,
          "mlflow": logging.WARNING, "alembic": logging.WARNING}  # fmt: skip
# TensorFlow writes event files; its greeting is about speed.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
TOUCHED = (*ENVIRONMENT, "XLA_FLAGS", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")

_lock = threading.Lock()
_calls = 0
_undo = contextlib.ExitStack()


@contextlib.contextmanager
def visiting() -> Iterator[None]:
    """Sets for a call what a call needs: libraries that keep quiet, and XLA's libraries where JAX has not started.

    The first of several calls in threads sets it, the last one to end puts it back.
    """
    global _calls
    with _lock:
        if not _calls:
            _set_up(_undo)
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if not _calls:
                _undo.close()


def _set_up(undo: contextlib.ExitStack) -> None:
    for name in TOUCHED:
        undo.callback(_set_variable, name, os.environ.get(name))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    choose_libraries()
    for name, level in LEVELS.items():
        logger = logging.getLogger(name)
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(level)
    if not logging.root.handlers and logging.lastResort is not None:  # else absl installs one for good
        logging.root.addHandler(logging.lastResort)
        undo.callback(logging.root.removeHandler, logging.lastResort)
    hook = sys.unraisablehook

    def quieter(told: Any) -> None:
        if not is_closed_loop(told):
            hook(told)

    def put_back() -> None:
        if sys.unraisablehook is quieter:
            sys.unraisablehook = hook

    sys.unraisablehook = quieter
    undo.callback(put_back)


def is_closed_loop(told: Any) -> bool:
    """What TensorStore still had under way when a checkpoint failed ends in a loop that is closed: no news."""
    return "Event loop is closed" in str(told.exc_value)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Undoes what libraries do to the process while they are imported: to root's handlers, the levels of loggers, the
    filters of warnings, the environment, and the states of `random` and `numpy.random`."""
    handlers, environment = list(logging.root.handlers), dict(os.environ)
    known = [
        logging.root,
        *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)),
    ]
    levels = [(logger, logger.level) for logger in known]
    state, numpy_random = random.getstate(), sys.modules.get("numpy.random")
    numpy_state = numpy_random.get_state() if numpy_random else None
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.root.handlers[:] = handlers
        for logger, level in levels:
            if logger.level != level:
                logger.setLevel(level)
        for name in {*environment, *os.environ}:
            _set_variable(name, environment.get(name))
        random.setstate(state)
        if numpy_random and numpy_state is not None:
            numpy_random.set_state(numpy_state)


def _set_variable(name: str, value: str | None) -> None:
    if os.environ.get(name) != value:
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
