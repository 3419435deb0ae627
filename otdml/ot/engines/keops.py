"""Soft minima and plan products as KeOps reductions, compiled for a formula."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

from torch import Tensor

from otdml._checks import argument_error
from otdml.costs import Bilinear, Ground, Pointwise
from otdml.ot.engines.streamed import Mask, Streamed, Update

__all__ = ["Symbolic"]

# For KeOps' running maximum; minus infinity less minus infinity is NaN.
LOWEST = -1e30


class Symbolic(Streamed):
    """Soft minima that KeOps evaluates without a matrix: for costs with few features, on a GPU above all.

    A formula is compiled at its first use, in seconds; there is one for each number of features.
    """

    def __init__(self, cost: Ground, mask: Mask | None = None) -> None:
        if mask is not None:
            raise argument_error("backend", "be 'dense' or 'streamed' where pairs are forbidden", "'keops'")
        if (scores := _symbolic_scores(cost)) is None:
            raise argument_error("backend", "be 'dense' or 'streamed' for a matrix or a function", "'keops'")
        super().__init__(cost)
        self.symbolic_scores = scores
        self.lazy = _lazy_tensor(cost.leaves[0])

    @property
    def mT(self) -> "Symbolic":
        return Symbolic(self.cost.mT)

    def _scores(self, h: Tensor) -> Any:
        """:math:`h_j - R_{ij}`, a symbolic matrix."""
        x, y = self.cost.leaves[:2]
        return self.symbolic_scores(self._at_columns(h[..., None]), self._at_rows(x), self._at_columns(y))

    def _at_rows(self, x: Tensor) -> Any:
        return self.lazy(x[..., :, None, :].contiguous())

    def _at_columns(self, y: Tensor) -> Any:
        return self.lazy(y[..., None, :, :].contiguous())

    def rows(self, h: Tensor) -> Tensor:
        return -self._scores(h.clamp(min=LOWEST)).logsumexp(h.ndim)[..., 0]

    def columns(self, h: Tensor) -> Tensor:
        return self.mT.rows(h)

    def sweep(self, h: Tensor, log: Tensor, update: Update) -> tuple[Tensor, Tensor]:
        return self._two_passes(h, log, update)

    def product(self, hf: Tensor, hg: Tensor, v: Tensor) -> Tensor:
        scores = self._scores(hg.clamp(min=LOWEST)) + self._at_rows(hf.clamp(min=LOWEST)[..., None])
        return (scores.exp() * self._at_columns(v)).sum(hf.ndim)


def _symbolic_scores(cost: Ground) -> Callable[[Any, Any, Any], Any] | None:
    """:math:`h_j - R_{ij}` of symbolic h, x and y, or None."""
    if isinstance(cost, Bilinear):
        return lambda h, q, k: h + (q | k)
    if not isinstance(cost, Pointwise) or cost.symbolic is None:
        return None
    symbolic = cost.symbolic
    return lambda h, x, y: h - symbolic(x, y)


def _lazy_tensor(x: Tensor) -> Any:
    try:
        # KeOps says on the standard output that it found no GPU.
        with contextlib.redirect_stdout(io.StringIO()):
            import pykeops.config
            from pykeops.torch import LazyTensor
    except ImportError as error:
        remedy = "Install it with `pip install pykeops` (Linux, macOS), or pass backend='streamed'."
        raise ImportError(f"backend='keops' needs pykeops, which does not import: {error}. {remedy}") from error
    if x.device.type != "cpu" and not pykeops.config.gpu_available:
        raise RuntimeError(
            f"backend='keops' found no CUDA compiler and would run on the CPU, but the points are on {x.device}. "
            "Install the CUDA toolkit, or pass backend='streamed'."
        )
    return LazyTensor
