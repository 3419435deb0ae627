"""What is known at an optimum: the value, the potentials and the plan, with derivatives that are made on demand."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from otdml._precision import full_arithmetic
from otdml.costs import Bilinear, Ground, Pointwise
from otdml.ot.hot import Excess
from otdml.ot.implicit import (
    Gradients,
    Problem,
    conditional_product,
    held_pullback,
    implicit_potentials,
    linked_pullback,
    plan_product,
)
from otdml.ot.potentials import Side, Solution

__all__ = ["Optimum"]

Pair = tuple[Tensor, Tensor]
Term = tuple[Tensor, Tensor, Tensor | float]


@dataclass(frozen=True)
class Optimum:
    """A solved problem.

    Attributes:
        problem: The problem.
        solution: Its solution, without graph.
        a: Row weights, with their graph.
        b: Column weights, with their graph.
        penalties: Those of the rows and of the columns, in units of the cost; None for a hard constraint.
        over: The plan's excess over the independent coupling, where it is known to more digits than the plan.
        linked: Whether derivatives may be asked for.
        versions: How often what the plan is computed from had been changed in place.
    """

    problem: Problem
    solution: Solution
    a: Tensor
    b: Tensor
    penalties: tuple[float | None, float | None]
    over: Excess | None
    linked: bool
    versions: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", versions(self.problem.cost))

    @property
    def value(self) -> Tensor:
        """The value of the dual problem, shape (...)."""
        with torch.no_grad():
            rows, columns = self.problem.sides
            first, second = (term for term, _, _ in self._terms(*self._in_cost(self.solution.f, self.solution.g)))
            if self.problem.balanced:
                # A constant can go from one potential to the other, whatever rounding does to their masses.
                second = second * (rows.mass / columns.mass)
            # The column marginal is exact, so the mass of the plan is that of its target.
            mass = columns.mass if columns.rho is None else columns.target(self.solution.g).sum(-1)
            over = mass - rows.mass * columns.mass if self.over is None else self.over.mass
            value = first + second - self.problem.eps * over
        return _Envelope.apply(self, value, self.a, self.b, *self.problem.cost.leaves) if self.linked else value

    @cached_property
    def reduced(self) -> Pair:
        """The reduced dimensionless potentials."""
        f, g = self.solution.f, self.solution.g
        if not self.linked:
            return f, g
        if isinstance(self.problem.cost, Pointwise):
            # Their derivatives are computed from the points.
            self._check_unchanged()
        with self._later():
            return implicit_potentials(self.problem, f, g, self.a, self.b)

    @cached_property
    def exponents(self) -> Pair:
        """What the plan is the exponential of, with the reduced cost over the temperature."""
        (f, g), (rows, columns) = self.reduced, self.problem.sides
        with self._later():
            return f + _log(self.a, rows), g + _log(self.b, columns)

    @property
    def held(self) -> Pair:
        """The same, as constants."""
        return self.solution.f + self.problem.rows.log, self.solution.g + self.problem.columns.log

    @cached_property
    def potentials(self) -> Pair:
        """The potentials in units of the cost."""
        with self._later():
            return self._full(*self.reduced)

    def read_potentials(self) -> Pair:
        """:attr:`potentials`, as something that can be called and pickled."""
        return self.potentials

    def duals(self) -> Pair:
        """The gradients of the value in the weights, differentiable where gradients are on."""
        per_point = self.problem.eps[..., None] if isinstance(self.problem.eps, Tensor) else self.problem.eps
        linked = torch.is_grad_enabled()
        terms = self._terms(*(self.potentials if linked else self._full(self.solution.f, self.solution.g)))
        slacks = [w.sum(-1, keepdim=True) - e for (_, _, e), w in zip(terms, (self.b, self.a), strict=True)]
        if self.over is not None:
            known = zip(slacks, (self.over.rows, self.over.columns), strict=True)
            slacks = [slack - slack.detach() - exact for slack, exact in known]
        da, db = (d + per_point * slack for (_, d, _), slack in zip(terms, slacks, strict=True))
        return da, db

    def image(self, v: Tensor) -> Tensor:
        """The plan times ``v``, shape (..., n, e)."""
        self._check_unchanged()
        return plan_product(self.problem, *self.exponents, v)

    def image_transposed(self, v: Tensor) -> Tensor:
        """The transposed plan times ``v``, shape (..., m, e)."""
        self._check_unchanged()
        hf, hg = self.exponents
        return plan_product(self.problem.mT, hg, hf, v)

    def image_per_mass(self, v: Tensor) -> Tensor:
        """The plan with rows that sum to one, times ``v``, up to a factor for each row."""
        self._check_unchanged()
        return conditional_product(self.problem, self.exponents[1], v)

    def plan(self) -> Tensor:
        """The plan, shape (..., n, m)."""
        self._check_unchanged()
        problem, (hf, hg) = self.problem, self.exponents
        with full_arithmetic(hf.device.type):
            reduced = problem.cost.block(slice(0, problem.cost.shape[-2])) * problem.scale(2)
            return (hf[..., :, None] + hg[..., None, :] - reduced).exp()

    def _check_unchanged(self) -> None:
        """An error if what plans are computed from has been changed in place: they would be of another problem."""
        if self.versions != versions(self.problem.cost):
            raise RuntimeError(
                "The costs or the points were changed in place after they had been transported. Read plans and "
                "potentials before that, or pass clones."
            )

    @contextlib.contextmanager
    def _later(self) -> Iterator[None]:
        """The modes of the time at which the problem was solved."""
        kind = self.a.device.type
        with torch.inference_mode(self.a.is_inference()), full_arithmetic(kind), torch.set_grad_enabled(self.linked):
            yield

    def _in_cost(self, f: Tensor, g: Tensor) -> Pair:
        eps, cost = self.problem.eps, self.problem.cost
        return _scaled(f, eps, cost.u), _scaled(g, eps, cost.v)

    def _full(self, f: Tensor, g: Tensor) -> Pair:
        f, g = self._in_cost(f, g)
        if not self.problem.balanced:
            return f, g
        # Only f + g is determined: halve the value between the two.
        shift = ((self.a * f).sum(-1) - (self.b * g).sum(-1)) / (2 * self.a.sum(-1))
        return f - shift[..., None], g + shift[..., None]

    def _terms(self, f: Tensor, g: Tensor) -> list[Term]:
        pairs = zip((self.a, self.b), (f, g), self.penalties, strict=True)
        return [_dual(weights, potential, rho) for weights, potential, rho in pairs]


class _Envelope(torch.autograd.Function):
    """The value of an optimum, with its duals as gradients in the weights, and the plan as its gradient in the cost."""

    @staticmethod
    def forward(ctx: Any, optimum: Optimum, value: Tensor, a: Tensor, b: Tensor, *leaves: Tensor) -> Tensor:
        ctx.optimum = optimum
        ctx.save_for_backward(*leaves)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        optimum: Optimum = ctx.optimum
        # Read in any case, for this is when torch looks whether they have been changed.
        tensors = ctx.saved_tensors
        a, b, *leaves = ctx.needs_input_grad[2:]
        da, db = optimum.duals() if a or b else (None, None)
        to_weights = (None if d is None or not need else grad[..., None] * d for d, need in ((da, a), (db, b)))
        if torch.is_grad_enabled() and any(leaves):
            found = linked_pullback(optimum.problem, *optimum.exponents, tensors, grad)
        else:
            found = held_pullback(optimum.problem, *optimum.held, leaves, grad)
        return None, None, *to_weights, *found


def versions(cost: Ground) -> tuple[int, ...]:
    """How often the tensors of a cost that may be the caller's own have been changed in place."""
    if isinstance(cost, Bilinear):
        return ()
    return tuple(t._version for t in cost.leaves if not t.is_inference())


def _log(a: Tensor, side: Side) -> Tensor:
    if not a.requires_grad:
        return side.log
    # log 0 = -inf is meant, but its gradient, 0 times infinity, is not.
    return torch.where(a > 0, a, torch.ones_like(a)).log() + torch.where(a > 0, 0.0, -torch.inf).to(a.dtype)


def _scaled(f: Tensor, eps: Tensor | float, offset: Tensor | None) -> Tensor:
    if isinstance(eps, Tensor):
        return eps[..., None] * f if offset is None else torch.addcmul(offset, eps[..., None], f)
    return eps * f if offset is None else torch.add(offset, f, alpha=eps)


def _dual(a: Tensor, f: Tensor, rho: float | None) -> Term:
    """One side's term of the dual value, its gradient in the weights, and the plan's mass per unit of weight."""
    if rho is None:
        return (a * f).sum(-1), f, 1.0
    gradient = -rho * torch.expm1(-f / rho)
    # Without weight a point counts for nothing, even where its potential is beyond all numbers.
    return torch.where(a > 0, a * gradient, 0.0).sum(-1), gradient, torch.exp(-f / rho)
