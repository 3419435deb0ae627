r"""Access control: requests of a browser on this machine, from this page, with the key shown in the terminal.

A server on the loopback address is within reach of every page that is open in a browser, and of every other user of the
machine. So requests are refused

* of a process of another user, where the system tells whose a connection is: Linux does;
* whose ``Host`` is no name of the loopback address: another site's name may be made to lead here (DNS rebinding);
* that another site makes, by ``Origin`` and ``Sec-Fetch-Site``, other than by a link that is followed;
* without the key, which is in the address that the terminal shows, and in a cookie from then on.

Every answer says that nothing is loaded from elsewhere, framed, kept, or told where one came from.
"""

import os
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "owner"]

HOSTS = ("127.0.0.1", "localhost")
OTHER_USER = "Refused: another user of this machine asked. Start `otdml serve` as the user of the browser.\n"
POLICY = "; ".join(
    [
        "default-src 'none'",
        "img-src 'self' data:",
        "style-src 'self'",
        "script-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """An application behind these rules.

    Args:
        app: What answers the requests that are let through.
        key: What visitors must have.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this server speaks HTTP, not {scope['type']}")

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._answer(scope)
        await (self.app if answer is None else answer)(scope, receive, marked)

    def _answer(self, scope: Scope) -> Response | None:
        """A refusal, or the way in; None where the application answers."""
        headers, path = Headers(scope=scope), scope["path"]
        # A key can be read by others: in the arguments of a browser, or by a server at another port of this host, to
        # which cookies are sent as well.
        if _is_other_user(scope):
            return PlainTextResponse(OTHER_USER, status_code=403)
        if reason := _foreign(scope["method"], path, headers):
            return PlainTextResponse(f"Refused: {reason}.\n", status_code=403)
        given, name = QueryParams(scope["query_string"]).get("key"), f"otdml-{_port(scope)}"
        if path == "/" and given is not None and self._is_key(given):
            answer = RedirectResponse("/", status_code=303)
            # With "strict" the cookie would not be sent when the address is a link in a notebook or an editor.
            answer.set_cookie(name, self.key, httponly=True, samesite="lax")
            return answer
        if not self._is_key(cookie_parser(headers.get("cookie", "")).get(name, "")):
            text = "Open the address that `otdml serve` printed in its terminal, with the key at its end.\n"
            return PlainTextResponse(text, status_code=403)
        return None

    def _is_key(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "surrogateescape"), self.key.encode())


def owner(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The user whose process is the client of a connection within this machine; None where that is not known."""
    try:
        ends = [
            f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}" for host, port in (client, server)
        ]
        connections = Path("/proc/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return None
    return next((int(fields[7]) for line in connections if (fields := line.split())[1:3] == ends), None)


def _is_other_user(scope: Mapping[str, Any]) -> bool:
    client, server = scope.get("client"), scope.get("server")
    found = owner(client, server) if client and server else None
    return found is not None and found not in (os.getuid(), 0)


def _port(scope: Mapping[str, Any]) -> int:
    """Cookies are shared by all ports of a host, so the name of this one has the port."""
    return (scope.get("server") or ("", 0))[1] or 0


def _foreign(method: str, path: str, headers: Headers) -> str:
    """Why a request is not one of this page, or nothing."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if name not in HOSTS or len(headers.getlist("host")) != 1:
        return "the page is served as 127.0.0.1 and localhost alone"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "another site asked"
    site = headers.get("sec-fetch-site", "none")
    followed = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
    if site not in ("same-origin", "none") and not (followed and headers.get("sec-fetch-dest") == "document"):
        return "another site asked"
    return ""
