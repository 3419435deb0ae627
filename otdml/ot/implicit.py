"""Derivatives of entropic transport: the envelope theorem, and the implicit function theorem.

The value depends on its inputs through the plan only to second order, so its gradient is that with the plan held
fixed. Potentials and plans are implicit functions of the inputs; their derivatives solve a linear system.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otdml.costs import Bilinear, Ground, Matrix, Pointwise
from otdml.ot.engines import Engine
from otdml.ot.potentials import Side

__all__ = [
    "Gradients",
    "Problem",
    "conditional_product",
    "held_pullback",
    "implicit_potentials",
    "linked_pullback",
    "plan_product",
]

Gradients = tuple[Tensor | None, ...]
Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A transport problem in the form in which it is solved.

    Attributes:
        cost: The cost, with its graph.
        engine: Soft minima of the reduced cost over ``eps``.
        eps: Temperature, a number or shape (...).
        rows: First marginal, dimensionless, without graph.
        columns: Second marginal, dimensionless, without graph.
    """

    cost: Ground
    engine: Engine
    eps: Tensor | float
    rows: Side
    columns: Side

    @property
    def mT(self) -> "Problem":
        return Problem(self.cost.mT, self.engine.mT, self.eps, self.columns, self.rows)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.rows, self.columns

    @property
    def balanced(self) -> bool:
        return self.rows.rho is None and self.columns.rho is None

    def scale(self, dims: int) -> Tensor | float:
        """The inverse temperature, as a factor of tensors with ``dims`` dimensions after those of the batch."""
        return 1 / (self.eps[(..., *(None,) * dims)] if isinstance(self.eps, Tensor) else self.eps)


class _Last(torch.autograd.Function):
    """A gradient that may not be differentiated once more."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        raise NotImplementedError(
            "Potentials, plans and maps have no second derivatives, values have no third ones, and those of a "
            "pointwise cost need backend='dense', which keeps its matrix, for their second ones."
        )


def _last(gradients: Gradients, sources: Iterable[Tensor | None]) -> Gradients:
    """``gradients``, which raise an error when they are differentiated as functions of ``sources``."""
    if not torch.is_grad_enabled():
        return gradients
    live = [t for t in sources if t is not None and t.requires_grad]
    return tuple(t if t is None else _Last.apply(t, *live) for t in gradients)


def _final(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """A backward pass that is not differentiable, and says so.

    ``once_differentiable`` of torch looks at the incoming gradient alone: it takes the outgoing one for a constant
    where that is one, as it is for a loss.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Gradients:
        with torch.no_grad():
            found = backward(ctx, *grads)
        return _last(found, (*grads, *ctx.saved_tensors, *ctx.problem.cost.leaves))

    return wrapper


def held_pullback(problem: Problem, hf: Tensor, hg: Tensor, needs: Sequence[bool], grad: Tensor) -> Gradients:
    """The gradient of the value in those of the cost's leaves that need it, with the plan held fixed."""
    per_row = grad[..., None, None]
    if not isinstance(problem.cost, Bilinear):
        return _pullback(problem, hf, hg, per_row.expand(*hf.shape, 1), torch.ones_like(hg)[..., None], needs)
    q, k, (to_q, to_k, to_u, to_v) = problem.cost.q.detach(), problem.cost.k.detach(), needs
    dq, du = _row_sums(problem.engine, hf, hg, _beside_one(k), per_row) if to_q or to_u else (None, None)
    dk, dv = _row_sums(problem.engine.mT, hg, hf, _beside_one(q), per_row) if to_k or to_v else (None, None)
    return dq, dk, du, dv


def _pullback(
    problem: Problem, hf: Tensor, hg: Tensor, left: Tensor, right: Tensor, needs: Sequence[bool]
) -> Gradients:
    r"""The gradient of :math:`\sum_{ij} P_{ij} \langle l_i, r_j \rangle C_{ij}` in the cost's leaves, P held fixed."""
    cost, engine = problem.cost, problem.engine
    if not any(needs):
        return (None,) * len(needs)
    if isinstance(cost, Matrix):
        out = hf.new_empty(cost.shape)
        for rows, plan in engine.plan(hf, hg):
            out[..., rows, :] = plan.mul_(left[..., rows, :] @ right.mT)
        return (out,)
    if isinstance(cost, Pointwise):
        return _pointwise_pullback(cost, engine, hf, hg, left, right)
    dq = dk = du = dv = None
    if needs[0] or needs[2]:
        dq, du = _factor_pullback(engine, hf, hg, cost.k.detach(), left, right)
    if needs[1] or needs[3]:
        dk, dv = _factor_pullback(engine.mT, hg, hf, cost.q.detach(), right, left)
    return dq, dk, du, dv


def _factor_pullback(
    engine: Engine, hf: Tensor, hg: Tensor, k: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    if left.shape[-1] == 1:
        return _row_sums(engine, hf, hg, _beside_one(k) * right, left)
    dq, du = hf.new_empty(*hf.shape, k.shape[-1]), torch.empty_like(hf)
    for rows, plan in engine.plan(hf, hg):
        plan *= left[..., rows, :] @ right.mT
        dq[..., rows, :] = plan @ k
        du[..., rows] = plan.sum(-1)
    return dq.neg_(), du


def _beside_one(k: Tensor) -> Tensor:
    return torch.cat([k, k.new_ones(*k.shape[:-1], 1)], -1)


def _row_sums(engine: Engine, hf: Tensor, hg: Tensor, v: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    sums = engine.product(hf, hg, v).mul_(scale)
    return sums[..., :-1].neg(), sums[..., -1]


def _pointwise_pullback(
    cost: Pointwise, engine: Engine, hf: Tensor, hg: Tensor, left: Tensor, right: Tensor
) -> Gradients:
    y = cost.y.detach().requires_grad_()
    dx, dy = torch.empty_like(cost.x), torch.zeros_like(cost.y)
    for rows, plan in engine.plan(hf, hg):
        x = cost.x[..., rows, :].detach().requires_grad_()
        with torch.enable_grad():
            block = cost.function(x, y)
        part, rest = torch.autograd.grad(block, (x, y), plan.mul_(left[..., rows, :] @ right.mT))
        dx[..., rows, :] = part
        dy += rest
    return dx, dy


def linked_pullback(problem: Problem, hf: Tensor, hg: Tensor, leaves: Sequence[Tensor], grad: Tensor) -> Gradients:
    """The gradient of the value in the cost's leaves, differentiable through the plan exp(hf + hg - R / eps)."""
    cost, per_point = problem.cost, grad[..., None]
    if isinstance(cost, Matrix):
        scores = hf[..., :, None] + hg[..., None, :] - leaves[0] * problem.scale(2)
        return (per_point[..., None] * scores.exp(),)
    if isinstance(cost, Pointwise):
        with torch.no_grad():
            found = held_pullback(problem, hf, hg, (True, True), grad)
        return _last(found, (hf, hg, grad, *leaves))
    q, k = leaves[:2]
    row = plan_product(problem, hf, hg, torch.cat([k, torch.ones_like(k[..., :1])], -1))
    column = plan_product(problem.mT, hg, hf, torch.cat([q, torch.ones_like(q[..., :1])], -1))
    row, column = row * per_point[..., None], column * per_point[..., None]
    return -row[..., :-1], -column[..., :-1], row[..., -1], column[..., -1]


class _PlanProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, hf: Tensor, hg: Tensor, v: Tensor, *leaves: Tensor) -> Tensor:
        ctx.problem = problem
        result = problem.engine.product(hf, hg, v)
        ctx.save_for_backward(hf, hg, v, result)
        return result

    @staticmethod
    @_final
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        hf, hg, v, result = ctx.saved_tensors
        dv = ctx.problem.engine.mT.product(hg, hf, grad)
        leaves = _pullback(ctx.problem, hf, hg, grad * -ctx.problem.scale(2), v, ctx.needs_input_grad[4:])
        # Only the reduced cost enters the plan: u and v are no part of it.
        leaves = (*leaves[:2], None, None) if isinstance(ctx.problem.cost, Bilinear) else leaves
        return None, (grad * result).sum(-1), (v * dv).sum(-1), dv, *leaves


def plan_product(problem: Problem, hf: Tensor, hg: Tensor, v: Tensor) -> Tensor:
    """The plan exp(hf + hg - R / eps) times ``v``, differentiable in everything."""
    return _PlanProduct.apply(problem, hf, hg, v, *problem.cost.leaves)


def conditional_product(problem: Problem, hg: Tensor, v: Tensor) -> Tensor:
    """The plan with rows that sum to one, times ``v``: up to a factor for each row, on which no quotient depends."""
    with torch.no_grad():
        f = problem.engine.rows(hg)
    return plan_product(problem, f, hg, v)


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, f: Tensor, g: Tensor, a: Tensor, b: Tensor, *leaves: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.problem = problem
        ctx.set_materialize_grads(False)
        f, g = f.clone(), g.clone()
        ctx.save_for_backward(f, g, a, b)
        return f, g

    @staticmethod
    @_final
    def backward(ctx: Any, df: Tensor | None, dg: Tensor | None) -> Gradients:
        f, g, a, b = ctx.saved_tensors
        df, dg = torch.zeros_like(f) if df is None else df, torch.zeros_like(g) if dg is None else dg
        problem, needs = ctx.problem, ctx.needs_input_grad[5:]
        lam, mu = _adjoint(problem, f, g, df, dg)
        over_f, over_g = problem.rows.softmin(f), problem.columns.softmin(g)
        leaves = _sum(
            _pullback(problem, over_f, g, lam[..., None] * problem.scale(2), b[..., None], needs),
            _pullback(problem, f, over_g, a[..., None] * problem.scale(2), mu[..., None], needs),
        )
        if isinstance(problem.cost, Bilinear):
            dq, dk, du, dv = leaves
            leaves = dq, dk, _less(du, df * problem.scale(1)), _less(dv, dg * problem.scale(1))
        da = -problem.engine.product(f, over_g, mu[..., None])[..., 0]
        db = -problem.engine.mT.product(g, over_f, lam[..., None])[..., 0]
        return None, None, None, da, db, *leaves


def _sum(first: Gradients, second: Gradients) -> Gradients:
    return tuple(None if s is None or t is None else s + t for s, t in zip(first, second, strict=True))


def _less(gradient: Tensor | None, part: Tensor) -> Tensor | None:
    return None if gradient is None else gradient - part


def implicit_potentials(problem: Problem, f: Tensor, g: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``f`` and ``g``, with their derivatives as the solution of the problem."""
    return _Implicit.apply(problem, f, g, a, b, *problem.cost.leaves)


def _adjoint(problem: Problem, f: Tensor, g: Tensor, df: Tensor, dg: Tensor) -> tuple[Tensor, Tensor]:
    r"""The multipliers of the optimality conditions for cotangents ``df``, ``dg`` of the potentials.

    With :math:`\kappa = \exp(f + g - R)` the conditions are :math:`\kappa b = s = e^{-f/\rho_a}` and
    :math:`\kappa^T a = t = e^{-g/\rho_b}` (of the full potentials), whose derivatives have the diagonals p s and q t
    with :math:`p = 1 + 1/\rho_a`, :math:`q = 1 + 1/\rho_b`. The multipliers, returned as :math:`s \lambda` and
    :math:`t \mu` since s and t leave the range of floating point where mass is given up, are
    :math:`s \lambda = df / p + a l` and :math:`t \mu = dg / q + b r`, where r solves a symmetric positive system by
    conjugate gradients. So points without weight are no exception.
    """
    rows, columns, engine, twin = *problem.sides, problem.engine, problem.engine.mT
    p, q = _stiffness(rows), _stiffness(columns)
    over_f, over_g = rows.softmin(f), columns.softmin(g)

    def to_rows(mu: Tensor) -> Tensor:
        return -engine.product(f, over_g, mu[..., None])[..., 0] / p

    def to_columns(lam: Tensor) -> Tensor:
        return -twin.product(g, over_f, lam[..., None])[..., 0] / q

    def operator(r: Tensor) -> Tensor:
        return r - to_columns(rows.weights * to_rows(columns.weights * r))

    start_rows, start_columns = df / p, dg / q
    metric = torch.softmax(over_g - g + columns.log, -1)
    r = _conjugate_gradients(
        operator,
        to_columns(start_rows + rows.weights * to_rows(start_columns)),
        metric,
        singular=problem.balanced,
    )
    mu = start_columns + columns.weights * r
    return start_rows + rows.weights * to_rows(mu), mu


def _stiffness(side: Side) -> Tensor | float:
    return 1.0 if side.rho is None else 1 + 1 / side.rho


def _conjugate_gradients(operator: Operator, rhs: Tensor, metric: Tensor, *, singular: bool) -> Tensor:
    """The solution of ``operator(r) = rhs``, an operator that is symmetric in the inner product of ``metric``."""

    def project(r: Tensor) -> Tensor:
        return r - (metric * r).sum(-1, keepdim=True) / metric.sum(-1, keepdim=True) if singular else r

    def inner(r: Tensor, s: Tensor) -> Tensor:
        return (metric * r * s).sum(-1, keepdim=True)

    residual = project(rhs)
    r, direction, square = torch.zeros_like(rhs), residual, inner(residual, residual)
    enough = torch.finfo(rhs.dtype).eps ** 1.5 * square
    for _ in range(min(1000, 4 * rhs.shape[-1])):
        if bool((square <= enough).all()):
            break
        image = project(operator(direction))
        step = square / inner(direction, image).clamp(min=torch.finfo(rhs.dtype).tiny)
        r, residual = r + step * direction, residual - step * image
        square, old = inner(residual, residual), square
        direction = residual + square / old.clamp(min=torch.finfo(rhs.dtype).tiny) * direction
    return project(r)
