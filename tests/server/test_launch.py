"""The port, the browser, and the command as a process."""

import logging
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from otdml.server import launch


def test_only_the_loopback_address_is_listened_to():
    with launch.listening(0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        assert launch.address(listener, "key") == f"http://127.0.0.1:{port}/?key=key"


def test_logging_of_other_libraries_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    closed = []

    class Handler(logging.NullHandler):
        def close(self):
            closed.append(self)
            super().close()

    kept = Handler()
    with launch.listening(0) as listener:
        launch.run(None, listener)
    assert not closed
    kept.close()


def test_a_port_that_is_taken_is_named_with_the_remedy():
    with launch.listening(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} is taken by another program. Name another with --port, or"):
            launch.listening(port)


def test_a_port_is_free_again_at_once():
    with launch.listening(0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            pass
    launch.listening(port).close()


def test_a_port_of_administrators_is_named(monkeypatch):
    class Refusing(socket.socket):
        def bind(self, address):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(launch.socket, "socket", Refusing)
    with pytest.raises(OSError, match="port 80 is for administrators alone"):
        launch.listening(80)


def test_keys_are_long_and_never_the_same():
    assert len({launch.new_key() for _ in range(100)}) == 100
    assert len(launch.new_key()) >= 32


@pytest.mark.parametrize(
    ("variables", "shows"),
    [({}, False), ({"DISPLAY": ":0"}, True), ({"WAYLAND_DISPLAY": "w"}, True), ({"BROWSER": "firefox"}, True)],
)
def test_a_browser_is_opened_where_it_has_a_window(monkeypatch, variables, shows):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.can_show() == shows


@pytest.mark.parametrize("opened", ["http://127.0.0.1:1/?key=x", None])
def test_the_browser_gets_the_address(monkeypatch, opened):
    import uvicorn

    shown, done = [], threading.Event()
    monkeypatch.setattr(launch.webbrowser, "open", lambda address: (shown.append(address), done.set()))
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: done.wait(5 if opened else 0))
    with launch.listening(0) as listener:
        launch.run(None, listener, opened)
    assert shown == ([] if opened is None else [opened])


@pytest.fixture
def process(kept_index):
    """The command, and the address that it printed."""
    script = "from otdml.cli import main; main()"
    words = ["serve", str(kept_index), "--port", "0", "--no-browser"]
    started = subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True)
    try:
        line = started.stdout.readline()
        yield started, re.search(r"127\.0\.0\.1:(\d+)/\?key=(\S+)", line)
    finally:
        started.kill()
        started.stdout.close()
        started.wait()


def asked(port: int, request: str) -> str:
    """The answer to a request, as it goes over the wire."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin-1")


def test_the_command_serves_until_it_is_interrupted(process):
    started, found = process
    port, key = int(found[1]), found[2]
    rest = f"host: 127.0.0.1:{port}\nconnection: close\n"
    own = f"cookie: otdml-{port}={key}\n"
    assert asked(port, f"GET / HTTP/1.1\n{rest}\n").startswith("HTTP/1.1 403")
    answer = asked(port, f"GET /?key={key} HTTP/1.1\n{rest}\n")
    assert f"set-cookie: otdml-{port}={key}" in answer
    page = asked(port, f"GET / HTTP/1.1\n{rest}{own}\n")
    assert page.startswith("HTTP/1.1 200")
    assert "server:" not in page.partition("\r\n\r\n")[0].lower()
    assert "12 images, 3 classes" in page
    # What never reaches the application, or reaches it as it was written.
    assert asked(port, f"GET / HTTP/1.1\nhost: evil.example\nconnection: close\n{own}\n").startswith("HTTP/1.1 403")
    for path in ("/../../etc/passwd", "/picture/..%2f..%2fetc/passwd", "//etc/passwd", "/picture/../../../etc/passwd"):
        assert asked(port, f"GET {path} HTTP/1.1\n{rest}{own}\n").startswith("HTTP/1.1 404")
    assert asked(port, "GET / HTTP/1.1\nconnection: close\n\n").startswith("HTTP/1.1 400")
    assert asked(port, f"GET / HTTP/1.1\n{rest}host: localhost\n{own}\n").startswith("HTTP/1.1 40")
    upgrade = "upgrade: websocket\nsec-websocket-version: 13\nsec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\n"
    assert " 101 " not in asked(port, f"GET / HTTP/1.1\nhost: 127.0.0.1\nconnection: upgrade, close\n{upgrade}{own}\n")
    started.send_signal(signal.SIGINT)
    rest, _ = started.communicate(timeout=60)
    assert started.returncode == 0
    assert rest.splitlines()[-1] == "Stopped."
