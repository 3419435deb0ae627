"""FAISS where it is installed: threads as in torch, tensors in and out, and its files."""

import contextlib
import struct
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice

__all__ = ["faiss_search", "read_vectors", "runs_on_faiss", "threads_of_torch", "write_vectors"]

# The beginning of a file with a flat index: its kind, the features, the number of vectors, two numbers that nothing
# reads, whether it is trained, the metric, and the number of entries.
HEADER = struct.Struct("<4siqqqBiQ")


def runs_on_faiss(backend: str, x: Tensor) -> bool:
    """Whether ``backend``, one of ``"auto"``, ``"faiss"`` and ``"torch"``, means FAISS for the points ``x``."""
    # NumPy reads no tensor while a transform of `torch.func` is at work.
    transformed = torch._C._are_functorch_transforms_active()
    suits = x.device.type == "cpu" and x.dtype == torch.float32 and not transformed
    if check_choice("backend", backend, ("auto", "faiss", "torch")) != "faiss":
        return backend == "auto" and suits and _installed()
    _require("or pass backend='torch'")
    if not suits:
        got = "a tensor within a transform of torch.func" if transformed else f"{x.dtype} on {x.device}"
        raise argument_error("x", "be float32 on the CPU for FAISS", got, "Pass backend='torch'.")
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
    with threads_of_torch():
        values, indices = faiss.knn(x.resolve_neg().numpy(), y.resolve_neg().numpy(), k, metric=kind)
    return torch.from_numpy(values if metric == "inner" else -values), torch.from_numpy(indices)


@contextlib.contextmanager
def threads_of_torch() -> Iterator[None]:
    """FAISS with as many threads as torch.

    FAISS brings an OpenMP of its own, on which ``torch.set_num_threads`` has no effect: without this, each of several
    workers that were given one core would take them all.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def write_vectors(path: Path, batches: Iterable[np.ndarray]) -> tuple[int, int]:
    """Write float32 vectors as a flat inner-product index, batch by batch: one batch is in memory at a time.

    Args:
        path: The file.
        batches: Vectors, shapes (n, d).

    Returns:
        The number of vectors, and a check sum of all.
    """
    _require("which writes this file")
    count = sign = features = 0
    with path.open("wb") as file:
        for batch in batches:
            vectors = np.ascontiguousarray(batch, dtype=np.float32)
            if count and vectors.shape[1] != features:
                raise argument_error("batches", f"have {features} features each", vectors.shape[1])
            if not count:
                # The number of vectors is filled in at the end.
                file.write(_header(0, vectors.shape[1]))
            file.write(vectors.data)
            count, sign, features = count + len(vectors), crc32(vectors.data, sign), vectors.shape[1]
        if count:
            file.seek(0)
            file.write(_header(count, features))
    return count, sign


def _header(n: int, d: int) -> bytes:
    """The beginning of a flat index of n vectors, which is that of an empty one with other numbers."""
    import faiss

    kind, _, _, *rest, _ = HEADER.unpack(faiss.serialize_index(faiss.IndexFlatIP(d)).tobytes())
    return HEADER.pack(kind, d, n, *rest, n * d)


def read_vectors(path: Path) -> tuple[np.ndarray, int]:
    """The vectors of a flat index, shape (n, d), and their check sum.

    The file is mapped into memory: only pages that are read are loaded. Changes go to a private copy.

    Raises:
        ValueError: If the file holds no such index.
    """
    n, d = _sizes(path)
    sign = 0
    with path.open("rb") as file:
        file.seek(HEADER.size)
        while block := file.read(2**22):
            sign = crc32(block, sign)
    return np.memmap(path, np.float32, "c", HEADER.size, (n, d)), sign


def _sizes(path: Path) -> tuple[int, int]:
    """Vectors and features of a flat index, whose file must be as large as its header says."""
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) == HEADER.size:
        kind, d, n, _, _, _, _, entries = HEADER.unpack(head)
        stored = path.stat().st_size - HEADER.size
        if kind in (b"IxFI", b"IxF2") and d > 0 and n > 0 and entries == d * n and 4 * entries == stored:
            return n, d
    raise ValueError(f"{path} is no flat FAISS index, or is damaged.")
