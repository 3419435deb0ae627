"""Points without any admissible partner, whose mass is not transported."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Idle", "without_idle"]


@dataclass(frozen=True)
class Idle:
    """Points that have been removed from a problem because all their pairs are forbidden.

    Attributes:
        rows: Which row points, shape (..., n).
        columns: Which column points, shape (..., m).
        a: The mass of the rows together, shape (...), with its graph.
        b: The mass of the columns together, shape (...), with its graph.
        value: The part of the value that is due to these points, shape (...), with its graph.
    """

    rows: Tensor
    columns: Tensor
    a: Tensor
    b: Tensor
    value: Tensor | float = 0.0

    def priced(self, a: Tensor, b: Tensor, eps: Tensor | float, rho: tuple[float | None, float | None]) -> "Idle":
        """The same with its value, given the weights of the other points."""
        given_up = sum(p * w for p, w in zip(rho, (self.a, self.b), strict=True) if p is not None)
        # The divergence from the product of all weights includes the mass of the products where the plan is zero.
        unused = self.a * b.sum(-1) + a.sum(-1) * self.b + self.a * self.b
        return dataclasses.replace(self, value=given_up + eps * unused)


def without_idle(
    C: Tensor, a: Tensor, b: Tensor, *, free: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor, Idle | None]:
    """Costs and weights of the points that have an admissible partner with weight, and what has been removed.

    Points that are removed have costs and weights of zero. A point with weight and a constraint is not removed.

    Args:
        C: Costs, shape (..., n, m), plus infinity for forbidden pairs.
        a: Row weights, shape (..., n).
        b: Column weights, shape (..., m).
        free: Whether rows, and columns, may have a marginal other than their weights.
    """
    forbidden = C.detach() == torch.inf
    if not bool(forbidden.any()):
        return C, a, b, None
    rows = (forbidden | (b == 0)[..., None, :]).all(-1)
    columns = (forbidden | (a == 0)[..., :, None]).all(-2)
    # Where no point of the other side has weight, the problem has a value as it is.
    rows, columns = rows & (b > 0).any(-1, keepdim=True), columns & (a > 0).any(-1, keepdim=True)
    rows, columns = (idle & ((w == 0) | may) for idle, w, may in ((rows, a, free[0]), (columns, b, free[1])))
    C = C.masked_fill(rows[..., :, None] | columns[..., None, :], 0.0)
    idle = Idle(rows, columns, *(w.where(which, 0.0).sum(-1) for w, which in ((a, rows), (b, columns))))
    return C, a.masked_fill(rows, 0.0), b.masked_fill(columns, 0.0), idle
