"""Costs that are a scalar product away from a matrix."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._cost_forms.base import (
    Gradients,
    Ground,
    LinkedPlan,
    Plan,
    Scale,
    Symbolic,
    per_batch,
    some_rows,
    with_zero,
    with_zero_row,
)
from otdml.sphere import length

__all__ = ["Bilinear"]


@dataclass(frozen=True)
class Bilinear(Ground):
    r"""The cost :math:`C_{ij} = u_i + v_j - \langle q_i, k_j \rangle`.

    Attributes:
        q: Row factors, shape (..., n, e).
        k: Column factors, shape (..., m, e).
        u: Row offsets, shape (..., n), or None for zero.
        v: Column offsets, shape (..., m), or None for zero.
        source: Makes the cost anew from the points in another dtype, or None where it was made of factors.
        noise: What equal costs may differ by, beside the rounding of what they are a sum of.
    """

    q: Tensor
    k: Tensor
    u: Tensor | None = None
    v: Tensor | None = None
    source: Callable[[torch.dtype], "Bilinear"] | None = dataclasses.field(default=None, repr=False)
    noise: float = 0.0

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.q.shape[:-1], self.k.shape[-2]))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        q, k = self.q, self.k
        u = q.new_zeros(q.shape[:-1]) if self.u is None else self.u
        return q, k, u, k.new_zeros(k.shape[:-1]) if self.v is None else self.v

    @property
    def first(self) -> Tensor:
        # Without the zeros that stand for offsets among the leaves, which would be made at every look.
        return self.q

    @property
    def mT(self) -> "Bilinear":
        source = self.source
        return Bilinear(self.k, self.q, self.v, self.u, source and _Transposed(source), self.noise)

    def block(self, rows: slice) -> Tensor:
        return -some_rows(self.q, rows) @ self.k.mT

    def scores(self, rows: slice, h: Tensor, out: Tensor | None = None) -> Tensor:
        # A product and a sum take less time than torch.addmm, which copies h to all rows first.
        return torch.matmul(some_rows(self.q, rows), self.k.mT, out=out).add_(h[..., None, :])

    def rows(self, index: Tensor) -> "Bilinear":
        return Bilinear(self.q[index], self.k, self.u if self.u is None else self.u[index], self.v)

    def scaled(self, scale: Scale) -> "Bilinear":
        return Bilinear(self.q * per_batch(scale), self.k)

    def detach(self) -> "Bilinear":
        u, v = (t if t is None else t.detach() for t in (self.u, self.v))
        return Bilinear(self.q.detach(), self.k.detach(), u, v, noise=self.noise)

    def double(self) -> "Bilinear":
        if self.source is not None:
            return self.source(torch.float64)
        u, v = (t if t is None else t.double() for t in (self.u, self.v))
        return Bilinear(self.q.double(), self.k.double(), u, v)

    def extended(self) -> "Bilinear":
        _, _, u, v = self.leaves
        # Offsets stay, and two more factors take them back at the added points.
        q = with_zero_row(torch.stack([u, torch.zeros_like(u)], -1))
        k = with_zero_row(torch.stack([torch.zeros_like(v), v], -1))
        q[..., -1, 1] = k[..., -1, 0] = 1.0
        q, k = torch.cat([with_zero_row(self.q), q], -1), torch.cat([with_zero_row(self.k), k], -1)
        return Bilinear(q, k, with_zero(u), with_zero(v), self.source and _Extended(self.source))

    @property
    def versions(self) -> tuple[int, ...]:
        # The factors are made by the library and never written to.
        return ()

    def sizes(self) -> Tensor:
        # Squares of small factors vanish, and those of large ones are no numbers.
        q, k = (length(factor.detach()).amax((-2, -1)) for factor in (self.q, self.k))
        return q * k

    def vanishes(self) -> bool:
        q, k = (factor.detach().abs().amax((-2, -1)) for factor in (self.q, self.k))
        return bool(((q > 0) & (k > 0) & (q * k < torch.finfo(self.dtype).tiny)).any())

    def symbolic(self) -> Symbolic:
        return lambda q, k: -(q | k)

    def tile(self) -> tuple[str, Tensor, Tensor, None]:
        return "product", self.q, self.k, None

    def norm(self) -> tuple[int, tuple[Tensor, Tensor]]:
        # Any split of the factor between q and k will do; this one makes the diameter of the two together small.
        sizes = self.q.square().mean(), self.k.square().mean()
        ratio = (sizes[1] / sizes[0]) ** 0.25 if bool(sizes[0] * sizes[1] > 0) else sizes[0].new_ones(())
        return 2, (self.q * ratio, self.k / ratio)

    def gaussian_potential(self) -> Tensor:
        r"""The optimal column potential between Gaussians of the points' spreads, at the temperature one.

        With independent coordinates, :math:`q_e` of variance S and :math:`k_e` of variance T, it is
        :math:`-\sum_e k_e^2 S / (1 + \sqrt{1 + 4 S T})`.
        """
        squares = self.k.square()
        s, t = self.q.square().mean(-2), squares.mean(-2)
        shares = s / (s * t).mul_(4).add_(1).sqrt_().add_(1)
        return (squares @ shares if shares.ndim == 1 else (squares @ shares[..., None])[..., 0]).neg_()

    def between(self, x: Tensor, y: Tensor) -> "Bilinear":
        return Bilinear(x, y)

    def pullback(
        self, plan: Plan, left: Tensor, right: Tensor, needs: Sequence[bool], *, offsets: bool = True
    ) -> Gradients:
        rows, columns = (needs[i] or (offsets and needs[i + 2]) for i in range(2))
        k, q = (t.detach() if needed else None for t, needed in ((self.k, rows), (self.q, columns)))
        # Sums with the factors, and in the last column plain ones, which are the gradients in the offsets.
        found = (_by_products if left.shape[-1] == 1 else _by_blocks)(plan, k, q, left, right)
        dq, dk = (None if sums is None else sums[..., :-1].neg() for sums in found)
        du, dv = (None if sums is None or not offsets else sums[..., -1] for sums in found)
        return dq, dk, du, dv

    def linked_pullback(self, plan: LinkedPlan, leaves: Sequence[Tensor], grad: Tensor) -> Gradients:
        q, k = leaves[:2]
        row = plan.product(_beside_one(k)) * grad[..., None, None]
        column = plan.mT.product(_beside_one(q)) * grad[..., None, None]
        return -row[..., :-1], -column[..., :-1], row[..., -1], column[..., -1]


@dataclass(frozen=True)
class _Transposed:
    """Makes the transposed cost; an object rather than a closure, so that it can be pickled."""

    source: Callable[[torch.dtype], Bilinear]

    def __call__(self, dtype: torch.dtype) -> Bilinear:
        return self.source(dtype).mT


@dataclass(frozen=True)
class _Extended:
    """Makes the extended cost; an object for the same reason."""

    source: Callable[[torch.dtype], Bilinear]

    def __call__(self, dtype: torch.dtype) -> Bilinear:
        return self.source(dtype).extended()


def _beside_one(k: Tensor) -> Tensor:
    return torch.cat([k, k.new_ones(*k.shape[:-1], 1)], -1)


def _by_products(
    plan: Plan, k: Tensor | None, q: Tensor | None, left: Tensor, right: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The plan, weighted by l_i r_j, times ``k`` beside ones; its transpose times ``q`` likewise; None for None."""
    v, w = (
        None if t is None else torch.cat([t * scale, scale.expand(*t.shape[:-1], 1)], -1)
        for t, scale in ((k, right), (q, left))
    )
    if v is not None and w is not None:
        by_row, by_column = plan.products(v, w)
        return by_row.mul_(left), by_column.mul_(right)
    return None if v is None else plan.product(v).mul_(left), None if w is None else plan.mT.product(w).mul_(right)


def _by_blocks(
    plan: Plan, k: Tensor | None, q: Tensor | None, left: Tensor, right: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The same for weights <l_i, r_j>."""
    v, w = (None if t is None else _beside_one(t) for t in (k, q))
    by_row = None if v is None else v.new_empty(*left.shape[:-1], v.shape[-1])
    by_column = None if w is None else w.new_zeros(*right.shape[:-1], w.shape[-1])
    for rows, block in plan.blocks(left, right):
        if v is not None and by_row is not None:
            by_row[..., rows, :] = block @ v
        if w is not None and by_column is not None:
            by_column += block.mT @ w[..., rows, :]
    return by_row, by_column
