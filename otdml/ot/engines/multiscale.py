"""Soft minima in blocks of rows, started from potentials that GeomLoss finds on clusters of the points."""

import contextlib
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml._cost_forms import Mask
from otdml.costs import Ground
from otdml.ot.engines.cells import Cells
from otdml.ot.engines.streamed import Streamed

__all__ = ["Multiscale"]

# The voxels of GeomLoss are for a line, a plane and space.
DIMENSIONS = 3
# Factor between successive scales.
SCALING = 0.7
# Dimensionless costs, below the largest cost, at which pairs of clusters are left out.
TRUNCATE = 5
# Share of the pairs of cells above which looking at some of them takes as long as looking at all.
WORTHWHILE = 0.5


class Multiscale(Streamed):
    """The streamed engine with a start of its own: GeomLoss' block-sparse solver :cite:p:`feydy:20`, for d <= 3.

    It cools from the diameter of the clouds to the temperature, first between the centres of some 2,000 cells, then
    between the points of those pairs of cells that matter. Its potentials are near the optimum and not at it. Our loop
    brings them there on the pairs of cells that have mass, and then finishes on all pairs, which decides when to stop:
    so the answer is that of the other engines.

    Balanced problems without batch dimensions have it; ``sqeuclidean``, ``cosine`` and ``inner`` of at most three
    features, and ``euclidean``.
    """

    def __init__(self, cost: Ground, mask: Mask | None = None) -> None:
        if mask is not None:
            raise _unfit("where pairs are forbidden")
        if (found := cost.norm()) is None:
            raise _unfit("for this cost", "GeomLoss knows 'sqeuclidean', 'euclidean', 'cosine' and 'inner'.")
        if cost.first.shape[-1] > DIMENSIONS:
            raise _unfit(f"for more than {DIMENSIONS} features, here {cost.first.shape[-1]}")
        if cost.shape[:-2]:
            raise _unfit(f"for a batch, here {tuple(cost.shape[:-2])}", "Solve its problems in turns.")
        super().__init__(cost)
        self.power, self.points = found
        self.solver = _samples_loss()

    def initial_potential(self, a: Tensor, b: Tensor, *, balanced: bool) -> Tensor:
        """The column potential of the multiscale solver."""
        if not balanced:
            raise argument_error("rho", "be None with backend='multiscale'", "a penalty", "Pass backend='streamed'.")
        x, y = self.points
        low, high = torch.aminmax(torch.cat([x, y]), dim=0)
        # Where no cost is above the temperature there is nothing to cool; and NaN is reported by the loop.
        if not 1 < float((high - low).norm()) < math.inf:
            return super().initial_potential(a, b, balanced=balanced)
        return self._solved(x, y, a, b) - self._offset(y)

    def _offset(self, points: Tensor) -> Tensor | float:
        """What the potentials of GeomLoss' cost have beyond those of the reduced one."""
        return 0.0 if self.power == 1 else points.square().sum(-1) / 2

    def restricted(self, b: Tensor, g: Tensor) -> Cells | None:
        f, (x, y) = self.row_softmin(g + b.log()), self.points
        if not bool(f.isfinite().all()):
            return None
        cells = Cells(self.cost, (x, y), self.power, (f + self._offset(x), g + self._offset(y)))
        return cells if cells.share < WORTHWHILE else None

    def _solved(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        solver = self.solver(
            "sinkhorn",
            p=self.power,
            blur=1.0,
            scaling=SCALING,
            truncate=TRUNCATE,
            debias=False,
            potentials=True,
            backend="multiscale",
        )
        # It leaves gradients switched on; this context puts them back.
        with torch.no_grad():
            return solver(a, x.contiguous(), b, y.contiguous())[1]


def _unfit(where: str, remedy: str = "") -> Exception:
    return argument_error("backend", f"be 'dense' or 'streamed' {where}", "'multiscale'", remedy)


def _samples_loss() -> Callable[..., Any]:
    try:
        # KeOps says on the standard output that it found no GPU.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pykeops.torch
            from geomloss import SamplesLoss
    except ImportError as error:
        remedy = "Install them with `pip install geomloss pykeops` (Linux, macOS), or pass backend='streamed'."
        raise ImportError(
            f"backend='multiscale' needs geomloss and pykeops, of which one does not import: {error}. {remedy}"
        ) from error
    assert pykeops.torch
    return SamplesLoss
