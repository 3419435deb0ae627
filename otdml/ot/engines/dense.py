"""Soft minima and plan products on a matrix that is kept."""

import torch
from torch import Tensor

from otdml.costs import Ground, Matrix
from otdml.ot.engines.streamed import Mask, Streamed

__all__ = ["Dense"]

# exp(+-RANGE) is far from the ends of float32, and products of the kernel with what is scaled by it stay normal.
RANGE = 40.0
NEGLIGIBLE = 1e-25


class Dense(Streamed):
    r"""Soft minima on a matrix that is kept, through products with the kernel where that is safe.

    Once :meth:`absorb` has been given potentials near the solution, the kernel :math:`K_{ij} = \exp(f_i + g_j -
    R_{ij})` is of order one where the plan has mass, and a soft minimum is a matrix-vector product, memory-bound,
    instead of a pass of exponentials. Entries below 1e-25 are set to zero: denormal numbers make the product ten
    times slower.
    """

    keeps_matrix = True

    def __init__(self, cost: Ground, mask: Mask | None = None) -> None:
        n, m = cost.shape[-2:]
        matrix = cost.block(slice(0, n))
        if mask is not None:
            matrix = matrix.masked_fill(mask(slice(0, n), slice(0, m)), torch.inf)
        super().__init__(Matrix(matrix))
        self.kernel: Tensor | None = None

    def absorb(self, f: Tensor, g: Tensor) -> None:
        """Centre the kernel at potentials whose rows or columns are already scaled to mass one."""
        self.f, self.g = f, g
        kernel = torch.sub(g[..., None, :], self.cost.block(slice(None))).add_(f[..., :, None]).exp_()
        self.kernel = torch.nn.functional.threshold(kernel, NEGLIGIBLE, 0.0, inplace=True)

    def rows(self, h: Tensor) -> Tensor:
        if self.kernel is None:
            return super().rows(h)
        return self.f - (self.kernel @ (h - self.g).exp_()[..., None])[..., 0].log_()

    def columns(self, h: Tensor) -> Tensor:
        if self.kernel is None:
            return super().columns(h)
        return self.g - ((h - self.f).exp_()[..., None, :] @ self.kernel)[..., 0, :].log_()
