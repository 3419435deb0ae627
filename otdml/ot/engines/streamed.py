"""Soft minima and plan products in blocks of rows: memory linear in the number of points."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from otdml.costs import Bilinear, Ground

__all__ = ["Mask", "Streamed", "Update", "exponential", "softmin"]

Mask = Callable[[slice, slice], Tensor]
# From soft minima of some rows to their potentials.
Update = Callable[[Tensor, slice], Tensor]

# Entries of a block: small enough to stay in the cache between the passes of max, exp and sum, large enough that the
# overhead of a call does not show.
BLOCK = 2**19


class Streamed:
    r"""Soft minima of a dimensionless reduced cost, evaluated anew in blocks of rows.

    Results are written in place: small tensors that outlive their block would keep the C library from giving its
    memory back, up to that of the whole matrix.

    Args:
        cost: Reduced cost R, already divided by the temperature, shape (..., n, m).
        mask: Forbidden pairs: ``mask(rows, columns)`` is a boolean tensor, True where no mass may go, for two slices.
            It broadcasts against (..., rows, columns).
    """

    keeps_matrix = False

    def __init__(self, cost: Ground, mask: Mask | None = None) -> None:
        self.cost, self.mask = cost, mask

    @property
    def has_kernel(self) -> bool:
        """Whether an iteration is a product with a kernel that is kept, and so costs little."""
        return False

    @property
    def shape(self) -> torch.Size:
        return self.cost.shape

    @property
    def mT(self) -> "Streamed":
        return Streamed(self.cost.mT, self._mask_transposed())

    def _mask_transposed(self) -> Mask | None:
        mask = self.mask
        return mask and (lambda rows, columns: mask(columns, rows).mT)

    def start(self, a: Tensor, b: Tensor, *, balanced: bool) -> Tensor:
        r"""A column potential to start from: the optimal one between Gaussians of the points' spreads.

        With independent coordinates, :math:`q_e` of variance S and :math:`k_e` of variance T, it is
        :math:`-\sum_e k_e^2 S / (1 + \sqrt{1 + 4 S T})`.
        """
        cost = self.cost
        if not isinstance(cost, Bilinear):
            return cost.leaves[0].new_zeros(*cost.shape[:-2], cost.shape[-1])
        squares = cost.k.square()
        s, t = cost.q.square().mean(-2), squares.mean(-2)
        return -(squares @ (s / (1 + torch.sqrt(1 + 4 * s * t)))[..., None])[..., 0]

    def centre(self, g: Tensor) -> None:
        """Nothing: no kernel is kept."""

    def recentre(self, f: Tensor, g: Tensor, *, lost: bool = False) -> bool:
        """False: no kernel is kept that could have lost its accuracy."""
        return False

    def row_slices(self) -> Iterator[slice]:
        """Slices that cover the rows in blocks."""
        n, m = self.shape[-2:]
        size = max(1, min(n, BLOCK // (m * self.shape[:-2].numel())))
        return (slice(start, min(n, start + size)) for start in range(0, n, size))

    def _blocks(self, h: Tensor, out: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        columns = slice(0, self.shape[-1])
        for rows in self.row_slices():
            scores = self.cost.scores(rows, h, None if out is None else out[..., rows, :])
            if self.mask is not None:
                scores.masked_fill_(self.mask(rows, columns), -torch.inf)
            yield rows, scores

    def rows(self, h: Tensor) -> Tensor:
        r""":math:`-\log \sum_j \exp(h_j - R_{ij})`, shape (..., n)."""
        out = h.new_empty(self.shape[:-1])
        for rows, scores in self._blocks(h):
            out[..., rows] = softmin(scores)
        return out

    def columns(self, h: Tensor) -> Tensor:
        r""":math:`-\log \sum_i \exp(h_i - R_{ij})`, shape (..., m)."""
        return Streamed(self.cost.mT, self._mask_transposed()).rows(h)

    def sweep(self, h: Tensor, log: Tensor, update: Update) -> tuple[Tensor, Tensor]:
        """The ``update`` f of ``rows(h)``, and ``columns(f + log)``: one evaluation of the cost where that is safe.

        Args:
            h: Shape (..., m).
            log: Shape (..., n).
            update: Takes some of ``rows(h)``, and which these are.
        """
        if bool(h.isneginf().any()):
            # A column without mass has a soft minimum all the same, to which its potential in ``h`` is no key.
            return self._two_passes(h, log, update)
        f, sums = torch.empty_like(log), torch.zeros_like(h)
        for rows, scores in self._blocks(h):
            top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(h.dtype).min)
            powers = exponential(scores.sub_(top))
            f[..., rows] = update(powers.sum(-1).log_().add_(top[..., 0]).neg_(), rows)
            masses = (f[..., rows] + log[..., rows]).add_(top[..., 0]).exp_()
            sums += (masses[..., None, :] @ powers)[..., 0, :]
        # In single precision a column that is far below its rows' largest entries has lost them to underflow.
        safe = (sums > torch.finfo(h.dtype).tiny ** 0.5) & sums.isfinite()
        return (f, h - sums.log_()) if bool(safe.all()) else (f, self.columns(f + log))

    def _two_passes(self, h: Tensor, log: Tensor, update: Update) -> tuple[Tensor, Tensor]:
        f = update(self.rows(h), slice(None))
        return f, self.columns(f + log)

    def scalings(self, g: Tensor, a: Tensor, b: Tensor, times: int) -> tuple[Tensor, Tensor] | None:
        """Some iterations with hard marginals from ``g``, quicker than sweeps; None where they would not be.

        Args:
            g: Column potential, shape (..., m).
            a: Row weights, shape (..., n).
            b: Column weights, shape (..., m).
            times: Number of iterations.

        Returns:
            The row potential of the last iteration, and the columns' soft minima of each, shape (times, ..., m).
        """
        return None

    def excess(self, f: Tensor, g: Tensor, b: Tensor) -> Tensor:
        r""":math:`\sum_j b_j (\exp(f_i + g_j - R_{ij}) - 1)`, shape (..., n), to all digits where it is small."""
        out = torch.empty_like(f)
        for rows, scores in self._blocks(g):
            out[..., rows] = (scores.add_(f[..., rows, None]).expm1_() @ b[..., None])[..., 0]
        return out

    def plan(self, hf: Tensor, hg: Tensor) -> Iterator[tuple[slice, Tensor]]:
        r"""Blocks of rows of the plan :math:`P_{ij} = \exp(h^f_i + h^g_j - R_{ij})`, each with its slice."""
        for rows, scores in self._blocks(hg):
            yield rows, exponential(scores.add_(hf[..., rows, None]))

    def product(self, hf: Tensor, hg: Tensor, v: Tensor) -> Tensor:
        """The plan times ``v``, shape (..., n, e)."""
        out = v.new_empty(*self.shape[:-1], v.shape[-1])
        for rows, plan in self.plan(hf, hg):
            out[..., rows, :] = plan @ v
        return out

    def sparse(self, b: Tensor, g: Tensor) -> "Streamed | None":
        """An engine of few of the pairs, which is as good near the potential ``g``; None where there is none."""
        return None


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
    scores.clamp_(min=math.log(low) - 1).exp_()
    return torch.threshold_(scores, low, 0.0)
