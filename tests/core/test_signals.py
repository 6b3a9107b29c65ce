"""Signals are heard wherever they come."""

import gc
import os
import signal
import threading
import time
import weakref

import pytest

from tljax.core.signals import Stopped, handled, listen, obey


class Lingering:
    """Something whose end takes a while."""

    def __del__(self):
        linger()


def linger(*_):
    for _ in range(2_000_000):
        pass


def collect():
    gc.callbacks.append(linger)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(linger)


def let_go_of_a_reference():
    one = Lingering()
    reference = weakref.ref(one, linger)
    del one
    assert reference() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", [collect, let_go_of_a_reference, lambda: Lingering().__class__])
def test_a_signal_where_python_forgets_what_is_raised_is_not_lost(number, where):
    """JAX, hypothesis and the standard library have Python call such functions."""
    killer = threading.Timer(0.02, os.kill, (os.getpid(), number))
    with pytest.raises(Stopped) as stopped, handled(obey):  # noqa: PT012
        killer.start()
        where()
        for _ in range(1000):
            time.sleep(0.01)
    assert stopped.value.number == number


def test_a_run_is_asked_once_and_told_twice():
    with listen() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        while not caught:
            time.sleep(0.001)
        with pytest.raises(Stopped):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                time.sleep(0.01)
    assert caught == [signal.SIGTERM]


def test_whoever_handled_signals_before_does_so_again():
    before = signal.getsignal(signal.SIGTERM)
    with handled(obey), listen():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
