"""Embeddings of images on disk, to be searched by an image."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from otdml._checks import argument_error, check_integer, check_matrix
from otdml._faiss import read_vectors, write_vectors
from otdml._files import replacing, write_text
from otdml.neighbors import nearest_neighbors
from otdml.sphere import unit

__all__ = ["EmbeddingIndex", "Match"]

VECTORS, ITEMS = "index.faiss", "items.json"


class Match(NamedTuple):
    """An image that was found, and its cosine similarity to the query."""

    path: str
    similarity: float


class EmbeddingIndex:
    r"""Embeddings with the paths of their images, searched by cosine similarity, exactly.

    On disk it is a folder: ``index.faiss``, a flat inner-product index of the unit embeddings that FAISS reads without
    this library, and ``items.json`` with the paths and what else is known. A search costs n d multiplications.

    Args:
        z: Embeddings, shape (n, d); they are normalised.
        paths: The image of each.
        about: What to keep beside them, e.g. the checkpoint that made them; anything that JSON can hold.

    Raises:
        ValueError: If there is not one path per embedding, or an embedding is not finite.

    Example:
        >>> import torch
        >>> index = EmbeddingIndex(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), ["right.jpg", "up.jpg"])
        >>> index.search(torch.tensor([[0.0, 1.0]]), k=1)
        [[Match(path='up.jpg', similarity=1.0)]]
    """

    def __init__(self, z: Tensor, paths: Sequence[str | Path], about: Mapping[str, Any] | None = None) -> None:
        self.z = unit(check_matrix("z", z.detach()).float().cpu())
        self.paths = [str(path) for path in paths]
        self.about = dict(about or {})
        if len(self.paths) != len(z):
            raise argument_error("paths", f"hold one path per embedding, {len(z)}", len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def search(self, z: Tensor, k: int = 10) -> list[list[Match]]:
        """The ``k`` most similar images, or all if there are fewer, of each row of ``z``, shape (n, d); best first."""
        z = unit(check_matrix("z", z.detach()).float().cpu())
        values, rows = nearest_neighbors(z, self.z, min(check_integer("k", k), len(self)))
        pairs = zip(values.tolist(), rows.tolist(), strict=True)
        return [[Match(self.paths[i], v) for v, i in zip(*pair, strict=True)] for pair in pairs]

    def save(self, folder: str | Path) -> None:
        """Write the index into ``folder``, which is made if it is not there.

        Raises:
            OSError: If it cannot be written; an earlier index is then still there.
            ImportError: If FAISS is not installed.
        """
        path, vectors = Path(folder), np.ascontiguousarray(self.z.numpy())
        path.mkdir(parents=True, exist_ok=True)
        items = {"embeddings": crc32(vectors.data), "about": self.about, "paths": self.paths}
        text = json.dumps(items, ensure_ascii=False, indent=0)
        with replacing(path / VECTORS) as part:
            write_vectors(part, vectors)
        write_text(path / ITEMS, text)

    @classmethod
    def load(cls, folder: str | Path) -> "EmbeddingIndex":
        """The index in ``folder``.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If its two files do not belong together, or one is damaged.
            ImportError: If FAISS is not installed.
        """
        path = Path(folder)
        for name in (VECTORS, ITEMS):
            if not (path / name).is_file():
                raise FileNotFoundError(f"{path} is no index: it holds no {name}. Make one with `otdml embed`.")
        vectors = read_vectors(path / VECTORS)
        try:
            items = json.loads((path / ITEMS).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path / ITEMS} is damaged ({error}). Make the index again.") from error
        if items.get("embeddings") != crc32(vectors.data):
            raise ValueError(f"{VECTORS} and {ITEMS} in {path} are of different times. Make the index again.")
        index = cls(torch.from_numpy(vectors), items["paths"], items["about"])
        # As they were written: normalising twice would move the last digit.
        index.z = torch.from_numpy(vectors)
        return index
