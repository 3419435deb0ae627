r"""What an engine is: a way to compute soft minima over a cost, and products with plans.

Everything in an engine is dimensionless and *reduced*: it sees :math:`R / \varepsilon` of a cost
:math:`C_{ij} = u_i + v_j + R_{ij}`, and potentials :math:`(f - u) / \varepsilon` and :math:`(g - v) / \varepsilon`.
Below, R is already divided by the temperature, and h is a potential plus the logarithm of its weights. An engine never
sees a penalty or a gradient, and it is not the engine that decides when to stop.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._cost_forms import Mask
from otdml._cost_forms.base import some_rows
from otdml.costs import Ground
from otdml.ot._progress import pulse

__all__ = [
    "DRIFT",
    "NEGLIGIBLE",
    "Engine",
    "RowUpdate",
    "ScalingRule",
    "SoftMin",
    "block_entries",
    "exponential",
    "softmin",
]

# From soft minima of some rows to their potentials.
RowUpdate = Callable[[Tensor, slice], Tensor]
# From the centre of a kernel to c, shape (..., n), and t, None for one: the weights times exp(f - centre) are c s^-t,
# where s are the kernel's sums.
ScalingRule = Callable[[Tensor], tuple[Tensor, Tensor | float | None]]

# Entries of a block. On a CPU it is small enough to stay in the cache between the passes of max, exp and sum, and large
# enough that the overhead of a call does not show; a GPU needs more to be kept busy.
BLOCK = {"cpu": 2**19, "cuda": 2**24}
LARGE_BLOCK = 2**22

# Smaller entries of a kernel that is kept are set to zero: products with denormal numbers are ten times slower. Raised
# to this instead, they would link points that have nothing to do with each other, and lead the acceleration astray.
NEGLIGIBLE = 1e-25
# Potentials may leave the kernel's centre by this much before what was set to zero could matter: the entry of
# the plan is then less than 1e-25 exp(2 DRIFT) = 2e-8 of the independent coupling's. Likewise, a column whose largest
# entry is smaller than the exponential of minus this gets a centre of its own.
DRIFT = 20.0


@dataclass(frozen=True)
class Iterations:
    """Some iterations that an engine has made at once.

    Attributes:
        by_row: The rows' soft minima of the last of them, shape (..., n).
        by_column: The columns' of each, shape (times, ..., m).
        errors: The L1 distance of the plan's column sums to the weights before each, relative to the mass, shape
            (times, ...); None where it takes no less time from the soft minima.
        settled: Whether the last of these is known to be within the tolerance, and all to be accurate.
    """

    by_row: Tensor
    by_column: Tensor
    errors: Tensor | None = None
    settled: bool = False


class SoftMin(ABC):
    """Soft minima along the rows and the columns of a reduced cost: all that the iteration needs."""

    # Whether an iteration reads numbers on the host, so that none can be queued behind it.
    reads = True

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(..., n, m)."""

    @abstractmethod
    def row_softmin(self, h: Tensor) -> Tensor:
        r""":math:`-\log \sum_j \exp(h_j - R_{ij})`, shape (..., n), for h of shape (..., m).

        A column of :math:`h_j = -\infty` takes no part; a row without any admissible pair has plus infinity.
        """

    @abstractmethod
    def column_softmin(self, h: Tensor) -> Tensor:
        r""":math:`-\log \sum_i \exp(h_i - R_{ij})`, shape (..., m), for h of shape (..., n)."""

    def sweep(self, h: Tensor, log: Tensor, update: RowUpdate) -> tuple[Tensor, Tensor]:
        """Both half-steps: the ``update`` f of ``row_softmin(h)``, and ``column_softmin(f + log)``.

        Args:
            h: Shape (..., m).
            log: Shape (..., n).
            update: Takes some of ``row_softmin(h)``, and which these are.
        """
        f = update(self.row_softmin(h), slice(None))
        return f, self.column_softmin(f + log)

    def scaling_iterations(
        self, g: Tensor, b: Tensor, rows: ScalingRule, columns: ScalingRule, times: int, tol: float = 0.0
    ) -> "Iterations | None":
        """Some iterations from ``g``, quicker than sweeps; None where they would not be.

        Args:
            g: Column potential, shape (..., m).
            b: Column weights, shape (..., m).
            rows: Row scalings from the sums over columns.
            columns: Column scalings from the sums over rows.
            times: Most iterations.
            tol: Error at which no more are made, where errors take little time.
        """
        return None

    def prepare(self, g: Tensor) -> None:  # noqa: B027 (an engine that keeps nothing has nothing to prepare)
        """Make what iterations near the column potential ``g`` use; nothing by default."""

    def refresh(self, f: Tensor, g: Tensor, *, lost: bool = False) -> bool:
        """Make it anew if it has lost its accuracy at these potentials, and say whether that was so.

        Args:
            f: Row potential.
            g: Column potential.
            lost: Whether an iteration from here is not finite.
        """
        return False

    def drift(self, f: Tensor, g: Tensor) -> Tensor | None:
        """How far these potentials are from where what is kept is exact; None where it is so everywhere.

        It is :meth:`refresh` that says whether that is too far, which reads numbers.
        """
        return None

    @property
    def has_kernel(self) -> bool:
        """Whether an iteration is a product with a kernel that is kept, and so costs little."""
        return False


class Engine(SoftMin):
    r"""Soft minima and plan products of one reduced cost, by default evaluated anew in blocks of rows.

    A subclass overrides what it does better; every engine passes the same contract test.

    Args:
        cost: Reduced cost R, already divided by the temperature, shape (..., n, m).
        mask: Forbidden pairs: ``mask(rows, columns)`` is a boolean tensor, True where no mass may go, for two slices.
            It broadcasts against (..., rows, columns).
    """

    # Whether the matrix is in memory.
    keeps_matrix = False

    def __init__(self, cost: Ground, mask: Mask | None = None) -> None:
        self.cost, self.mask, self._shape = cost, mask, cost.shape

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    @abstractmethod
    def mT(self) -> "Engine":
        """The engine with rows and columns exchanged."""

    def like(self, cost: Ground) -> "Engine":
        """An engine of this kind for another reduced cost, or of another kind where this one lacks its precision."""
        return type(self)(cost, self.mask)

    def row_softmin(self, h: Tensor) -> Tensor:
        # Results are written in place: small tensors that outlive their block would keep the C library from giving
        # its memory back, up to that of the whole matrix.
        out = h.new_empty(self.shape[:-1])
        for rows, scores in self.score_blocks(h):
            out[..., rows] = softmin(scores)
        return out

    def column_softmin(self, h: Tensor) -> Tensor:
        return self.mT.row_softmin(h)

    def row_excess(self, f: Tensor, g: Tensor, b: Tensor) -> Tensor:
        r""":math:`\sum_j b_j (\exp(f_i + g_j - R_{ij}) - 1)`, shape (..., n).

        It has all its digits at temperatures above all costs, where rounding of the plan's mass drowns the costs.
        """
        out = torch.empty_like(f)
        for rows, scores in self.score_blocks(g):
            out[..., rows] = (scores.add_(f[..., rows, None]).expm1_() @ b[..., None])[..., 0]
        return out

    def plan_blocks(self, hf: Tensor, hg: Tensor) -> Iterator[tuple[slice, Tensor]]:
        r"""Blocks of rows of the plan :math:`P_{ij} = \exp(h^f_i + h^g_j - R_{ij})`, each with its slice."""
        for rows, scores in self.score_blocks(hg):
            yield rows, exponential(scores.add_(hf[..., rows, None]))

    def plan_product(self, hf: Tensor, hg: Tensor, v: Tensor) -> Tensor:
        """The plan times ``v``, shape (..., n, e) for ``v`` of shape (..., m, e)."""
        out = v.new_empty(*self.shape[:-1], v.shape[-1])
        for rows, plan in self.plan_blocks(hf, hg):
            out[..., rows, :] = plan @ v
        return out

    def plan_products(self, hf: Tensor, hg: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The plan times ``v``, and its transpose times ``w``, shapes (..., n, e) and (..., m, k)."""
        return self.plan_product(hf, hg, v), self.mT.plan_product(hg, hf, w)

    def gram(self, hf: Tensor, hg: Tensor) -> Callable[[Tensor], Tensor]:
        r"""The product of :math:`P^\top P` with a vector, shape (..., m), as a function that is called many times."""
        twin = self.mT
        return lambda v: twin.plan_product(hg, hf, self.plan_product(hf, hg, v[..., None]))[..., 0]

    def weighted_blocks(self, hf: Tensor, hg: Tensor, left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
        r"""Blocks of rows of :math:`P_{ij} \langle l_i, r_j \rangle`, each with its slice.

        Args:
            hf: Shape (..., n).
            hg: Shape (..., m).
            left: l, shape (..., n, e).
            right: r, shape (..., m, e).
        """
        for rows, plan in self.plan_blocks(hf, hg):
            yield rows, plan.mul_(left[..., rows, :] @ right.mT)

    def slopes(self, hf: Tensor, hg: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor] | None:
        r"""The gradient of :math:`\sum_{ij} P_{ij} \langle l_i, r_j \rangle R_{ij}` in the points of a fused cost.

        P is held fixed. None where the engine has nothing quicker than blocks of the plan.

        Args:
            hf: Shape (..., n).
            hg: Shape (..., m).
            left: l, shape (..., n, e).
            right: r, shape (..., m, e).
        """
        return None

    def initial_potential(self, a: Tensor, b: Tensor, *, balanced: bool) -> Tensor:
        """A column potential to start from, shape (..., m)."""
        return self.cost.gaussian_potential()

    def restricted(self, b: Tensor, g: Tensor) -> SoftMin | None:
        """Soft minima over few of the pairs that are as good near the potential ``g``; None where there are none."""
        return None

    def row_blocks(self) -> Iterator[slice]:
        """Slices that cover the rows in blocks."""
        n, m = self.shape[-2:]
        entries = block_entries(self.cost.device)
        size = max(1, min(n, entries // max(1, m * self.shape[:-2].numel())))
        for start in range(0, n, size):
            yield slice(start, min(n, start + size))
            pulse(min(1.0, (start + size) / n))

    def score_blocks(self, h: Tensor, out: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of :math:`h_j - R_{ij}`, minus infinity for forbidden pairs; the caller may overwrite them."""
        columns = slice(0, self.shape[-1])
        for rows in self.row_blocks():
            scores = self.cost.scores(rows, h, None if out is None else some_rows(out, rows))
            if self.mask is not None:
                scores.masked_fill_(self.mask(rows, columns), -torch.inf)
            yield rows, scores

    def _transposed_mask(self) -> Mask | None:
        mask = self.mask
        return mask and (lambda rows, columns: mask(columns, rows).mT)


def block_entries(device: torch.device) -> int:
    """Number of entries of a matrix that a device computes at a time."""
    return BLOCK.get(device.type, LARGE_BLOCK)


def softmin(scores: Tensor) -> Tensor:
    r""":math:`-\log \sum_j \exp s_{ij}`, which overwrites ``scores``."""
    # A row without any admissible pair has a maximum of -inf; the clamp lets it come out as +inf rather than NaN.
    top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    return exponential(scores.sub_(top)).sum(-1).log_().add_(top[..., 0]).neg_()


def exponential(scores: Tensor, low: float | None = None) -> Tensor:
    """The exponential, in place, with zeros for what is below ``low``, by default the smallest normal numbers.

    Exponentials that come out denormal, and those of minus infinity, take several times as long as others do.
    """
    low = 16 * torch.finfo(scores.dtype).tiny if low is None else low
    # One unit lower, so that rounding lifts nothing that is clamped above the threshold.
    scores.clamp_(min=math.log(low) - 1)
    # On a CPU powers of two take down to a quarter of the time, and the factor rounds no more than the scores are.
    scores = scores.mul_(1 / math.log(2)).exp2_() if scores.device.type == "cpu" else scores.exp_()
    return torch.threshold_(scores, low, 0.0)
