"""The Sinkhorn loop."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml.ot.engines import Engine

__all__ = ["Side", "Solution", "potentials"]


@dataclass(frozen=True)
class Side:
    r"""One marginal of a dimensionless problem.

    Attributes:
        weights: Shape (..., n).
        offset: Offset u of the cost over the temperature, shape (..., n), or None for zero.
        rho: Marginal penalty over the temperature, shape (..., 1) or a number; None for a hard constraint.
    """

    weights: Tensor
    offset: Tensor | None = None
    rho: Tensor | float | None = None

    @cached_property
    def log(self) -> Tensor:
        """The logarithms of the weights."""
        return self.weights.log()

    def update(self, softmin: Tensor) -> Tensor:
        """The reduced potential that is optimal given the soft minimum over the other side."""
        if self.rho is None:
            return softmin
        tau = self.rho / (1 + self.rho)
        return tau * softmin if self.offset is None else tau * softmin - (1 - tau) * self.offset

    def target(self, f: Tensor) -> Tensor:
        """The marginal that the optimal plan has at the potential ``f``."""
        if self.rho is None:
            return self.weights
        full = f if self.offset is None else f + self.offset
        return self.weights * torch.exp(-full / self.rho)

    def curvature(self, f: Tensor) -> Tensor:
        """The derivative in ``f`` of the optimality condition of one unit of weight, at the solution."""
        if self.rho is None:
            return torch.ones_like(f)
        full = f if self.offset is None else f + self.offset
        return (1 + 1 / self.rho) * torch.exp(-full / self.rho)

    def error(self, f: Tensor, softmin: Tensor) -> Tensor:
        """L1 distance of the plan's marginal to its target, relative to the mass, shape (...)."""
        marginal = self.weights * torch.exp(f - softmin)
        return (marginal - self.target(f)).abs_().sum(-1) / self.weights.sum(-1)


@dataclass(frozen=True)
class Solution:
    """Reduced dimensionless potentials, and how well they solve the problem.

    Attributes:
        f: Shape (..., n).
        g: Shape (..., m).
        error: Relative L1 error of the row marginal, shape (...); that of the column marginal is zero.
        n_iter: Number of iterations, each of two half-steps.
        converged: Whether the error is within the tolerance, shape (...).
    """

    f: Tensor
    g: Tensor
    error: Tensor
    n_iter: int
    converged: Tensor


def potentials(
    engine: Engine,
    rows: Side,
    columns: Side,
    *,
    tol: float = 1e-3,
    max_iter: int = 2000,
    init: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Solution:
    """Optimal potentials by over-relaxed Sinkhorn iterations.

    Every check is a plain iteration, so that the error of one marginal is that of a plan whose other marginal is
    exact, and the relaxation is chosen from the rate at which the error falls.
    """
    g = engine.columns(init[0] + rows.log) if init[0] is not None and init[1] is None else init[1]
    g = columns.log.new_zeros(columns.log.shape) if g is None else g
    f = rows.update(engine.rows(g + columns.log))
    relaxation = _Relaxation()
    for iteration in range(1, max_iter + 1):
        checked = iteration == relaxation.next_check or iteration == max_iter
        omega = 1.0 if checked else relaxation.omega
        g = _step(g, columns.update(engine.columns(f + rows.log)), omega)
        softmin = engine.rows(g + columns.log)
        if checked:
            error = rows.error(f, softmin)
            worst = float(error.max())
            if not math.isfinite(worst):
                raise argument_error("x", "give finite costs over eps", "an iteration that is not finite", _REMEDY)
            if worst <= tol or iteration == max_iter:
                return Solution(f, g, error, iteration, error <= tol)
            relaxation.observe(iteration, worst, tol)
        f = _step(f, rows.update(softmin), omega)
    raise AssertionError


_REMEDY = "Look for NaN or infinity in `x`, `y`, `a`, `b`, or for a point without admissible partner; or raise `eps`."


def _step(old: Tensor, new: Tensor, omega: float) -> Tensor:
    return new if omega == 1.0 else torch.lerp(old, new, omega)


class _Relaxation:
    """The relaxation factor that suits the observed rate, after Young's theory of successive over-relaxation."""

    def __init__(self) -> None:
        self.omega, self.next_check = 1.0, 2
        self.last: tuple[int, float] | None = None

    def observe(self, iteration: int, error: float, tol: float) -> None:
        rate = 0.9
        if self.last is not None:
            rate = (error / self.last[1]) ** (1 / (iteration - self.last[0]))
            if rate >= 1:
                self.omega = 1.0
            elif rate > self.omega - 1:
                contraction = min((rate + self.omega - 1) ** 2 / (rate * self.omega**2), 0.998)
                self.omega = 2 / (1 + math.sqrt(1 - contraction))
        self.last = (iteration, error)
        ahead = math.log(tol / error) / math.log(min(max(rate, 0.3), 0.95))
        self.next_check = iteration + min(max(2, int(ahead)), 10)
