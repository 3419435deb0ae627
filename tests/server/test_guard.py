"""Who is let in: every kind of request that is none of the page's is refused, and says nothing of the index."""

import os
import socket
import subprocess
import sys

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from otdml.server import guard
from otdml.server.guard import Guard

PAGES = ("/", "/?like=0", "/picture/0", "/page.css", "/page.js")


@pytest.mark.parametrize("path", PAGES)
def test_nothing_is_shown_without_the_key(stranger, path):
    answer = stranger.get(path)
    assert answer.status_code == 403
    assert "Open the address that `otdml serve` printed" in answer.text
    assert "cat" not in answer.text


@pytest.mark.parametrize("key", ["", "wrong", "the-ke", "the-key ", "ключ", "%ff"])
def test_a_wrong_key_opens_nothing(stranger, key):
    answer = stranger.get(f"/?key={key}")
    assert answer.status_code == 403
    assert not answer.cookies
    stranger.cookies.set("otdml-8765", "wrong")
    assert stranger.get("/").status_code == 403


def test_the_key_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(stranger):
    answer = stranger.get("/?key=the-key")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("otdml-8765=the-key;")
    assert {part.strip().lower() for part in cookie.split(";")[1:]} == {"httponly", "path=/", "samesite=lax"}
    assert stranger.get("/").status_code == 200


def test_the_key_of_a_server_on_another_port_is_another(visitor):
    visitor.base_url = "http://127.0.0.1:9000"
    assert visitor.get("/").status_code == 403


def test_the_owner_of_a_connection_is_the_user_of_its_process():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, address = listener.accept()
        with accepted:
            assert guard.owner(address, listener.getsockname()) in (os.getuid(), None)
            if os.path.exists("/proc/net/tcp"):
                assert guard.owner(address, listener.getsockname()) == os.getuid()
            assert guard.owner((address[0], 0), listener.getsockname()) is None
        assert client
    assert guard.owner(("testclient", 1), ("127.0.0.1", 2)) is None


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be another user")
@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="the system does not tell whose a connection is")
def test_the_owner_of_a_connection_may_be_another_user():
    # What an address needs is imported before files of the first user are out of reach.
    script = (
        "import encodings.idna, os, socket, sys; os.setuid(12345); s = socket.socket(); "
        "s.connect(('127.0.0.1', int(sys.argv[1])))"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        words = [sys.executable, "-c", f"{script}; sys.stdin.read()", str(listener.getsockname()[1])]
        with subprocess.Popen(words, stdin=subprocess.PIPE) as other:
            accepted, address = listener.accept()
            with accepted:
                assert guard.owner(address, listener.getsockname()) == 12345
            other.stdin.close()


@pytest.mark.parametrize("path", ["/", "/?key=the-key", "/picture/0"])
def test_other_users_of_the_machine_are_refused_whatever_they_know(visitor, monkeypatch, path):
    monkeypatch.setattr(guard, "owner", lambda client, server: os.getuid() + 1)
    answer = visitor.get(path)
    assert (answer.status_code, answer.text) == (403, guard.OTHER_USER)
    assert not answer.cookies
    for user in (os.getuid(), 0, None):
        monkeypatch.setattr(guard, "owner", lambda client, server, user=user: user)
        assert visitor.get(path).status_code in (200, 303)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8765",
        "0.0.0.0",
        "",
        "[::1",
    ],
)
@pytest.mark.parametrize("path", PAGES)
def test_a_name_that_was_made_to_lead_here_is_refused(visitor, host, path):
    """DNS rebinding: a page of evil.example whose name now has the address 127.0.0.1."""
    answer = visitor.get(path, headers={"host": host})
    assert (answer.status_code, answer.text) == (403, "Refused: the page is served as 127.0.0.1 and localhost alone.\n")


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "localhost:9999", "LOCALHOST"])
def test_names_of_the_loopback_address_are_served_and_ports_that_are_forwarded(visitor, host):
    assert visitor.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:8766", "https://127.0.0.1:8765", "http://localhost:8765", ""],
)
def test_uploads_of_other_sites_are_refused(upload, site, origin):
    answer = upload(origin=origin)
    assert (answer.status_code, answer.text) == (403, "Refused: another site asked.\n")


@pytest.mark.parametrize("kind", ["cross-site", "same-site"])
def test_requests_that_a_browser_says_are_of_another_site_are_refused(visitor, upload, kind):
    """Another port of this machine is the same site, and another origin."""
    for path in PAGES:
        for mode, dest in (("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe"), ("no-cors", "script")):
            headers = {"sec-fetch-site": kind, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
            assert visitor.get(path, headers=headers).status_code == 403
    assert upload(origin=None, sec_fetch_site=kind).status_code == 403


def test_a_link_that_is_followed_leads_to_the_page_and_to_no_picture(visitor):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert visitor.get("/", headers=headers).status_code == 200
    assert visitor.get("/picture/0", headers=headers).status_code == 403


@pytest.mark.parametrize("path", [*PAGES, "/absent", "/?key=wrong", "/?key=the-key"])
def test_every_answer_forbids_what_the_page_does_not_need(visitor, path):
    headers = visitor.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data:"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == headers["cross-origin-opener-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


def test_refusals_have_these_headers_too(visitor):
    answer = visitor.get("/", headers={"host": "evil.example"})
    assert answer.status_code == 403
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_preflights_of_other_sites_allow_nothing(visitor):
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = visitor.options("/queries", headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_only_http_is_spoken():
    with (
        pytest.raises(RuntimeError, match="speaks HTTP, not websocket"),
        TestClient(Guard(Starlette(), "key"), base_url="http://127.0.0.1").websocket_connect("/"),
    ):
        pass
