"""Batches spread over processes: gather with gradient."""

import math
import os
import pickle
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from otdml._checks import argument_error

__all__ = ["Gathered", "from_first", "gather", "is_first", "local_rows", "total"]

T = TypeVar("T")


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def gather(x: Tensor) -> Tensor:
    r"""The rows of all processes, in order of rank, on every process, with gradient.

    The gradient is that of the *sum* of the processes' losses, as for every collective of
    ``torch.distributed.nn``: a loss of gathered rows that is the same on all W processes yields W times its gradient,
    and the mean that ``DistributedDataParallel`` takes over the processes makes it the gradient of one process with
    the whole batch. Processes may hold different numbers of rows. In a single process it returns its argument.

    Args:
        x: The rows of this process, shape (n, ...), of any dtype.

    Returns:
        Shape (total of n, ...), on the device of ``x``.

    Example:
        >>> import torch
        >>> gather(torch.tensor([1, 2]))  # one process: its own rows
        tensor([1, 2])
    """
    return x if _alone() else _Gather.apply(x)


def local_rows(n: int, device: torch.device) -> slice:
    """The slice of this process's ``n`` rows among those of :func:`gather`.

    Args:
        n: Rows of this process.
        device: Of the tensors that the processes exchange.

    Returns:
        The slice.

    Example:
        >>> import torch
        >>> local_rows(3, torch.device("cpu"))  # one process: all of them
        slice(0, 3, None)
    """
    if _alone():
        return slice(0, n)
    start = sum(_counts(n, device)[: dist.get_rank()])
    return slice(start, start + n)


def total(x: Tensor) -> Tensor:
    """The sum of ``x`` over the processes, with the gradient convention of :func:`gather`.

    Args:
        x: Any shape, the same on all processes.

    Returns:
        The shape of ``x``; ``x`` itself in a single process.

    Example:
        >>> import torch
        >>> total(torch.tensor(2.0))  # one process
        tensor(2.)
    """
    return x if _alone() else _Total.apply(x)


def is_first() -> bool:
    """Whether this is the process that writes files and speaks: rank 0, also before the processes are connected.

    Example:
        >>> is_first()  # one process
        True
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    # Set by torchrun, and by what starts the jobs of clusters.
    known = [rank for name in ("RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK") if (rank := os.environ.get(name))]
    # Set by Lightning for the processes that it starts.
    own = [os.environ.get(name) or "0" for name in ("NODE_RANK", "LOCAL_RANK")]
    return known[0] == "0" if known else own == ["0", "0"]


def from_first(make: Callable[[], T]) -> T:
    """The result of ``make`` on the first process, on every process; all must call this, and wait for the first.

    Args:
        make: Called on the first process alone. What it returns must be picklable.

    Returns:
        The same on all processes. An error is raised on all of them as well; one that cannot be pickled is a
        RuntimeError with its text on the others.

    Example:
        >>> from_first(lambda: {"recall@1": 0.5})  # one process calls it
        {'recall@1': 0.5}
    """
    if _alone():
        return make()
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = make()
            pickle.dumps(found[0])
        # An interruption too: the others wait.
        except BaseException as error:
            dist.broadcast_object_list([None, _sendable(error)])
            raise
    dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def _sendable(error: BaseException) -> BaseException:
    """An error as other processes can read it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _counts(n: int, device: torch.device) -> list[int]:
    return [count for (count,) in _exchanged([n], device)]


def _exchanged(numbers: list[int], device: torch.device) -> list[list[int]]:
    """Some whole numbers of every process, in order of rank."""
    own = torch.tensor(numbers, device=device)
    found = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    return torch.stack(found).tolist()


def _rows_of_all(x: Tensor) -> list[int]:
    """The number of rows of every process, if their rows are of one kind; what differs is refused by all of them."""
    kind = zlib.crc32(f"{tuple(x.shape[1:])} {x.dtype}".encode())
    found = _exchanged([len(x) if x.ndim else -1, kind], x.device)
    if any(count < 0 or other != kind for count, other in found):
        must = "have shape (n, ...) on all processes, the same but for n, and one dtype"
        raise argument_error("x", must, f"{x.dtype} of shape {tuple(x.shape)} here")
    return [count for count, _ in found]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        counts = _rows_of_all(x)
        start = sum(counts[: dist.get_rank()])
        ctx.rows = slice(start, start + len(x))
        # Collectives exchange blocks of one size, and each backend knows other dtypes; bytes are known to all.
        width = math.prod(x.shape[1:])
        padded = torch.zeros(max(counts) * width, dtype=x.dtype, device=x.device)
        padded[: x.numel()] = x.reshape(-1)
        sent = padded.view(torch.uint8)
        received = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(received, sent)
        rows = torch.cat([part[: count * width * x.itemsize] for part, count in zip(received, counts, strict=True)])
        return rows.view(x.dtype).view(sum(counts), *x.shape[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Total.apply(grad)[ctx.rows]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        summed = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Differentiable in its turn: a second derivative that is only refused is read as zero by torch.autograd.
        return _Total.apply(grad)


class Gathered(nn.Module):
    r"""A loss of the batch of all processes, from a loss of one batch.

    Every process gathers all rows and computes the same value, whose gradient, averaged over the processes by
    ``DistributedDataParallel``, is that of one process with the whole batch. For losses whose batch is a sample of one
    distribution (dispersion, transport, discrepancies) that is not the mean of the losses of the parts. A loss that
    draws random numbers must draw the same on all processes: give it a generator with one seed.

    Args:
        loss: Takes tensors of shape (n, ...), one row per sample, or None.

    Example:
        >>> import torch
        >>> from otdml.losses import MMD
        >>> Gathered(MMD())(torch.zeros(1, 2), torch.ones(1, 2))  # one process: the loss itself, 2 - 2 exp(-1)
        tensor(1.2642)
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module):
            raise argument_error("loss", "be an nn.Module", type(loss).__name__, kind=TypeError)
        self.loss = loss

    def forward(self, *tensors: Tensor | None) -> Tensor:
        return self.loss(*(t if t is None else gather(t) for t in tensors))
