r"""A plan of low rank, :math:`P = Q \, \mathrm{diag}(1/g) \, R^\top`, with exact marginals."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._precision import full_arithmetic
from otdml.ot._low_rank.hubs import Shares
from otdml.ot._result import Coupling

__all__ = ["LowRankCoupling", "rounded"]


@dataclass(frozen=True)
class LowRankCoupling(Coupling):
    """A factored plan, without gradient.

    Attributes:
        a: Weights of the rows, shape (..., n).
        b: Weights of the columns, shape (..., m).
        rows: Shares of the hubs in the mass of each row, shape (..., n, r).
        columns: Shares of the hubs in the mass of each column, shape (..., m, r).
        g: The mass of each hub, shape (..., r).
        duals: Derivatives of the objective in a and b, shapes (..., n) and (..., m).
    """

    a: Tensor
    b: Tensor
    rows: Tensor
    columns: Tensor
    g: Tensor
    duals: tuple[Tensor, Tensor]

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        return self.duals

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Q, R and g."""
        return self.a[..., None] * self.rows, self.b[..., None] * self.columns, self.g

    def conditional_product(self, v: Tensor) -> Tensor:
        return _conditional_product(self.rows, self.g, self.columns, self.b, v)

    def product(self, v: Tensor) -> Tensor:
        return self.a[..., None].to(v.dtype) * self.conditional_product(v)

    def product_transposed(self, v: Tensor) -> Tensor:
        return self.b[..., None].to(v.dtype) * _conditional_product(self.columns, self.g, self.rows, self.a, v)

    @property
    def marginal_error(self) -> Tensor:
        """L1 distance of the marginals from the weights, relative to the mass, shape (...)."""
        p, q = (
            self.product(torch.ones_like(self.b)[..., None]),
            self.product_transposed(torch.ones_like(self.a)[..., None]),
        )
        off = (p[..., 0] - self.a).abs().sum(-1) + (q[..., 0] - self.b).abs().sum(-1)
        return off / self.a.sum(-1)

    def plan(self) -> Tensor:
        q, r, g = self.factors
        return (q / _positive(g)[..., None, :]) @ r.mT


def _positive(g: Tensor) -> Tensor:
    return torch.where(g > 0, g, 1.0)


def _conditional_product(first: Tensor, g: Tensor, second: Tensor, weights: Tensor, v: Tensor) -> Tensor:
    """The product of the plan, divided by its row weights, with ``v``: columns to hubs, then hubs to rows."""
    dtype = torch.promote_types(g.dtype, v.dtype)
    with full_arithmetic(g.device.type):
        at_hubs = second.mT.to(dtype) @ (weights[..., None].to(dtype) * v.to(dtype))
        return first.to(dtype) @ (at_hubs / _positive(g)[..., None].to(dtype))


def rounded(q: Shares, r: Shares) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of rows and columns that give each hub one and the same mass, and these masses.

    Where rows send more to a hub than columns take from it, the excess goes to the hubs that get too little
    :cite:p:`altschuler:17`.
    """
    rows, sent, taken = q.conditional, q.masses, r.masses
    kept = torch.minimum(sent, taken)
    share = kept / _positive(sent)
    deficit = taken - kept
    deficit = deficit / _positive(deficit.sum(-1, keepdim=True))
    excess = (rows * (1 - share)[..., None, :]).sum(-1, keepdim=True)
    return rows * share[..., None, :] + excess * deficit[..., None, :], r.conditional, taken
