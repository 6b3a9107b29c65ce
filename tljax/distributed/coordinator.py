"""What keeps the processes of a run together: a small process beside process 0, which it outlives.

JAX's coordination service runs here, since it would take all processes with it, under pages of C++, where process 0 is
killed. Every process also holds a connection to here. The kernel closes it when the process dies in whatever way, and
the others are told.

A process says {"process": I, "processes": N}, and hears {"error": ""} once all are there and the service runs, else
what is wrong. Later it may say {"ended": [status, words]}, which the others hear with its number as "process"; of one
that goes without a word they hear the number alone. {"done": true} is for going in peace.
"""

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any

HELLO = 10  # seconds for a process to say who it is
LOST = 25  # seconds after which a machine that is silent counts as lost


def main() -> None:
    """`python -m tljax.distributed.coordinator PORT PROCESSES PATIENCE`; prints that it listens, or why it cannot."""
    port, count, patience = map(int, sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends when the others have
    try:
        both = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
        listener = socket.create_server(("", port), **both)  # gRPC would share a port that is in use with another run
    except OSError as error:
        print(os.strerror(error.errno) if error.errno else error, flush=True)
        return
    print("listening", flush=True)
    with listener:
        lines, error = gather(listener, count, time.monotonic() + patience)
    service = None
    if not error:
        try:
            service = importlib.import_module("jaxlib._jax").get_distributed_runtime_service(f"[::]:{port}", count)
        except RuntimeError as reason:
            error = f"JAX's coordination service cannot start: {reason}"
    for line in lines.values():
        tell(line, {"error": error})
    if not error:
        relay(lines)
    if service is not None:
        service.shutdown()


def gather(listener: socket.socket, count: int, until: float) -> tuple[dict[int, socket.socket], str]:
    """The connections of all processes, by number, and what went wrong; empty if all came in time.

    What went wrong is kept for process 0, which has started this one and comes for certain.
    """
    lines: dict[int, socket.socket] = {}
    wrong = ""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while len(lines) < count and not (wrong and 0 in lines):
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready:
                missing = ", ".join(str(i) for i in range(count) if i not in lines)
                return lines, wrong or f"of {count} processes these have not started in time: {missing}"
            for key, _ in ready:
                if key.data is not None:
                    selector.unregister(key.fileobj)
                    wrong = wrong or f"process {key.data} has ended before all had started"
                    continue
                line, _ = listener.accept()
                stay_in_touch(line)
                line.settimeout(HELLO)
                try:
                    said = hear(line)
                    process, processes = said["process"], said["processes"]
                except (OSError, ValueError, KeyError, TypeError):
                    line.close()  # none of ours
                    continue
                line.settimeout(None)
                error = ""
                if processes != count:
                    error = f"process {process} was given --processes={processes}, but process 0 --processes={count}"
                elif process in lines:
                    error = f"two processes were given --process={process}"
                if error:
                    tell(line, {"error": error})
                    wrong = wrong or error
                    continue
                lines[process] = line
                selector.register(line, selectors.EVENT_READ, process)
    return lines, wrong


def relay(lines: dict[int, socket.socket]) -> None:
    """Passes on how each process ends, until all have."""
    with selectors.DefaultSelector() as selector:
        for process, line in lines.items():
            selector.register(line, selectors.EVENT_READ, process)
        while selector.get_map():
            for key, _ in selector.select():
                said: dict[str, Any] = {}
                with contextlib.suppress(OSError, ValueError):
                    said = hear(lines[key.data])
                selector.unregister(key.fileobj)
                if "done" not in said:
                    for process, line in lines.items():
                        if process != key.data:
                            tell(line, {"process": key.data, **said})


def tell(line: socket.socket, words: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it has gone
        line.sendall(json.dumps(words).encode() + b"\n")


def hear(line: socket.socket) -> dict[str, Any]:
    """What the other end says next; empty where it has gone. Raises OSError or ValueError where it is none of ours."""
    with line.makefile("rb", 0) as words:  # takes nothing but the line
        return json.loads(words.readline() or b"{}")


def stay_in_touch(line: socket.socket) -> None:
    """Has the kernel notice when the machine at the other end is lost."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", LOST - 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not everywhere
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


if __name__ == "__main__":
    main()
