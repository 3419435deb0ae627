"""Approximate search by a FAISS index of any kind, with its recall measured against the exact one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml._faiss import threads_of_torch

__all__ = ["ApproximateSearch", "check_factory"]

# Recall is measured for this many neighbours. Half of the queries choose parameters, the other half measure.
NEIGHBORS, QUERIES = 10, 1000
# Default target: the number of lists to search is raised until this recall is reached.
ENOUGH = 0.95
# Vectors at a time, and vectors to train on, unless there are more lists to train.
BLOCK, SAMPLE, PER_LIST = 2**13, 2**16, 64
# Candidates for each neighbour, among which exact similarities choose.
CANDIDATES = 4
SAID = {"asked": str, "parameters": str, "recall": float, "queries": int, "sign": int}
REMEDY = "https://github.com/facebookresearch/faiss/wiki/The-index-factory lists what there is, such as IVF1024,PQ32."


class ApproximateSearch:
    """A FAISS index that proposes candidates, of which exact similarities choose.

    Attributes:
        asked: What was asked for, such as ``"IVF1024,PQ32"``.
        parameters: How it is searched, such as ``"nprobe=16"``; empty where nothing can be chosen.
        recall: Share of the ten nearest that it finds, for queries from the index itself.
        queries: How many queries measured that.
        sign: Check sum of its file; zero before it has one.
    """

    def __init__(
        self, index: Any, asked: str, parameters: str, recall: float = 0.0, queries: int = 0, sign: int = 0
    ) -> None:
        self.index, self.asked, self.parameters = index, asked, parameters
        self.recall, self.queries, self.sign = recall, queries, sign

    @classmethod
    def of(cls, factory: str, vectors: np.ndarray) -> "ApproximateSearch":
        """The index of that kind, trained on a sample of unit vectors (n, d), filled with all, and measured.

        Vectors may be mapped from a file: a block of them is in memory at a time.

        Args:
            factory: What FAISS calls it, perhaps with a semicolon and how it is searched: ``"IVF1024,PQ32;nprobe=8"``.
                Otherwise as many lists of an inverted file are searched as find .95 of the ten nearest.
            vectors: What is searched.

        Raises:
            ValueError: FAISS does not know it, or the vectors are too few or of a wrong number of features.
        """
        index = check_factory(factory, vectors.shape[1], len(vectors))
        with _told(factory), threads_of_torch():
            index.train(np.array(vectors[_rows(len(vectors), max(SAMPLE, PER_LIST * _lists(index)))]))
            for start in range(0, len(vectors), BLOCK):
                index.add(np.array(vectors[start : start + BLOCK]))
        return cls._measured(index, factory, vectors)

    @classmethod
    def _measured(cls, index: Any, factory: str, vectors: np.ndarray) -> "ApproximateSearch":
        rows = np.random.default_rng(0).permutation(_rows(len(vectors), QUERIES))
        wanted = _least_similarities(vectors, rows)
        found, half = cls(index, factory, factory.partition(";")[2].strip()), len(rows) // 2
        if not found.parameters and _lists(index):
            for power in range(_lists(index).bit_length()):
                found._set(f"nprobe={min(2**power, _lists(index))}")
                if found._recall(vectors, rows[:half], wanted[:half]) >= ENOUGH:
                    break
        found.queries = len(rows[half:])
        found.recall = round(found._recall(vectors, rows[half:], wanted[half:]), 4)
        return found

    def _set(self, parameters: str) -> None:
        import faiss

        self.parameters = parameters
        faiss.ParameterSpace().set_index_parameters(self.index, parameters)  # type: ignore[arg-type]

    def _recall(self, vectors: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> float:
        """The share of the nearest that are found: of those at least as similar as the last of them."""
        k = min(NEIGHBORS, len(vectors) - 1)
        values, found = self.search(torch.from_numpy(np.array(vectors[rows])), vectors, k + 1)
        hits = (values >= torch.from_numpy(wanted)[:, None] - 1e-6) & (found != torch.from_numpy(rows)[:, None])
        return float(hits.sum(1).clamp(max=k).float().mean()) / k

    def search(self, z: Tensor, vectors: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """Similarities and rows of the ``k`` most similar vectors among those proposed, shapes (n, k), best first.

        Where fewer are proposed, the similarity is minus infinity.

        Args:
            z: Unit queries, shape (n, d).
            vectors: What the index was made of.
            k: How many.
        """
        with threads_of_torch():
            found = self.index.search(np.ascontiguousarray(z.numpy()), min(CANDIDATES * k, len(vectors)))[1]
        values = np.stack([vectors[np.maximum(own, 0)] @ query for own, query in zip(found, z.numpy(), strict=True)])
        scores, rows = torch.from_numpy(np.where(found < 0, -np.inf, values)), torch.from_numpy(np.asarray(found))
        # Equal similarities in order of their rows.
        rows, order = rows.sort(dim=1)
        scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        return scores[:, :k], rows.gather(1, order)[:, :k]

    def write(self, path: Path) -> None:
        """Write the FAISS index, and note the check sum of its file."""
        import faiss

        content = faiss.serialize_index(self.index)
        path.write_bytes(content.data)
        self.sign = crc32(content.data)

    def said(self) -> dict[str, Any]:
        """All but the index, as plain types."""
        return {name: getattr(self, name) for name in SAID}

    @staticmethod
    def is_said(content: Any) -> bool:
        """Whether it is what :meth:`said` returns, of any index."""
        if not isinstance(content, dict) or content.keys() != SAID.keys():
            return False
        return all(isinstance(content[name], kind) for name, kind in SAID.items())

    @classmethod
    def read(cls, path: Path, said: Mapping[str, Any]) -> "ApproximateSearch":
        """The search that :meth:`write` wrote, with the description of :meth:`said`.

        Raises:
            ValueError: The file is not the one that is meant, or FAISS cannot read it.
        """
        import faiss

        if not path.is_file():
            raise ValueError(f"{path} is missing. Make the index again.")
        content = np.fromfile(path, np.uint8)
        if crc32(content.data) != said["sign"]:
            raise ValueError(f"{path} is of another time than the index, or damaged. Make the index again.")
        try:
            with _bounded(2**28 + 16 * len(content)):
                return cls(faiss.deserialize_index(content), **said)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(f"{path} cannot be read by FAISS {faiss.__version__}. Make the index again.") from error

    def __str__(self) -> str:
        how = f" with {self.parameters}" if self.parameters else ""
        what = f"{100 * self.recall:.1f} % of the ten nearest ({self.queries} queries)"
        return f"{self.asked.partition(';')[0]}{how} finds {what}"


def check_factory(factory: str, d: int, n: int | None = None) -> Any:
    """The untrained FAISS index of that kind, of vectors of d features, of which there are n.

    Raises:
        ValueError: FAISS does not know it, or it cannot be made of such vectors.
    """
    import faiss

    kind, _, parameters = factory.partition(";")
    with _told(factory):
        # For unit vectors the nearest are the most similar, and every kind of index supports distances.
        index = faiss.index_factory(d, kind.strip())
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters.strip())  # type: ignore[arg-type]
    if n is not None and _lists(index) > n:
        raise argument_error("index", f"have at most {n} lists, as many as there are images", factory)
    return index


def _lists(index: Any) -> int:
    """Lists of an inverted file; zero for other kinds."""
    import faiss

    found = faiss.try_extract_index_ivf(index)
    return 0 if found is None else int(found.nlist)


@contextmanager
def _told(factory: str) -> Iterator[None]:
    """FAISS' message about a kind of index, as an error of the argument."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2].rpartition(".cpp:")[2].partition(": ")[2] or str(error)
        raise argument_error("index", f"be a kind that FAISS makes here ({reason.strip()})", factory, REMEDY) from error


@contextmanager
def _bounded(more: int) -> Iterator[None]:
    """Within it the process gets at most so many bytes more: a damaged file can ask for any number of them."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        # The system has no such limits, or does not say what is available.
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (wanted if before[1] < 0 else min(wanted, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _rows(n: int, most: int) -> np.ndarray:
    """Numbers of at most so many vectors, drawn from n, in order."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def _least_similarities(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each query its similarity to the last of its nearest neighbours, itself left out; a block at a time."""
    queries, k = torch.from_numpy(np.array(vectors[rows])), min(NEIGHBORS, len(vectors) - 1)
    best = torch.full((len(rows), k + 1), -torch.inf, device="cpu")
    for start in range(0, len(vectors), BLOCK):
        scores = queries @ torch.from_numpy(np.array(vectors[start : start + BLOCK])).T
        best = torch.cat([best, scores], dim=1).topk(k + 1, dim=1).values
    # The query itself is the first, or as similar as the first.
    return best[:, -1].numpy()
