r"""A plan of low rank, :math:`P = Q \, \mathrm{diag}(1/g) \, R^\top`, whose marginals are right."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._precision import full_arithmetic
from otdml.ot._low_rank.hubs import Shares
from otdml.ot._result import Coupling

__all__ = ["LowRankCoupling", "coupled"]


@dataclass(frozen=True)
class LowRankCoupling(Coupling):
    """A factored plan, a constant.

    Attributes:
        a: Weights of the rows, shape (..., n).
        b: Weights of the columns, shape (..., m).
        rows: Shares of a row among the hubs, over its weight, shape (..., n, r).
        columns: The same of a column, shape (..., m, r).
        g: The mass of each hub, shape (..., r).
        duals: Derivatives of the objective in a and b.
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
        return _through(self.rows, self.g, self.columns, self.b, v)

    def product(self, v: Tensor) -> Tensor:
        return self.a[..., None].to(v.dtype) * self.conditional_product(v)

    def product_transposed(self, v: Tensor) -> Tensor:
        return self.b[..., None].to(v.dtype) * _through(self.columns, self.g, self.rows, self.a, v)

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


def _through(first: Tensor, g: Tensor, second: Tensor, weights: Tensor, v: Tensor) -> Tensor:
    """The product of a plan over its row weights, by way of the hubs."""
    dtype = torch.promote_types(g.dtype, v.dtype)
    with full_arithmetic(g.device.type):
        at_hubs = second.mT.to(dtype) @ (weights[..., None].to(dtype) * v.to(dtype))
        return first.to(dtype) @ (at_hubs / _positive(g)[..., None].to(dtype))


def coupled(q: Shares, r: Shares) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and masses of hubs that agree on both sides.

    What the rows bring to hubs beyond what the columns take there goes to those that lack it :cite:p:`altschuler:17`.
    """
    rows, brought, taken = q.conditional, q.masses, r.masses
    kept = torch.minimum(brought, taken)
    share = kept / _positive(brought)
    lacking = taken - kept
    lacking = lacking / _positive(lacking.sum(-1, keepdim=True))
    surplus = (rows * (1 - share)[..., None, :]).sum(-1, keepdim=True)
    return rows * share[..., None, :] + surplus * lacking[..., None, :], r.conditional, taken
