"""What a request must be before anything looks at it, and the headers of every answer."""

import ipaddress
import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}


class SafeHeaders:
    """Middleware: every answer gets `HEADERS`."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def put(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, put if scope["type"] == "http" else send)


class SameOrigin:
    """Middleware: what another site has a browser send is refused (403)."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and _foreign(Headers(scope=scope)):
            await JSONResponse({"detail": "another site may not ask here"}, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _foreign(headers: Headers) -> bool:
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return True
    return origin is not None and origin.lower().partition("://")[2] != headers.get("host", "").lower()


class Rate:
    """So many pictures per minute and client, in a moving window.

    Args:
      per_minute: how many.
    """

    def __init__(self, per_minute: int):
        self._item, self._limiter = RateLimitItemPerMinute(per_minute), MovingWindowRateLimiter(MemoryStorage())

    def spend(self, client: str, pictures: int = 1) -> None:
        """Counts pictures of a client, by its address; of IPv6 by its network, since one machine has all of that.

        Raises:
          HTTPException: 429 with the seconds after which there is room again.
        """
        try:
            address = ipaddress.ip_address(client)
            key = str(address if address.version == 4 else ipaddress.ip_network((address, 64), strict=False))
        except ValueError:
            key = client
        if not self._limiter.hit(self._item, key, cost=pictures):
            wait = max(1, math.ceil(self._limiter.get_window_stats(self._item, key).reset_time - time.time()))
            text = f"more than {self._item.amount} pictures in a minute; again in {wait} s"
            raise HTTPException(429, text, {"Retry-After": str(wait)})
