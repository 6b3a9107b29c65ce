"""`python -m tljax.serve WORKDIR`: a finished run behind a local page and an HTTP endpoint.

    python -m tljax.serve runs/folder
    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict

Drop, paste or photograph a picture on the page to see the answer and where in the picture it comes from. `/docs`
describes the endpoint.
"""

import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tljax.core.errors import UserError
from tljax.core.process import keep_compilations
from tljax.core.signals import listen
from tljax.core.xla_flags import tune_cpu
from tljax.settings.command_line import OneLineParser, exit_status

BACKLOG = 128  # connections that wait, and are accepted in one go; with 512 a flood takes 1,024 files
LINGER = 5  # seconds that requests under way have when the service ends


def make_parser() -> OneLineParser:
    parser = OneLineParser("python -m tljax.serve", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="the folder of a finished run")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; other machines reach 0.0.0.0 or ::")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one, which is printed")
    parser.add_argument("--top", type=int, default=5, help="classes per picture, unless a request says otherwise")
    parser.add_argument("--max-mb", type=float, default=20, help="megabytes of a request")
    parser.add_argument("--rate", type=int, default=120, help="pictures per minute and client")
    parser.add_argument("--queue", type=int, default=16, help="requests under way at once")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return exit_status(lambda: serve(args))


def serve(args: Any) -> int:
    """Serves until a signal comes."""
    for name in ("top", "max_mb", "rate", "queue"):
        if not (value := getattr(args, name)) > 0:
            raise UserError(f"--{name.replace('_', '-')}={value} is not a positive number")
    with bound(args.host, args.port) as door:
        tune_cpu()
        try:
            import python_multipart  # noqa: F401  Starlette looks for it when the first form comes
            import uvicorn

            from tljax.serve.app import Limits, make_app
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "tljax":
                raise
            raise UserError(f"serving needs {error.name}: pip install -e '.[serve]'") from None
        from tljax.inference.classifier import load
        from tljax.serve.desk import InferenceQueue

        keep_compilations()
        desk = InferenceQueue(load(args.workdir), places=args.queue)
        desk.warm_up()
        address, port = door.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        local = ipaddress.ip_address(address).is_loopback
        # Else a page elsewhere could have its own name lead to this machine, and ask in the name of its visitor.
        hosts = ("localhost", "127.0.0.1", "[::1]", shown) if local else ()
        limits = Limits(args.top, round(args.max_mb * 1e6), args.rate, args.queue)
        server = uvicorn.Server(uvicorn.Config(make_app(desk, limits, hosts=hosts), **SETTINGS))
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # as uvicorn's, by its settings
        door.listen(BACKLOG)
        if not local:
            print(f"tljax: warning: {shown} is open to other machines: whoever reaches it can ask this network, and "
                  "what is sent can be read on the way", file=sys.stderr)  # fmt: skip
        print(f"tljax: {args.workdir} answers at http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)
        with listen() as caught:  # uvicorn hears signals first, ends, and raises them again
            server.run(sockets=[door])
        desk.close()
        reason = signal.Signals(caught[0]).name if caught else "stopped"
        print(f"tljax: {reason}: ended after {desk.answered:,} {'answer' if desk.answered == 1 else 'answers'}")
        return 0


SETTINGS: dict[str, Any] = {
    "loop": "asyncio", "http": "tljax.serve.connections:Connection", "ws": "none", "lifespan": "off",
    "backlog": BACKLOG, "server_header": False, "proxy_headers": False, "timeout_graceful_shutdown": LINGER,
    # A warning is of what a client sent: it would let whoever can connect fill the terminal.
    "log_config": None, "log_level": "error", "access_log": False,
}  # fmt: skip


def bound(host: str, port: int) -> socket.socket:
    """A socket with this address, which does not listen yet: a mistake is answered before anything is loaded.

    Raises:
      UserError: for an address that is none or is in use.
    """
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port={port} is not a port; 1 to 65535, or 0 for any free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host={host} is no address of this machine ({error})") from None
    try:
        if os.name == "posix":
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a service that just ended leaves traces
        door.bind(address)
    except OSError as error:
        door.close()
        raise UserError(f"cannot listen at {host}, port {port}: {error.strerror}; give another --port, or 0 for any "
                        "free one") from None  # fmt: skip
    return door


if __name__ == "__main__":
    sys.exit(main())
