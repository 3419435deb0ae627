"""Soft minima over the pairs of cells between which there is mass: few, in few dimensions at low temperatures."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from otdml.costs import Ground
from otdml.ot.engines.base import BLOCK, SoftMin, softmin

__all__ = ["Cells"]

# Points of a cell: at least so many that a block of them is worth its calls, and no more cells than this.
LEAST, MOST = 128, 1024
# Pairs of cells are left out where the plan is less than the exponential of minus this times the independent one. The
# potentials at which that is decided may be off by several units.
REACH = 14.0


class Cells(SoftMin):
    r"""Soft minima over the pairs of cells with :math:`f_i + g_j - C_{ij} > -14` for some of their points.

    Both clouds are halved along their longest side until their cells are small. The largest potentials of two cells
    and the distance of their boxes bound the plan between them.

    Args:
        cost: Reduced cost over the temperature.
        points: x and y with :math:`C_{ij} = \lVert x_i - y_j \rVert^p / p`, over the temperature.
        power: p.
        potentials: f and g, over the temperature.
    """

    def __init__(
        self, cost: Ground, points: tuple[Tensor, Tensor], power: int, potentials: tuple[Tensor, Tensor]
    ) -> None:
        self.cost = cost
        self.left, self.right = (_cut(t) for t in points)
        f, g = (cut.of(h).amax(1) for cut, h in zip((self.left, self.right), potentials, strict=True))
        gap = _gaps(self.left.of(points[0]), self.right.of(points[1])) ** power / power
        bound = f[:, None] + g - gap
        keep = bound > -REACH
        # Not even far from the solution is a cell without any partner.
        self.keep = keep | (bound == bound.amax(0)) | (bound == bound.amax(1, keepdim=True))

    @property
    def shape(self) -> torch.Size:
        return self.cost.shape

    @property
    def share(self) -> float:
        """The share of pairs that is looked at."""
        return float(self.keep.float().mean())

    def row_softmin(self, h: Tensor) -> Tensor:
        return _rows(self.cost, self.left, self.right, self.keep, h)

    def column_softmin(self, h: Tensor) -> Tensor:
        return _rows(self.cost.mT, self.right, self.left, self.keep.mT, h)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A cloud in cells: the indices of their points, shape (cells, size); those of the last may be repeated."""

    index: Tensor
    repeated: int

    def of(self, t: Tensor) -> Tensor:
        return t[self.index]


def _cut(points: Tensor) -> _Cut:
    n = len(points)
    size = max(LEAST, -(-n // MOST))
    order = _halved(points, torch.arange(n, device=points.device), size)
    return _Cut(torch.cat([order, order[-1:].expand(-n % size)]).view(-1, size), -n % size)


def _halved(points: Tensor, index: Tensor, size: int) -> Tensor:
    """``index`` in an order in which every ``size`` successive points are a cell."""
    if len(index) <= size:
        return index
    some = points[index]
    low, high = torch.aminmax(some, dim=0)
    order = some[:, (high - low).argmax()].argsort()
    half = size * (-(-len(index) // size) // 2)
    return torch.cat([_halved(points, index[part], size) for part in (order[:half], order[half:])])


def _gaps(x: Tensor, y: Tensor) -> Tensor:
    """The distances of the boxes around cells of points, shapes (k, size, d) and (l, size, d)."""
    (low, high), (other_low, other_high) = torch.aminmax(x, dim=1), torch.aminmax(y, dim=1)
    above, below = low[:, None] - other_high, other_low - high[:, None]
    return torch.maximum(above, below).clamp_(min=0).norm(dim=-1)


def _rows(cost: Ground, left: _Cut, right: _Cut, keep: Tensor, h: Tensor) -> Tensor:
    x, y, h = left.of(cost.first), right.of(cost.leaves[1]), right.of(h)
    h.view(-1)[h.numel() - right.repeated :] = -torch.inf
    out = x.new_empty(x.shape[:2])
    for cell, kept in enumerate(keep):
        block = cost.between(x[cell], y[kept].flatten(0, 1))
        for rows in _slices(*block.shape):
            out[cell, rows] = softmin(block.scores(rows, h[kept].flatten()))
    result = h.new_empty(cost.shape[0])
    result[left.index] = out
    return result


def _slices(n: int, m: int) -> Iterator[slice]:
    size = max(1, BLOCK["cpu"] // m)
    return (slice(start, start + size) for start in range(0, n, size))
