"""A finished run behind the service, in this process, on a port of its own."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from tljax.classifier import Classifier
from tljax.serve import SETTINGS
from tljax.serving.app import Limits, make_app
from tljax.serving.desk import Desk

HOSTS = ("localhost", "127.0.0.1")


@contextlib.contextmanager
def served(classifier: Classifier, *, desk: Desk | None = None, **limits: Any) -> Iterator[str]:
    """Serves while it is entered; gives the address of the page."""
    most = Limits(**{"per_minute": 100_000, **limits})
    desk = desk or Desk(classifier, places=most.places)
    server = uvicorn.Server(uvicorn.Config(make_app(desk, most, hosts=HOSTS), **SETTINGS))
    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(30)
            desk.close()


def wait_until(true: Any, *, seconds: float = 30) -> None:
    """Waits for something to become true."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)
