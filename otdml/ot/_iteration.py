r"""Sinkhorn's iteration as a loop: an update, a verdict on it, an extrapolation.

:func:`iterate` repeats an update of the column potential (:mod:`otdml.ot._updates`) under Anderson acceleration until
the marginal error is within the tolerance; on a GPU it leaves that to the loop that does not wait for the device.
"""

import enum
import math

import torch
from torch import Tensor

from otdml.ot import _device_loop
from otdml.ot._anderson import Anderson
from otdml.ot._progress import Progress
from otdml.ot._updates import NotFinite, Potentials, Step, Update

__all__ = ["Verdict", "at_once", "iterate", "judge"]


class Verdict(enum.Enum):
    """What is to be made of a step."""

    DONE = "within the tolerance, or out of iterations"
    ONWARD = "on the way"
    ASTRAY = "the extrapolation has led away from the solution"
    STALE = "the kernel had lost its accuracy at these potentials"
    LOST = "not finite"


def judge(step: Step, update: Update, accelerated: Anderson, best: float, *, tol: float, out: bool) -> Verdict:
    """The verdict on a step.

    Args:
        step: The step.
        update: What has made it.
        accelerated: The acceleration, which knows whether the step started from an extrapolated state.
        best: The least error so far.
        tol: The tolerance.
        out: Whether no iteration is left.
    """
    worst, lost = step.worst, not step.finite
    done, jumped = worst[-1] <= tol or out, accelerated.extrapolated
    if jumped and (lost or not worst[0] <= 2 * best or accelerated.overshot(step.new[0] - step.start)):
        return Verdict.ASTRAY
    # A kernel that has lost its accuracy may mislead the iteration, but not the decision to stop.
    looks = done or jumped or lost
    if looks and update.refresh(step.f, step.start if lost else step.last, lost=lost):
        return Verdict.STALE
    return Verdict.LOST if lost else Verdict.DONE if done else Verdict.ONWARD


# Entries of a kernel up to which several iterations are made before their errors are read, and how many at first and
# from then on: to read errors and to extrapolate takes as long as some products with a small kernel.
AT_ONCE = {2**16: (24, 8), 2**18: (6, 4), 2**20: (4, 2)}

# Iterations beyond `max_iter` in which a state that is not finite may still be recovered from.
RECOVERY = 200


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
    together: int | None = None,
    first: Step | None = None,
) -> Potentials:
    """Iterations from ``g`` until the marginal error is within ``tol``.

    Args:
        update: The fixed-point iteration.
        g: Reduced column potential, shape (..., m).
        tol: Relative L1 error of the marginals.
        max_iter: Most iterations.
        prepared: Whether the engine was prepared near ``g`` already.
        together: Most iterations that are made before they are judged and extrapolated; as many as are quick to make
            at once if None. Where ``max_iter`` is small for the problem an extrapolation is due after few.
        first: Iterations from ``g`` that have been made already.

    Raises:
        NotFinite: If NaN or infinity comes up.
    """
    if not prepared:
        update.softmin.prepare(g)
    with Progress(tol, max_iter) as progress:
        if g.is_cuda and _device_loop.pays(update, g):
            # Events and graphs are those of the current device.
            with torch.cuda.device(g.device):
                queue = _device_loop.Stream()
                return _device_loop.solve(update, g, tol=tol, max_iter=max_iter, progress=progress, queue=queue)
        many, most = (min(times, together or times) for times in at_once(update.softmin.shape.numel()))
        return _iterate(update, g, first, tol, max_iter, progress, (many, most))


def _iterate(
    update: Update,
    g: Tensor,
    first: Step | None,
    tol: float,
    max_iter: int,
    progress: Progress,
    together: tuple[int, int],
) -> Potentials:
    accelerated, softmin = Anderson(), update.softmin
    best, spent, last = math.inf, 0, max_iter
    # Fewer where the kernel was made anew just now, and one where it had to be given up.
    many, most = together
    while True:
        step = first or update.step(g, max(1, min(many if softmin.has_kernel else 1, last - spent)), tol)
        first = None
        spent += step.new.shape[0]
        if step.settled and not accelerated.extrapolated:
            return _reached(step, tol, spent, max_iter)
        progress.show(spent, step.worst[-1])
        verdict = judge(step, update, accelerated, best, tol=tol, out=spent >= last)
        if verdict in (Verdict.ASTRAY, Verdict.STALE) and spent <= max_iter + (1 if step.finite else RECOVERY):
            # One more iteration where the last has gone astray.
            last += spent == last == max_iter
            if verdict is Verdict.ASTRAY:
                g = accelerated.retreat()
            else:
                g, best, many = step.last if step.finite else step.start, math.inf, max(1, most // 2)
            continue
        if not step.finite:
            raise NotFinite
        if verdict is not Verdict.ONWARD:
            return _reached(step, tol, spent, max_iter)
        best, many = min(best, *step.worst), min(most, 2 * many)
        if not update.accelerates:
            g = step.new[-1]
            continue
        g = accelerated.step(step.old, step.new)
        longer = accelerated.stride(step.last, step.new[-1], step.errors[-1], step.worst)
        g = g if longer is None else longer


def _reached(step: Step, tol: float, spent: int, max_iter: int) -> Potentials:
    """The potentials after the last step of so many iterations, of which those count that it took."""
    made = len(step.worst)
    needed = next((i for i, error in enumerate(step.worst, 1) if error <= tol), made)
    error = step.errors[-1]
    return Potentials(step.f, step.new[-1], error, min(spent - made + needed, max_iter), error <= tol)
