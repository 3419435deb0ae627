"""FAISS where it is installed, on torch's terms."""

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice

__all__ = ["faiss_search", "runs_on_faiss"]


def runs_on_faiss(backend: str, x: Tensor) -> bool:
    """Whether ``backend``, one of ``"auto"``, ``"faiss"`` and ``"torch"``, means FAISS for the points ``x``."""
    suits = x.device.type == "cpu" and x.dtype == torch.float32
    if check_choice("backend", backend, ("auto", "faiss", "torch")) != "faiss":
        return backend == "auto" and suits and _installed()
    if not _installed():
        raise ImportError("FAISS is not installed. Install otdml[cpu], or pass backend='torch'.")
    if not suits:
        got, remedy = f"{x.dtype} on {x.device}", "Pass backend='torch'."
        raise argument_error("x", "be float32 on the CPU for FAISS", got, remedy)
    return True


def _installed() -> bool:
    try:
        return find_spec("faiss") is not None
    except ValueError:  # An entry of sys.modules that was set to None.
        return False


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

    FAISS brings an OpenMP of its own, which knows nothing of ``torch.set_num_threads``. It would oversubscribe the
    cores, and it would hang in a forked data-loading worker, where only one thread is safe.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
