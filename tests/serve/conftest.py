"""A finished run behind the service, for each file of tests."""

import threading

import pytest

from tests.serve.served import TIMEOUT, served
from tljax.inference.classifier import load
from tljax.serve.desk import InferenceQueue


@pytest.fixture(scope="module")
def classifier(finished):
    return load(finished)


@pytest.fixture(scope="module")
def url(classifier):
    with served(classifier) as url:
        yield url


@pytest.fixture
def blocked(classifier):
    """A desk of two places; an event that is set when it is first asked, and one until which it says nothing."""
    desk, begun, go_on = InferenceQueue(classifier, places=2), threading.Event(), threading.Event()
    say = desk.say

    def slow(*args, **options):
        begun.set()
        assert go_on.wait(TIMEOUT)
        return say(*args, **options)

    desk.say = slow
    yield desk, begun, go_on
    go_on.set()
