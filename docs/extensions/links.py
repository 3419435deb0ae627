"""Every link inside the built site leads somewhere, anchors and pictures too, and no page needs the network.

Looked at when the build is finished: a link that leads nowhere is a warning.
"""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
ADDRESSES = ("href", "src", "srcset", "data")
# What a browser loads by itself, unlike the target of a link that a reader follows.
LOADED = ("img", "script", "link", "object", "iframe", "source")


class Page(HTMLParser):
    """The anchors of one page, and the addresses that it links to or loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ADDRESSES and value:
                # A srcset names several pictures, each with its width or density.
                found = [part.split()[0] for part in value.split(",")] if name == "srcset" else [value]
                self.links.update(found)
                self.loaded.update(found if tag in LOADED else [])


def dead_links(site: Path) -> list[tuple[str, str]]:
    """Page and address of every link that leads to no file or anchor, and of all that is loaded from elsewhere."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        found += [(name, link) for link in sorted(page.links) if not _leads_somewhere(path, link, pages)]
        found += [(name, link) for link in sorted(page.loaded) if urlsplit(link).netloc]
    return found


def _leads_somewhere(source: Path, link: str, pages: dict[Path, Page]) -> bool:
    address, anchor = urldefrag(link)
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return True
    target = (source.parent / unquote(parts.path)).resolve() if parts.path else source
    target = target / "index.html" if target.is_dir() else target
    if target not in pages:
        return target.is_file()
    return not anchor or unquote(anchor) in pages[target].anchors


def check(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        for page, link in dead_links(Path(app.outdir).resolve()):
            logger.warning("%s: the link to %s leads nowhere, or loads a file from elsewhere", page, link)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
