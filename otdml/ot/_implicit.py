"""Derivatives of potentials and plans: the implicit function theorem.

Potentials and plans are implicit functions of a problem's inputs; their derivatives solve a linear system. Where the
plan nearly falls into blocks, that system is nearly singular: a constant may go from the row potentials of a block to
its column potentials at next to no cost. Plans and maps do not depend on it, and it is left out of the solution.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otdml._cost_forms import Gradients
from otdml._derivatives import fixed
from otdml._precision import full_arithmetic
from otdml._warnings import warn_caller
from otdml.ot._marginal import Marginal
from otdml.ot._problem import Posed

__all__ = [
    "ConstantPlan",
    "DifferentiablePlan",
    "conditional_product",
    "first_order",
    "implicit_potentials",
    "plan_product",
]

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ConstantPlan:
    """A plan exp(hf + hg - R) as a constant, as the pull-back of a cost reads it."""

    posed: Posed
    hf: Tensor
    hg: Tensor

    @property
    def mT(self) -> "ConstantPlan":
        return ConstantPlan(self.posed.mT, self.hg, self.hf)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows, each with its slice, which may be overwritten."""
        return self.posed.engine.plan_blocks(self.hf, self.hg)

    def product(self, v: Tensor) -> Tensor:
        """The plan times ``v``."""
        return self.posed.engine.plan_product(self.hf, self.hg, v)

    def slopes(self, left: Tensor, right: Tensor) -> Gradients | None:
        """The gradient of the plan's cost in the points of its tiles, where the engine has it, see `Engine.slopes`."""
        found = self.posed.engine.slopes(self.hf, self.hg, left, right)
        return None if found is None else tuple(slope / self.posed.problem.scale(2) for slope in found)


@dataclass(frozen=True)
class DifferentiablePlan(ConstantPlan):
    """The same, differentiable in its exponents and in the leaves of the cost."""

    @property
    def mT(self) -> "DifferentiablePlan":
        return DifferentiablePlan(self.posed.mT, self.hg, self.hf)

    def product(self, v: Tensor) -> Tensor:
        return plan_product(self.posed, self.hf, self.hg, v)

    def entries(self, C: Tensor) -> Tensor:
        """The plan as a matrix, from its reduced cost in units of the cost."""
        return (self.hf[..., :, None] + self.hg[..., None, :] - C * self.posed.problem.scale(2)).exp()

    def first_order(self, gradients: Gradients, leaves: Sequence[Tensor]) -> Gradients:
        """The gradients, which raise an error when they are differentiated."""
        return first_order(gradients, (self.hf, self.hg, *leaves))


_NO_MORE = (
    "Potentials, plans and maps have no second derivatives, values have no third ones, and those of a pointwise cost "
    "need backend='dense', which keeps its matrix, for their second ones."
)


def first_order(gradients: Gradients, sources: Iterable[Tensor | None]) -> Gradients:
    """``gradients``, which raise an error when they are differentiated as functions of ``sources``."""
    if not torch.is_grad_enabled():
        return gradients
    live = [t for t in sources if t is not None and t.requires_grad]
    return tuple(t if t is None else fixed(t, _NO_MORE, *live) for t in gradients)


def _final(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """A backward pass in full precision, whose gradients raise an error when they are differentiated.

    ``once_differentiable`` of torch does so only where the incoming gradient requires one, which is a constant for a
    loss.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Gradients:
        with torch.no_grad(), full_arithmetic(ctx.saved_tensors[0].device.type):
            found = backward(ctx, *grads)
        return first_order(found, (*grads, *ctx.saved_tensors, *ctx.posed.problem.cost.leaves))

    return wrapper


class _PlanProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, posed: Posed, hf: Tensor, hg: Tensor, v: Tensor, *leaves: Tensor) -> Tensor:
        ctx.posed = posed
        result = posed.engine.plan_product(hf, hg, v)
        ctx.save_for_backward(hf, hg, v, result)
        return result

    @staticmethod
    @_final
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        hf, hg, v, result = ctx.saved_tensors
        plan, problem = ConstantPlan(ctx.posed, hf, hg), ctx.posed.problem
        dv = plan.mT.product(grad)
        # Only the reduced cost enters the plan: the offsets are no part of it.
        weighted = grad * -problem.scale(2)
        leaves = problem.cost.pullback(plan, weighted, v, ctx.needs_input_grad[4:], offsets=False)
        return None, (grad * result).sum(-1), (v * dv).sum(-1), dv, *leaves


def plan_product(posed: Posed, hf: Tensor, hg: Tensor, v: Tensor) -> Tensor:
    """The plan exp(hf + hg - R / eps) times ``v``, differentiable in everything."""
    with full_arithmetic(v.device.type):
        return _PlanProduct.apply(posed, hf, hg, v.to(hf.dtype), *posed.problem.cost.leaves)


def conditional_product(posed: Posed, hg: Tensor, v: Tensor) -> Tensor:
    """The plan with rows that sum to one, times ``v``: up to a factor for each row, on which no quotient depends."""
    with torch.no_grad():
        f = posed.engine.row_softmin(hg)
    return plan_product(posed, f, hg, v)


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, posed: Posed, f: Tensor, g: Tensor, a: Tensor, b: Tensor, *leaves: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.posed = posed
        ctx.set_materialize_grads(False)
        f, g = f.clone(), g.clone()
        ctx.save_for_backward(f, g, a, b)
        return f, g

    @staticmethod
    @_final
    def backward(ctx: Any, df: Tensor | None, dg: Tensor | None) -> Gradients:
        f, g, a, b = ctx.saved_tensors
        posed, needs = ctx.posed, ctx.needs_input_grad[5:]
        problem, cost = posed.problem, posed.problem.cost
        df, dg = torch.zeros_like(f) if df is None else df, torch.zeros_like(g) if dg is None else dg
        # Squares of cotangents beyond 1e19 are none in single precision.
        size = torch.maximum(df.abs().amax(-1), dg.abs().amax(-1)).clamp(min=torch.finfo(f.dtype).tiny)[..., None]
        lam, mu = (size * t for t in _adjoint(posed, f, g, df / size, dg / size))
        by_row = ConstantPlan(posed, problem.rows.softmin(f), g)
        by_column = ConstantPlan(posed, f, problem.columns.softmin(g))
        scale = problem.scale(2)
        first = cost.pullback(by_row, lam[..., None] * scale, b[..., None], needs)
        second = cost.pullback(by_column, a[..., None] * scale, mu[..., None], needs)
        # The reduced potential is the full one less the offset.
        leaves = _less(_sum(first, second), (df * problem.scale(1), dg * problem.scale(1)))
        da = -by_column.product(mu[..., None])[..., 0]
        db = -by_row.mT.product(lam[..., None])[..., 0]
        return None, None, None, da, db, *leaves


def _sum(first: Gradients, second: Gradients) -> Gradients:
    return tuple(None if s is None or t is None else s + t for s, t in zip(first, second, strict=True))


def _less(gradients: Gradients, offsets: tuple[Tensor, Tensor]) -> Gradients:
    """The gradients in the leaves, less those in the two offsets, where the leaves have offsets."""
    factors, found = gradients[:2], zip(gradients[2:], offsets, strict=False)
    return *factors, *(None if gradient is None else gradient - part for gradient, part in found)


def implicit_potentials(posed: Posed, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """``f`` and ``g``, with their derivatives as the solution of the problem."""
    problem = posed.problem
    return _Implicit.apply(posed, f, g, problem.a, problem.b, *problem.cost.leaves)


def _adjoint(posed: Posed, f: Tensor, g: Tensor, df: Tensor, dg: Tensor) -> tuple[Tensor, Tensor]:
    r"""The multipliers of the optimality conditions for cotangents ``df``, ``dg`` of the potentials.

    With :math:`\kappa = \exp(f + g - R)` the conditions are :math:`\kappa b = s = e^{-f/\rho_a}` and
    :math:`\kappa^T a = t = e^{-g/\rho_b}` (of the full potentials), whose derivatives have the diagonals p s and q t
    with :math:`p = 1 + 1/\rho_a`, :math:`q = 1 + 1/\rho_b`. The multipliers, returned as :math:`s \lambda` and
    :math:`t \mu` since s and t leave the range of floating point where mass is given up, are
    :math:`s \lambda = df / p + a l` and :math:`t \mu = dg / q + b r`, where r solves a symmetric positive system. So
    points without weight are no exception.
    """
    rows, columns = posed.problem.rows, posed.problem.columns
    p, q = _stiffness(rows), _stiffness(columns)
    over_f, over_g = rows.softmin(f), columns.softmin(g)
    by_column, by_row = ConstantPlan(posed, f, over_g), ConstantPlan(posed.mT, g, over_f)

    def to_rows(mu: Tensor) -> Tensor:
        return -by_column.product(mu[..., None])[..., 0] / p

    def to_columns(lam: Tensor) -> Tensor:
        return -by_row.product(lam[..., None])[..., 0] / q

    def operator(r: Tensor) -> Tensor:
        return r - to_columns(rows.weights * to_rows(columns.weights * r))

    start_rows, start_columns = df / p, dg / q
    metric = torch.softmax(over_g - g + columns.log, -1)
    rhs = to_columns(start_rows + rows.weights * to_rows(start_columns))
    r, dropped = _truncated_solution(operator, rhs, metric, singular=posed.problem.balanced)
    determined = bool((dropped <= SHOWN * _norm(rhs, metric)).all())
    if not determined:
        # What is left of a right-hand side after its parts have cancelled is rounding.
        parts = to_columns(start_rows.abs() - rows.weights * to_rows(start_columns.abs()))
        largest = torch.finfo(f.dtype).eps / FAINT * _norm(parts, metric)
        determined = bool((dropped <= SHOWN * torch.maximum(_norm(rhs, metric), largest)).all())
    if not determined and posed.problem.resolves_more:
        finer = posed.double()
        lam, mu = _adjoint(finer, *(t.double() for t in (f, g, df, dg)))
        return lam.to(f.dtype), mu.to(g.dtype)
    if not determined:
        warn_caller(
            "The plan falls into blocks between which next to no mass moves, so the difference of their potentials, of "
            "which a derivative was asked for, is not determined in this dtype. Its derivative is taken to be zero."
        )
    mu = start_columns + columns.weights * r
    return start_rows + rows.weights * to_rows(mu), mu


def _stiffness(marginal: Marginal) -> Tensor | float:
    return 1.0 if marginal.rho is None else 1 + 1 / marginal.rho


# The plan does not change along a direction whose curvature, of one at most, is below this many rounding units.
FLAT = 256.0
# The share of the right-hand side along such directions above which the requested derivative depends on them.
SHOWN = 1e-3
# The same, over the rounding of its parts.
FAINT = 1e-6
# Most Lanczos vectors, and steps between two checks of the residual: at first, and later as a share of those so far.
MOST, CHECK, CHECK_SHARE = 1000, 4, 0.25


def _truncated_solution(operator: Operator, rhs: Tensor, metric: Tensor, *, singular: bool) -> tuple[Tensor, Tensor]:
    """The solution of ``operator(r) = rhs``, and the norm of the part of the right-hand side that it leaves out.

    The operator is symmetric in the inner product of ``metric``, and positive with eigenvalues of at most one. Lanczos'
    algorithm :cite:p:`golub:13` from the right-hand side gives its action on those directions that matter, as a
    tridiagonal matrix. Directions along which it is flat to rounding are left out of the solution: along them
    right-hand sides of plans and maps are rounding as well.
    """

    def project(r: Tensor) -> Tensor:
        return r - (metric * r).sum(-1, keepdim=True) / metric.sum(-1, keepdim=True) if singular else r

    unit, tiny = torch.finfo(rhs.dtype).eps, torch.finfo(rhs.dtype).tiny
    direction = project(rhs)
    size = _norm(direction, metric)
    basis = [direction / size.clamp(min=tiny)]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    most, check = min(MOST, rhs.shape[-1]), CHECK
    while True:
        image = project(operator(basis[-1]))
        diagonal.append((metric * basis[-1] * image).sum(-1, keepdim=True))
        Q = torch.stack(basis, -2)
        # Twice, as once leaves what rounding has put along earlier directions.
        for _ in range(2):
            image = image - ((Q @ (metric * image)[..., None]).mT @ Q)[..., 0, :]
        beside.append(_norm(image, metric))
        k = len(diagonal)
        if k >= min(check, most):
            coefficients, dropped = _ritz(diagonal, beside[:-1], FLAT * unit)
            left = beside[-1] * coefficients[..., -1:]
            if k == most or bool((left.abs() <= unit**0.75).all()):
                break
            check = k + max(CHECK, int(CHECK_SHARE * k))
        basis.append(torch.where(beside[-1] > unit * 16, image / beside[-1].clamp(min=tiny), 0.0))
    found = (coefficients[..., None, :] @ Q)[..., 0, :] * size
    return project(found), dropped[..., None] * size


def _norm(r: Tensor, metric: Tensor) -> Tensor:
    return (metric * r.square()).sum(-1, keepdim=True).sqrt()


def _ritz(diagonal: list[Tensor], beside: list[Tensor], flat: float) -> tuple[Tensor, Tensor]:
    """The first column of the tridiagonal matrix's pseudo-inverse, and the share of that side it leaves out."""
    T = torch.diag_embed(torch.cat(diagonal, -1))
    if beside:
        off = torch.cat(beside, -1)
        T = T + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(T)
    first = vectors[..., 0, :]
    inverse = torch.where(values > flat, 1 / values.clamp(min=flat), 0.0)
    dropped = torch.where(values > flat, 0.0, first.square()).sum(-1).sqrt()
    return (vectors @ (inverse * first)[..., None])[..., 0], dropped
