"""Embeddings of images on disk, to be searched by an image."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from otdml._checks import argument_error, check_integer, check_matrix
from otdml._faiss import read_vectors, write_vectors
from otdml._files import replacing, writable_file, write_text
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
        """Write the index into ``folder``, which is made if it is not there; an earlier index is replaced whole.

        The vectors are written beside the earlier ones, under a name that tells them; with ``items.json``, which names
        them, the folder changes from one index to the other at once.

        Raises:
            OSError: If it cannot be written; an earlier index is then still there.
            ImportError: If FAISS is not installed.
        """
        path, vectors = Path(folder), np.ascontiguousarray(self.z.numpy())
        path.mkdir(parents=True, exist_ok=True)
        sign = crc32(vectors.data)
        text = json.dumps({"embeddings": sign, "about": self.about, "paths": self.paths}, ensure_ascii=False, indent=0)
        new = path / _named(sign)
        with replacing(new) as part:
            write_vectors(part, vectors)
        try:
            write_text(path / ITEMS, text)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        # A kill before this line leaves an index that can be read, by this library.
        os.replace(new, writable_file(path / VECTORS))
        for stale in path.glob(_named("*")):
            stale.unlink(missing_ok=True)

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
            if not (path / name).is_file() and not (name == VECTORS and list(path.glob(_named("*")))):
                raise FileNotFoundError(f"{path} is no index: it holds no {name}. Make one with `otdml embed`.")
        sign, about, paths = _items(path)
        vectors = _vectors(path, sign)
        if len(paths) != len(vectors):
            raise ValueError(f"{path / ITEMS} names {len(paths)} images of {len(vectors)}. Make the index again.")
        index = cls(torch.from_numpy(vectors), paths, about)
        # As they were written: normalising twice would move the last digit.
        index.z = torch.from_numpy(vectors)
        return index


def _named(sign: int | str) -> str:
    """The file of vectors that have not taken the place of the earlier ones yet."""
    return f".{sign}.faiss"


def _items(path: Path) -> tuple[int, dict[str, Any], list[str]]:
    """Checksum of the embeddings, what is known of them, and the paths of their images."""
    try:
        items = json.loads((path / ITEMS).read_text(encoding="utf-8"))
        sign, about, paths = items["embeddings"], items["about"], items["paths"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path / ITEMS} is damaged ({error!r}). Make the index again.") from error
    sound = isinstance(paths, list) and all(isinstance(name, str) for name in paths)
    if not (sound and isinstance(about, dict) and isinstance(sign, int)):
        raise ValueError(f"{path / ITEMS} is damaged: it holds no paths. Make the index again.")
    return sign, about, paths


def _vectors(path: Path, sign: int) -> np.ndarray:
    """The vectors with that checksum. A kill may have left them before they took the place of the earlier ones."""
    for file in (path / _named(sign), path / VECTORS):
        if file.is_file():
            vectors = read_vectors(file)
            if crc32(np.ascontiguousarray(vectors).data) == sign:
                return vectors
    raise ValueError(f"{VECTORS} and {ITEMS} in {path} are of different times. Make the index again.")
