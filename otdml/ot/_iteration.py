r"""The Sinkhorn iteration: a state, a step, a verdict.

The state is a reduced dimensionless column potential g. An *update* makes one or several fixed-point iterations of it:
the alternating one of two half-steps, the symmetric one of a measure with itself, the one for temperatures above all
costs. :func:`iterate` repeats it under Anderson acceleration until the marginal error is within the tolerance.
"""

import enum
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otdml.ot._anderson import PERIOD, Anderson
from otdml.ot._problem import Marginal
from otdml.ot._progress import Progress
from otdml.ot.engines import SoftMin

__all__ = [
    "Alternating",
    "NotFinite",
    "Potentials",
    "Step",
    "Symmetric",
    "Update",
    "Verdict",
    "at_once",
    "iterate",
    "judge",
]


@dataclass(frozen=True)
class Potentials:
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


class NotFinite(ArithmeticError):
    """An iteration gave NaN or infinity."""


@dataclass(frozen=True)
class Step:
    """Some iterations, made at once.

    Attributes:
        f: Row potential of the last of them, shape (..., n).
        old: The states that they started from, shape (times, ..., m).
        new: The states that they ended at, shape (times, ..., m).
        errors: Relative L1 errors of the marginals at the old states, shape (times, ...).
    """

    f: Tensor
    old: Tensor
    new: Tensor
    errors: Tensor

    @cached_property
    def worst(self) -> list[float]:
        """The largest error of the batch after each iteration; to read it forces a device synchronisation."""
        errors = self.errors if self.errors.ndim == 1 else self.errors.flatten(1).amax(1)
        found: list[float] = errors.tolist()
        return found

    @cached_property
    def finite(self) -> bool:
        """Whether the last state holds no NaN or infinity."""
        return math.isfinite(float(self.new[-1].sum()))


class Update(ABC):
    """A fixed-point iteration of the column potential over some soft minima."""

    # Whether extrapolation pays.
    accelerates = True
    # Whether a step reads nothing on the host, so that many can be queued on a device.
    on_device = False

    def __init__(self, softmin: SoftMin, rows: Marginal, columns: Marginal) -> None:
        self.softmin, self.rows, self.columns = softmin, rows, columns

    @abstractmethod
    def step(self, g: Tensor, times: int) -> Step:
        """That many iterations from ``g``; fewer where the update makes one at a time."""


class Alternating(Update):
    """Sinkhorn's iteration :cite:p:`cuturi:13`: the row potential from the column potential, and back."""

    on_device = True

    def step(self, g: Tensor, times: int) -> Step:
        f, softmins = self._sweeps(g, times)
        new = self.columns.update(softmins)
        old = torch.cat((g[None], new[:-1])) if times > 1 else g[None]
        return Step(f, old, new, self.columns.error(old, softmins))

    def _sweeps(self, g: Tensor, times: int) -> tuple[Tensor, Tensor]:
        """The row potential of the last of some iterations, and the columns' soft minima of each."""
        rows, columns = self.rows, self.columns
        if rows.rho is None and columns.rho is None:
            found = self.softmin.scaling_iterations(g, rows.weights, columns.weights, times)
            if found is not None:
                return found
        softmins = []
        for _ in range(times):
            f, softmin = self.softmin.sweep(g + columns.log, rows.log, rows.update)
            softmins.append(softmin)
            g = columns.update(softmin)
        return f, torch.stack(softmins) if times > 1 else softmin[None]


class Symmetric(Update):
    r"""The iteration :math:`g \leftarrow \tfrac12 (g + T g)` of a measure with itself, whose potentials agree.

    One half-step suffices, and averaged with the last iterate it converges in a few iterations :cite:p:`feydy:19`.

    Args:
        softmin: Soft minima of the reduced cost between the points and themselves.
        marginal: The measure.
        shift: What the reduced column potential has beyond the row potential, because the offsets differ.
    """

    on_device = True

    def __init__(self, softmin: SoftMin, marginal: Marginal, shift: Tensor | float) -> None:
        super().__init__(softmin, marginal, marginal)
        self.shift = shift

    def step(self, g: Tensor, times: int) -> Step:
        softmin = self.softmin.row_softmin(g + self.columns.log)
        error = self.rows.error(g - self.shift, softmin)
        f = self.rows.update(softmin)
        return Step(f, g[None], (0.5 * (g + f + self.shift))[None], error[None])


class Verdict(enum.Enum):
    """What is to be made of a step."""

    DONE = "within the tolerance, or out of iterations"
    ONWARD = "on the way"
    ASTRAY = "the extrapolation has led away from the solution"
    STALE = "the kernel had lost its accuracy at these potentials"
    LOST = "not finite"


def judge(
    step: Step, update: Update, accelerated: Anderson, best: float, *, tol: float, out: bool, g: Tensor
) -> Verdict:
    """The verdict on a step from the state ``g``.

    Args:
        step: The step.
        update: What has made it.
        accelerated: The acceleration, which knows whether ``g`` is extrapolated.
        best: The least error so far.
        tol: The tolerance.
        out: Whether no iteration is left.
        g: The state it started from.
    """
    worst, lost = step.worst, not step.finite
    done, jumped = worst[-1] <= tol or out, accelerated.extrapolated
    if jumped and (lost or not worst[0] <= 2 * best or accelerated.overshot(step.new[0] - g)):
        return Verdict.ASTRAY
    # A kernel that has lost its accuracy may mislead the iteration, but not the decision to stop.
    looks = done or jumped or lost
    if looks and update.softmin.refresh(step.f, g if lost else step.old[-1], lost=lost):
        return Verdict.STALE
    return Verdict.LOST if lost else Verdict.DONE if done else Verdict.ONWARD


# Entries of a kernel up to which several iterations are made before their errors are read, and how many at first and
# from then on: to read errors and to extrapolate takes as long as some products with a small kernel.
AT_ONCE = {2**16: (12, 8), 2**18: (8, 6), 2**20: (4, 2)}


def at_once(entries: int) -> tuple[int, int]:
    """The number of iterations that are made at first, and then at a time, with a kernel of so many entries."""
    return next((times for most, times in AT_ONCE.items() if entries <= most), (1, 1))


def iterate(
    update: Update,
    g: Tensor,
    *,
    tol: float = 1e-3,
    max_iter: int = 2000,
    prepared: bool = False,
    sparing: bool = False,
) -> Potentials:
    """Iterations from ``g`` until the marginal error is within ``tol``.

    Args:
        update: The fixed-point iteration.
        g: Reduced column potential, shape (..., m).
        tol: Relative L1 error of the marginals.
        max_iter: Most iterations.
        prepared: Whether the engine was prepared near ``g`` already.
        sparing: Whether ``max_iter`` is small for the problem, so that each extrapolation is to come after as few
            iterations as it needs, and not after as many as are quick to make at once.

    Raises:
        NotFinite: If NaN or infinity comes up.
    """
    if not prepared:
        update.softmin.prepare(g)
    with Progress(tol, max_iter) as progress:
        if g.is_cuda:
            from otdml.ot import _device_loop

            if _device_loop.pays(update, g):
                # Events and graphs are those of the current device.
                with torch.cuda.device(g.device):
                    queue = _device_loop.Stream()
                    return _device_loop.solve(update, g, tol=tol, max_iter=max_iter, progress=progress, queue=queue)
        many, most = at_once(update.softmin.shape.numel())
        many, most = (min(many, PERIOD), min(most, PERIOD)) if sparing else (many, most)
        return _iterate(update, g, tol, max_iter, progress, (many, most))


def _iterate(
    update: Update, g: Tensor, tol: float, max_iter: int, progress: Progress, together: tuple[int, int]
) -> Potentials:
    accelerated, softmin = Anderson(), update.softmin
    best, spent, last = math.inf, 0, max_iter
    # Fewer where the kernel was made anew just now, and one where it had to be given up.
    many, most = together
    while True:
        step = update.step(g, max(1, min(many if softmin.has_kernel else 1, last - spent)))
        times = step.new.shape[0]
        spent += times
        progress.show(spent, step.worst[-1])
        verdict = judge(step, update, accelerated, best, tol=tol, out=spent >= last, g=g)
        if verdict in (Verdict.ASTRAY, Verdict.STALE) and (not step.finite or spent <= max_iter + 1):
            # One more iteration where the last has gone astray.
            last += spent == last == max_iter
            if verdict is Verdict.ASTRAY:
                g = accelerated.retreat()
            else:
                g, best, many = step.old[-1] if step.finite else g, math.inf, max(1, most // 2)
            continue
        if not step.finite:
            raise NotFinite
        if verdict is not Verdict.ONWARD:
            # Of iterations that were made at once, those count that it took.
            spent -= times - 1 - next((i for i, error in enumerate(step.worst) if error <= tol), times - 1)
            return Potentials(step.f, step.new[-1], step.errors[-1], min(spent, max_iter), step.errors[-1] <= tol)
        best, many = min(best, *step.worst), min(most, 2 * many)
        g = accelerated.step(step.old, step.new) if update.accelerates else step.new[-1]
