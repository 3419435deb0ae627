"""Points without any admissible partner, whose mass is not transported."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._cost_forms import Ground

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
    cost: Ground, a: Tensor, b: Tensor, *, free: tuple[bool, bool]
) -> tuple[Ground, Tensor, Tensor, Idle | None]:
    """Costs and weights of the points that have an admissible partner with weight, and what has been removed.

    Points that are removed have costs and weights of zero. A point with weight and a constraint is not removed. The
    costs are read once, and again where points with weight are removed: they may have been all that a point without
    weight was allowed.

    Args:
        cost: Costs, plus infinity for forbidden pairs.
        a: Row weights, shape (..., n).
        b: Column weights, shape (..., m).
        free: Whether rows, and columns, may have a marginal other than their weights.
    """
    found = _isolated(cost, a, b)
    if found is None:
        return cost, a, b, None
    # Where no point of the other side has weight, the problem has a value as it is.
    rows, columns = found[0] & (b > 0).any(-1, keepdim=True), found[1] & (a > 0).any(-1, keepdim=True)
    rows, columns = (idle & ((w == 0) | may) for idle, w, may in ((rows, a, free[0]), (columns, b, free[1])))
    lost = [w.where(which, 0.0).sum(-1) for w, which in ((a, rows), (b, columns))]
    cost, a, b = cost.without(rows, columns), a.masked_fill(rows, 0.0), b.masked_fill(columns, 0.0)
    if not bool(torch.stack(lost).any()):
        return cost, a, b, Idle(rows, columns, *lost)
    cost, a, b, more = without_idle(cost, a, b, free=free)
    rows, columns = (rows, columns) if more is None else (rows | more.rows, columns | more.columns)
    return cost, a, b, Idle(rows, columns, *lost)


@torch.no_grad()
def _isolated(cost: Ground, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which rows and columns have no admissible partner with weight; None where no pair is forbidden."""
    rows, some = [], []
    columns = torch.ones(b.shape, dtype=torch.bool, device=b.device)
    for part, C in cost.detach().blocks():
        forbidden = torch.eq(C, torch.inf)
        rows.append((forbidden | (b == 0)[..., None, :]).all(-1))
        columns &= (forbidden | (a[..., part] == 0)[..., :, None]).all(-2)
        some.append(forbidden.any())
    return (torch.cat(rows, -1), columns) if bool(torch.stack(some).any()) else None
