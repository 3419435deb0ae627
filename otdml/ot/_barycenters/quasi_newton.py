"""Minimisation of a batch of smooth functions by quasi-Newton steps with backtracking."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Evaluation", "Found", "minimised"]

# Steps that are remembered, the share of the expected decrease that a step must reach, the factor by which a step that
# fails is shortened, and the shortest one.
MEMORY, DECREASE, SHRINKAGE, SHORTEST = 10, 1e-4, 0.25, 1e-3
# The share of the precision below which a step is rounding.
SMALL = 0.1
# Rounding units of a value within which an increase counts as none.
NOISE = 64


@dataclass(frozen=True)
class Evaluation:
    """A function evaluated at a point.

    Attributes:
        value: Shape (...).
        step: Half of the negative gradient, shape (..., N), in the metric of the mean over the coordinates, in which
            the curvature is about two.
        noise: The error of the value, shape (...).
    """

    value: Tensor
    step: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Found:
    """Where the iteration ended.

    Attributes:
        point: Shape (..., N).
        error: Root mean square of the step there, over the scale, shape (...).
        n_iter: Number of evaluations.
    """

    point: Tensor
    error: Tensor
    n_iter: int


class _QuasiNewton:
    """The limited-memory approximation of Broyden, Fletcher, Goldfarb and Shanno :cite:p:`nocedal:06`, for a batch."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)

    def learn(self, moved: Tensor, change: Tensor) -> None:
        """Update by a change of the step and the move of the point that caused it."""
        curvature, size = _dot(moved, change), _dot(change, change)
        # Directions of no, or negative, curvature are left out.
        seen = curvature > 1e-8 * (size * _dot(moved, moved)).sqrt()
        self._pairs.append((moved, change, torch.where(seen, 1 / torch.where(seen, curvature, 1.0), 0.0)))

    def direction(self, step: Tensor) -> Tensor:
        """The inverse curvature times the step; the step itself before the first update."""
        d, shares = step, []
        for moved, change, inverse in reversed(self._pairs):
            shares.append(inverse * _dot(moved, d))
            d = d - shares[-1] * change
        for (moved, change, inverse), share in zip(self._pairs, reversed(shares), strict=True):
            d = d + (share - inverse * _dot(change, d)) * moved
        return d


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).mean(-1, keepdim=True)


def minimised(
    function: Callable[[Tensor, float], Evaluation],
    y: Tensor,
    scale: Tensor,
    *,
    tol: float,
    max_iter: int,
    loosest: float,
) -> Found:
    """A stationary point of each function of a batch, at which steps are within ``tol`` of the scale.

    Args:
        function: Values and steps at points of shape (..., N), to an error of the steps that is the second argument.
        y: Points to start from, shape (..., N).
        scale: The unit of the error, root mean square of a coordinate, shape (...).
        tol: Error at which to stop.
        max_iter: Most evaluations.
        loosest: The largest error of the steps.
    """
    newton, scale = _QuasiNewton(), scale[..., None]
    here, at, d, length, precision = None, y, y, torch.ones_like(scale), loosest
    for n in range(1, max_iter + 1):
        there = function(y, precision)
        if here is not None and n < max_iter:
            expected = DECREASE * 2 * length * _dot(here.step, d)
            excess = (there.value - here.value)[..., None] + expected
            worse = (excess > (here.noise + there.noise)[..., None]) & (length > SHORTEST)
            if bool(worse.any()):
                length = torch.where(worse, SHRINKAGE * length, length)
                y = at + length * d
                continue
        error = _dot(there.step, there.step).sqrt() / scale
        worst = float(error.max()) if error.numel() else 0.0
        if n == max_iter or (worst <= tol and precision <= tol):
            break
        if worst <= SMALL * precision and precision > tol:
            # A step this small is within the error of its evaluation.
            precision = max(worst, tol)
            continue
        if here is not None:
            newton.learn(y - at, here.step - there.step)
        here, at, precision = there, y, max(min(loosest, worst), tol)
        d = newton.direction(here.step)
        d = torch.where(_dot(d, here.step) > 0, d, here.step)
        d = d * (scale / _dot(d, d).sqrt().clamp(min=torch.finfo(d.dtype).tiny)).clamp(max=1)
        length = torch.ones_like(scale)
        y = at + d
    return Found(y, error[..., 0], n)
