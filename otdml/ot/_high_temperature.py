r"""Entropic transport at temperatures above all costs, where rounding of a plan's mass drowns the costs.

With :math:`\delta = f + g - R` small, the value and its gradients are differences of sums close to one. They keep
their digits when written in :math:`\sum_j b_j (e^{\delta_{ij}} - 1)`, which is small itself.
"""

import dataclasses

import torch
from torch import Tensor

from otdml.ot._iteration import iterate
from otdml.ot._problem import Posed, Problem
from otdml.ot._updates import Potentials, Step, Update

__all__ = ["FEW", "Excess", "refined"]


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
    """The alternating iteration, with soft minima taken from the plan's excess over the independent coupling.

    Args:
        posed: The problem.
        top: Its largest dimensionless cost, shape (...).
        hot: Which of the batch are meant, shape (...); the others stay where they are.
        f: Row potential to start from.
    """

    accelerates = False

    def __init__(self, posed: Posed, top: Tensor, hot: Tensor, f: Tensor) -> None:
        super().__init__(posed.engine, posed.problem.rows, posed.problem.columns)
        self.engine, self.twin, self.top, self.hot, self.f = posed.engine, posed.engine.mT, top, hot, f

    def refresh(self, f: Tensor, g: Tensor, *, lost: bool = False) -> bool:
        # These sums read no kernel. One that is kept has to stay where the rest of the batch, which is not meant, needs
        # it for products with its plans.
        return False

    def step(self, g: Tensor, times: int, tol: float = 0.0) -> Step:
        rows, columns, hot = self.rows, self.columns, self.hot[..., None]
        f = rows.update(self.f - _log_sum(self.engine.row_excess(self.f, g, columns.weights), columns.weights))
        f = f.where(hot, self.f)
        new = columns.update(g - _log_sum(self.twin.row_excess(g, f, rows.weights), rows.weights)).where(hot, g)
        moved, largest = (
            torch.maximum(s.abs().amax(-1), t.abs().amax(-1)) for s, t in ((f - self.f, new - g), (f, new))
        )
        self.f = f
        # In units of what rounding leaves. Nothing moves where all is zero.
        error = moved / (16 * torch.finfo(f.dtype).eps * torch.maximum(self.top, largest))
        return Step(g, f, new[None], torch.where(moved == 0, 0.0, error)[None])


def refined(posed: Posed, found: Potentials) -> tuple[Posed, Potentials, Excess | None]:
    """The potentials to all digits, and their excess, where no dimensionless cost exceeds one; else as they are.

    The problem that is returned with them may be at a lower temperature, see :func:`_tempered`.
    """
    # Any row rules out nearly all problems that are not of this kind, in less time than all rows take.
    if float(posed.engine.cost.block(slice(0, 1)).abs().amax((-2, -1)).amin()) > 1:
        return posed, found, None
    warm = _tempered(posed, found)
    top = warm.engine.cost.sizes()
    hot = (top <= 1) & (_exponents(found, balanced=warm.problem.balanced) <= 4)
    if not bool(hot.any()):
        return posed, found, None
    # From zero, as the potentials at hand are as inaccurate as a logarithm of one.
    update = _ByExcess(warm, top, hot, torch.zeros_like(found.f))
    exact = iterate(update, torch.zeros_like(found.g), tol=1.0, max_iter=MOST, prepared=True)
    if not exact.done:
        return posed, found, None
    f, g = exact.f.where(hot[..., None], found.f), exact.g.where(hot[..., None], found.g)
    return warm, dataclasses.replace(found, f=f, g=g), _excess(warm, hot, f, g)


def _excess(posed: Posed, hot: Tensor, f: Tensor, g: Tensor) -> Excess:
    """The excess at these potentials: summed up where it is small, and from the marginals' targets elsewhere."""
    rows, columns = posed.problem.rows, posed.problem.columns
    by_row = posed.engine.row_excess(f, g, columns.weights)
    by_column = posed.engine.mT.row_excess(g, f, rows.weights)
    mass = torch.where(hot, (rows.weights * by_row).sum(-1), posed.problem.mass_at(g) - rows.mass * columns.mass)
    by_row = by_row.where(hot[..., None], rows.share(f) - columns.mass[..., None])
    return Excess(by_row, by_column.where(hot[..., None], columns.share(g) - rows.mass[..., None]), mass)


def _tempered(posed: Posed, found: Potentials) -> Posed:
    r"""The problem at the temperature :math:`\lVert C \rVert / u`, with u the unit roundoff, where its own is higher.

    Where the plan tends to the independent coupling :math:`a b^\top` as the temperature rises, it is that plan from
    there on to all digits, and the value :math:`\langle C, a b^\top \rangle` and the penalties of its marginals. But
    the costs over a temperature that is higher by far vanish, and the temperature times a rounded mass does not.
    """
    problem, unit = posed.problem, torch.finfo(found.f.dtype).eps
    largest = _largest(problem)
    limit = largest / unit
    # Masses other than one, or forbidden pairs, keep the plan from the independent coupling.
    independent = (_exponents(found, balanced=problem.balanced) <= 64 * unit) & (largest > 0)
    eps = torch.as_tensor(problem.eps, dtype=limit.dtype, device=limit.device)
    high = independent & (eps > limit)
    if not bool(high.any()):
        return posed
    problem = dataclasses.replace(problem, eps=torch.where(high, limit, eps))
    engine = type(posed.engine)(problem.cost.detach().scaled(problem.scale(0)), posed.engine.mask)
    return Posed(problem, engine)


def _largest(problem: Problem) -> Tensor:
    """The largest of all that has the unit of the cost, shape (...)."""
    sizes = problem.cost.sizes()
    for rho, offset in zip(problem.rho, (problem.cost.u, problem.cost.v), strict=True):
        if rho is not None:
            sizes = sizes.clamp(min=rho)
            sizes = sizes if offset is None else torch.maximum(sizes, offset.detach().abs().amax(-1))
    return sizes


def _exponents(found: Potentials, *, balanced: bool) -> Tensor:
    """A bound of the sums of potentials, each of which varies over twice the range of the costs at most, shape (...).

    They are large where the mass is far from one. Without balance a potential alone means something, and holds the
    offset.
    """
    (low, high), (other_low, other_high) = torch.aminmax(found.f, dim=-1), torch.aminmax(found.g, dim=-1)
    limits = [high + other_high, -low - other_low, *(() if balanced else (high, -low, other_high, -other_low))]
    return torch.stack(limits).amax(0)


def _log_sum(excess: Tensor, weights: Tensor) -> Tensor:
    r""":math:`\log \sum_j b_j e^{\delta_{ij}}`."""
    total = weights.sum(-1, keepdim=True)
    # The deviation of a mass of one from one is rounding.
    total = torch.where((total - 1).abs() <= 32 * torch.finfo(total.dtype).eps, 1.0, total)
    # The mass is a factor, which may be next to zero.
    return total.log() + torch.log1p(excess / total)
