"""First derivatives of a value: the envelope theorem.

A value depends on its inputs through the plan only to second order, so its gradient is that with the plan held fixed.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from otdml._cost_forms import Gradients
from otdml._precision import full_arithmetic
from otdml.ot._implicit import ConstantPlan, DifferentiablePlan
from otdml.ot._problem import Posed, Problem

__all__ = ["with_gradient"]

Pair = tuple[Tensor, Tensor]


class Solution(Protocol):
    """A solved problem, as far as its first derivatives need it."""

    @property
    def problem(self) -> Problem: ...
    @property
    def posed(self) -> Posed: ...
    @property
    def exponents(self) -> Pair: ...
    @property
    def constant_exponents(self) -> Pair: ...
    def duals(self) -> Pair: ...


def with_gradient(solution: Solution, value: Tensor) -> Tensor:
    """``value``, with its derivatives in the weights and in the leaves of the cost."""
    problem = solution.problem
    return _Envelope.apply(solution, value, problem.a, problem.b, *problem.cost.leaves)


class _Envelope(torch.autograd.Function):
    """The duals are the gradients in the weights, and the plan is the gradient in the cost."""

    @staticmethod
    def forward(ctx: Any, solution: Solution, value: Tensor, a: Tensor, b: Tensor, *leaves: Tensor) -> Tensor:
        ctx.solution = solution
        ctx.save_for_backward(*leaves)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        solution: Solution = ctx.solution
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
                plan = ConstantPlan(solution.posed, *solution.constant_exponents)
                left = grad[..., None, None].expand(*plan.hf.shape, 1)
                found = cost.pullback(plan, left, torch.ones_like(plan.hg)[..., None], leaves)
            return None, None, *to_weights, *found
