"""Squared distances between points, tile by tile, in arithmetic that resolves them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import has_values
from otdml._precision import widest

__all__ = ["TILE", "Arithmetic", "tiles"]

# Pairs per tile: large enough to make Python's overhead small, small enough for the caches of a CPU.
TILE = {"cpu": 2**21, "cuda": 2**26}
# The product form of a squared distance loses digits that matter below this many rounding units of the norms; up to so
# many coordinates, differences cost no more.
_NEAR, _FEW = 256, 8
# Points of two clouds nearer than this many rounding units of their norms have no direction between them. Those of one
# cloud have, down to a single unit: without its force such a pair would never part.
_COINCIDENT = 16
# The largest relative error of a smooth kernel that rounding of squared distances may make.
_ERROR = 1e-4


@dataclass(frozen=True)
class Arithmetic:
    """How tiles are computed.

    Attributes:
        dtype: Of products of points.
        exact: Whether small squared distances need digits that such products lose.
        looked: Whether rounding is known to leave a kernel as it is; else squared distances may be below zero by more.
    """

    dtype: torch.dtype
    exact: bool
    looked: bool = False

    @classmethod
    def of(cls, x: Tensor, y: Tensor, *, smooth: bool, length: float) -> "Arithmetic":
        """That of a kernel: as fine as it takes to tell distances of the kernel's ``length``, or the finest there is.

        Products of matrices in double precision take a fraction of the time of differences.
        """
        wide = widest(x.device)
        if not has_values(x):
            # A branch on a value would break the graph.
            return cls(wide if length < math.inf else x.dtype, not smooth)
        if _resolved(x, y, length, x.dtype):
            return cls(x.dtype, not smooth, looked=True)
        return cls(wide, not (smooth and _resolved(x, y, length, wide)))


def _resolved(x: Tensor, y: Tensor, length: float, dtype: torch.dtype) -> bool:
    r"""Whether the rounding of products of the points leaves a smooth kernel as it is.

    Its logarithm has a slope of :math:`1 / 2 \ell^2` in the squared distance at most.
    """
    if length == math.inf or not (x.numel() and y.numel()):
        return True
    own = x.square().sum(-1).max()
    largest = 2 * float(own) if y is x else float(own + y.square().sum(-1).max())
    # By lengths, as the square of one may overflow.
    return math.sqrt(largest) <= math.sqrt(2 * _ERROR / torch.finfo(dtype).eps) * length


def tiles(
    x: Tensor, y: Tensor, pairs: bool, arithmetic: Arithmetic
) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Blocks of squared distances, and where points coincide; for pairs of one cloud the blocks on and above the
    diagonal, infinite from a point to itself."""
    n, m = x.shape[-2], y.shape[-2]
    batch = max(1, x.shape[:-2].numel())
    size = max(64, int((TILE.get(x.device.type, TILE["cuda"]) / batch) ** 0.5))
    distances = _SquaredDistances(x, y, arithmetic)
    for i in range(0, n, size):
        for j in range(i if pairs else 0, m, size):
            rows, cols = slice(i, min(i + size, n)), slice(j, min(j + size, m))
            yield rows, cols, *distances(rows, cols, own=pairs and i == j)


class _SquaredDistances:
    """Blocks of squared distances: one product of matrices, or differences where its rounding would show."""

    def __init__(self, x: Tensor, y: Tensor, arithmetic: Arithmetic) -> None:
        self.x, self.y, self.exact = x, y, arithmetic.exact
        self.eps, self.fine = torch.finfo(x.dtype).eps, torch.finfo(arithmetic.dtype).eps
        p = x.to(arithmetic.dtype)
        q = p if y is x else y.to(arithmetic.dtype)
        self.x2 = p.square().sum(-1, keepdim=True)
        self.y2 = self.x2 if y is x else q.square().sum(-1, keepdim=True)
        one = torch.ones_like
        self.left = torch.cat([-2 * p, self.x2, one(self.x2)], -1)
        self.right = torch.cat([q, one(self.y2), self.y2], -1)

    def largest(self) -> Tensor:
        """The largest squared norm of x plus that of y, shape (..., 1, 1)."""
        return self.x2.amax(-2, keepdim=True) + self.y2.amax(-2, keepdim=True)

    def __call__(self, rows: slice, cols: slice, own: bool) -> tuple[Tensor, Tensor | None]:
        """A block, and which of its points coincide, or None if none do or a smooth kernel does not mind."""
        if not self.exact or self.x.shape[-1] > _FEW:
            r2 = _without_own(self.left[..., rows, :] @ self.right[..., cols, :].mT, own)
            if not self.exact or (r2.amin((-2, -1), keepdim=True) >= _NEAR * self.fine * self.largest()).all():
                return r2.to(self.x.dtype), None
        ends = self.x[..., rows, :], self.y[..., cols, :]
        r = torch.cdist(*ends, compute_mode="donot_use_mm_for_euclid_dist")
        r2 = _without_own(r.mul_(r), own)
        units = 1 if self.x is self.y else _COINCIDENT
        return r2, r2 <= self.largest() * (units * self.eps) ** 2


def _without_own(r2: Tensor, own: bool) -> Tensor:
    if own:
        r2.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return r2
