"""The routes of the server and their responses."""

from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from otdml.benchmarks.pages import template
from otdml.server.guard import Guard
from otdml.server.pictures import MOST_BYTES, Picture
from otdml.server.site import Site
from otdml.server.views import MOST, beginning, like_image, like_upload

__all__ = ["application"]

# Seconds that an upload may take to arrive.
PATIENCE = 60.0


def application(site: Site, key: str) -> ASGIApp:
    """The page of a site, for those who have the key.

    Args:
        site: What is shown.
        key: Part of the address that visitors open.
    """
    pages = _Pages(site)
    routes = [
        Route("/", pages.page),
        Route("/picture/{number:int}", pages.picture),
        Route("/query/{token}/picture", pages.query_picture),
        Route("/queries", pages.upload, methods=["POST"]),
        Route("/page.css", _style),
        Route("/page.js", _script),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: pages.failure})
    app.router.redirect_slashes = False
    return Guard(app, key)


class _Pages:
    """The answers that depend on the site; those that are no coroutines run in threads."""

    def __init__(self, site: Site) -> None:
        self.site = site
        # Each holds its file in memory.
        self.uploads = anyio.Semaphore(4)

    def page(self, request: Request) -> Response:
        asked = request.query_params
        k = _number(asked.get("k", str(self.site.count)), "k", MOST + 1) or 1
        if "like" in asked:
            number = _number(asked["like"], "like", len(self.site.collection))
            return _rendered(like_image(self.site, number, k))
        if "query" in asked:
            query = self.site.query(asked["query"])
            if query is None:
                raise HTTPException(404, "That image is not kept any more. Choose or drop it again.")
            return _rendered(like_upload(self.site, asked["query"], query, k))
        return _rendered(beginning(self.site, k))

    def picture(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self.site.collection):
            raise HTTPException(404, "The index has no such image.")
        try:
            return _file(self.site.collection.picture(number))
        except ValueError as error:
            # Without paths: the page shows them to authorised users.
            raise HTTPException(404, "This image has moved, or cannot be read.") from error

    def query_picture(self, request: Request) -> Response:
        query = self.site.query(request.path_params["token"])
        if query is None:
            raise HTTPException(404, "That image is not kept any more.")
        return _file(query.picture)

    async def upload(self, request: Request) -> Response:
        # A form cannot have this type, and another site would need a preflight request for it.
        if request.headers.get("content-type") != "application/octet-stream":
            return _problem(415, "An upload is the content of one file, as application/octet-stream.")
        async with self.uploads:
            content = await _content(request)
            if content is None:
                return _problem(413, f"The file is larger than {MOST_BYTES // 2**20} MiB. Make the image smaller.")
            try:
                token = await run_sync(self.site.upload, request.query_params.get("name", ""), content)
            except ValueError as error:
                return _problem(422, f"Not searched: {error}")
        return JSONResponse({"page": f"/?query={quote(token)}"}, status_code=201)

    def failure(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if request.url.path != "/":
            return Response(error.detail, error.status_code, error.headers, media_type="text/plain")
        return _rendered(beginning(self.site, self.site.count) | {"problem": error.detail}, error.status_code)


async def _content(request: Request) -> bytes | None:
    """The body of a request, no more of which is held than is allowed; None where it is more."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MOST_BYTES:
        return None
    content = bytearray()
    try:
        with anyio.fail_after(PATIENCE):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MOST_BYTES:
                    return None
    except TimeoutError as error:
        raise HTTPException(408, "The upload took too long.") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "The upload was broken off.") from error
    return bytes(content)


def _number(text: str, name: str, bound: int) -> int:
    """An index below ``bound`` from an address."""
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < bound):
        raise HTTPException(404, f"There is no {name}={text[:20]}: it is a whole number below {bound}.")
    return int(text)


def _problem(status: int, text: str) -> Response:
    return JSONResponse({"problem": text}, status_code=status)


def _file(picture: Picture) -> Response:
    content, kind = picture
    return Response(content, media_type=kind)


def _rendered(content: dict[str, Any], status: int = 200) -> Response:
    text = template("page.html.jinja", "otdml.server").render({"problem": "", **content})
    return Response(text, status, media_type="text/html")


def _style(request: Request) -> Response:
    return Response(_text("page.css"), media_type="text/css")


def _script(request: Request) -> Response:
    return Response(_text("page.js"), media_type="text/javascript")


@cache
def _text(name: str) -> str:
    """A file of the page; its style follows on what it shares with reports."""
    shared = ("theme.css", "cards.css") if name.endswith(".css") else ()
    own = (files("otdml.server") / "static" / name).read_text(encoding="utf-8")
    return "".join([*(template(part).render() for part in shared), own])
