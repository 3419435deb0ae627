r"""Entropic transport at temperatures above all costs, where rounding of a plan's mass drowns the costs.

With :math:`\delta = f + g - R` small, the value and its gradients are differences of sums close to one. They keep
their digits when written in :math:`\sum_j b_j (e^{\delta_{ij}} - 1)`, which is small itself.
"""

import dataclasses

import torch
from torch import Tensor

from otdml.ot._iteration import Potentials, Step, Update, iterate
from otdml.ot._problem import Posed

__all__ = ["Excess", "refined"]


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


# Only above all costs so few iterations suffice; at lower temperatures nothing is compared with the costs.
FEW = 8
# Iterations of a contraction by a quarter at least; where pairs are forbidden it may be none.
MOST = 30


class _ByExcess(Update):
    """The alternating iteration, with soft minima taken from the plan's excess over the independent coupling."""

    accelerates = False

    def __init__(self, posed: Posed, top: Tensor, f: Tensor) -> None:
        super().__init__(posed.engine, posed.problem.rows, posed.problem.columns)
        self.engine, self.twin, self.top, self.f = posed.engine, posed.engine.mT, top, f

    def step(self, g: Tensor, times: int) -> Step:
        rows, columns = self.rows, self.columns
        f = rows.update(self.f - _log_sum(self.engine.row_excess(self.f, g, columns.weights), columns.weights))
        new = columns.update(g - _log_sum(self.twin.row_excess(g, f, rows.weights), rows.weights))
        moved, largest = (torch.maximum(s.abs().max(), t.abs().max()) for s, t in ((f - self.f, new - g), (f, new)))
        self.f = f
        # In units of what rounding leaves.
        error = moved / (16 * torch.finfo(f.dtype).eps * torch.maximum(self.top, largest))
        return Step(f, g[None], new[None], error.expand(g.shape[:-1])[None])


def refined(posed: Posed, found: Potentials) -> tuple[Potentials, Excess | None]:
    """The potentials to all digits, and their excess, if no dimensionless cost exceeds one; else as they are."""
    engine, problem = posed.engine, posed.problem
    # Any row rules out nearly all problems that are not of this kind, in less time than all rows take.
    if found.n_iter > FEW or float(engine.cost.block(slice(0, 1)).abs().max()) > 1:
        return found, None
    if _far_from_one(found, balanced=problem.balanced) or not bool((top := engine.cost.largest()) <= 1):
        return found, None
    # From zero, as the potentials at hand are as inaccurate as a logarithm of one.
    update = _ByExcess(posed, top, torch.zeros_like(found.f))
    exact = iterate(update, torch.zeros_like(found.g), tol=1.0, max_iter=MOST, prepared=True)
    if not exact.done:
        return found, None
    by_row = engine.row_excess(exact.f, exact.g, problem.columns.weights)
    by_column = update.twin.row_excess(exact.g, exact.f, problem.rows.weights)
    excess = Excess(by_row, by_column, (problem.rows.weights * by_row).sum(-1))
    return dataclasses.replace(found, f=exact.f, g=exact.g), excess


def _far_from_one(found: Potentials, *, balanced: bool) -> bool:
    """Whether the sums of potentials are large, each of which varies over twice the range of the costs at most.

    They are where the mass is far from one. Without balance a potential alone means something, and holds the offset.
    """
    (low, high), (other_low, other_high) = torch.aminmax(found.f, dim=-1), torch.aminmax(found.g, dim=-1)
    limits = [high + other_high, -low - other_low, *(() if balanced else (high, -low, other_high, -other_low))]
    return bool(torch.stack(limits).max() > 4)


def _log_sum(excess: Tensor, weights: Tensor) -> Tensor:
    r""":math:`\log \sum_j b_j e^{\delta_{ij}}`."""
    total = weights.sum(-1, keepdim=True)
    # The deviation of a mass of one from one is rounding.
    beyond = torch.where((total - 1).abs() <= 32 * torch.finfo(total.dtype).eps, 0.0, total - 1)
    return torch.log1p(excess + beyond)
