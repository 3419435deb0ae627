"""The Sinkhorn loop."""

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
        error: Relative L1 error of the column marginal before the last half-step made it zero, shape (...). That of the
            row marginal after it is no larger.
        n_iter: Number of iterations, each of two half-steps.
        converged: Whether the error is within the tolerance, shape (...).
    """

    f: Tensor
    g: Tensor
    error: Tensor
    n_iter: int
    converged: Tensor

    @cached_property
    def done(self) -> bool:
        """Whether all of the batch have converged."""
        return bool(self.converged.all())


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


# Iterations after which their iterates are extrapolated, at the least.
PERIOD = 3
# Numbers of iterations that are made before anyone looks at them, and at first twice as many, and the entries of a
# kernel up to which that is quicker: to look at one takes as long as to make some.
AT_ONCE = {4: 2**18, 2: 2**20}


def _iterate(
    engine: Engine, rows: Side, columns: Side, g: Tensor, tol: float, max_iter: int, progress: Progress
) -> Solution:
    accelerated = _Anderson()
    at_once = next((times for times, most in AT_ONCE.items() if engine.shape.numel() <= most), 1)
    best, spent, last = math.inf, 0, max_iter
    # Twice as many at first; fewer where the kernel was made anew just now, and one where it had to be given up.
    many = 2 * at_once if at_once > 1 else 1
    while True:
        times = max(1, min(many if engine.has_kernel else 1, last - spent))
        f, softmins = _sweeps(engine, rows, columns, g, times)
        new, spent, jumped = columns.update(softmins), spent + times, accelerated.jumped
        old = torch.cat((g[None], new[:-1])) if times > 1 else g[None]
        errors = columns.error(old, softmins)
        # To look at them waits for the device.
        worst: list[float] = (errors if errors.ndim == 1 else errors.flatten(1).amax(1)).tolist()
        total = float(new[-1].sum())
        progress.show(spent, worst[-1])
        done, lost = worst[-1] <= tol or spent >= last, not math.isfinite(total)
        astray = jumped and (lost or not worst[0] <= 2 * best or accelerated.overshot(new[0] - g))
        # A kernel that has lost its accuracy may mislead the iteration, but not the decision to stop.
        stale = not astray and (done or jumped or lost) and engine.recentre(f, g if lost else old[-1], lost=lost)
        if (astray or stale) and (lost or spent <= max_iter + 1):
            # One more iteration where the last has gone astray.
            last += spent == last == max_iter
            g, best = (accelerated.retreat(), best) if astray else (g if lost else old[-1], math.inf)
            many = 1 if stale else many
            continue
        if lost:
            raise argument_error("x", "give finite costs over `eps`", "an iteration that is not finite", _REMEDY)
        if done:
            # Of iterations that were made at once, those count that it took.
            spent -= times - 1 - next((i for i, error in enumerate(worst) if error <= tol), times - 1)
            return Solution(f, new[-1], errors[-1], min(spent, max_iter), errors[-1] <= tol)
        best, many = min(best, *worst), min(at_once, 2 * many)
        g = accelerated.step(old, new)


def _sweeps(engine: Engine, rows: Side, columns: Side, g: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """The row potential of the last of some iterations from ``g``, and the columns' soft minima of each."""
    if rows.rho is None and columns.rho is None:
        found = engine.scalings(g, rows.weights, columns.weights, times)
        if found is not None:
            return found
    softmins = []
    for _ in range(times):
        f, softmin = engine.sweep(g + columns.log, rows.log, rows.update)
        softmins.append(softmin)
        g = columns.update(softmin)
    return f, torch.stack(softmins) if times > 1 else softmin[None]


def _start(engine: Engine, rows: Side, columns: Side, init: tuple[Tensor | None, Tensor | None]) -> Tensor:
    f, g = init
    if g is not None:
        return g
    return torch.zeros_like(columns.weights) if f is None else columns.update(engine.columns(f + rows.log))


class _Anderson:
    """Anderson acceleration of a fixed-point iteration :cite:p:`walker:11`, with a way back to the plain one."""

    memory = 16
    # Relative to the diagonal of the normal equations, which single precision does not resolve further.
    damping = 1e-6
    # A single point may move further for a while, and the others profit.
    overshoot = 16.0

    def __init__(self) -> None:
        self.trail: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.memory + 1)
        # Share of the way to the extrapolated iterate that is gone: where it has led astray, less.
        self.reach = 1.0
        self.plain, self.jumped = 0, False

    def step(self, old: Tensor, new: Tensor) -> Tensor:
        """The next iterate, after the map took each of ``old``, shape (times, ...), to one of ``new``."""
        if self.jumped:
            self.reach = min(1.0, 2 * self.reach)
        self.trail.append((new - old, new))
        # Every iterate is remembered, and some extrapolated: about as few iterations, at a third of the cost.
        self.plain += len(new)
        self.jumped = self.plain >= PERIOD
        if not self.jumped:
            return new[-1]
        self.plain = 0
        return self._extrapolated(*(torch.cat(part)[-self.memory - 1 :] for part in zip(*self.trail, strict=True)))

    def _extrapolated(self, residuals: Tensor, new: Tensor) -> Tensor:
        # The differences of residuals, and below them the last one: one product has all that the fit needs.
        rows = torch.cat((residuals[1:] - residuals[:-1], residuals[-1:])).movedim(0, -2)
        products = rows[..., :-1, :] @ rows.mT
        gram, along = products[..., :-1], products[..., -1:]
        gram.diagonal(dim1=-2, dim2=-1).mul_(1 + self.damping).add_(torch.finfo(new.dtype).tiny)
        weights = torch.linalg.solve_ex(gram, along).result
        return new[-1].sub((weights.mT @ (new[1:] - new[:-1]).movedim(0, -2))[..., 0, :], alpha=self.reach)

    def overshot(self, residual: Tensor) -> bool:
        """Whether the extrapolation has led to where the map moves far; without it, it moves ever less."""
        last = self.trail[-1][0][-1]
        return not float(residual.abs().max()) <= self.overshoot * float(last.abs().max())

    def retreat(self) -> Tensor:
        """The plain iterate in place of the extrapolated one."""
        self.reach /= 4
        self.plain, self.jumped = 0, False
        return self.trail[-1][1][-1]


_REMEDY = "Look for NaN or infinity in `x`, `y`, `a`, `b`, or for a point without admissible partner; or raise `eps`."
