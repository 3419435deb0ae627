"""Soft minima and plan products on a kernel matrix that is kept."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from otdml._cost_forms import Mask
from otdml.costs import Ground
from otdml.ot.engines.base import Engine, ScalingRule, exponential

__all__ = ["Dense"]

Array = TypeVar("Array", Tensor, "np.ndarray[Any, Any]")
Scaling = tuple[Array, Array | float | None]

# Smaller kernel entries are set to zero: products with denormal numbers are ten times slower. Raised to this instead,
# they would link points that have nothing to do with each other, and lead the acceleration astray.
NEGLIGIBLE = 1e-25
# Potentials may leave the kernel's centre by this much before what was set to zero could matter: the entry of
# the plan is then less than 1e-25 exp(2 DRIFT) = 2e-8 of the independent coupling's. Likewise, a column whose largest
# entry is smaller than the exponential of minus this gets a centre of its own.
DRIFT = 20.0
# The same for a kernel of which nothing was set to zero, where it is single precision that ends.
SAFE = 60.0
# Entries of a kernel up to which NumPy, whose calls take a third of torch's, is quicker on a CPU.
TINY = 2**16
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
        self.f = _joined(tops).neg_()
        return torch.stack(highest).amax(0) if len(highest) > 1 else highest[0] if highest else g

    @property
    def has_kernel(self) -> bool:
        return self.kernel is not None

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
        self, g: Tensor, b: Tensor, rows: ScalingRule, columns: ScalingRule, times: int
    ) -> tuple[Tensor, Tensor] | None:
        if self.kernel is None or self.far:
            return None
        left, right = rows(self.f), columns(self.g)
        # Powers of sums that are shifted are not those of the sums.
        if self.shifts and not left[1] is right[1] is None:
            return None
        tiny = self.kernel.ndim == 2 and self.kernel.numel() <= TINY and self.kernel.device.type == "cpu"
        v = (g - self.g).exp_().mul_(b)
        by_row, sums = (_by_numpy if tiny else _by_torch)(self.kernel, left, right, v, times)
        return self.f - by_row.log_(), self.g - sums.log_()

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


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _shifted(h: Tensor) -> tuple[Tensor, Tensor]:
    top = h.amax(-1, keepdim=True)
    return h.sub_(top), top


def _scaled(
    kernel: Array, transposed: Array, rows: Scaling[Array], columns: Scaling[Array], v: Array, times: int
) -> tuple[Array, list[Array]]:
    """The kernel's products in some iterations: with the last column scalings, and with the row scalings of each."""
    (a, power), (b, other_power), sums = rows, columns, []
    for _ in range(times):
        by_row = v @ transposed
        sums.append((a / by_row if power is None else a * by_row**-power) @ kernel)
        v = b / sums[-1] if other_power is None else b * sums[-1] ** -other_power
    return by_row, sums


def _by_numpy(
    kernel: Tensor, rows: Scaling[Tensor], columns: Scaling[Tensor], v: Tensor, times: int
) -> tuple[Tensor, Tensor]:
    left, right = (_each(scaling, Tensor.numpy) for scaling in (rows, columns))
    with np.errstate(all="ignore"):
        by_row, sums = _scaled(kernel.numpy(), kernel.mT.numpy(), left, right, v.numpy(), times)
    return torch.from_numpy(by_row), torch.from_numpy(np.array(sums))


def _by_torch(
    kernel: Tensor, rows: Scaling[Tensor], columns: Scaling[Tensor], v: Tensor, times: int
) -> tuple[Tensor, Tensor]:
    if kernel.ndim == 2:
        by_row, sums = _scaled(kernel, kernel.mT, rows, columns, v, times)
        return by_row, torch.stack(sums)
    left, right = (_each(scaling, _as_rows) for scaling in (rows, columns))
    by_row, sums = _scaled(kernel, kernel.mT, left, right, _as_rows(v), times)
    return by_row[..., 0, :], torch.stack(sums)[..., 0, :]


def _each(scaling: Scaling[Tensor], change: Callable[[Tensor], Array]) -> Scaling[Array]:
    c, power = scaling
    return change(c), change(power) if isinstance(power, Tensor) else power


def _as_rows(v: Tensor) -> Tensor:
    return v[..., None, :]


def _times(kernel: Tensor, v: Tensor) -> Tensor:
    # Rows times a batch of matrices take half of the time of matrices times columns, or less.
    return torch.mv(kernel, v) if v.ndim == 1 else (v[..., None, :] @ kernel.mT)[..., 0, :]
