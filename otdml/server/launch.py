"""The start of the server on its port, and of a browser."""

import errno
import os
import secrets
import socket
import sys
import threading
import webbrowser
from contextlib import suppress

from starlette.types import ASGIApp

__all__ = ["address", "can_show", "listening", "new_key", "run"]

LOOPBACK = "127.0.0.1"


def new_key() -> str:
    """The key of visitors, as part of an address."""
    return secrets.token_urlsafe(24)


def listening(port: int) -> socket.socket:
    """A socket that listens at a port of the loopback address; port 0 takes one that is free.

    Raises:
        OSError: The port is taken, or not allowed; the message says what to do.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Without it the port of a server that was just stopped stays blocked for a minute.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((LOOPBACK, port))
        found.listen(64)
    except OSError as error:
        found.close()
        reasons = {errno.EADDRINUSE: "is taken by another program", errno.EACCES: "is for administrators alone"}
        reason = reasons.get(error.errno or 0, f"cannot be opened ({error.strerror})")
        raise OSError(f"port {port} {reason}. Name another with --port, or --port 0 for one that is free.") from error
    return found


def address(listener: socket.socket, key: str) -> str:
    """The address for a browser."""
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}/?key={key}"


def can_show() -> bool:
    """Whether a browser would open in a window: in a terminal it would take that from the server."""
    graphical = sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return graphical or bool(os.environ.get("BROWSER"))


def run(app: ASGIApp, listener: socket.socket, opened: str | None = None) -> None:
    """Answer requests until the process is interrupted.

    Args:
        app: What answers.
        listener: Where it listens.
        opened: The address that is opened in a browser once requests are answered.
    """
    import uvicorn

    if opened is not None:
        # The socket already listens, so that an early browser waits; the server does not wait for a late one.
        threading.Thread(target=webbrowser.open, args=(opened,), daemon=True).start()
    config = uvicorn.Config(
        app,
        # A configuration of its own would close the handlers of every other library in the process.
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=64,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
