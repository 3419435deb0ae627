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
    best, last = math.inf, max_iter
    for iteration in itertools.count(1):
        f, softmin = engine.sweep(g + columns.log, rows.log, rows.update)
        new, jumped = columns.update(softmin), accelerated.jumped
        error = columns.error(g, softmin)
        # One tensor, because to look at it waits for the device.
        worst, total = torch.stack((error.max(), new.sum())).tolist()
        progress.show(iteration, worst)
        done, lost = worst <= tol or iteration >= last, not math.isfinite(total)
        astray = jumped and (not worst <= 2 * best or accelerated.overshot(new - g))
        # A kernel that has lost its accuracy may mislead the iteration, but not the decision to stop.
        stale = not astray and (done or jumped or lost) and engine.recentre(f, g, lost=lost)
        if (astray or stale) and iteration <= max_iter + 1:
            # One more iteration where the last has gone astray.
            last += iteration == last == max_iter
            g, best = (accelerated.retreat(), best) if astray else (g, math.inf)
            continue
        if lost:
            raise argument_error("x", "give finite costs over `eps`", "an iteration that is not finite", _REMEDY)
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

    memory = 12
    # Every iteration is remembered, and every so many extrapolated: about as few iterations, at a third of the cost.
    period = 3
    # Relative to the diagonal of the normal equations, which single precision does not resolve further.
    damping = 1e-6
    # A single point may move further for a while, and the others profit.
    overshoot = 16.0

    def __init__(self) -> None:
        self.last: tuple[Tensor, Tensor] | None = None
        self.differences: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.memory)
        self.steps, self.jumped = 0, False

    def step(self, g: Tensor, new: Tensor) -> Tensor:
        """The next iterate, after the map took ``g`` to ``new``."""
        residual = new - g
        last, self.last = self.last, (residual, new)
        if last is not None:
            self.differences.append((residual - last[0], new - last[1]))
            self.steps += 1
        self.jumped = self.steps % self.period == 0 < self.steps
        return self._extrapolated(residual, new) if self.jumped else new

    def _extrapolated(self, residual: Tensor, new: Tensor) -> Tensor:
        # The differences of residuals, and below them the residual: one product has all that the fit needs.
        rows = torch.stack([*(r for r, _ in self.differences), residual], -2)
        products = rows[..., :-1, :] @ rows.mT
        gram, along = products[..., :-1], products[..., -1:]
        gram.diagonal(dim1=-2, dim2=-1).mul_(1 + self.damping).add_(torch.finfo(new.dtype).tiny)
        weights = torch.linalg.solve_ex(gram, along).result
        return new - (weights.mT @ torch.stack([v for _, v in self.differences], -2))[..., 0, :]

    def overshot(self, residual: Tensor) -> bool:
        """Whether the extrapolation has led to where the map moves far; without it, it moves ever less."""
        assert self.last is not None
        return not bool(residual.abs().max() <= self.overshoot * self.last[0].abs().max())

    def retreat(self) -> Tensor:
        """The plain iterate in place of the extrapolated one; what was learnt is forgotten."""
        assert self.last is not None
        (_, plain), self.last = self.last, None
        self.differences.clear()
        self.steps, self.jumped = 0, False
        return plain


_REMEDY = "Look for NaN or infinity in `x`, `y`, `a`, `b`, or for a point without admissible partner; or raise `eps`."
