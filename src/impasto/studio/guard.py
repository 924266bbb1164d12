"""Access control: the studio answers only a browser that was opened with the printed token.

Other programs on the machine, other users, and pages of other sites in the same browser can all
reach a port of the loopback interface. So every request needs a cookie that only the printed
address sets; the requested host must be this server, or a site could point its own name here (DNS
rebinding); and requests that change something must come from a page of the studio itself
(`Sec-Fetch-Site` and `Origin`; Fetch Metadata Request Headers, W3C).
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every response: pages load nothing from other sites, and send them nothing."""

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

_SAFE_METHODS = ("GET", "HEAD")
_OPENING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Impasto</title>
<link rel="icon" href="/static/icon.svg">
<meta http-equiv="refresh" content="0;url=/"></head>
<body><a href="/">Open the studio</a></body></html>
"""


_STRANGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Impasto</title>
<meta name="viewport" content="width=device-width"></head>
<body><h1>This is an Impasto studio</h1>
<p>Open it with the whole address that it printed when it was started, the one with ?token= in it.
A studio that was restarted has a new address.</p></body></html>
"""


@dataclass(frozen=True)
class Access:
    """The host names, token and cookie that a request must have.

    Attributes:
        port: The port of the server.
        hosts: The names and addresses of the server, without the port.
        token: The token in the printed address.
        cookie_value: The value of the cookie that the token is exchanged for. Browsers send a
            cookie to every port of a host, so a server on another port may see it: it cannot be
            used to open the studio in another browser.
    """

    port: int
    hosts: Sequence[str] = LOOPBACK_NAMES
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    cookie_value: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def cookie(self) -> str:
        """The name of the cookie, with the port, since browsers share cookies between ports."""
        return f"impasto-{self.port}"

    @property
    def address(self) -> str:
        """The address to open in a browser, which contains the token."""
        return f"http://{self.hosts[0]}:{self.port}/?token={self.token}"

    def is_token(self, given: str | None) -> bool:
        """Return whether a text is the token of the printed address."""
        return _same(given, self.token)

    def is_pass(self, given: str | None) -> bool:
        """Return whether a text is the value that the cookie must have."""
        return _same(given, self.cookie_value)

    def knows_host(self, host: str) -> bool:
        """Return whether a `Host` header names this server; browsers omit port 80."""
        names = {f"{name}:{self.port}" for name in self.hosts}
        return host.lower() in (names | set(self.hosts) if self.port == 80 else names)


def hosts_of(address: str) -> list[str]:
    """Return the host names of a server that listens at an address, the most reachable first.

    Args:
        address: The address that it listens at: a loopback address, a network address, or
            `0.0.0.0` or `::` for all.
    """
    listened = ipaddress.ip_address(address)
    if listened.is_loopback:
        return [_in_address(address), *LOOPBACK_NAMES]
    if not listened.is_unspecified:
        return [_in_address(address)]
    own = [
        found.address.partition("%")[0]
        for interface in psutil.net_if_addrs().values()
        for found in interface
        if found.family in (socket.AF_INET, socket.AF_INET6)
    ]
    reached = [a for a in own if listened.version == 6 or ipaddress.ip_address(a).version == 4]
    reached.sort(key=lambda a: (ipaddress.ip_address(a).is_loopback, ":" in a))
    return [*map(_in_address, reached), socket.gethostname().lower(), *LOOPBACK_NAMES]


def _in_address(address: str) -> str:
    """Return an IP address as written in a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


class Guard:
    """Middleware that refuses requests without access, and adds `HEADERS` to all responses.

    Args:
        app: The application that answers allowed requests.
        access: The host names, token and cookie that requests must have.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        access, headers = self._access, request.headers
        if not access.knows_host(headers.get("host", "")):
            return PlainTextResponse("This server has another host name.", 421)
        given = request.query_params.get("token")
        if request.method == "GET" and request.url.path == "/" and given is not None:
            return self._opened() if access.is_token(given) else _strange()
        if not access.is_pass(request.cookies.get(access.cookie)):
            return _strange()
        if not _is_from_here(request, access):
            return PlainTextResponse("This request came from a page of another site.", 403)
        return None

    def _opened(self) -> Response:
        """Return the page that sets the cookie and redirects, so the history has no token."""
        response = HTMLResponse(_OPENING, headers={"cache-control": "no-store"})
        response.set_cookie(
            self._access.cookie,
            self._access.cookie_value,
            httponly=True,
            samesite="strict",
            path="/",
        )
        return response


def _same(given: str | None, wanted: str) -> bool:
    """Return whether two texts are equal, compared in constant time."""
    return given is not None and hmac.compare_digest(given.encode(), wanted.encode())


def _is_from_here(request: Request, access: Access) -> bool:
    """Return whether a request comes from a page of the studio or from the address bar."""
    site = request.headers.get("sec-fetch-site")
    if request.method in _SAFE_METHODS:
        return site in (None, "same-origin", "none")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")  # browsers from before 2023
    try:
        return origin is not None and access.knows_host(urlsplit(origin).netloc)
    except ValueError:  # an invalid address, such as one with a single bracket
        return False


def _strange() -> Response:
    return HTMLResponse(_STRANGE, 403, headers={"cache-control": "no-store"})
