"""Soft minima and plan products as KeOps reductions, compiled for a formula."""

import contextlib
import io
from typing import Any

from torch import Tensor

from otdml._checks import argument_error
from otdml._cost_forms import Mask
from otdml.costs import Ground
from otdml.ot.engines.base import Engine

__all__ = ["Symbolic"]

# For KeOps' running maximum; minus infinity less minus infinity is NaN.
LOWEST = -1e30


class Symbolic(Engine):
    """Soft minima that KeOps evaluates without a matrix: for costs with few features, on a GPU above all.

    A formula is compiled at its first use, in seconds; there is one for each number of features.
    """

    def __init__(self, cost: Ground, mask: Mask | None = None) -> None:
        if mask is not None:
            raise argument_error("backend", "be 'dense' or 'streamed' where pairs are forbidden", "'keops'")
        if (symbol := cost.symbolic()) is None:
            raise argument_error("backend", "be 'dense' or 'streamed' for a matrix or a function", "'keops'")
        super().__init__(cost)
        self.symbol = symbol
        self.lazy = _lazy_tensor(cost.first)

    @property
    def mT(self) -> "Symbolic":
        return Symbolic(self.cost.mT)

    def _scores(self, h: Tensor) -> Any:
        """:math:`h_j - R_{ij}`, a symbolic matrix."""
        x, y = self.cost.leaves[:2]
        return self._at_columns(h[..., None]) - self.symbol(self._at_rows(x), self._at_columns(y))

    def _at_rows(self, x: Tensor) -> Any:
        return self.lazy(x[..., :, None, :].contiguous())

    def _at_columns(self, y: Tensor) -> Any:
        return self.lazy(y[..., None, :, :].contiguous())

    def row_softmin(self, h: Tensor) -> Tensor:
        return -self._scores(h.clamp(min=LOWEST)).logsumexp(h.ndim)[..., 0]

    def plan_product(self, hf: Tensor, hg: Tensor, v: Tensor) -> Tensor:
        scores = self._scores(hg.clamp(min=LOWEST)) + self._at_rows(hf.clamp(min=LOWEST)[..., None])
        return (scores.exp() * self._at_columns(v)).sum(hf.ndim)


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
