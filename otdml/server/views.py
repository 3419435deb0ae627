"""The content of a page: cards, their order, and sentences about them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from otdml._text import visible
from otdml.server.collection import Collection, Neighbor
from otdml.server.pictures import FORMATS, MOST_BYTES, MOST_PIXELS
from otdml.server.site import Query, Site

__all__ = ["MOST", "Card", "beginning", "like_image", "like_upload"]

# A page shows no more neighbours than this.
MOST = 192


@dataclass(frozen=True)
class Card:
    """An image on a page.

    Attributes:
        number: Of the image.
        name: Of its file.
        path: Of its file.
        label: Its class, where there are several.
        similarity: To what was asked for; None where nothing was.
        same: Whether its class is that of what was asked for; None where one of them has none.
        gone: Why there is no picture, or nothing.
        changed: Whether the file was changed since it was embedded.
    """

    number: int
    name: str
    path: str
    label: str | None
    similarity: float | None = None
    same: bool | None = None
    gone: str = ""
    changed: bool = False


def card(collection: Collection, number: int, similarity: float | None = None, wanted: str | None = None) -> Card:
    """The card of an image; ``wanted`` is the class that was asked for, where one was."""
    label, (gone, changed) = collection.label(number), collection.state(number)
    same = None if wanted is None or label is None else label == wanted
    return Card(number, collection.name(number), collection.path(number), label, similarity, same, gone, changed)


def beginning(site: Site, k: int) -> dict[str, Any]:
    """The page that asks nothing yet: some images of the collection."""
    shown = site.collection
    cards = [card(shown, number) for number in shown.some(k)]
    lead = f"{len(cards)} of {len(shown):,} images, drawn at random. Choose one to see those most like it."
    if len(cards) == len(shown):
        lead = "All images. Choose one to see those most like it."
    return _page(site, "Images of the index", lead, cards, k=k)


def like_image(site: Site, number: int, k: int) -> dict[str, Any]:
    """The page of an image of the collection and its neighbours."""
    shown = site.collection
    query, found = card(shown, number), site.neighbors(number, k)
    cards = [card(shown, *neighbor, query.label) for neighbor in found]
    lead = _ranking(len(cards), len(shown) - 1)
    if query.label is not None:
        lead = f"{lead} {sum(bool(one.same) for one in cards)} of them are of its class, {query.label}."
    source = f"/picture/{number}"
    return _page(site, query.name, lead, cards, k=k, query=query, source=source, address=f"like={number}")


def like_upload(site: Site, token: str, query: Query, k: int) -> dict[str, Any]:
    """The page of an uploaded image and those nearest to it."""
    found: Sequence[Neighbor] = site.nearest(query, k)
    cards = [card(site.collection, *neighbor) for neighbor in found]
    counts = Counter(one.label for one in cards if one.label is not None).most_common(5)
    classes = f" Their classes: {', '.join(f'{label} ({n})' for label, n in counts)}." if counts else ""
    own = Card(-1, query.name, query.name, None)
    lead, source = _ranking(len(cards), len(site.collection)) + classes, f"/query/{token}/picture"
    return _page(site, query.name, lead, cards, k=k, query=own, source=source, address=f"query={token}")


def _ranking(shown: int, there: int) -> str:
    return f"The {shown} most similar of {there:,} images, by the cosine of their embeddings."


def _page(site: Site, title: str, lead: str, cards: Sequence[Card], **rest: Any) -> dict[str, Any]:
    """The content that all pages share."""
    shown, address = site.collection, rest.get("address", "")
    more = min(2 * rest["k"], MOST)
    classes = 0 if shown.classes is None else len(set(shown.classes))
    return {
        "query": None,
        "source": "",
        **rest,
        "title": title,
        "lead": lead,
        "cards": cards,
        "index": visible(str(site.folder)),
        "images": len(shown),
        "classes": classes,
        "closed": site.closed,
        "replaced": site.replaced,
        "more": f"/?{address}{'&' if address else ''}k={more}" if more > rest["k"] == len(cards) else "",
        "bytes": MOST_BYTES,
        "pixels": MOST_PIXELS,
        "formats": FORMATS,
    }
