r"""One iteration of Sinkhorn's algorithm, or several: the potentials, and the updates that improve them.

The state is a reduced dimensionless column potential g. An *update* makes one or several fixed-point iterations of it:
the alternating one of two half-steps, or the symmetric one of a measure with itself. Those that other files add, as the
one for temperatures above all costs, go through the same loop, :func:`~otdml.ot._iteration.iterate`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otdml.ot._marginal import Marginal
from otdml.ot.engines import SoftMin

__all__ = ["Alternating", "NotFinite", "Potentials", "Step", "Symmetric", "Update"]


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
        return bool(self.converged.all() if self.converged.ndim else self.converged)


class NotFinite(ArithmeticError):
    """An iteration gave NaN or infinity."""


@dataclass(frozen=True)
class Step:
    """Some iterations, made at once.

    Attributes:
        start: The state that the first of them started from, shape (..., m).
        f: Row potential of the last of them, shape (..., n).
        new: The states that they ended at, shape (times, ..., m).
        errors: Relative L1 errors of the marginals at the states that they started from, shape (times, ...).
        settled: Whether the last error is known to be within the tolerance, and the potentials to be accurate.
    """

    start: Tensor
    f: Tensor
    new: Tensor
    errors: Tensor
    settled: bool = False

    @property
    def old(self) -> Tensor:
        """The states that they started from, shape (times, ..., m)."""
        return torch.cat((self.start[None], self.new[:-1]))

    @property
    def last(self) -> Tensor:
        """The state that the last of them started from, shape (..., m)."""
        return self.new[-2] if self.new.shape[0] > 1 else self.start

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
    def step(self, g: Tensor, times: int, tol: float = 0.0) -> Step:
        """At most that many iterations from ``g``; fewer where it is known soon that the error is within ``tol``."""

    def refresh(self, f: Tensor, g: Tensor, *, lost: bool = False) -> bool:
        """Make what its soft minima keep anew if it has lost its accuracy, and say whether that was so."""
        return self.softmin.refresh(f, g, lost=lost)


class Alternating(Update):
    """Sinkhorn's iteration :cite:p:`cuturi:13`: the row potential from the column potential, and back."""

    on_device = True

    def step(self, g: Tensor, times: int, tol: float = 0.0) -> Step:
        rows, columns = self.rows, self.columns
        found = self.softmin.scaling_iterations(g, columns.weights, rows.scaling, columns.scaling, times, tol)
        f, softmins = self._sweeps(g, times) if found is None else (rows.update(found.by_row), found.by_column)
        new = columns.update(softmins)
        if found is not None and found.errors is not None:
            return Step(g, f, new, found.errors, found.settled)
        return Step(g, f, new, columns.error(torch.cat((g[None], new[:-1])), softmins))

    def _sweeps(self, g: Tensor, times: int) -> tuple[Tensor, Tensor]:
        """The row potential of the last of some iterations, and the columns' soft minima of each."""
        rows, columns = self.rows, self.columns
        softmins = []
        for _ in range(times):
            f, softmin = self.softmin.sweep(g + columns.log, rows.log, rows.update)
            softmins.append(softmin)
            g = columns.update(softmin)
        return f, torch.stack(softmins)


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

    def step(self, g: Tensor, times: int, tol: float = 0.0) -> Step:
        softmin = self.softmin.row_softmin(g + self.columns.log)
        error = self.rows.error(g - self.shift, softmin)
        f = self.rows.update(softmin)
        return Step(g, f, (0.5 * (g + f + self.shift))[None], error[None])
