"""Embeddings of images on disk, to be searched by an image."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from otdml._checks import argument_error, check_boolean, check_integer, check_matrix
from otdml._faiss import read_vectors, write_vectors
from otdml._files import replacing, writable_file
from otdml.dml.approximate import ApproximateSearch
from otdml.neighbors import Gallery
from otdml.sphere import unit

__all__ = ["GIVEN", "EmbeddingIndex", "Match"]

VECTORS, ITEMS, APPROXIMATE = "index.faiss", "items.json", "approximate.faiss"
# Among what is known of an index: the paths by which its images were given, where links among them lead elsewhere.
GIVEN = "given"


class Match(NamedTuple):
    """An image that was found, and its cosine similarity to the query."""

    path: str
    similarity: float


class EmbeddingIndex:
    r"""Embeddings with the paths of their images, searched by cosine similarity.

    On disk it is a folder: ``index.faiss``, a flat inner-product index of the unit embeddings that FAISS reads without
    this library, and ``items.json`` with the paths and what else is known. A search is exact and costs n d
    multiplications; for millions of images, :meth:`approximated` adds ``approximate.faiss``, a FAISS index of any kind.

    Args:
        z: Embeddings, shape (n, d); they are normalised.
        paths: The image of each.
        about: What to keep beside them, e.g. the checkpoint that made them; anything that JSON can hold.

    Attributes:
        z: The unit embeddings, shape (n, d). Those of a loaded index are mapped from its file, not read.
        approximate: What proposes candidates, with its measured recall; None where every search is exact.

    Raises:
        ValueError: If there is not one path per embedding, or an embedding is not finite.

    Example:
        >>> import torch
        >>> index = EmbeddingIndex(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), ["right.jpg", "up.jpg"])
        >>> index.search(torch.tensor([[0.0, 1.0]]), k=1)
        [[Match(path='up.jpg', similarity=1.0)]]
    """

    def __init__(self, z: Tensor, paths: Sequence[str | Path], about: Mapping[str, Any] | None = None) -> None:
        self._hold(_unit(z), [str(path) for path in paths], dict(about or {}))
        if len(self.paths) != len(z):
            raise argument_error("paths", f"hold one path per embedding, {len(z)}", len(self.paths))

    def _hold(self, z: Tensor, paths: list[str], about: dict[str, Any]) -> None:
        self.z, self.paths, self.about = z, paths, about
        self.approximate: ApproximateSearch | None = None
        self._gallery: Gallery | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def search(self, z: Tensor, k: int = 10, *, exact: bool = False) -> list[list[Match]]:
        """The ``k`` most similar images, or all if there are fewer, of each row of ``z``; best first.

        Args:
            z: Queries, shape (n, d).
            k: How many; an approximate search may find fewer.
            exact: Whether to search all images, also where there is an approximate index.
        """
        z, k = _unit(z), min(check_integer("k", k), len(self))
        if check_boolean("exact", exact) or self.approximate is None:
            # Counted once: it takes longer than the search for one query.
            self._gallery = self._gallery or Gallery(self.z)
            values, rows = self._gallery.search(z, k)
        else:
            values, rows = self.approximate.search(self._fitting(z), self.z.numpy(), k)
        pairs = zip(values.tolist(), rows.tolist(), strict=True)
        return [[Match(self.paths[i], v) for v, i in zip(*pair, strict=True) if v > -np.inf] for pair in pairs]

    def _fitting(self, z: Tensor) -> Tensor:
        if z.shape[1] != self.z.shape[1]:
            raise argument_error("z", f"have the features of the index, {self.z.shape[1]}", z.shape[1])
        return z

    def approximated(self, factory: str | None) -> "EmbeddingIndex":
        """The same images, searched by a FAISS index of the kind ``factory``; exactly if None.

        Args:
            factory: As for :meth:`ApproximateSearch.of`, such as ``"IVF1024,PQ32"``.

        Raises:
            ValueError: FAISS does not know that kind, or the images are too few for it.
        """
        if factory is not None and len(self) < 2:
            raise argument_error("factory", "be None for an index of one image", factory)
        found = EmbeddingIndex.__new__(EmbeddingIndex)
        found._hold(self.z, self.paths, self.about)
        if factory is not None:
            found.approximate = ApproximateSearch.of(factory, self.z.numpy())
        return found

    def save(self, folder: str | Path) -> None:
        """Write the index into ``folder``, which is made if it is not there; an earlier index is replaced whole.

        Vectors are written beside the earlier ones, under a name that tells them; with ``items.json``, which names
        them, the folder changes from one index to the other at once.

        Raises:
            OSError: If it cannot be written; an earlier index is then still there.
            ImportError: If FAISS is not installed.
        """
        # A mapped file must not be written while it is read.
        _write(Path(folder), (part.numpy() for part in self.z.split(4096)), self.paths, self.about, self.approximate)

    @classmethod
    def write(
        cls,
        folder: str | Path,
        batches: Iterable[Tensor],
        paths: Sequence[str | Path],
        about: Mapping[str, Any] | None = None,
    ) -> "EmbeddingIndex":
        """Write an index of embeddings that come in batches, and return it, mapped from its file.

        One batch is in memory at a time, and nothing else grows with the number of images than their paths.

        Args:
            folder: As for :meth:`save`.
            batches: Embeddings, shapes (n, d); they are normalised.
            paths: The image of each.
            about: As for the index.

        Raises:
            ValueError: If there is not one path per embedding, or an embedding is not finite.
            TypeError: If JSON cannot hold ``about``.
        """
        names = [str(path) for path in paths]
        _write(Path(folder), (_unit(z).numpy() for z in batches), names, dict(about or {}), None)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path, *, exact: bool = False) -> "EmbeddingIndex":
        """The index in ``folder``.

        Args:
            folder: Where it is.
            exact: Whether ``approximate.faiss`` is left alone. FAISS reads that file, and checks little of it: prefer
                this for a folder from a stranger.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If its files do not belong together, or one is damaged.
            ImportError: If FAISS is not installed.
        """
        check_boolean("exact", exact)
        path = Path(folder)
        for name in (VECTORS, ITEMS):
            if not (path / name).is_file() and not (name == VECTORS and list(path.glob(_named("*")))):
                raise FileNotFoundError(f"{path} is no index: it holds no {name}. Make one with `otdml embed`.")
        items = _items(path)
        vectors = _vectors(path, items["embeddings"])
        if len(items["paths"]) != len(vectors):
            raise ValueError(
                f"{path / ITEMS} names {len(items['paths'])} images of {len(vectors)}. Make the index again."
            )
        found = cls.__new__(cls)
        # Stored vectors are normalised; a second normalisation would change the last digit.
        found._hold(torch.from_numpy(vectors), items["paths"], items["about"])
        if (said := items.get("approximate")) and not exact:
            there = [file for file in _files(path, APPROXIMATE, said["sign"]) if file.is_file()]
            found.approximate = ApproximateSearch.read(there[0] if there else path / APPROXIMATE, said)
        return found


def _unit(z: Tensor) -> Tensor:
    z = check_matrix("z", z.detach())
    return unit(z if z.dtype == torch.float64 else z.float()).float().cpu()


def _write(
    path: Path,
    batches: Iterable[np.ndarray],
    paths: list[str],
    about: dict[str, Any],
    approximate: ApproximateSearch | None,
) -> None:
    """Write unit embeddings and what belongs to them, so that a kill at any moment leaves one index or the other."""
    known = _as_json(about)
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    begun = path / _named(f"begun-{os.getpid()}")
    written: list[tuple[Path, str]] = []
    try:
        with replacing(begun) as part:
            count, sign = write_vectors(part, batches)
            if count != len(paths):
                raise argument_error("paths", f"hold one path per embedding, {count}", len(paths))
        os.replace(begun, path / _named(sign))
        written.append((path / _named(sign), VECTORS))
        content: dict[str, Any] = {"embeddings": sign}
        if approximate is not None:
            with replacing(begun) as part:
                approximate.write(part)
            os.replace(begun, path / _named(approximate.sign))
            written.append((path / _named(approximate.sign), APPROXIMATE))
            content["approximate"] = approximate.said()
        with replacing(path / ITEMS) as part, part.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(_lines(content, known, paths))
    except Exception:
        for new in (begun, *(new for new, _ in written)):
            new.unlink(missing_ok=True)
        if is_new:
            # An error, such as an unreadable image, leaves no empty folder.
            path.rmdir()
        raise
    # A kill before these lines leaves a readable index.
    for new, name in written:
        os.replace(new, writable_file(path / name))
    for stale in path.glob(_named("*")):
        stale.unlink(missing_ok=True)
    if approximate is None:
        (path / APPROXIMATE).unlink(missing_ok=True)


def _as_json(about: Mapping[str, Any]) -> str:
    """The text of what is known, before there is anything to write."""
    try:
        return json.dumps(about, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        remedy = "Pass paths as text, arrays as lists, and None for NaN."
        raise argument_error("about", "hold what JSON can", str(error), remedy, type(error)) from error


def _lines(content: Mapping[str, Any], about: str, paths: Sequence[str]) -> Iterator[str]:
    """The text of ``items.json``, path by path: for a million images it would be some hundred megabytes."""
    yield json.dumps(content, ensure_ascii=False)[:-1] + f', "about": {about}, "paths": [\n'
    for number, path in enumerate(paths, 1):
        yield json.dumps(path, ensure_ascii=False) + (",\n" if number < len(paths) else "\n")
    yield "]}\n"


def _named(sign: int | str) -> str:
    """The file of vectors that have not taken the place of the earlier ones yet."""
    return f".{sign}.faiss"


def _files(path: Path, name: str, sign: int) -> list[Path]:
    """Possible paths of the file with that check sum: a kill may have come before it was renamed."""
    return [path / _named(sign), path / name]


def _items(path: Path) -> dict[str, Any]:
    """Check sum of the embeddings, what is known of them, the paths of their images, and the approximate search."""
    try:
        items = json.loads((path / ITEMS).read_text(encoding="utf-8"))
        sign, about, paths = items["embeddings"], items["about"], items["paths"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path / ITEMS} is damaged ({error!r}). Make the index again.") from error
    sound = isinstance(paths, list) and _are_texts(paths)
    if not (sound and isinstance(about, dict) and isinstance(sign, int)):
        raise ValueError(f"{path / ITEMS} is damaged: it holds no paths. Make the index again.")
    if wrong := [name for name, right in _KNOWN.items() if not right(about.get(name), len(paths))]:
        raise ValueError(f"{path / ITEMS} is damaged: its {wrong[0]} is none. Make the index again.")
    if "approximate" in items and not ApproximateSearch.is_said(items["approximate"]):
        raise ValueError(f"{path / ITEMS} is damaged: its approximate search is none. Make the index again.")
    return items


# What this library writes of an index, beside which users may have more of their own.
_KNOWN: dict[str, Callable[[Any, int], bool]] = {
    "checkpoint": lambda value, n: isinstance(value, str | None),
    "size": lambda value, n: value is None or (isinstance(value, int) and value > 0),
    GIVEN: lambda value, n: value is None or (isinstance(value, list) and len(value) == n and _are_texts(value)),
}


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _vectors(path: Path, sign: int) -> np.ndarray:
    """The vectors with that check sum."""
    for file in _files(path, VECTORS, sign):
        if file.is_file():
            vectors, found = read_vectors(file)
            if found == sign:
                return vectors
    raise ValueError(f"{VECTORS} and {ITEMS} in {path} are of different times. Make the index again.")
