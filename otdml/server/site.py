"""The state of the server: a collection, the network that searches it, and recent queries."""

import secrets
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from otdml._text import visible
from otdml.benchmarks.image_search import ImageSearch
from otdml.dml.index import ITEMS, EmbeddingIndex
from otdml.server.collection import Collection, Neighbor
from otdml.server.pictures import Picture, drawn, uploaded

__all__ = ["Query", "Site"]

# Number of recent uploads kept, each as an embedding and a picture of some ten kilobytes.
KEPT = 64


class Query(NamedTuple):
    """An image that was uploaded: its name, unit embedding of shape (1, d), and picture."""

    name: str
    z: Tensor
    picture: Picture


class Site:
    """An index that is shown.

    Args:
        folder: Of the index.
        checkpoint: What made the index; None for the one that it names.
        trust: Whether the checkpoint may name networks that load files or run code of others.
        count: How many neighbours a page shows.
        exact: Whether the file of an approximate search is left alone, see :meth:`EmbeddingIndex.load`.

    Attributes:
        closed: Why no image can be uploaded, or nothing.

    Raises:
        FileNotFoundError: There is no index.
        ValueError: The index is damaged, or other weights made it.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Path | None = None,
        *,
        trust: bool = False,
        count: int = 24,
        exact: bool = False,
    ) -> None:
        self.folder, self.count, self.closed = folder, count, ""
        self._written = _written(folder)
        index = EmbeddingIndex.load(folder, exact=exact)
        self.collection = Collection(index, self._written)
        self._search = self._searched(index, checkpoint, trust)
        self._queries: OrderedDict[str, Query] = OrderedDict()
        # FAISS has one number of threads for all, and a network's buffers are shared.
        self._turn = threading.Lock()

    def _searched(self, index: EmbeddingIndex, checkpoint: Path | None, trust: bool) -> ImageSearch | None:
        """The network of the index; None, with the reason in ``closed``, where it is not there."""
        if checkpoint is None and "checkpoint" not in index.about:
            self.closed = "The index does not say which checkpoint made it."
            return None
        try:
            return ImageSearch.of(index, self.folder, checkpoint, trust=trust)
        except FileNotFoundError as error:
            if checkpoint is not None:
                raise
            self.closed = visible(f"The network that made the index is gone: {error}")
            return None

    @property
    def replaced(self) -> bool:
        """Whether the index was made again, or removed, since it was read."""
        return _written(self.folder) != self._written

    def upload(self, name: str, content: bytes) -> str:
        """Embed an image, and keep it under a name that cannot be guessed, which is returned.

        Raises:
            ValueError: It cannot be read as an image, or too large, or there is no network.
        """
        if self._search is None:
            raise ValueError(self.closed)
        with uploaded(content) as image:
            z = self._search.embedding(image)
        with uploaded(content) as image:
            picture = drawn(image)
        token = secrets.token_urlsafe(12)
        self._queries[token] = Query(visible(name)[:200] or "the image", z, picture)
        while len(self._queries) > KEPT:
            self._queries.popitem(last=False)
        return token

    def query(self, token: str) -> Query | None:
        """An image that was uploaded, if it is still kept."""
        return self._queries.get(token)

    def nearest(self, query: Query, k: int) -> list[Neighbor]:
        """The ``k`` images most similar to an upload."""
        with self._turn:
            return self.collection.nearest(query.z, k)

    def neighbors(self, number: int, k: int) -> list[Neighbor]:
        """The ``k`` images most similar to one of the collection."""
        with self._turn:
            return self.collection.neighbors(number, k)


def _written(folder: Path) -> float:
    """When an index was written; 0 where there is none."""
    try:
        return (folder / ITEMS).stat().st_mtime
    except OSError:
        return 0.0
