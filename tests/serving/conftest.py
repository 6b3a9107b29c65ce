"""One small run behind the service, for each file of tests."""

import threading

import pytest

from tests import tiny
from tests.serving.served import TIMEOUT, served
from tljax import runs
from tljax.classifier import load
from tljax.report.console import make_console
from tljax.serving.desk import Desk


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.make_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def workdir(photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "tints"
    runs.run(tiny.make_config(photos, epochs=1), workdir, console=make_console(quiet=True))
    return workdir


@pytest.fixture(scope="module")
def classifier(workdir):
    return load(workdir)


@pytest.fixture(scope="module")
def url(classifier):
    with served(classifier) as url:
        yield url


@pytest.fixture
def blocked(classifier):
    """A desk of two places; an event that is set when it is first asked, and one until which it says nothing."""
    desk, begun, go_on = Desk(classifier, places=2), threading.Event(), threading.Event()
    say = desk.say

    def slow(*args, **options):
        begun.set()
        assert go_on.wait(TIMEOUT)
        return say(*args, **options)

    desk.say = slow
    yield desk, begun, go_on
    go_on.set()
