"""FAISS where it is installed, on torch's terms."""

import contextlib
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice

__all__ = ["faiss_search", "read_vectors", "runs_on_faiss", "write_vectors"]


def runs_on_faiss(backend: str, x: Tensor) -> bool:
    """Whether ``backend``, one of ``"auto"``, ``"faiss"`` and ``"torch"``, means FAISS for the points ``x``."""
    suits = x.device.type == "cpu" and x.dtype == torch.float32
    if check_choice("backend", backend, ("auto", "faiss", "torch")) != "faiss":
        return backend == "auto" and suits and _installed()
    _require("or pass backend='torch'")
    if not suits:
        got, remedy = f"{x.dtype} on {x.device}", "Pass backend='torch'."
        raise argument_error("x", "be float32 on the CPU for FAISS", got, remedy)
    return True


def _installed() -> bool:
    try:
        return find_spec("faiss") is not None
    except ValueError:  # An entry of sys.modules that was set to None.
        return False


def _require(otherwise: str) -> None:
    if not _installed():
        raise ImportError(f"FAISS is not installed. Install otdml[cpu], {otherwise}.")


def faiss_search(x: Tensor, y: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """The k largest inner products, or negative squared distances, of each row of x with the rows of y."""
    import faiss

    kind = faiss.METRIC_INNER_PRODUCT if metric == "inner" else faiss.METRIC_L2
    with _threads_of_torch():
        values, indices = faiss.knn(x.numpy(), y.numpy(), k, metric=kind)
    return torch.from_numpy(values if metric == "inner" else -values), torch.from_numpy(indices)


@contextlib.contextmanager
def _threads_of_torch() -> Iterator[None]:
    """As many FAISS threads as torch has.

    FAISS brings an OpenMP of its own, which knows nothing of ``torch.set_num_threads``: without this, each of several
    workers that were given one core would take them all.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def write_vectors(path: Path, vectors: np.ndarray) -> None:
    """Write float32 vectors, shape (n, d), as a flat inner-product index."""
    _require("which writes this file")
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    # Through a buffer, so that a full disk is an OSError like any other.
    path.write_bytes(faiss.serialize_index(index).data)


def read_vectors(path: Path) -> np.ndarray:
    """The vectors of a flat index, shape (n, d).

    Raises:
        ValueError: If the file holds no such index.
    """
    _require("which reads this file")
    import faiss

    _check_size(path)
    try:
        index = faiss.read_index(str(path))
        # faiss.contrib.torch_utils, which other libraries import, makes a tensor of it.
        return np.asarray(index.reconstruct_n(0, index.ntotal))
    except RuntimeError as error:
        raise ValueError(f"{path} is no flat FAISS index, or is damaged.") from error


def _check_size(path: Path) -> None:
    """Raise unless the file is as large as its header says: FAISS would take what memory that asks for.

    The header of a flat index is its kind, the features, the number of vectors, two numbers that nothing reads, whether
    it is trained, the metric, and the number of entries.
    """
    header = struct.Struct("<4siqqqBiQ")
    with path.open("rb") as file:
        head = file.read(header.size)
    if len(head) == header.size:
        kind, d, n, _, _, _, _, entries = header.unpack(head)
        stored = path.stat().st_size - header.size
        if kind in (b"IxFI", b"IxF2") and d > 0 and n >= 0 and entries == d * n and 4 * entries == stored:
            return
    raise ValueError(f"{path} is no flat FAISS index, or is damaged.")
