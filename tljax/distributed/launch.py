"""Several processes as one run: they begin together, end together, and none waits for one that is gone."""

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax

from tljax.core.errors import UserError, one_line
from tljax.core.signals import Interrupted
from tljax.distributed.consensus import barrier
from tljax.distributed.coordinator import LOST, hear, stay_in_touch, tell
from tljax.distributed.parallel import all_reduce_max
from tljax.run_dir.checkpoint import saved_steps
from tljax.settings.command_line import exit_status

GONE = 75  # exit status of a process that another one's death has ended: sysexits' "try again"
_last_word = threading.Lock()  # one line is printed, whoever finds out first
_over = threading.Event()  # all have done what there was to do


@contextlib.contextmanager
def joined(address: str, count: int, process: int, *, patience: int, workdir: Path) -> Iterator[None]:
    """Makes this process one of several for the time of a run, and ends it with a line where another one ends early.

    An error within is told to the others, who print it as well. Then this process ends, whatever is on the stack.

    Args:
      address: HOST:PORT where process 0 is reached.
      count: how many processes there are.
      process: which of them this is, from 0.
      patience: seconds to wait for the others to start.
      workdir: where the run's checkpoints are.

    Raises:
      UserError: for an address that cannot be, and for processes that do not come.
    """
    host, port = check_address(address)
    with contextlib.ExitStack() as stack:
        if process == 0:
            stack.enter_context(start_coordinator(port, count, patience))
        line = stack.enter_context(meet(host, port, count, process, patience))
        threading.Thread(target=_listen, args=(line, count, workdir), name="others", daemon=True).start()
        connect(address, count, process)
        try:
            jax.devices()
            barrier()
            # Connects all devices, for which gloo waits 30 s; from then on each may compile for as long as it takes.
            all_reduce_max(0)
            yield
            barrier()  # process 0 has written everything
        except Interrupted:  # all raise it, at the same step
            barrier()
            _part(line)
            raise
        except BaseException as error:
            _end(error, line)
        _part(line)


def check_address(address: str) -> tuple[str, int]:
    """Host and port. Raises UserError where there are none, or no such host."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={address} is not HOST:PORT of process 0, such as 10.0.0.1:1234")
    try:
        socket.getaddrinfo(host, int(port))
    except OSError as error:
        raise UserError(f"--coordinator={address}: {error.strerror}") from None
    return host, int(port)


def start_coordinator(port: int, count: int, patience: int) -> subprocess.Popen[str]:
    """Starts the process that keeps all together."""
    command = [sys.executable, "-m", "tljax.distributed.coordinator", str(port), str(count), str(patience)]
    coordinator = subprocess.Popen(
        command, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert coordinator.stdout is not None
    if (said := coordinator.stdout.readline().strip()) != "listening":
        with coordinator:
            raise UserError(f"port {port} of --coordinator cannot be served: {said}; give all processes another one")
    return coordinator


def meet(host: str, port: int, count: int, process: int, patience: int) -> socket.socket:
    """Waits for all processes; returns the connection to their coordinator."""
    until = time.monotonic() + patience
    while True:
        try:
            line = socket.create_connection((host, port), timeout=max(0.1, until - time.monotonic()))
            break
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(f"process 0 was not reached at {host}:{port} in {patience} s "
                                f"({error.strerror or error}); start it, or look at the address") from None  # fmt: skip
        time.sleep(0.2)
    with contextlib.ExitStack() as closing:
        closing.enter_context(line)
        stay_in_touch(line)
        line.settimeout(None)
        tell(line, {"process": process, "processes": count})
        if error := hear(line).get("error", "process 0 is gone"):
            raise UserError(error)
        closing.pop_all()
    return line


def connect(address: str, count: int, process: int) -> None:
    """Starts JAX's distributed system on the service that the coordinator runs."""
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, which `signals.listen` answers
    jaxlib: Any = importlib.import_module("jaxlib._jax")
    make = jaxlib.get_distributed_runtime_service
    jaxlib.get_distributed_runtime_service = lambda *args, **kwargs: None  # process 0 would start one
    try:
        jax.distributed.initialize(address, count, process)
    finally:
        jaxlib.get_distributed_runtime_service = make


def _listen(line: socket.socket, count: int, workdir: Path) -> None:
    """Ends this process when another one has ended, or the coordinator is gone, and so the machine of process 0."""
    said: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        said = hear(line)
    if _over.is_set():
        return
    who = f"process {said.get('process', 0)} of {count}"
    if "ended" in said:
        time.sleep(2)  # who has made the same mistake says so himself
    with _last_word:
        if "ended" in said:
            status, reason = said["ended"]
            _leave(status, f"{who} has ended: {reason}")
        step = "what was saved last"
        with contextlib.suppress(UserError):
            step = f"step {saved_steps(workdir)[-1]}"
        _leave(GONE, f"{who} is gone; the same command goes on from {step}, with any number of processes")


def _end(error: BaseException, line: socket.socket) -> NoReturn:
    """Ends this process by its own error."""
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
        time.sleep(LOST + 5)  # most likely another process has died; then we are told, and end

    def again() -> None:
        raise error

    with _last_word:
        status, words = 1, f"{type(error).__name__}: {one_line(error)}"
        try:
            status = exit_status(again)
            words = one_line(error) or "interrupted"
        except BaseException:
            sys.excepthook(type(error), error, error.__traceback__)
        tell(line, {"ended": [status, words]})
        _leave(status)


def _part(line: socket.socket) -> None:
    """Goes in peace, as all others do."""
    _over.set()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # everything is written
        jax.distributed.shutdown()
    tell(line, {"done": True})


def _leave(status: int, words: str = "") -> NoReturn:
    """Ends the process at once: a thread may wait in a collective for ever."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")  # a progress bar has hidden the cursor
    sys.stdout.flush()
    if words:
        print(f"tljax: {words}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(status)
