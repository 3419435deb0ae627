"""Anderson acceleration of a fixed-point iteration."""

from collections import deque

import torch
from torch import Tensor

__all__ = ["Anderson"]

# Iterations after which their iterates are extrapolated, at the least: every iterate is remembered, and some are
# extrapolated, which takes about as few iterations at a third of the cost.
PERIOD = 3
# Of iterates that were made at once, the last that are remembered: neighbours tell little that is new, and would crowd
# out those that came before, which a slow iteration needs.
RECENT = 4


class Anderson:
    """Extrapolation of the iterates so far :cite:p:`walker:11`, with a way back to the plain iteration.

    The residuals of the last iterates are fitted by least squares, and the combination that makes them least is the
    next iterate. Where that leads astray, the share of the way that is gone is reduced.
    """

    memory = 16
    # Relative to the diagonal of the normal equations, which single precision does not resolve further.
    damping = 1e-6
    # A single point may move further for a while, and the others profit.
    overshoot = 16.0
    # Iterations without effect, whose errors differ by this part of themselves, after which steps are lengthened.
    idle, level = 200, 0.05

    def __init__(self) -> None:
        self._trail: deque[tuple[Tensor, Tensor]] = deque()
        self._reach = 1.0
        self._plain = 0
        self._errors: deque[float] = deque(maxlen=self.idle)
        self._length = 1.0
        # Whether the last iterate is an extrapolated one.
        self.extrapolated = False

    def step(self, old: Tensor, new: Tensor) -> Tensor:
        """The next iterate, after the map took each of ``old``, shape (times, ...), to one of ``new``."""
        if self.extrapolated:
            self._reach = min(1.0, 2 * self._reach)
        self._plain += new.shape[0]
        old, new = old[-RECENT:], new[-RECENT:]
        while len(self._trail) * new.shape[0] > self.memory:
            self._trail.popleft()
        self._trail.append((new - old, new))
        self.extrapolated = self._plain >= PERIOD
        if not self.extrapolated:
            return new[-1]
        self._plain = 0
        return self._combined(*(torch.cat(part)[-self.memory - 1 :] for part in zip(*self._trail, strict=True)))

    def _combined(self, residuals: Tensor, new: Tensor) -> Tensor:
        # The differences of residuals, and below them the last one: one product has all that the fit needs.
        rows = torch.cat((residuals[1:] - residuals[:-1], residuals[-1:])).movedim(0, -2)
        products = rows[..., :-1, :] @ rows.mT
        gram, along = products[..., :-1], products[..., -1:]
        gram.diagonal(dim1=-2, dim2=-1).mul_(1 + self.damping).add_(torch.finfo(new.dtype).tiny)
        weights = torch.linalg.solve_ex(gram, along).result
        return new[-1].sub((weights.mT @ (new[1:] - new[:-1]).movedim(0, -2))[..., 0, :], alpha=self._reach)

    def stride(self, start: Tensor, new: Tensor, errors: Tensor, worst: list[float]) -> Tensor | None:
        """The next iterate where neither iterations nor extrapolations have had an effect for long; None elsewhere.

        A point of one admissible partner, whose potential has hundreds of temperatures to go, moves on by steps of one
        length: residuals that do not differ tell nothing of where they vanish. So each step is twice as long as the
        last one, until one leads astray.

        Args:
            start: The state that the last iteration started from, shape (..., m).
            new: The state that it ended at.
            errors: The errors of the batch at ``start``, shape (...).
            worst: The largest errors of the batch in the last iterations.
        """
        self._errors.extend(worst)
        if len(self._errors) < self.idle or min(self._errors) < (1 - self.level) * max(self._errors):
            self._length = 1.0
            return None
        self._length *= 2
        self._plain, self.extrapolated = 0, True
        slow = errors >= (1 - self.level) * worst[-1]
        return new + self._length * torch.where(slow[..., None], new - start, 0.0)

    def overshot(self, residual: Tensor) -> bool:
        """Whether the extrapolation has led to where the map moves far; without it, it moves ever less."""
        last = self._trail[-1][0][-1]
        return not float(residual.abs().max()) <= self.overshoot * float(last.abs().max())

    def retreat(self) -> Tensor:
        """The plain iterate in place of the extrapolated one."""
        if self._length > 1:
            self._length = max(1.0, self._length / 8)
        else:
            self._reach /= 4
        self._plain, self.extrapolated = 0, False
        return self._trail[-1][1][-1]
