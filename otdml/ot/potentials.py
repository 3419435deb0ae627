"""The Sinkhorn loop."""

import itertools
import math
from collections import deque
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml.ot.engines import Engine
from otdml.ot.progress import Progress

__all__ = ["Side", "Solution", "potentials"]

EVERY = slice(None)


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

    @cached_property
    def mass(self) -> Tensor:
        """The sum of the weights, shape (...)."""
        return self.weights.sum(-1)

    @cached_property
    def shares(self) -> Tensor:
        """The weights over their sum."""
        return self.weights / self.mass[..., None]

    def update(self, softmin: Tensor, points: slice = EVERY) -> Tensor:
        """The reduced potential that is optimal given the soft minimum over the other side, of some or all points."""
        if self.rho is None:
            return softmin
        tau = self.rho / (1 + self.rho)
        return tau * softmin if self.offset is None else tau * softmin - (1 - tau) * self.offset[..., points]

    def target(self, f: Tensor) -> Tensor:
        """The marginal that the optimal plan has at the potential ``f``."""
        if self.rho is None:
            return self.weights
        full = f if self.offset is None else f + self.offset
        return self._weighted(torch.exp(-full / self.rho))

    def _weighted(self, values: Tensor) -> Tensor:
        # A point without weight may have any potential, and its exponential may be infinite.
        return torch.where(self.weights > 0, self.weights * values, 0.0)

    def softmin(self, f: Tensor) -> Tensor:
        """The soft minimum of which ``f`` is the update, the inverse of :meth:`update`."""
        if self.rho is None:
            return f
        return f + (f if self.offset is None else f + self.offset) / self.rho

    def error(self, f: Tensor, softmin: Tensor) -> Tensor:
        """L1 distance of the plan's marginal to its target, relative to the target's mass, shape (...)."""
        if self.rho is None:
            return torch.expm1(f - softmin).abs_().mul_(self.shares).sum(-1)
        marginal, target = self._weighted(torch.exp(f - softmin)), self.target(f)
        # The mass of an unbalanced plan can be any, and zero in the end.
        return (marginal - target).abs_().sum(-1) / target.sum(-1).clamp(min=torch.finfo(f.dtype).tiny)


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
    """Optimal potentials by Sinkhorn iterations under Anderson acceleration, the column marginal exact at the end."""
    g = _start(engine, rows, columns, init)
    engine.centre(g)
    with Progress(tol, max_iter) as progress:
        return _iterate(engine, rows, columns, g, tol, max_iter, progress)


def _iterate(
    engine: Engine, rows: Side, columns: Side, g: Tensor, tol: float, max_iter: int, progress: Progress
) -> Solution:
    accelerated = _Anderson()
    # On the CPU looking at the error is free; elsewhere it waits for the device.
    every = 1 if g.device.type == "cpu" else 4
    best, last = math.inf, max_iter
    for iteration in itertools.count(1):
        f, softmin = engine.sweep(g + columns.log, rows.log, rows.update)
        new = columns.update(softmin)
        if iteration % every == 0 or iteration >= last:
            error = columns.error(g, softmin)
            worst = float(error.max())
            progress.show(iteration, worst)
            done = worst <= tol or iteration >= last
            # A kernel that has lost its accuracy may mislead the iteration, but not the decision to stop.
            stale = (done or iteration % 4 == 0 or not math.isfinite(worst)) and engine.recentre(f, g)
            if (stale or not worst <= 2 * best) and iteration <= max_iter + 1:
                # One more iteration where the last has gone astray.
                last += iteration == last == max_iter
                g = g if stale and math.isfinite(worst) else accelerated.retreat(g if stale else new)
                continue
            if done:
                return Solution(f, new, error, min(iteration, max_iter), error <= tol)
            best = min(best, worst)
        g = accelerated.step(g, new)
    raise AssertionError


def _start(engine: Engine, rows: Side, columns: Side, init: tuple[Tensor | None, Tensor | None]) -> Tensor:
    f, g = init
    if g is not None:
        return g
    return torch.zeros_like(columns.weights) if f is None else columns.update(engine.columns(f + rows.log))


class _Anderson:
    """Anderson acceleration of a fixed-point iteration :cite:p:`walker:11`, with a way back to the plain one."""

    memory = 6
    # Relative to the diagonal of the normal equations, which single precision does not resolve further.
    damping = 1e-6

    def __init__(self) -> None:
        self.last: tuple[Tensor, Tensor] | None = None
        self.differences: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.memory)

    def step(self, g: Tensor, new: Tensor) -> Tensor:
        """The next iterate, after the map took ``g`` to ``new``."""
        residual = new - g
        last, self.last = self.last, (residual, new)
        if last is None:
            return new
        self.differences.append((residual - last[0], new - last[1]))
        # The differences of residuals, and below them the residual: one product has all that the fit needs.
        rows = torch.stack([*(r for r, _ in self.differences), residual], -2)
        products = rows[..., :-1, :] @ rows.mT
        gram, along = products[..., :-1], products[..., -1:]
        gram.diagonal(dim1=-2, dim2=-1).mul_(1 + self.damping).add_(torch.finfo(g.dtype).tiny)
        weights = torch.linalg.solve_ex(gram, along).result
        return new - (weights.mT @ torch.stack([v for _, v in self.differences], -2))[..., 0, :]

    def retreat(self, plain: Tensor) -> Tensor:
        """The last iterate before the acceleration did harm, or else ``plain``; what was learnt is forgotten."""
        safe = plain if self.last is None else self.last[1]
        self.last = None
        self.differences.clear()
        if not bool(safe.isfinite().all()):
            raise argument_error("x", "give finite costs over `eps`", "an iteration that is not finite", _REMEDY)
        return safe


_REMEDY = "Look for NaN or infinity in `x`, `y`, `a`, `b`, or for a point without admissible partner; or raise `eps`."
