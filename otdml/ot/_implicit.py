"""Derivatives of potentials and plans: the implicit function theorem.

Potentials and plans are implicit functions of a problem's inputs; their derivatives solve a linear system. Where the
matrix is kept, their gradients are differentiable in their turn.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otdml._cost_forms import Gradients
from otdml._derivatives import fixed, refuse_several
from otdml._precision import full_arithmetic
from otdml.ot._linearised import adjoint
from otdml.ot._problem import Posed
from otdml.ot._second import potential_gradients, product_gradients

__all__ = [
    "ConstantPlan",
    "DifferentiablePlan",
    "conditional_product",
    "first_order",
    "implicit_potentials",
    "plan_product",
]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ConstantPlan:
    """A plan exp(hf + hg - R) as a constant, as the pull-back of a cost reads it."""

    posed: Posed
    hf: Tensor
    hg: Tensor

    @property
    def mT(self) -> "ConstantPlan":
        return ConstantPlan(self.posed.mT, self.hg, self.hf)

    def blocks(self, left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows, weighted by <l_i, r_j>, each with its slice."""
        return self.posed.engine.weighted_blocks(self.hf, self.hg, left, right)

    def product(self, v: Tensor) -> Tensor:
        """The plan times ``v``."""
        return self.posed.engine.plan_product(self.hf, self.hg, v)

    def products(self, v: Tensor, w: Tensor) -> Pair:
        """The plan times ``v``, and its transpose times ``w``."""
        return self.posed.engine.plan_products(self.hf, self.hg, v, w)

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
    "no second ones, without backend='dense', which keeps the matrix."
)


def first_order(gradients: Gradients, sources: Iterable[Tensor | None]) -> Gradients:
    """``gradients``, which raise an error when they are differentiated as functions of ``sources``."""
    if not torch.is_grad_enabled():
        return gradients
    live = [t for t in sources if t is not None and t.requires_grad]
    return tuple(t if t is None else fixed(t, _NO_MORE, *live) for t in gradients)


def _unless(linked: Callable[..., Gradients]) -> Callable[[Callable[..., Gradients]], Callable[..., Gradients]]:
    """A backward pass in full precision, in place of which there is ``linked`` where its gradients have a graph.

    That is where the matrix is kept and second derivatives may be asked for. Without the matrix, gradients raise an
    error when they are differentiated; ``once_differentiable`` of torch does so only where the incoming gradient
    requires one, which is a constant for a loss.
    """

    def decorator(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
        @functools.wraps(backward)
        def wrapper(ctx: Any, *grads: Tensor | None) -> Gradients:
            refuse_several(*grads)
            with full_arithmetic(ctx.saved_tensors[0].device.type):
                if torch.is_grad_enabled() and ctx.posed.engine.keeps_matrix:
                    return linked(ctx, *grads)
                with torch.no_grad():
                    found = backward(ctx, *grads)
            return first_order(found, (*grads, *ctx.saved_tensors, *ctx.posed.problem.cost.leaves))

        return wrapper

    return decorator


def _linked_product(ctx: Any, grad: Tensor) -> Gradients:
    hf, hg, v, _ = ctx.saved_tensors
    return None, *product_gradients(ctx.posed, hf, hg, v, grad, ctx.needs_input_grad[4:])


def _linked_potentials(ctx: Any, df: Tensor | None, dg: Tensor | None) -> Gradients:
    f, g, a, b = ctx.saved_tensors
    cotangents = torch.zeros_like(f) if df is None else df, torch.zeros_like(g) if dg is None else dg
    found = potential_gradients(ctx.posed, (f, g), (a, b), cotangents, ctx.needs_input_grad[5:])
    return None, None, None, *found


class _PlanProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, posed: Posed, hf: Tensor, hg: Tensor, v: Tensor, *leaves: Tensor) -> Tensor:
        ctx.posed = posed
        result = posed.engine.plan_product(hf, hg, v)
        ctx.save_for_backward(hf, hg, v, result)
        return result

    @staticmethod
    @_unless(_linked_product)
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
    @_unless(_linked_potentials)
    def backward(ctx: Any, df: Tensor | None, dg: Tensor | None) -> Gradients:
        f, g, *_ = ctx.saved_tensors
        posed, problem = ctx.posed, ctx.posed.problem
        df, dg = torch.zeros_like(f) if df is None else df, torch.zeros_like(g) if dg is None else dg
        lam, mu = adjoint(posed, f, g, df, dg)
        da = db = None
        if ctx.needs_input_grad[3]:
            da = -posed.engine.plan_product(f, problem.columns.softmin(g), mu[..., None])[..., 0]
        if ctx.needs_input_grad[4]:
            db = -posed.mT.engine.plan_product(g, problem.rows.softmin(f), lam[..., None])[..., 0]
        leaves = _through_cost(posed, (f, g), (lam, mu), ctx.needs_input_grad[5:])
        # The reduced potential is the full one less the offset.
        return None, None, None, da, db, *_less(leaves, (df * problem.scale(1), dg * problem.scale(1)))


# The logarithm of the share of mass that a point has given up, up to which one plan is scaled to both conditions.
MODERATE = 20.0


def _through_cost(posed: Posed, potentials: Pair, multipliers: Pair, needs: Sequence[bool]) -> Gradients:
    """The gradient in the cost, of the row conditions times their multipliers plus the same of the columns."""
    (f, g), (lam, mu), problem, cost = potentials, multipliers, posed.problem, posed.problem.cost
    over_f, over_g = problem.rows.softmin(f), problem.columns.softmin(g)
    a, b, lam = problem.rows.weights * problem.scale(1), problem.columns.weights, lam * problem.scale(1)
    if not problem.balanced:
        shifts = over_f - f, over_g - g
        if not bool(torch.stack([(t.abs() <= MODERATE).all() for t in shifts]).all()):
            first = cost.pullback(ConstantPlan(posed, over_f, g), lam[..., None], b[..., None], needs)
            second = cost.pullback(ConstantPlan(posed, f, over_g), a[..., None], mu[..., None], needs)
            return tuple(None if s is None or t is None else s + t for s, t in zip(first, second, strict=True))
        lam, mu = lam * shifts[0].exp(), mu * shifts[1].exp()
    left, right = torch.stack((lam, a), -1), torch.stack((b, mu), -1)
    return cost.pullback(ConstantPlan(posed, f, g), left, right, needs)


def _less(gradients: Gradients, offsets: Pair) -> Gradients:
    """The gradients in the leaves, less those in the two offsets, where the leaves have offsets."""
    factors, found = gradients[:2], zip(gradients[2:], offsets, strict=False)
    return *factors, *(None if gradient is None else gradient - part for gradient, part in found)


def implicit_potentials(posed: Posed, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """``f`` and ``g``, with their derivatives as the solution of the problem."""
    problem = posed.problem
    return _Implicit.apply(posed, f, g, problem.a, problem.b, *problem.cost.leaves)
