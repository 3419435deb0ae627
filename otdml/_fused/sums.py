r"""Sums of Gaussian and Laplacian kernels on the tiles of fused engines, which exponentiate the same costs.

A kernel :math:`\exp(-c(x, y))` is the plan of the cost c at potentials of zero, so its sums over a cloud are products
with that plan, and their gradients are its products with the slopes of the cost.
"""

from typing import Protocol

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml._fused.barred import Barred
from otdml._fused.device import check_device

__all__ = ["Exponential", "check_fusible", "fused_sums"]

# The form of a cost, and its factor.
Cost = tuple[str, float]


def check_fusible(cost: Cost | None, x: Tensor) -> str:
    """The backend for points: ``"triton"``, or ``"streamed"`` in double precision, which tiles do not have.

    Raises:
        ValueError: If the kernel is no exponential of a cost that tiles are made of.
    """
    if cost is None:
        must = "be 'dense', 'streamed' or 'keops' for kernels that are neither Gaussian nor Laplacian"
        raise argument_error("backend", must, "'triton'")
    check_device(x.device)
    return "streamed" if x.dtype == torch.float64 else "triton"


class Exponential(Protocol):
    """A kernel that is the exponential of minus a cost, less a shift."""

    @property
    def tile(self) -> Cost | None: ...

    @property
    def shift(self) -> Tensor | None: ...


def fused_sums(
    kernel: Exponential, x: Tensor, a: Tensor, y: Tensor, b: Tensor, pairs: bool, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """K b, Kᵀ a, and the gradients in x and y; where pairs are wanted, those of x alone count and Kᵀ a is K b.

    Args:
        kernel: The kernel.
        x: Points near zero, shape (..., n, d).
        a: Weights, shape (..., n).
        y: Points, shape (..., m, d).
        b: Weights, shape (..., m).
        pairs: Whether y is x, of which no point meets itself.
        wanted: Whether gradients in x, and in y, are.
    """
    cost, shift = kernel.tile, kernel.shift
    assert cost is not None
    kb, force_x = _row_sums(cost, shift, x, y, b, pairs=pairs, force=wanted[0])
    ka, force_y = (kb, None) if pairs else _row_sums(cost, shift, y, x, a, pairs=False, force=wanted[1])
    scaled = [None if f is None else 2 * w[..., None] * f for f, w in ((force_x, a), (force_y, b))]
    return kb, ka, scaled[0], scaled[1]


def _row_sums(
    cost: Cost, shift: Tensor | None, x: Tensor, y: Tensor, b: Tensor, *, pairs: bool, force: bool
) -> tuple[Tensor, Tensor | None]:
    r""":math:`\sum_j b_j k_{ij}`, and :math:`\sum_j b_j k'_{ij} (x_i - y_j)`, k' by the squared distance."""
    from otdml._fused._triton_launch import FusedCost

    batch, n = x.shape[:-2], x.shape[-2]
    x, y, b = (t.detach().reshape(-1, *t.shape[len(batch) :]) for t in (x, y, b))
    (form, gamma), number = cost, torch.arange(n, dtype=torch.int32, device=x.device)
    barred = Barred(own=(number, number)) if pairs else None
    f, g = x.new_zeros(x.shape[:-1]), y.new_zeros(y.shape[:-1])
    if shift is not None:
        f = f - shift.reshape(-1, 1)
    moments = torch.cat([b[..., None] * y, b[..., None]], -1) if force else b[..., None]
    if form == "product":
        root = (2 * gamma) ** 0.5
        f, g = f - gamma * x.square().sum(-1), g - gamma * y.square().sum(-1)
        found = FusedCost(form, root * x, root * y, None, barred).product(f, g, moments)
        sums, slopes = found[..., -1], -gamma * found
    else:
        tiles = FusedCost(form, x, y, x.new_full((len(x),), gamma), barred)
        sums = tiles.product(f, g, b[..., None])[..., 0]
        slopes = -0.5 * tiles.product(f, g, moments, slope=True) if force else moments
    if not force:
        return sums.reshape(*batch, n), None
    forces = slopes[..., -1:] * x - slopes[..., :-1]
    return sums.reshape(*batch, n), forces.reshape(*batch, *forces.shape[-2:])
