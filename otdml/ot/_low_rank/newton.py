"""Newton's method with backtracking, for a batch of smooth convex functions of few variables."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Expansion", "minimum"]

# The share of the expected decrease that a step must reach, the factor by which a step that fails is shortened, and the
# shortest one.
DECREASE, SHRINKAGE, SHORTEST = 1e-4, 0.25, 1e-3
# The largest step of one variable. Beyond it the exponentials differ too much from their quadratic expansion.
LONGEST = 20.0
# What is added to the diagonal of the curvature, which may be singular, relative to the mean of that diagonal.
RIDGE = 1e-6
MAX_STEPS = 50


@dataclass(frozen=True)
class Expansion:
    """The second-order expansion of functions at a point.

    Attributes:
        value: Shape (...).
        gradient: Shape (..., r).
        curvature: Computes the second derivatives, shape (..., r, r).
    """

    value: Tensor
    gradient: Tensor
    curvature: Callable[[], Tensor]

    def error(self) -> Tensor:
        """The L1 norm of the gradient, shape (...)."""
        return self.gradient.abs().sum(-1)

    def step(self) -> Tensor:
        """The Newton step, with no entry above ``LONGEST``."""
        curvature = self.curvature()
        diagonal = curvature.diagonal(dim1=-2, dim2=-1)
        diagonal += RIDGE * diagonal.mean(-1, keepdim=True) + torch.finfo(diagonal.dtype).tiny
        step = -torch.linalg.solve_ex(curvature, self.gradient[..., None]).result[..., 0]
        step = torch.where(step.isfinite().all(-1, keepdim=True), step, -self.gradient)
        longest = step.abs().amax(-1, keepdim=True)
        return step * (LONGEST / longest.clamp(min=LONGEST))


def minimum(function: Callable[[Tensor], Expansion], z: Tensor, tol: float) -> Tensor:
    """Points, shape (..., r), at which gradients have L1 norms within ``tol``, or the last ones after ``MAX_STEPS``.

    Args:
        function: The expansions at points, shape (..., r).
        z: Where to start, shape (..., r).
        tol: L1 norm of the gradient.
    """
    here = function(z)
    noise = 16 * torch.finfo(z.dtype).eps
    for _ in range(MAX_STEPS):
        unfinished = here.error() > tol
        if not bool(unfinished.any()):
            break
        step = here.step()
        slope = DECREASE * (here.gradient * step).sum(-1)
        length = unfinished.to(z.dtype)
        while True:
            y = z + length[..., None] * step
            there = function(y)
            worse = (length > SHORTEST) & ~(there.value <= here.value + length * slope + noise * (1 + here.value.abs()))
            if not bool(worse.any()):
                break
            length = torch.where(worse, SHRINKAGE * length, length)
        z, here = y, there
    return z
