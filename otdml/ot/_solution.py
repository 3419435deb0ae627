"""A solved entropic problem: the value, the potentials and the plan, with derivatives that are made on demand.

First derivatives of the value are those of the envelope theorem: a value depends on its inputs through the plan only to
second order, so its gradient is that with the plan held fixed. What else there is to differentiate follows from the
implicit function theorem (:mod:`otdml.ot._implicit`).
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml._cost_forms import Gradients, Ground
from otdml._derivatives import for_each_value
from otdml._precision import full_arithmetic
from otdml.ot._annealing import Solved
from otdml.ot._high_temperature import Excess
from otdml.ot._implicit import ConstantPlan, DifferentiablePlan, conditional_product, implicit_potentials, plan_product
from otdml.ot._marginal import Marginal
from otdml.ot._problem import Posed, Problem
from otdml.ot._result import Coupling
from otdml.ot._updates import Potentials

__all__ = ["EntropicSolution"]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _DualTerm:
    """One marginal's part of the dual value.

    Attributes:
        value: Shape (...).
        gradient: Its gradient in the weights, shape (..., n).
        target: The mass that the plan is to have per unit of weight.
    """

    value: Tensor
    gradient: Tensor
    target: Tensor | float


@dataclass(frozen=True)
class EntropicSolution(Coupling):
    """A problem with its solution.

    Attributes:
        solved: The problem, and its potentials as constants, in the precision in which it was solved.
        differentiable: Whether derivatives may be asked for.
        dtype: The dtype in which what is read comes back.
        versions: How often what the plan is computed from had been changed in place.
    """

    solved: Solved
    differentiable: bool
    dtype: torch.dtype
    versions: tuple[int, ...]

    @classmethod
    def of(cls, solved: Solved, dtype: torch.dtype, *, differentiable: bool) -> "EntropicSolution":
        """The solution of a solved problem, with its cost in a form that plans can be read and differentiated from.

        Args:
            solved: The problem and its potentials.
            dtype: The dtype in which what is read comes back.
            differentiable: Whether derivatives may be asked for.

        Raises:
            ValueError: If the cost depends on parameters that the engine does not reach.
        """
        if not solved.posed.problem.balanced:
            solved = _representable(solved, dtype)
        posed, problem = solved.posed, solved.posed.problem
        cost = _differentiable_cost(posed)
        if cost is not problem.cost:
            posed = dataclasses.replace(posed, problem=dataclasses.replace(problem, cost=cost))
            solved = dataclasses.replace(solved, posed=posed)
        return cls(solved, differentiable, dtype, cost.versions)

    @property
    def posed(self) -> Posed:
        return self.solved.posed

    @property
    def problem(self) -> Problem:
        return self.solved.posed.problem

    @property
    def _found(self) -> Potentials:
        return self.solved.potentials

    @property
    def _excess(self) -> Excess | None:
        return self.solved.excess

    def value(self) -> Tensor:
        """The value of the dual problem, shape (...), in the precision in which it was solved.

        It is computed at each call. Its graph refers to this solution, so a solution that kept it would stay in memory,
        with its kernel, until Python looks for cycles.
        """
        problem, found = self.problem, self._found
        rows, columns = problem.rows, problem.columns
        with torch.no_grad():
            first, second = (term.value for term in self._terms(*self._in_cost(found.f, found.g)))
            if problem.balanced:
                # A constant can go from one potential to the other, whatever rounding does to their masses.
                second = second * (rows.mass / columns.mass)
            # The column marginal is exact, so the mass of the plan is that of its target.
            over = problem.mass_at(found.g) - rows.mass * columns.mass if self._excess is None else self._excess.mass
            value = first + second - problem.eps * over
        if self.differentiable:
            value = _Envelope.apply(self, value, problem.a, problem.b, *problem.cost.leaves)
        idle = problem.idle
        return value if idle is None else value + idle.value

    @cached_property
    def reduced(self) -> Pair:
        """The reduced dimensionless potentials."""
        f, g = self._found.f, self._found.g
        if not self.differentiable:
            return f, g
        if not self.posed.engine.keeps_matrix:
            # Their derivatives are computed from the points.
            self._check_unchanged()
        with self._later():
            return implicit_potentials(self.posed, f, g)

    @cached_property
    def exponents(self) -> Pair:
        """What the plan is the exponential of, with the reduced cost over the temperature."""
        (f, g), problem = self.reduced, self.problem
        with self._later():
            return f + _log(problem.a, problem.rows), g + _log(problem.b, problem.columns)

    @property
    def constant_exponents(self) -> Pair:
        """The same, as constants."""
        return self._found.f + self.problem.rows.log, self._found.g + self.problem.columns.log

    @cached_property
    def potentials(self) -> Pair:
        """The potentials in units of the cost."""
        with self._later():
            f, g = self._full(*self.reduced)
            if (idle := self.problem.idle) is not None and not self.problem.balanced:
                # There the plan's marginal, a exp(-f / rho), is zero.
                f, g = f.masked_fill(idle.rows, torch.inf), g.masked_fill(idle.columns, torch.inf)
            return f.to(self.dtype), g.to(self.dtype)

    def duals(self) -> Pair:
        """The gradients of the value in the weights, differentiable where gradients are on."""
        problem, found, excess = self.problem, self._found, self._excess
        potentials = self.reduced if torch.is_grad_enabled() else (found.f, found.g)
        terms = self._terms(*self._full(*potentials))
        slacks = [w.sum(-1, keepdim=True) - t.target for t, w in zip(terms, (problem.b, problem.a), strict=True)]
        if excess is not None:
            known = zip(slacks, (excess.rows, excess.columns), strict=True)
            slacks = [slack - slack.detach() - exact for slack, exact in known]
        eps = problem.eps[..., None] if isinstance(problem.eps, Tensor) else problem.eps
        da, db = (term.gradient + eps * slack for term, slack in zip(terms, slacks, strict=True))
        return da, db

    def product(self, v: Tensor) -> Tensor:
        self._check_unchanged()
        return plan_product(self.posed, *self.exponents, v).to(self.dtype)

    def product_transposed(self, v: Tensor) -> Tensor:
        self._check_unchanged()
        hf, hg = self.exponents
        return plan_product(self.posed.mT, hg, hf, v).to(self.dtype)

    def conditional_product(self, v: Tensor) -> Tensor:
        self._check_unchanged()
        return conditional_product(self.posed, self.exponents[1], v).to(self.dtype)

    def plan(self) -> Tensor:
        self._check_unchanged()
        problem, (hf, hg) = self.problem, self.exponents
        with full_arithmetic(hf.device.type):
            reduced = problem.cost.block(slice(0, problem.cost.shape[-2])) * problem.scale(2)
            scores = hf[..., :, None] + hg[..., None, :] - reduced
            if problem.mask is not None:
                n, m = scores.shape[-2:]
                scores = scores.masked_fill(problem.mask(slice(0, n), slice(0, m)), -torch.inf)
            return scores.exp().to(self.dtype)

    def _check_unchanged(self) -> None:
        """An error if what plans are computed from has been changed in place: they would be of another problem."""
        if self.versions != self.problem.cost.versions:
            raise RuntimeError(
                "The costs or the points were changed in place after they had been transported. Read plans and "
                "potentials before that, or pass clones."
            )

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied; the tensors of a copy count their changes anew."""
        unchanged = self.versions == self.problem.cost.versions
        return {**vars(self), "versions": None if unchanged else self.versions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if state["versions"] is None:
            self.__dict__["versions"] = self.problem.cost.versions

    def _later(self) -> contextlib.AbstractContextManager[Any]:
        """The modes of the time at which the problem was solved."""
        a = self.problem.a
        inference = a.is_inference()
        # To enter modes takes as long as what is computed in them, and without derivatives there may be none to enter.
        same = inference == torch.is_inference_mode_enabled() and not self.differentiable
        return full_arithmetic(a.device.type) if same else self._modes(inference)

    @contextlib.contextmanager
    def _modes(self, inference: bool) -> Iterator[None]:
        with (
            torch.inference_mode(inference),
            full_arithmetic(self.problem.a.device.type),
            torch.set_grad_enabled(self.differentiable),
        ):
            yield

    def _in_cost(self, f: Tensor, g: Tensor) -> Pair:
        problem = self.problem
        return _scaled(f, problem.eps, problem.cost.u), _scaled(g, problem.eps, problem.cost.v)

    def _full(self, f: Tensor, g: Tensor) -> Pair:
        f, g = self._in_cost(f, g)
        a, b = self.problem.a, self.problem.b
        if not self.problem.balanced:
            return f, g
        # Only f + g is determined: halve the value between the two.
        shift = ((a * f).sum(-1) - (b * g).sum(-1)) / (2 * a.sum(-1))
        return f - shift[..., None], g + shift[..., None]

    def _terms(self, f: Tensor, g: Tensor) -> list[_DualTerm]:
        pairs = zip((self.problem.a, self.problem.b), (f, g), self.problem.rho, strict=True)
        return [_dual(weights, potential, rho) for weights, potential, rho in pairs]


@torch.no_grad()
def _representable(solved: Solved, dtype: torch.dtype) -> Solved:
    """The solution, unconverged where the dtype in which it is read does not hold the mass of its plan."""
    problem, found = solved.posed.problem, solved.potentials
    if dtype == found.g.dtype:
        return solved
    held = problem.mass_at(found.g) <= torch.finfo(dtype).max
    error = found.error.where(held, torch.inf)
    potentials = dataclasses.replace(found, error=error, converged=found.converged & held)
    return dataclasses.replace(solved, potentials=potentials)


def _differentiable_cost(posed: Posed) -> Ground:
    """The cost, with a graph that reaches everything it depends on."""
    cost = posed.problem.cost
    if posed.engine.keeps_matrix:
        # The engine has evaluated a function without its graph.
        return cost.evaluated()
    if cost.depends_on_parameters:
        remedy = "Pass backend='dense', which has them, or detach the parameters."
        must = "depend on nothing but the points on this backend"
        raise argument_error("cost", must, "parameters with gradients", remedy)
    return cost


class _Envelope(torch.autograd.Function):
    """The duals are the gradients in the weights, and the plan is the gradient in the cost."""

    @staticmethod
    def forward(ctx: Any, solution: EntropicSolution, value: Tensor, a: Tensor, b: Tensor, *leaves: Tensor) -> Tensor:
        ctx.solution = solution
        ctx.save_for_backward(*leaves)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        solution: EntropicSolution = ctx.solution
        # Read in any case, for this is when torch looks whether they have been changed.
        tensors = ctx.saved_tensors
        a, b, *leaves = ctx.needs_input_grad[2:]
        with full_arithmetic(grad.device.type):
            da, db = solution.duals() if a or b else (None, None)
            to_weights = (None if d is None or not need else grad[..., None] * d for d, need in ((da, a), (db, b)))
            cost = solution.problem.cost
            if torch.is_grad_enabled() and any(leaves):
                found = cost.linked_pullback(DifferentiablePlan(solution.posed, *solution.exponents), tensors, grad)
            else:
                found = for_each_value(grad, partial(_constant_pullback, solution, leaves))
            return None, None, *to_weights, *found


def _constant_pullback(solution: EntropicSolution, needs: Sequence[bool], grad: Tensor) -> Gradients:
    plan = ConstantPlan(solution.posed, *solution.constant_exponents)
    left = grad[..., None, None].expand(*plan.hf.shape, 1)
    return solution.problem.cost.pullback(plan, left, torch.ones_like(plan.hg)[..., None], needs)


def _log(a: Tensor, marginal: Marginal) -> Tensor:
    if not a.requires_grad:
        return marginal.log
    # log 0 = -inf is meant, but its gradient, 0 times infinity, is not.
    return torch.where(a > 0, a, torch.ones_like(a)).log() + torch.where(a > 0, 0.0, -torch.inf).to(a.dtype)


def _scaled(f: Tensor, eps: Tensor | float, offset: Tensor | None) -> Tensor:
    if isinstance(eps, Tensor):
        return eps[..., None] * f if offset is None else torch.addcmul(offset, eps[..., None], f)
    return eps * f if offset is None else torch.add(offset, f, alpha=eps)


def _dual(a: Tensor, f: Tensor, rho: float | None) -> _DualTerm:
    if rho is None:
        return _DualTerm((a * f).sum(-1), f, 1.0)
    gradient = -rho * torch.expm1(-f / rho)
    # Without weight a point counts for nothing, even where its potential is beyond all numbers.
    return _DualTerm(torch.where(a > 0, a * gradient, 0.0).sum(-1), gradient, torch.exp(-f / rho))
