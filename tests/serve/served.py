"""A finished run behind the service, in this process on a port of its own or by the command; and asking it."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import uvicorn

from tests import commands
from tljax.inference.classifier import Classifier
from tljax.serve.__main__ import SETTINGS
from tljax.serve.app import Limits, make_app
from tljax.serve.desk import InferenceQueue

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("localhost", "127.0.0.1")
TIMEOUT = 60


@contextlib.contextmanager
def served(
    classifier: Classifier, *, desk: InferenceQueue | None = None, send_buffer: int | None = None, **limits: Any
) -> Iterator[str]:
    """Serves while it is entered; gives the address of the page. The kernel keeps so many unread bytes of a client."""
    most = Limits(**{"per_minute": 100_000, **limits})
    desk = desk or InferenceQueue(classifier, places=most.places)
    server = uvicorn.Server(uvicorn.Config(make_app(desk, most, hosts=HOSTS), **SETTINGS))
    with socket.create_server(("127.0.0.1", 0)) as door:
        if send_buffer:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # accepted connections inherit it
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


def command(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tljax.serve", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ROOT, env=commands.environment(**environment),
    )  # fmt: skip


def post(url, data=None, *, query="", **options):
    return requests.post(f"{url}predict{query}", data=data, timeout=TIMEOUT, **options)


def connected(url, **options):
    """A connection to the service, with these socket options."""
    host, port = url[7:-1].split(":")
    found = socket.socket()
    for name, value in options.items():
        found.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    found.settimeout(TIMEOUT)
    found.connect((host, int(port)))
    return found
