"""Signals are heard wherever they come."""

import gc
import os
import signal
import time

import pytest

from tljax.interrupt import Stopped, handled, listen, obey


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_the_collection_of_garbage_is_not_lost(number):
    """What is raised in what JAX, hypothesis and others have Python call then is printed and forgotten."""
    sent = []

    def kill(phase, info):
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    def linger(phase, info):
        for _ in range(1000):
            pass

    gc.callbacks.extend([kill, linger])
    try:
        with pytest.raises(Stopped) as stopped, handled(obey):  # noqa: PT012
            gc.collect()
            for _ in range(1000):
                time.sleep(0.01)
    finally:
        gc.callbacks.remove(kill)
        gc.callbacks.remove(linger)
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
