r"""The Sinkhorn iteration on a device that is not waited for.

On a GPU the loop of :mod:`otdml.ot._iteration` stands still in each iteration, while the host reads an error and
decides. Here iterations come in *rounds* of fixed shape, three of them and an extrapolation, whose decisions are made
on the device: whether an extrapolated state is accepted, how far the next one reaches, and which iteration was the
first within the tolerance. That one is kept, and later ones change nothing of it, so the result does not depend on when
it is looked at. The host looks while the next rounds are queued already.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from otdml.ot._anderson import PERIOD, Anderson
from otdml.ot._progress import Progress
from otdml.ot._updates import NotFinite, Potentials, Update
from otdml.ot.engines.dense import DRIFT

__all__ = ["Immediate", "Queue", "Rounds", "Stream", "distances", "pays", "solve"]

# States that an extrapolation combines.
MEMORY = 8
# Rounds before a round is captured as a graph; the entries of all matrices up to which its launches take longer than
# its arithmetic; and those beyond which an iteration takes longer than a look, so that none should be made in vain.
# From arithmetic, not measured.
EAGER, SMALL, LARGE = 4, 2**22, 2**26
# Most rounds between two looks.
FARTHEST = 8


class Rounds:
    """Iterations from a state on, in static buffers; nothing in a round is read by the host.

    Args:
        update: The fixed-point iteration.
        g: Reduced column potential to start from, shape (..., m).
        tol: Relative L1 error of the marginals.
        most: Most iterations.
        drift: How far potentials may be from where the engine's kernel is exact, before it is asked about that.
    """

    def __init__(self, update: Update, g: Tensor, tol: float, most: int, drift: float = math.inf) -> None:
        self.update, self.tol, self.most, self.drift = update, tol, most, drift
        scalar = torch.zeros((), dtype=g.dtype, device=g.device)
        self.g = g.clone()
        # The states that are combined, and what the map added to them; the last is the newest.
        self.values, self.residuals = g.new_zeros(MEMORY, *g.shape), g.new_zeros(MEMORY, *g.shape)
        self.reach, self.best, self.largest = scalar + 1, scalar + torch.inf, scalar + torch.inf
        self.count = torch.zeros((), dtype=torch.int32, device=g.device)
        self.jumped, self.done, self.lost, self.stale = (
            torch.zeros_like(self.count, dtype=torch.bool) for _ in range(4)
        )
        # Of the iteration that counts: the row potential, the states before and after it, its error, and its number.
        self.f, self.old, self.new = torch.zeros_like(update.rows.log), self.g.clone(), self.g.clone()
        self.error, self.number = g.new_full(g.shape[:-1], torch.inf), self.count.clone()

    @property
    def report(self) -> Tensor:
        """What a look needs: whether no more iterations count, how many do, and the error of the last of them."""
        worst, ended = _largest(self.error), self.done | self.lost | self.stale | (self.number >= self.most)
        return torch.stack([ended.to(worst), self.number.to(worst), worst])

    def run(self) -> None:
        """Some iterations, and an extrapolation from the last of them."""
        for _ in range(PERIOD):
            self._iterate()
        if self.update.accelerates:
            self.g.copy_(self._extrapolated())
            self.jumped.fill_(True)

    def _iterate(self) -> None:
        """One iteration; from an extrapolated state it is taken back where that has led astray."""
        step = self.update.step(self.g, 1)
        new, errors = step.new[0], step.errors[0]
        residual = new - self.g
        worst, moved, finite = _largest(errors), residual.abs().amax(), new.sum().isfinite()
        within = (worst <= 2 * self.best) & (moved <= Anderson.overshoot * self.largest)
        accepted = finite & (within | ~self.jumped)
        self._keep(step.f, new, errors, accepted, lost=~finite & ~self.jumped, hit=accepted & (worst <= self.tol))
        further = torch.where(accepted, (2 * self.reach).clamp(max=1), self.reach / 4)
        self.reach.copy_(torch.where(self.jumped, further, self.reach))
        # The first states fill the memory, so that differences of what is not there yet are zero.
        empty = self.count == 0
        for memory, last in ((self.values, new), (self.residuals, residual)):
            pushed = torch.where(empty, last, torch.cat([memory[1:], last[None]]))
            memory.copy_(torch.where(accepted, pushed, memory))
        self.best.copy_(torch.where(accepted & (worst < self.best), worst, self.best))
        self.largest.copy_(torch.where(accepted, moved, self.largest))
        self.g.copy_(torch.where(accepted, new, self.values[-1]))
        self.jumped.fill_(False)
        self.count.add_(1)

    def _keep(self, f: Tensor, new: Tensor, errors: Tensor, accepted: Tensor, *, lost: Tensor, hit: Tensor) -> None:
        """Keep an iteration as the one that counts, until there is one to stop at, or none is left."""
        live = ~(self.done | self.lost | self.stale) & (self.count < self.most)
        kept, drift = live & accepted, self.update.softmin.drift(f, self.g)
        for buffer, found in ((self.f, f), (self.old, self.g), (self.new, new), (self.error, errors)):
            buffer.copy_(torch.where(kept, found, buffer))
        self.number.copy_(torch.where(live, self.count + 1, self.number))
        self.done.logical_or_(live & hit)
        self.lost.logical_or_(live & lost)
        if drift is not None:
            # As the loop that waits, it asks after extrapolations.
            self.stale.logical_or_(kept & self.jumped & (drift > self.drift))

    def _extrapolated(self) -> Tensor:
        """The combination of states with the least residual, as :class:`Anderson` makes it."""
        rows = torch.cat([self.residuals[1:] - self.residuals[:-1], self.residuals[-1:]]).movedim(0, -2)
        products = rows[..., :-1, :] @ rows.mT
        gram, along = products[..., :-1], products[..., -1:]
        gram.diagonal(dim1=-2, dim2=-1).mul_(1 + Anderson.damping).add_(torch.finfo(self.g.dtype).tiny)
        weights = torch.linalg.solve_ex(gram, along).result
        correction = (weights.mT @ (self.values[1:] - self.values[:-1]).movedim(0, -2))[..., 0, :]
        return self.values[-1] - self.reach * correction


def _largest(errors: Tensor) -> Tensor:
    """That of the batch."""
    return errors if errors.ndim == 0 else errors.amax()


class Queue(ABC):
    """The work of a device, and its reports in their order: posted while it works, and taken later."""

    @abstractmethod
    def post(self, report: Tensor) -> None:
        """Send a report, without waiting for it."""

    @abstractmethod
    def take(self) -> list[float]:
        """The oldest that was not taken yet, waiting for it if need be."""

    def captured(self, rounds: Rounds) -> Callable[[], None]:
        """What runs a round from now on."""
        return rounds.run


class Immediate(Queue):
    """A queue that is always empty, as that of a CPU is."""

    def __init__(self) -> None:
        self._posted: deque[list[float]] = deque()

    def post(self, report: Tensor) -> None:
        self._posted.append(report.tolist())

    def take(self) -> list[float]:
        return self._posted.popleft()


class Stream(Queue):
    """The current stream of a CUDA device; reports are copied to pinned memory behind the work that they tell of."""

    def __init__(self) -> None:
        self._posted: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def post(self, report: Tensor) -> None:
        there = torch.empty(report.shape, dtype=report.dtype, pin_memory=True).copy_(report, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._posted.append((there, event))

    def take(self) -> list[float]:
        there, event = self._posted.popleft()
        event.synchronize()
        found: list[float] = there.tolist()
        return found

    def captured(self, rounds: Rounds) -> Callable[[], None]:
        """A round as a graph of its launches, or as it is where a call in it cannot be captured."""
        graph, here, beside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        try:
            # Not by torch.cuda.graph, which collects garbage and empties the cache of the allocator first.
            with torch.cuda.stream(beside):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    rounds.run()
                finally:
                    graph.capture_end()
        except RuntimeError:
            return rounds.run
        return graph.replay


def pays(update: Update, g: Tensor) -> bool:
    """Whether iterations of this size are made quicker without a look at each."""
    return update.on_device and not update.softmin.reads and g.is_cuda and update.softmin.shape.numel() <= LARGE


def distances(entries: int) -> Iterator[int]:
    """Rounds until the first look, from it to the second, and so on, for matrices of so many entries together."""
    distance = 1.0
    while True:
        yield int(distance)
        # Of large problems, rounds that turn out to be in vain cost more than looks do.
        distance = min(FARTHEST, 1.4 * distance) if entries <= SMALL else 1.0


def solve(update: Update, g: Tensor, *, tol: float, max_iter: int, progress: Progress, queue: Queue) -> Potentials:
    """Iterations from ``g`` until the marginal error is within ``tol``, as :func:`~otdml.ot._iteration.iterate` does.

    Args:
        update: The fixed-point iteration, on an engine that was prepared.
        g: Reduced column potential, shape (..., m).
        tol: Relative L1 error of the marginals.
        max_iter: Most iterations.
        progress: Of the solve.
        queue: That of the device.

    Raises:
        NotFinite: If NaN or infinity comes up.
    """
    spent, drift = 0, DRIFT
    while True:
        rounds = Rounds(update, g, tol, max(1, max_iter - spent), drift)
        _run(rounds, spent, progress, queue)
        spent, lost = spent + int(rounds.number), bool(rounds.lost)
        g = rounds.new if lost else rounds.old
        # A kernel that has lost its accuracy may mislead the iteration, but not the decision to stop.
        if update.refresh(rounds.f, g, lost=lost) and (lost or spent <= max_iter):
            continue
        if lost:
            raise NotFinite
        if rounds.done or spent >= max_iter:
            return Potentials(rounds.f, rounds.new, rounds.error, min(spent, max_iter), rounds.error <= tol)
        # It was far away, and exact all the same.
        g, drift = rounds.new, 2 * drift


def _run(rounds: Rounds, spent: int, progress: Progress, queue: Queue) -> None:
    """Run rounds until no more iterations count."""
    entries, made, pending = rounds.update.softmin.shape.numel(), 0, 0
    run: Callable[[], None] = rounds.run
    for distance in distances(entries):
        for _ in range(distance if made * PERIOD < rounds.most else 0):
            if made == EAGER and entries <= SMALL:
                run = queue.captured(rounds)
            run()
            made += 1
        queue.post(rounds.report)
        pending += 1
        # While one report is waited for, the device has the rounds of the next to work on.
        if pending > 1:
            ended, number, worst = queue.take()
            progress.show(spent + int(number), worst)
            pending -= 1
            if ended:
                break
    for _ in range(pending):
        queue.take()
