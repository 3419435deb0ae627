"""Soft minima and plan products fused into one kernel each, in Triton: on a GPU, without a matrix of pairs."""

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice
from otdml._cost_forms import Mask
from otdml._fused.barred import Barred
from otdml._fused.device import PRECISIONS, check_device, present
from otdml.costs import Ground
from otdml.ot.engines.base import Engine
from otdml.ot.engines.streamed import Streamed

if TYPE_CHECKING:
    from otdml._fused._triton_launch import FusedCost

__all__ = ["PRECISIONS", "Fused", "pays"]

# Where a kernel matrix fits, a half-step with it reads 4 bytes of each pair; that is slower than to compute the pair
# anew from this many features, once there are so many pairs that launches do not show. From arithmetic, not measured.
PAIRS, FEATURES = 2**22, 16


def pays(cost: Ground, mask: Mask | None, fits: bool) -> bool:
    """Whether the fused engine takes this problem, and is expected to be faster than others are.

    Args:
        cost: The reduced cost.
        mask: Forbidden pairs.
        fits: Whether a dense kernel would fit in memory.
    """
    if cost.device.type != "cuda" or cost.dtype == torch.float64 or not present():
        return False
    if not (mask is None or isinstance(mask, Barred)) or cost.tile() is None:
        return False
    return not fits or (cost.shape.numel() >= PAIRS and cost.first.shape[-1] <= FEATURES)


class Fused(Engine):
    r"""Soft minima and plan products from tiles that never leave the chip, in single precision.

    It takes bilinear costs, distances and angles, and a mask that is :class:`~otdml._fused.barred.Barred`. Sums and
    matrix products are in full single precision. Results are the same on every run, on one kind of GPU.

    Args:
        cost: Reduced cost R, already divided by the temperature, shape (..., n, m).
        mask: Forbidden pairs, or None.
        precision: Of matrix products, which bilinear costs of more than four features are made of: ``"ieee"``;
            ``"tf32x3"``, on tensor cores at a third of their rate, nearly as exact; ``"tf32"``, with an error of up to
            :math:`2 \cdot 10^{-3} \lvert q \rvert \lvert k \rvert` in each entry of R, as tensor cores leave out the
            bits that they do not multiply; ``"bf16"``, with one of :math:`8 \cdot 10^{-3}`. Factors of plan products,
            and the plan in them, lose as many bits. The mean error of random points is a tenth of that or less.

    Raises:
        ValueError: If the cost or the mask is of another kind, or the precision is unknown.
    """

    reads = False

    def __init__(self, cost: Ground, mask: Mask | None = None, precision: str = "ieee") -> None:
        if not (mask is None or isinstance(mask, Barred)):
            raise argument_error("backend", "be 'dense' or 'streamed' where a function forbids pairs", "'triton'")
        if cost.tile() is None:
            raise argument_error("backend", "be 'dense' or 'streamed' for a matrix or a function", "'triton'")
        self.precision = check_choice("precision", precision, PRECISIONS)
        check_device(cost.device)
        super().__init__(cost, mask)

    @property
    def mT(self) -> "Fused":
        twin = Fused(self.cost.mT, self.mask and self._barred.mT, self.precision)
        # What was laid out for the rows of one is for the columns of the other.
        twin.__dict__["fused"] = self.fused.mT
        return twin

    def like(self, cost: Ground) -> Engine:
        double = cost.dtype == torch.float64
        return Streamed(cost, self.mask) if double else Fused(cost, self.mask, self.precision)

    @property
    def _barred(self) -> Barred:
        assert isinstance(self.mask, Barred)
        return self.mask

    @functools.cached_property
    def fused(self) -> "FusedCost":
        """The cost with one batch dimension."""
        from otdml._fused._triton_launch import FusedCost

        found = self.cost.tile()
        assert found is not None
        form, x, y, factor = found
        factors = None
        if form != "product":
            factors = torch.as_tensor(1.0 if factor is None else factor, dtype=torch.float32, device=x.device)
            factors = factors.expand(self.shape[:-2]).reshape(self.shape[:-2].numel()).contiguous()
        barred = None if self.mask is None else self._barred
        return FusedCost(form, self._flat(x, 2), self._flat(y, 2), factors, barred, self.precision)

    @functools.cached_property
    def _columns(self) -> "FusedCost":
        return self.fused.mT

    def _flat(self, t: Tensor, dims: int) -> Tensor:
        """``t``, with ``dims`` dimensions after those of the batch, with one batch dimension."""
        own, batch = t.shape[t.ndim - dims :], self.shape[:-2]
        return t.expand(*batch, *own).reshape(batch.numel(), *own)

    def _shaped(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return t.to(dtype).reshape(*self.shape[:-2], *t.shape[1:])

    def row_softmin(self, h: Tensor) -> Tensor:
        return self._shaped(self.fused.softmin(self._flat(h, 1)), h.dtype)

    def column_softmin(self, h: Tensor) -> Tensor:
        return self._shaped(self._columns.softmin(self._flat(h, 1)), h.dtype)

    def row_excess(self, f: Tensor, g: Tensor, b: Tensor) -> Tensor:
        f, g, b = (self._flat(h, 1) for h in (f, g, b))
        found = self.fused.product(f, g, b[..., None], excess=True)
        return self._shaped(found[..., 0], f.dtype)

    def plan_product(self, hf: Tensor, hg: Tensor, v: Tensor) -> Tensor:
        found = self.fused.product(self._flat(hf, 1), self._flat(hg, 1), self._flat(v, 2))
        return self._shaped(found, v.dtype)

    def slopes(self, hf: Tensor, hg: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor] | None:
        hf, hg = self._flat(hf, 1), self._flat(hg, 1)
        left, right = self._flat(left, 2), self._flat(right, 2)
        dx = _slope(self.fused, hf, hg, left, right)
        dy = _slope(self._columns, hg, hf, right, left)
        return self._shaped(dx, hf.dtype), self._shaped(dy, hf.dtype)


def _slope(cost: "FusedCost", hf: Tensor, hg: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""The gradient of :math:`\sum_{ij} P_{ij} \langle l_i, r_j \rangle R_{ij}` in x.

    With s the slope of the cost it is :math:`\sum_j P_{ij} \langle l_i, r_j \rangle s_{ij} (x_i - y_j)` for a distance,
    and for an angle the same without its part along :math:`x_i`, which the derivative of a direction leaves out.
    """
    one = left.shape[-1] == 1
    scale, weights = (right, None) if one else (torch.ones_like(right[..., :1]), (left, right))
    if cost.form == "product":
        found = -cost.product(hf, hg, cost.y * scale, weights=weights)
    elif cost.form == "angle":
        found = -cost.product(hf, hg, cost.y * scale, weights=weights, slope=True)
    else:
        centre = cost.y.mean(1, keepdim=True)
        beside_one = torch.cat([cost.y - centre, torch.ones_like(cost.y[..., :1])], -1)
        sums = cost.product(hf, hg, beside_one * scale, weights=weights, slope=True)
        found = (cost.x - centre) * sums[..., -1:] - sums[..., :-1]
    return found * left if one else found
