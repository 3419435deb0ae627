r"""Entropic transport at temperatures above all costs, where rounding of a plan's mass drowns the costs.

With :math:`\delta = f + g - R` small, the value and its gradients are differences of sums close to one. They keep
their digits when written in :math:`\sum_j b_j (e^{\delta_{ij}} - 1)`, which is small itself.
"""

import dataclasses

import torch
from torch import Tensor

from otdml.costs import Bilinear, Ground
from otdml.ot.engines import Engine
from otdml.ot.potentials import Side, Solution

__all__ = ["Excess", "largest", "reheated"]


@dataclasses.dataclass(frozen=True)
class Excess:
    """By how much the plan's sums exceed those of the independent coupling, per unit of weight.

    Attributes:
        rows: Shape (..., n).
        columns: Shape (..., m).
        mass: Of the whole plan, shape (...).
    """

    rows: Tensor
    columns: Tensor
    mass: Tensor


def largest(cost: Ground) -> Tensor:
    """The largest reduced cost, or an upper bound of it."""
    if isinstance(cost, Bilinear):
        q, k = (torch.linalg.vector_norm(factor, dim=-1).amax(-1) for factor in (cost.q, cost.k))
        return (q * k).max()
    n, m = cost.shape[-2:]
    size = max(1, 2**20 // m)
    return torch.stack([cost.block(slice(i, i + size)).abs().max() for i in range(0, n, size)]).max()


# Only above all costs so few iterations suffice; at lower temperatures nothing is compared with the costs.
FEW = 8
# Iterations of a contraction by a quarter at least; where pairs are forbidden it may be none.
MOST = 30


def reheated(engine: Engine, rows: Side, columns: Side, solution: Solution) -> tuple[Solution, Excess | None]:
    """The solution to all digits, and its excess, if no dimensionless cost is above one; else as it is, and None."""
    # Any row tells nearly all problems that are not of this kind, for less than it takes to look at all of them.
    if solution.n_iter > FEW or float(engine.cost.block(slice(0, 1)).abs().max()) > 1:
        return solution, None
    far = _far_from_one(solution, balanced=rows.rho is None and columns.rho is None)
    if far or not bool((top := largest(engine.cost)) <= 1):
        return solution, None
    # From zero, as the potentials at hand are as inaccurate as a logarithm of one.
    f, g = torch.zeros_like(solution.f), torch.zeros_like(solution.g)
    twin, resolution = engine.mT, 16 * torch.finfo(f.dtype).eps
    for _ in range(MOST):
        last = torch.cat([f, g], -1)
        f = rows.update(f - _log_sum(engine.excess(f, g, columns.weights), columns.weights))
        g = columns.update(g - _log_sum(twin.excess(g, f, rows.weights), rows.weights))
        both = torch.cat([f, g], -1)
        if bool((both - last).abs().max() <= resolution * torch.maximum(top, both.abs().max())):
            by_row = engine.excess(f, g, columns.weights)
            over = Excess(by_row, twin.excess(g, f, rows.weights), (rows.weights * by_row).sum(-1))
            return dataclasses.replace(solution, f=f, g=g), over
    return solution, None


def _far_from_one(solution: Solution, *, balanced: bool) -> bool:
    """Whether the sums of potentials are large, each of which varies over twice the range of the costs at most.

    They are where the mass is far from one. Without balance a potential alone means something, and holds the offset.
    """
    (low, high), (other_low, other_high) = torch.aminmax(solution.f, dim=-1), torch.aminmax(solution.g, dim=-1)
    limits = [high + other_high, -low - other_low, *(() if balanced else (high, -low, other_high, -other_low))]
    return bool(torch.stack(limits).max() > 4)


def _log_sum(excess: Tensor, weights: Tensor) -> Tensor:
    r""":math:`\log \sum_j b_j e^{\delta_{ij}}`."""
    total = weights.sum(-1, keepdim=True)
    # What a mass of one is off by is rounding.
    beyond = torch.where((total - 1).abs() <= 32 * torch.finfo(total.dtype).eps, 0.0, total - 1)
    return torch.log1p(excess + beyond)
