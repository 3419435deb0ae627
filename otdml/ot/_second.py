"""Second derivatives of potentials and of products with the plan, where the matrix is kept.

Their gradients are written as functions of all that they depend on: the cost, the weights, the potentials, which have a
graph of their own, and the multipliers, which solve a linear system.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from otdml._cost_forms import Gradients
from otdml._derivatives import once, refuse_several
from otdml.ot._linearised import adjoint, tangent
from otdml.ot._problem import Posed, Problem

__all__ = ["potential_gradients", "product_gradients"]

Pair = tuple[Tensor, Tensor]

_NO_THIRD = "Potentials, plans and maps have no third derivatives, and values no fourth ones."


def product_gradients(
    posed: Posed, hf: Tensor, hg: Tensor, v: Tensor, grad: Tensor, needs: Sequence[bool]
) -> Gradients:
    """The gradients of the plan's product with ``v``, of cotangent ``grad``, in ``hf``, ``hg``, ``v`` and the leaves.

    Args:
        posed: The problem.
        hf: Exponents of the rows, shape (..., n).
        hg: Exponents of the columns, shape (..., m).
        v: Shape (..., m, e).
        grad: Shape (..., n, e).
        needs: Which leaves of the cost need a gradient.
    """
    problem, C = posed.problem, _matrix(posed.problem)
    plan = _entries(problem, C, hf, hg)
    dv = plan.mT @ grad
    leaves = _in_leaves(problem, needs, [(C, -plan * (grad @ v.mT) * problem.scale(2))])
    return _twice((grad * (plan @ v)).sum(-1), (v * dv).sum(-1), dv, *leaves)


def potential_gradients(
    posed: Posed, potentials: Pair, weights: Pair, cotangents: Pair, needs: Sequence[bool]
) -> Gradients:
    """The gradients of the reduced potentials in the weights and in the leaves of the cost.

    Args:
        posed: The problem.
        potentials: f and g, with their graph.
        weights: a and b, with theirs.
        cotangents: Of the potentials.
        needs: Which leaves need a gradient.
    """
    (f, g), (a, b), (df, dg), problem = potentials, weights, cotangents, posed.problem
    p, q = problem.rows.stiffness, problem.columns.stiffness
    C, constants = _matrix(problem), (f.detach(), g.detach())
    by_row = _entries(problem, C, problem.rows.softmin(constants[0]), g)
    by_column = _entries(problem, C, f, problem.columns.softmin(constants[1]))
    # The weighted rows of the one and columns of the other keep their sums of one.
    by_row = by_row * _unchanged(by_row @ b[..., None])
    by_column = by_column * _unchanged(a[..., None, :] @ by_column)
    with torch.no_grad():
        lam, mu = adjoint(posed, *constants, df, dg)
    # What the linear system lacks is rounding, but its derivatives are those that the solution has to follow.
    rows = df - a * _times(by_column, mu) - p * lam
    columns = dg - b * _times(by_row.mT, lam) - q * mu
    more = _Solution.apply(posed, *constants, rows, columns)
    lam, mu = lam + more[0], mu + more[1]
    plans = lam[..., :, None] * by_row * b[..., None, :] + a[..., :, None] * by_column * mu[..., None, :]
    scale = problem.scale(1)
    # A reduced potential is the full one less the offset.
    offsets = [(problem.cost.u, (plans.sum(-1) - df) * scale), (problem.cost.v, (plans.sum(-2) - dg) * scale)]
    leaves = _in_leaves(problem, needs, [(C, plans * problem.scale(2)), *offsets])
    return _twice(-_times(by_column, mu), -_times(by_row.mT, lam), *leaves)


class _Solution(torch.autograd.Function):
    """The solution of the adjoint system for a right-hand side that is zero, and whose derivative is not."""

    @staticmethod
    def forward(ctx: Any, posed: Posed, f: Tensor, g: Tensor, rows: Tensor, columns: Tensor) -> Pair:
        ctx.posed = posed
        ctx.save_for_backward(f, g)
        return torch.zeros_like(rows), torch.zeros_like(columns)

    @staticmethod
    def backward(ctx: Any, drows: Tensor, dcolumns: Tensor) -> Gradients:
        refuse_several(drows, dcolumns)
        f, g = ctx.saved_tensors
        with torch.no_grad():
            return None, None, None, *tangent(ctx.posed, f, g, drows, dcolumns)


def _matrix(problem: Problem) -> Tensor:
    """The reduced cost, with its graph."""
    return problem.cost.block(slice(0, problem.cost.shape[-2]))


def _entries(problem: Problem, C: Tensor, hf: Tensor, hg: Tensor) -> Tensor:
    """exp(hf + hg - C / eps)."""
    scores = hf[..., :, None] + hg[..., None, :] - C * problem.scale(2)
    if problem.mask is not None:
        scores = scores.masked_fill(problem.mask(*(slice(0, k) for k in scores.shape[-2:])), -torch.inf)
    return scores.exp()


def _unchanged(sums: Tensor) -> Tensor:
    """Factors of one that keep these sums as they are."""
    return sums.detach() / sums


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v[..., None])[..., 0]


def _in_leaves(
    problem: Problem, needs: Sequence[bool], gradients: Sequence[tuple[Tensor | None, Tensor]]
) -> list[Tensor | None]:
    """The gradients in the leaves of the cost from those in functions of them, or in leaves themselves."""
    leaves = [leaf if need else None for leaf, need in zip(problem.cost.leaves, needs, strict=True)]
    # A leaf may be computed from another one, whose gradient is not to be that of both.
    found = [next((d for t, d in gradients if t is leaf is not None), None) for leaf in leaves]
    live = [(t, d) for t, d in gradients if t is not None and t.requires_grad and all(t is not k for k in leaves)]
    wanted = [leaf for leaf in leaves if leaf is not None]
    if not wanted or not live:
        return found
    outputs, grads = zip(*live, strict=True)
    through = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    parts = [(known, None if leaf is None else next(through)) for known, leaf in zip(found, leaves, strict=True)]
    return [known if more is None else more if known is None else known + more for known, more in parts]


def _twice(*gradients: Tensor | None) -> Gradients:
    """The gradients, which may be differentiated once."""
    return tuple(t if t is None else once(t, _NO_THIRD) for t in gradients)
