r"""Three algebraic forms of a ground cost, and the operations that entropic transport needs of each.

Every form is :math:`C_{ij} = u_i + v_j + R_{ij}` with row and column *offsets* u and v and a *reduced* cost R. Solvers
work on R, and on the potentials less u and v, so the distance between two clouds costs no digits.

A new form of cost implements :class:`Ground`; nothing outside of this file asks which form a cost has.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from otdml._checks import argument_error

__all__ = ["Bilinear", "Gradients", "Ground", "LinkedPlan", "Mask", "Matrix", "Plan", "Pointwise"]

Gradients = tuple[Tensor | None, ...]
Scale = Tensor | float
# Forbidden pairs: from two slices to a boolean tensor, True where no mass may go.
Mask = Callable[[slice, slice], Tensor]
# A symbolic function of two symbolic points, for engines that compile it.
Symbolic = Callable[[Any, Any], Any]

# Entries of a block when a whole cost is read once.
_BLOCK = 2**20


class Plan(Protocol):
    """A plan without gradient, as the pull-back of a cost reads it."""

    @property
    def mT(self) -> "Plan": ...
    def blocks(self) -> Iterator[tuple[slice, Tensor]]: ...
    def product(self, v: Tensor) -> Tensor: ...


class LinkedPlan(Protocol):
    """A plan that is differentiable in its exponents and in the leaves of its cost."""

    @property
    def mT(self) -> "LinkedPlan": ...
    def product(self, v: Tensor) -> Tensor: ...
    def entries(self, C: Tensor) -> Tensor: ...
    def first_order(self, gradients: Gradients, leaves: Sequence[Tensor]) -> Gradients: ...


class Ground(ABC):
    """A ground cost between n row points and m column points, with optional leading batch dimensions.

    Attributes:
        u: Row offsets, shape (..., n), or None for zero.
        v: Column offsets, shape (..., m), or None for zero.
    """

    u: Tensor | None
    v: Tensor | None

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(..., n, m)."""

    @property
    @abstractmethod
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors in which the cost is differentiable."""

    @property
    @abstractmethod
    def mT(self) -> Self:
        """The cost with rows and columns exchanged."""

    @abstractmethod
    def block(self, rows: slice) -> Tensor:
        """The reduced cost of some rows, shape (..., rows, m)."""

    @abstractmethod
    def scaled(self, scale: Scale) -> Self:
        """The reduced cost times ``scale``, a number or shape (...), without offsets."""

    @abstractmethod
    def detach(self) -> Self:
        """The same cost without its graph."""

    @abstractmethod
    def double(self) -> "Ground":
        """The same cost in double precision, computed anew from the points where it was made of points."""

    @abstractmethod
    def pullback(
        self, plan: Plan, left: Tensor, right: Tensor, needs: Sequence[bool], *, offsets: bool = True
    ) -> Gradients:
        r"""The gradient of :math:`\sum_{ij} P_{ij} \langle l_i, r_j \rangle C_{ij}` in the leaves, P held fixed.

        Args:
            plan: P.
            left: l, shape (..., n, e).
            right: r, shape (..., m, e).
            needs: Which leaves need it.
            offsets: Whether C or the reduced cost R is meant.
        """

    @abstractmethod
    def linked_pullback(self, plan: LinkedPlan, leaves: Sequence[Tensor], grad: Tensor) -> Gradients:
        r"""The gradient of :math:`\sum_{ij} P_{ij} C_{ij}` in the leaves, times ``grad``, differentiable through P."""

    def scores(self, rows: slice, h: Tensor, out: Tensor | None = None) -> Tensor:
        """:math:`h_j - R_{ij}` for some rows, in ``out`` or in a new tensor."""
        return torch.sub(h[..., None, :], self.block(rows), out=out)

    def largest(self) -> Tensor:
        """The largest absolute reduced cost, or an upper bound of it, over the whole batch."""
        return torch.stack([self.block(rows).abs().max() for rows in self._row_blocks()]).max()

    def evaluated(self) -> "Ground":
        """The form that an engine which keeps the matrix works with."""
        return self

    def near_zero(self, scale: Scale) -> "Ground":
        """The same cost with an offset in place of a constant that would cost digits in units of ``scale``."""
        return self

    def symbolic(self) -> Symbolic | None:
        """The reduced cost between symbolic points, where it can be compiled."""
        return None

    def norm(self) -> tuple[int, tuple[Tensor, Tensor]] | None:
        r"""A power p and points with :math:`R_{ij} = \lVert x_i - y_j \rVert^p / p` up to offsets, or None."""
        return None

    def gaussian_potential(self) -> Tensor:
        """A column potential to start from, shape (..., m)."""
        return self.leaves[0].new_zeros(*self.shape[:-2], self.shape[-1])

    def between(self, x: Tensor, y: Tensor) -> "Ground":
        """The reduced cost between other points, or factors, in place of the first two leaves."""
        raise TypeError(f"{type(self).__name__} has no points")

    @property
    def depends_on_parameters(self) -> bool:
        """Whether the cost has a gradient in something that is not among its leaves."""
        return False

    @property
    def versions(self) -> tuple[int, ...]:
        """How often tensors that may be the caller's own have been changed in place."""
        return tuple(t._version for t in self.leaves if not t.is_inference())

    @property
    def dtype(self) -> torch.dtype:
        return self.leaves[0].dtype

    def _row_blocks(self) -> Iterator[slice]:
        n, m = self.shape[-2:]
        size = max(1, _BLOCK // max(1, m * self.shape[:-2].numel()))
        return (slice(start, min(n, start + size)) for start in range(0, n, size))

    def spread(self, a: Tensor, b: Tensor, mask: Mask | None = None) -> Tensor:
        r"""The mean of :math:`C_{ij} - \min C`, over admissible pairs of points with weight, shape (...).

        It does not change when a constant is added to the cost. Pairs of infinite cost, or where ``mask`` is True, are
        left out. The matrix is read once, in blocks of rows.
        """
        cost, a, b = self.detach(), a.detach(), b.detach()
        u, v = (_centred(offset, w) for offset, w in ((cost.u, a), (cost.v, b)))
        # Points without weight have no part in the least cost.
        v = v + torch.where(b > 0, 0.0, torch.inf)
        u = u + torch.where(a > 0, 0.0, torch.inf)
        totals, masses, least = [], [], []
        for rows in cost._row_blocks():
            C = cost.block(rows) + u[..., rows, None] + v[..., None, :]
            if mask is not None:
                C = C.masked_fill(mask(rows, slice(0, C.shape[-1])), torch.inf)
            least.append(C.amin((-2, -1)))
            admissible = torch.inf > C
            weights = a[..., rows, None] * b[..., None, :] * admissible
            masses.append(weights.sum((-2, -1)))
            totals.append((weights * C.where(admissible, 0.0)).sum((-2, -1)))
        low, mass = torch.stack(least).amin(0), torch.stack(masses).sum(0)
        mean = torch.stack(totals).sum(0) / mass
        found = mean - low
        # What rounding leaves of equal costs is no spread.
        noise = 64 * torch.finfo(found.dtype).eps * torch.maximum(mean.abs(), low.abs())
        return torch.where(found <= noise, 0.0, found)


def _centred(offset: Tensor | None, weights: Tensor) -> Tensor:
    if offset is None:
        return torch.zeros_like(weights)
    return offset - (weights * offset).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Bilinear(Ground):
    r"""The cost :math:`C_{ij} = u_i + v_j - \langle q_i, k_j \rangle`.

    Attributes:
        q: Row factors, shape (..., n, e).
        k: Column factors, shape (..., m, e).
        u: Row offsets, shape (..., n), or None for zero.
        v: Column offsets, shape (..., m), or None for zero.
        source: Makes the cost anew from the points in another dtype, or None where it was made of factors.
    """

    q: Tensor
    k: Tensor
    u: Tensor | None = None
    v: Tensor | None = None
    source: Callable[[torch.dtype], "Bilinear"] | None = dataclasses.field(default=None, repr=False)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.q.shape[:-1], self.k.shape[-2]))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        q, k = self.q, self.k
        u = q.new_zeros(q.shape[:-1]) if self.u is None else self.u
        return q, k, u, k.new_zeros(k.shape[:-1]) if self.v is None else self.v

    @property
    def mT(self) -> "Bilinear":
        source = self.source
        return Bilinear(self.k, self.q, self.v, self.u, source and _Transposed(source))

    def block(self, rows: slice) -> Tensor:
        return -self.q[..., rows, :] @ self.k.mT

    def scores(self, rows: slice, h: Tensor, out: Tensor | None = None) -> Tensor:
        # A product and a sum take less time than torch.addmm, which copies h to all rows first.
        return torch.matmul(self.q[..., rows, :], self.k.mT, out=out).add_(h[..., None, :])

    def scaled(self, scale: Scale) -> "Bilinear":
        return Bilinear(self.q * _per_batch(scale), self.k)

    def detach(self) -> "Bilinear":
        u, v = (t if t is None else t.detach() for t in (self.u, self.v))
        return Bilinear(self.q.detach(), self.k.detach(), u, v)

    def double(self) -> "Bilinear":
        if self.source is not None:
            return self.source(torch.float64)
        u, v = (t if t is None else t.double() for t in (self.u, self.v))
        return Bilinear(self.q.double(), self.k.double(), u, v)

    @property
    def versions(self) -> tuple[int, ...]:
        # The factors are made by the library and never written to.
        return ()

    def largest(self) -> Tensor:
        q, k = (torch.linalg.vector_norm(factor, dim=-1).amax(-1) for factor in (self.q, self.k))
        return (q * k).max()

    def symbolic(self) -> Symbolic:
        return lambda q, k: -(q | k)

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
        return -(squares @ (s / (1 + torch.sqrt(1 + 4 * s * t)))[..., None])[..., 0]

    def between(self, x: Tensor, y: Tensor) -> "Bilinear":
        return Bilinear(x, y)

    def pullback(
        self, plan: Plan, left: Tensor, right: Tensor, needs: Sequence[bool], *, offsets: bool = True
    ) -> Gradients:
        to_q, to_k, to_u, to_v = needs[0], needs[1], needs[2] and offsets, needs[3] and offsets
        q, k = self.q.detach(), self.k.detach()
        dq, du = _factor_gradient(plan, k, left, right) if to_q or to_u else (None, None)
        dk, dv = _factor_gradient(plan.mT, q, right, left) if to_k or to_v else (None, None)
        return (dq, dk, du, dv) if offsets else (dq, dk, None, None)

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


def _beside_one(k: Tensor) -> Tensor:
    return torch.cat([k, k.new_ones(*k.shape[:-1], 1)], -1)


def _factor_gradient(plan: Plan, k: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the plan, weighted by <l_i, r_j>, times ``k``; and its row sums."""
    if left.shape[-1] == 1:
        sums = plan.product(_beside_one(k) * right).mul_(left)
        return sums[..., :-1].neg(), sums[..., -1]
    dq, du = left.new_empty(*left.shape[:-1], k.shape[-1]), left.new_empty(left.shape[:-1])
    for rows, block in plan.blocks():
        block *= left[..., rows, :] @ right.mT
        dq[..., rows, :] = block @ k
        du[..., rows] = block.sum(-1)
    return dq.neg_(), du


@dataclass(frozen=True)
class Pointwise(Ground):
    """A reduced cost given by a function of two blocks of points, and offsets that are constants.

    Attributes:
        function: Blocks of points, shapes (..., n, d) and (..., m, d), to a matrix.
        x: Points, shape (..., n, d).
        y: Points, shape (..., m, d).
        u: Row offsets, shape (..., n), or None for zero.
        v: Column offsets, shape (..., m), or None for zero.
        symbol: The function of two symbolic points, where it can be compiled.
        factor: The factor, a number or shape (...), where the function is one of the distance, up to a constant.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    u: Tensor | None = None
    v: Tensor | None = None
    symbol: Symbolic | None = None
    factor: Scale | None = None
    source: Callable[[torch.dtype], "Pointwise"] | None = dataclasses.field(default=None, repr=False)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.x.shape[:-1], self.y.shape[-2]))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.x, self.y

    @property
    def mT(self) -> "Pointwise":
        def transposed(x: Tensor, y: Tensor) -> Tensor:
            return self.function(y, x).mT

        symbol, source = self.symbol, self.source
        return Pointwise(
            transposed,
            self.y,
            self.x,
            self.v,
            self.u,
            symbol and (lambda y, x: symbol(x, y)),
            self.factor,
            source and (lambda dtype: source(dtype).mT),
        )

    def block(self, rows: slice) -> Tensor:
        values = self.function(self.x[..., rows, :], self.y)
        expected = (*self.x[..., rows, :].shape[:-1], self.y.shape[-2])
        if values.shape != expected:
            raise argument_error("cost", f"return a matrix of shape {expected}", tuple(values.shape))
        return values

    def scaled(self, scale: Scale) -> "Pointwise":
        def function(x: Tensor, y: Tensor) -> Tensor:
            return self.function(x, y) * _per_batch(scale)

        symbol = self.symbol
        symbolic_scale = scale[..., None, None, None] if isinstance(scale, Tensor) else scale
        factor = None if self.factor is None else self.factor * scale
        return Pointwise(
            function, self.x, self.y, symbol=symbol and (lambda x, y: symbol(x, y) * symbolic_scale), factor=factor
        )

    def detach(self) -> "Pointwise":
        return dataclasses.replace(self, x=self.x.detach(), y=self.y.detach())

    def double(self) -> "Pointwise":
        if self.source is not None:
            return self.source(torch.float64)
        u, v = (t if t is None else t.double() for t in (self.u, self.v))
        return dataclasses.replace(self, x=self.x.double(), y=self.y.double(), u=u, v=v)

    def evaluated(self) -> "Matrix":
        return Matrix(self.block(slice(0, self.shape[-2])), self.u, self.v)

    def symbolic(self) -> Symbolic | None:
        return self.symbol

    def norm(self) -> tuple[int, tuple[Tensor, Tensor]] | None:
        if self.factor is None:
            return None
        factor = self.factor[..., None, None] if isinstance(self.factor, Tensor) else self.factor
        return 1, (self.x * factor, self.y * factor)

    def between(self, x: Tensor, y: Tensor) -> "Pointwise":
        return dataclasses.replace(self, x=x, y=y, u=None, v=None)

    @property
    def depends_on_parameters(self) -> bool:
        # Costs with a formula are those of the library, which have no parameters.
        if self.symbol is not None or not torch.is_grad_enabled():
            return False
        return self.function(self.x[..., :1, :].detach(), self.y[..., :1, :].detach()).requires_grad

    def pullback(
        self, plan: Plan, left: Tensor, right: Tensor, needs: Sequence[bool], *, offsets: bool = True
    ) -> Gradients:
        y = self.y.detach().requires_grad_()
        dx, dy = torch.empty_like(self.x), torch.zeros_like(self.y)
        for rows, block in plan.blocks():
            x = self.x[..., rows, :].detach().requires_grad_()
            with torch.enable_grad():
                values = self.function(x, y)
            part, rest = torch.autograd.grad(values, (x, y), block.mul_(left[..., rows, :] @ right.mT))
            dx[..., rows, :] = part
            dy += rest
        return dx, dy

    def linked_pullback(self, plan: LinkedPlan, leaves: Sequence[Tensor], grad: Tensor) -> Gradients:
        left, right = grad[..., None, None].expand(*self.x.shape[:-1], 1), torch.ones_like(self.y[..., :1])
        with torch.no_grad():
            found = self.pullback(plan, left, right, (True, True))  # type: ignore[arg-type]
        return plan.first_order(found, (grad, *leaves))


@dataclass(frozen=True)
class Matrix(Ground):
    """A reduced cost given as a matrix, shape (..., n, m), and offsets that are constants."""

    C: Tensor
    u: Tensor | None = None
    v: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.C.shape

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.C,)

    @property
    def mT(self) -> "Matrix":
        return Matrix(self.C.mT, self.v, self.u)

    def block(self, rows: slice) -> Tensor:
        return self.C[..., rows, :]

    def scaled(self, scale: Scale) -> "Matrix":
        return Matrix(self.C * _per_batch(scale))

    def detach(self) -> "Matrix":
        return Matrix(self.C.detach(), self.u, self.v)

    def double(self) -> "Matrix":
        u, v = (t if t is None else t.double() for t in (self.u, self.v))
        return Matrix(self.C.double(), u, v)

    def largest(self) -> Tensor:
        # Infinity forbids a pair and is no cost.
        values = self.C.detach().abs()
        return values.where(values < torch.inf, 0.0).max()

    def near_zero(self, scale: Scale) -> "Matrix":
        low = self.C.detach().amin((-2, -1))
        if self.u is not None or not bool((low.abs() > 64 * scale).any()):
            return self
        return Matrix(self.C - low[..., None, None], low[..., None].expand(self.C.shape[:-1]))

    def pullback(
        self, plan: Plan, left: Tensor, right: Tensor, needs: Sequence[bool], *, offsets: bool = True
    ) -> Gradients:
        if not any(needs):
            return (None,)
        out = torch.empty_like(self.C)
        for rows, block in plan.blocks():
            out[..., rows, :] = block.mul_(left[..., rows, :] @ right.mT)
        return (out,)

    def linked_pullback(self, plan: LinkedPlan, leaves: Sequence[Tensor], grad: Tensor) -> Gradients:
        return (grad[..., None, None] * plan.entries(leaves[0]),)


def _per_batch(scale: Scale) -> Scale:
    return scale[..., None, None] if isinstance(scale, Tensor) else scale
