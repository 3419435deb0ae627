"""Ground costs between points: by name, or any callable ``(x, y) -> C``.

Entropic transport touches a cost through few operations, and these differ by its algebra: a *bilinear* cost is a
matrix product away, a *pointwise* one is evaluated block by block, and a *matrix* is given. Each form is
:math:`C_{ij} = u_i + v_j + R_{ij}` and offers blocks of rows of the *reduced* cost R. Solvers work on R, and on the
potentials less u and v: clouds that are far from each other then cost no digits.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice
from otdml._distances import angle, centres, distance, excess_distance, squared_distance
from otdml.sphere import length

__all__ = [
    "BILINEAR_COSTS",
    "COSTS",
    "Bilinear",
    "Cost",
    "Ground",
    "Matrix",
    "Pointwise",
    "cost_matrix",
    "ground",
    "mean_cost",
]

Cost = str | Callable[[Tensor, Tensor], Tensor]

BILINEAR_COSTS = ("sqeuclidean", "cosine", "inner")
COSTS = (*BILINEAR_COSTS, "euclidean", "geodesic")


@dataclass(frozen=True)
class Bilinear:
    r"""The cost :math:`C_{ij} = u_i + v_j - \langle q_i, k_j \rangle`.

    Attributes:
        q: Row factors, shape (..., n, e).
        k: Column factors, shape (..., m, e).
        u: Row offsets, shape (..., n), or None for zero.
        v: Column offsets, shape (..., m), or None for zero.
    """

    q: Tensor
    k: Tensor
    u: Tensor | None = None
    v: Tensor | None = None

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
        return Bilinear(self.k, self.q, self.v, self.u)

    def block(self, rows: slice) -> Tensor:
        """The reduced cost of some rows, shape (..., rows, m)."""
        return -self.q[..., rows, :] @ self.k.mT

    def scores(self, rows: slice, h: Tensor, out: Tensor | None = None) -> Tensor:
        """:math:`h_j - R_{ij}` for some rows, in ``out`` or in a new tensor."""
        # A product and a sum take less time than torch.addmm, which copies h to all rows first.
        return torch.matmul(self.q[..., rows, :], self.k.mT, out=out).add_(h[..., None, :])

    def scaled(self, scale: Tensor | float) -> "Bilinear":
        """The reduced cost times ``scale``, a number or one of shape (...), without u and v."""
        return Bilinear(self.q * _per_batch(scale), self.k)

    def detach(self) -> "Bilinear":
        u, v = (t if t is None else t.detach() for t in (self.u, self.v))
        return Bilinear(self.q.detach(), self.k.detach(), u, v)


@dataclass(frozen=True)
class Pointwise:
    """A reduced cost given by a function of two blocks of points, and offsets that are constants.

    Attributes:
        function: Blocks of points, shapes (..., n, d) and (..., m, d), to a matrix.
        x: Points, shape (..., n, d).
        y: Points, shape (..., m, d).
        u: Row offsets, shape (..., n), or None for zero.
        v: Column offsets, shape (..., m), or None for zero.
        symbolic: The function of two symbolic points, where it can be compiled.
        norm: The factor, a number or shape (...), where the function is one of the distance, up to a constant.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    u: Tensor | None = None
    v: Tensor | None = None
    symbolic: Callable[[Any, Any], Any] | None = None
    norm: Tensor | float | None = None

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

        symbolic = self.symbolic
        swapped = symbolic and (lambda y, x: symbolic(x, y))
        return Pointwise(transposed, self.y, self.x, self.v, self.u, swapped, self.norm)

    def block(self, rows: slice) -> Tensor:
        values = self.function(self.x[..., rows, :], self.y)
        expected = (*self.x[..., rows, :].shape[:-1], self.y.shape[-2])
        if values.shape != expected:
            raise argument_error("cost", f"return a matrix of shape {expected}", tuple(values.shape))
        return values

    def scores(self, rows: slice, h: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.sub(h[..., None, :], self.block(rows), out=out)

    def scaled(self, scale: Tensor | float) -> "Pointwise":
        def function(x: Tensor, y: Tensor) -> Tensor:
            return self.function(x, y) * _per_batch(scale)

        symbolic = self.symbolic
        factor = scale[..., None, None, None] if isinstance(scale, Tensor) else scale
        scaled = symbolic and (lambda x, y: symbolic(x, y) * factor)
        norm = None if self.norm is None else self.norm * scale
        return Pointwise(function, self.x, self.y, symbolic=scaled, norm=norm)

    def detach(self) -> "Pointwise":
        return dataclasses.replace(self, x=self.x.detach(), y=self.y.detach())

    @property
    def matrix(self) -> "Matrix":
        """The same cost, evaluated."""
        return Matrix(self.block(slice(0, self.shape[-2])), self.u, self.v)


@dataclass(frozen=True)
class Matrix:
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

    def scores(self, rows: slice, h: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.sub(h[..., None, :], self.block(rows), out=out)

    def scaled(self, scale: Tensor | float) -> "Matrix":
        return Matrix(self.C * _per_batch(scale))

    def detach(self) -> "Matrix":
        return Matrix(self.C.detach(), self.u, self.v)

    def reduced(self, scale: Tensor | float) -> "Matrix":
        """The same cost less a constant, if in units of ``scale`` it is so far from zero that digits would be lost."""
        low = self.C.detach().amin((-2, -1))
        if self.u is not None or not bool((low.abs() > 64 * scale).any()):
            return self
        return Matrix(self.C - low[..., None, None], low[..., None].expand(self.C.shape[:-1]))


Ground = Bilinear | Pointwise | Matrix


def _per_batch(scale: Tensor | float) -> Tensor | float:
    return scale[..., None, None] if isinstance(scale, Tensor) else scale


def check_cost(cost: Cost) -> Cost:
    """``cost``, if it is a function or the name of one."""
    return cost if callable(cost) else check_choice("cost", cost, COSTS)


def ground(x: Tensor, y: Tensor, cost: Cost = "sqeuclidean") -> Bilinear | Pointwise:
    r"""The cost between the points ``x`` and ``y``, in the form in which solvers use it.

    ==============  ==============================================  ========
    name            :math:`c(x, y)`                                 form
    ==============  ==============================================  ========
    sqeuclidean     :math:`\lVert x - y \rVert^2`, no ½             bilinear
    cosine          :math:`1 - \cos(x, y)`                          bilinear
    inner           :math:`-\langle x, y \rangle`                   bilinear
    euclidean       :math:`\lVert x - y \rVert`                     pointwise
    geodesic        the angle between x and y                       pointwise
    a callable      ``cost(x, y)``, shape (..., n, m)               pointwise
    ==============  ==============================================  ========

    Args:
        x: Points, shape (..., n, d).
        y: Points, shape (..., m, d).
        cost: Name, or function of two blocks of points.

    Returns:
        A :class:`Bilinear` or a :class:`Pointwise` cost, differentiable in the points.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> import torch
        >>> c = ground(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0]]))
        >>> c.u[:, None] + c.v + c.block(slice(None))
        tensor([[9.],
                [1.]])
    """
    check_cost(cost)
    if callable(cost):
        return Pointwise(cost, x, y)
    if cost == "sqeuclidean":
        return Bilinear(*squared_distance(x, y))
    if cost == "euclidean":
        return _euclidean_ground(x, y)
    if cost == "cosine":
        x, y = x / length(x), y / length(y)
        return Bilinear(x, y, x.new_ones(x.shape[:-1]))
    if cost == "geodesic":
        return Pointwise(angle, x, y, symbolic=_geodesic_symbol)
    # Clouds far from the origin differ by little in what is left of their products.
    p, q = centres(x, y)
    z = x - p
    return Bilinear(z, y - q, -(z @ q.mT)[..., 0], -(y @ p.mT)[..., 0])


# Clouds are far from each other where their centres are so many times further apart than a point is from its own.
_FAR = 30.0


def _euclidean_ground(x: Tensor, y: Tensor) -> Pointwise:
    p, q = centres(x, y)
    t = p - q
    radius = torch.maximum((x.detach() - p).norm(dim=-1).amax(-1), (y.detach() - q).norm(dim=-1).amax(-1))
    if not bool((t[..., 0, :].norm(dim=-1) > _FAR * radius).any()):
        return Pointwise(distance, x, y, symbolic=_euclidean_symbol, norm=1.0)

    def excess(x: Tensor, y: Tensor) -> Tensor:
        return excess_distance(x - p, y - q, t)

    def symbolic(x: Any, y: Any) -> Any:
        z, far = (x - y) - t[..., None, :], t.norm(dim=-1)[..., None, None] + torch.finfo(t.dtype).tiny
        return (2 * (z * t[..., None, :]).sum(-1) + (z | z)) / (_euclidean_symbol(x, y) + far)

    return Pointwise(excess, x, y, None, t.norm(dim=-1).expand(y.shape[:-1]), symbolic, 1.0)


def _euclidean_symbol(x: Any, y: Any) -> Any:
    return ((x - y) | (x - y)).sqrt()


def _geodesic_symbol(x: Any, y: Any) -> Any:
    x, y = x.normalize(), y.normalize()
    # The angle between two unit vectors to all digits, wherever they are.
    return 2 * _euclidean_symbol(x, y).atan2(_euclidean_symbol(x, -y))


def cost_matrix(x: Tensor, y: Tensor, cost: Cost = "sqeuclidean") -> Tensor:
    """The matrix of costs between all points of ``x`` and ``y``, shape (..., n, m), differentiable.

    Args:
        x: Points, shape (..., n, d).
        y: Points, shape (..., m, d).
        cost: Name (see :func:`ground`), or function of two blocks of points.

    Returns:
        The matrix. Squared distances are clamped at zero, below which rounding can carry them.

    Example:
        >>> import torch
        >>> cost_matrix(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "euclidean")
        tensor([[5., 0.]])
    """
    squared = cost == "sqeuclidean"
    c = Bilinear(*squared_distance(x, y, every_mode=True)) if squared else ground(x, y, cost)
    values = c.block(slice(None))
    values = values if c.u is None else values + c.u[..., :, None]
    values = values if c.v is None else values + c.v[..., None, :]
    return values.clamp(min=0) if cost in ("sqeuclidean", "cosine") else values


def mean_cost(cost: Ground, a: Tensor, b: Tensor) -> Tensor:
    r"""The mean cost :math:`\sum_{ij} a_i b_j C_{ij} / \sum_{ij} a_i b_j`, shape (...), detached.

    It costs O((n + m) e) for a bilinear cost; otherwise the matrix is read once, in blocks of rows.

    Example:
        >>> import torch
        >>> x, w = torch.tensor([[0.0], [2.0]]), torch.full((2,), 0.5)
        >>> mean_cost(ground(x, x), w, w)
        tensor(2.)
    """
    cost, a, b = cost.detach(), a.detach(), b.detach()
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    if isinstance(cost, Bilinear):
        total = -((a[..., None, :] @ cost.q) * (b[..., None, :] @ cost.k)).sum((-2, -1))
    else:
        n, m = cost.shape[-2:]
        size = max(1, 2**20 // m)
        parts = [a[..., None, i : i + size] @ cost.block(slice(i, i + size)) for i in range(0, n, size)]
        total = (sum(parts[1:], parts[0])[..., 0, :] * b).sum(-1)
    for w, offset in ((a, cost.u), (b, cost.v)):
        total = total if offset is None else total + (w * offset).sum(-1)
    return total
