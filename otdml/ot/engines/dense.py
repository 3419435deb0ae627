"""Soft minima and plan products on a kernel matrix that is kept."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from otdml._cost_forms import Mask
from otdml.costs import Ground
from otdml.ot.engines.base import DRIFT, NEGLIGIBLE, Engine, Iterations, ScalingRule, exponential
from otdml.ot.engines.small import FIRST, SMALL, Array, Scaling, scaled, small_iterations

__all__ = ["Dense"]

# As DRIFT, for a kernel of which nothing was set to zero, where it is single precision that ends.
SAFE = 60.0
# After so many centres that did not hold, or so many one after the other, there is none that does, as in unbalanced
# problems at low temperatures, whose potentials are far from a hard minimum: no kernel is kept then.
MOST_CENTRES, IN_A_ROW = 10, 3


class Dense(Engine):
    r"""Soft minima as products with a kernel that is kept.

    The kernel is :math:`K_{ij} = \exp(f_i + g_j - R_{ij})` at a centre (f, g) at which the largest entry of every
    row and column is one. A soft minimum is then a matrix-vector product, bound by memory, instead of a pass of
    exponentials, and neither over- nor underflows as long as the potentials stay near the centre.
    """

    keeps_matrix, reads = True, False

    def __init__(self, cost: Ground, mask: Mask | None = None) -> None:
        super().__init__(cost.evaluated(), mask)
        self.kernel: Tensor | None = None
        # Whether potentials are shifted before they are exponentiated; and whether they are so far from the centre of a
        # kernel that stays as it is that their scalings, which are not shifted, would overflow.
        self.shifts = self.far = False
        self.centres, self.in_a_row = 1, 0

    @classmethod
    def centred(cls, cost: Ground, kernel: Tensor, f: Tensor, g: Tensor) -> "Dense":
        """An engine whose kernel has been made already, centred at (f, g)."""
        engine = cls(cost)
        engine.kernel, engine.f, engine.g = kernel, f, g
        return engine

    @property
    def mT(self) -> "Dense":
        twin = Dense(self.cost.mT, self._transposed_mask())
        if self.kernel is not None:
            twin.kernel, twin.f, twin.g, twin.shifts, twin.far = self.kernel.mT, self.g, self.f, self.shifts, self.far
        return twin

    def prepare(self, g: Tensor) -> None:
        """Centre the kernel at ``g`` and at the hard minimum over it."""
        # A kernel that is centred anew stays where it is: fresh memory costs as much as its entries.
        if self.kernel is None:
            self.kernel = g.new_empty(self.shape)
        self.g = g
        columns = self._fill(g)
        # Where columns have mass already, as they do for clouds that overlap, one pass is enough.
        if float(columns.amin()) < -DRIFT:
            columns.clamp_(min=torch.finfo(g.dtype).min)
            self.g = g - columns
            self._fill(g, columns)

    def _fill(self, g: Tensor, columns: Tensor | None = None) -> Tensor:
        """Write the kernel centred at ``g - columns`` while its blocks are in the cache; the columns' log maxima."""
        assert self.kernel is not None
        tops, highest = [], []
        for _, scores in self.score_blocks(g, out=self.kernel):
            top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(g.dtype).min)
            scores.sub_(top)
            tops.append(top[..., 0])
            if columns is not None:
                scores.sub_(columns[..., None, :])
            else:
                highest.append(scores.amax(-2))
            exponential(scores, NEGLIGIBLE)
        self.f = (torch.cat(tops, -1) if len(tops) > 1 else tops[0]).neg_()
        return torch.stack(highest).amax(0) if len(highest) > 1 else highest[0] if highest else g

    @property
    def has_kernel(self) -> bool:
        return self.kernel is not None

    @property
    def _small(self) -> bool:
        """Whether calls into torch would take longer than products with the kernel."""
        kernel = self.kernel
        return kernel is not None and kernel.ndim == 2 and kernel.numel() <= SMALL and kernel.device.type == "cpu"

    @property
    def exact(self) -> bool:
        """Whether no entry of the kernel was set to zero."""
        return self.kernel is not None and bool(self.kernel.amin() > 0)

    def drift(self, f: Tensor, g: Tensor) -> Tensor | None:
        if self.kernel is None:
            return None
        return torch.maximum((f - self.f).abs_().max(), (g - self.g).abs_().max())

    def refresh(self, f: Tensor, g: Tensor, *, lost: bool = False) -> bool:
        if self.kernel is None:
            return False
        drift = max(float((f - self.f).abs_().max()), float((g - self.g).abs_().max()))
        if not lost and (drift <= DRIFT or (drift <= SAFE and self.exact)):
            self.in_a_row = 0
            return False
        first, self.shifts = not self.shifts, True
        if self.exact and (first or not lost):
            self.far = True
            return first
        self.centres, self.in_a_row = self.centres + 1, self.in_a_row + 1
        if self.centres < MOST_CENTRES and self.in_a_row < IN_A_ROW and (first or not lost):
            self.prepare(g)
        else:
            self.kernel = None
        return True

    def row_softmin(self, h: Tensor) -> Tensor:
        return super().row_softmin(h) if self.kernel is None else self._softmin(self.kernel, h - self.g, self.f)

    def column_softmin(self, h: Tensor) -> Tensor:
        return super().column_softmin(h) if self.kernel is None else self._softmin(self.kernel.mT, h - self.f, self.g)

    def scaling_iterations(
        self, g: Tensor, b: Tensor, rows: ScalingRule, columns: ScalingRule, times: int, tol: float = 0.0
    ) -> Iterations | None:
        if self.kernel is None or self.far:
            return None
        left, right = rows(self.f), columns(self.g)
        # Powers of sums that are shifted are not those of the sums.
        if self.shifts and not left[1] is right[1] is None:
            return None
        if self._small:
            return _by_numpy(self, g, b, left, right, times, tol)
        v = (g - self.g).exp_().mul_(b)
        by_row, sums = _by_torch(self.kernel, left, right, v, min(times, FIRST))
        return Iterations(self.f - by_row.log_(), self.g - sums.log_())

    def _softmin(self, kernel: Tensor, h: Tensor, centre: Tensor) -> Tensor:
        # Plans of little mass, as unbalanced problems have them, lie far from the centre in one direction only.
        if self.shifts:
            h, top = _shifted(h)
            centre = centre - top
        return centre - _times(kernel, h.exp_()).log_()

    def _scalings(self, hf: Tensor, hg: Tensor) -> tuple[Tensor, Tensor]:
        v, top = _shifted(hg - self.g)
        return (hf - self.f).add_(top).exp_(), v.exp_()

    def plan_blocks(self, hf: Tensor, hg: Tensor) -> Iterator[tuple[slice, Tensor]]:
        if self.kernel is None:
            yield from super().plan_blocks(hf, hg)
            return
        u, v = self._scalings(hf, hg)
        for rows in self.row_blocks():
            yield rows, (self.kernel[..., rows, :] * v[..., None, :]).mul_(u[..., rows, None])

    def plan_product(self, hf: Tensor, hg: Tensor, v: Tensor) -> Tensor:
        if self.kernel is None:
            return super().plan_product(hf, hg, v)
        left, right = self._scalings(hf, hg)
        return (self.kernel @ (right[..., None] * v)).mul_(left[..., None])

    def gram(self, hf: Tensor, hg: Tensor) -> Callable[[Tensor], Tensor]:
        kernel = self.kernel
        if kernel is None:
            plan = torch.cat([block for _, block in self.plan_blocks(hf, hg)], -2)
            return lambda v: _times(plan.mT, _times(plan, v))
        left, right = self._scalings(hf, hg)
        # Not by the squares, which could overflow.
        return lambda v: _times(kernel.mT, _times(kernel, right * v).mul_(left).mul_(left)).mul_(right)

    def weighted_blocks(self, hf: Tensor, hg: Tensor, left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
        # Scalings of potentials far from the centre, times large weights, could overflow.
        if self.kernel is None or self.shifts:
            yield from super().weighted_blocks(hf, hg, left, right)
            return
        u, v = (t[..., None] for t in self._scalings(hf, hg))
        left, right = left * u, right * v
        for rows in self.row_blocks():
            yield rows, (left[..., rows, :] @ right.mT).mul_(self.kernel[..., rows, :])


def _shifted(h: Tensor) -> tuple[Tensor, Tensor]:
    top = h.amax(-1, keepdim=True)
    return h.sub_(top), top


def _by_numpy(
    engine: Dense, g: Tensor, b: Tensor, rows: Scaling[Tensor], columns: Scaling[Tensor], times: int, tol: float
) -> Iterations:
    assert engine.kernel is not None
    left, right = _each(rows, Tensor.numpy), _each(columns, Tensor.numpy)
    weights, centre = b.numpy(), engine.g.numpy()
    with np.errstate(all="ignore"):
        start = np.exp(g.numpy() - centre) * weights
        found = small_iterations(engine.kernel.numpy(), left, right, weights, start, times=times, tol=tol)
        f, new = engine.f.numpy() - np.log(found.by_row), centre - np.log(found.by_column)
    errors = None if found.errors is None else torch.from_numpy(found.errors)
    return Iterations(torch.from_numpy(f), torch.from_numpy(new), errors, found.settled)


def _by_torch(
    kernel: Tensor, rows: Scaling[Tensor], columns: Scaling[Tensor], v: Tensor, times: int
) -> tuple[Tensor, Tensor]:
    if kernel.ndim > 2:
        rows, columns, v = _each(rows, _as_rows), _each(columns, _as_rows), _as_rows(v)
    made = list(itertools.islice(scaled(kernel, kernel.mT, rows, columns, v), times))
    by_row, sums = made[-1][1], torch.stack([sums for _, _, sums in made])
    return (by_row, sums) if kernel.ndim == 2 else (by_row[..., 0, :], sums[..., 0, :])


def _each(scaling: Scaling[Tensor], change: Callable[[Tensor], Array]) -> Scaling[Array]:
    c, power = scaling
    return change(c), change(power) if isinstance(power, Tensor) else power


def _as_rows(v: Tensor) -> Tensor:
    return v[..., None, :]


def _times(kernel: Tensor, v: Tensor) -> Tensor:
    # Rows times a batch of matrices take half of the time of matrices times columns, or less.
    return torch.mv(kernel, v) if v.ndim == 1 else (v[..., None, :] @ kernel.mT)[..., 0, :]
