"""Ground costs between points: by name, or any callable ``(x, y) -> C``.

One table holds the named costs. Each gives the algebraic form in which solvers use it (:mod:`otdml._cost_forms`), and,
where it is a function of scalar products, the factor by which these enter it.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice, check_points, has_values
from otdml._cost_forms import Bilinear, GivenCost, Ground, Matrix, Pointwise
from otdml._cost_forms.temperature import default_temperature, temperature_of_spread
from otdml._distances import angle, centres, distance, excess_distance, squared_distance
from otdml._precision import full_precision
from otdml.sphere import length

__all__ = [
    "COSTS",
    "Bilinear",
    "Cost",
    "Ground",
    "Matrix",
    "NamedCost",
    "Pointwise",
    "cost_matrix",
    "default_temperature",
    "ground",
    "temperature_of_spread",
]

Cost = str | Callable[[Tensor, Tensor], Tensor]
# Makes a cost anew from its points in another dtype; None where there are none.
Source = Callable[[torch.dtype], Any] | None


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

    A row of zeros has no direction, and is at a right angle to all others: its cosine is zero.

    Args:
        x: Points, shape (..., n, d).
        y: Points, shape (..., m, d).
        cost: Name, or function of two blocks of points. It is called with points of the dtype of ``x``, also where a
            solver computes in double precision, and may hold parameters of that dtype.

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
    if callable(cost):
        return Pointwise(GivenCost(cost, x.dtype), x, y)
    named = COSTS[check_choice("cost", cost, COSTS)]
    return named.between(x, y, None if x.dtype == torch.float64 else _Source(x, y, cost))


@dataclass(frozen=True)
class _Source:
    """Makes a named cost in another dtype; an object rather than a closure, so that it can be pickled."""

    x: Tensor
    y: Tensor
    cost: str

    def __call__(self, dtype: torch.dtype) -> Any:
        return ground(self.x.to(dtype), self.y.to(dtype), self.cost)


def _sqeuclidean(x: Tensor, y: Tensor, source: Source, *, every_mode: bool = False) -> Bilinear:
    return Bilinear(*squared_distance(x, y, every_mode=every_mode), source)


# The distance between equal directions, in rounding units, and the root of two.
_EQUAL, _ROOT = 4, 2**0.5


# The product of the mean directions of two clouds, above which the cosines of most pairs have lost a digit.
_COLLAPSED = 0.9


def _cosine(x: Tensor, y: Tensor, source: Source, *, every_mode: bool = False) -> Bilinear:
    x, y = x / length(x), y / length(y)
    likeness = (x.detach().mean(-2) * y.detach().mean(-2)).sum(-1)
    if has_values(likeness) and not bool((likeness > _COLLAPSED).any()):
        return Bilinear(x, y, x.new_ones(x.shape[:-1]), None, source)
    # Half the square of the distance between the directions, as a scalar product near one has no digits of an angle.
    x, y = x / _ROOT, y / _ROOT
    q, k, u, v = squared_distance(x, y, every_mode=every_mode)
    noise = (_EQUAL * torch.finfo(x.dtype).eps) ** 2 / 2
    # A row of zeros is at a right angle to all others.
    u, v = u + _without_direction(x) / 2, v + _without_direction(y) / 2
    return Bilinear(q, k, u, v, source, noise)


def _without_direction(x: Tensor) -> Tensor:
    """One for each row, divided by its length or a multiple of it, that is of zeros, and zero for the others."""
    return (torch.linalg.vector_norm(x.detach(), dim=-1) < 0.5).to(x.dtype)


def _inner(x: Tensor, y: Tensor, source: Source) -> Bilinear:
    # Clouds far from the origin differ by little in what is left of their products.
    p, q = centres(x, y)
    z = x - p
    return Bilinear(z, y - q, -(z @ q.mT)[..., 0], -(y @ p.mT)[..., 0], source)


def _geodesic(x: Tensor, y: Tensor, source: Source) -> Pointwise:
    x, y = _with_right_angles(x, y)
    return Pointwise(angle, x, y, symbol=_geodesic_symbol, factor=1.0, source=source, metric="angle")


def _with_right_angles(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The points where all have a direction; or with two more coordinates, which give one to rows of zeros.

    It is at a right angle to all others, so that every engine finds the angle that the cosine says.
    """
    p, q = (_without_direction(z.detach() / length(z.detach()))[..., None] for z in (x, y))
    if has_values(p) and has_values(q) and not bool(p.any() or q.any()):
        return x, y
    return torch.cat([x, p, torch.zeros_like(p)], -1), torch.cat([y, torch.zeros_like(q), q], -1)


# Clouds are far from each other where their centres are so many times further apart than a point is from its own.
_FAR = 30.0


def _euclidean(x: Tensor, y: Tensor, source: Source) -> Pointwise:
    if (size := _unusual_size(x, y)) is not None:
        unit, scale = _euclidean(x / size, y / size, None), size[..., 0, 0]
        v = unit.v if unit.v is None else unit.v * scale[..., None]
        return dataclasses.replace(unit.scaled(scale), v=v, source=source)
    p, q = centres(x, y)
    t = p - q
    radius = torch.maximum((x.detach() - p).norm(dim=-1).amax(-1), (y.detach() - q).norm(dim=-1).amax(-1))
    far = t[..., 0, :].norm(dim=-1) > _FAR * radius
    if not (has_values(t) and bool(far.any())):
        return Pointwise(distance, x, y, symbol=_euclidean_symbol, factor=1.0, source=source, metric="distance")
    # The others of the batch are taken from where they are, so that points which meet have no distance.
    p, q = (centre.where(far[..., None, None], 0.0) for centre in (p, q))
    t = p - q

    def excess(x: Tensor, y: Tensor) -> Tensor:
        return excess_distance(x - p, y - q, t)

    def symbolic(x: Any, y: Any) -> Any:
        z, far = (x - y) - t[..., None, :], t.norm(dim=-1)[..., None, None] + torch.finfo(t.dtype).tiny
        return (2 * (z * t[..., None, :]).sum(-1) + (z | z)) / (_euclidean_symbol(x, y) + far)

    v = t.norm(dim=-1).expand(*t.shape[:-2], y.shape[-2])
    return Pointwise(excess, x, y, None, v, symbolic, 1.0, source)


def _unusual_size(x: Tensor, y: Tensor) -> Tensor | None:
    """A power of two near the size of each pair of clouds, shape (..., 1, 1), or None where all squares are numbers."""
    if not (has_values(x) and has_values(y)) or x.shape[:-2].numel() == 0:
        return None
    p, limits = x.detach()[..., :1, :], torch.finfo(x.dtype)
    size = torch.maximum(*((z.detach() - p).abs().amax((-2, -1), keepdim=True) for z in (x, y)))
    usual = (size == 0) | ((size > 1e4 * limits.tiny**0.5) & (size < 1e-3 * limits.max**0.5)) | ~size.isfinite()
    return None if bool(usual.all()) else torch.where(usual, 1.0, size.log2().floor().exp2())


def _euclidean_symbol(x: Any, y: Any) -> Any:
    return ((x - y) | (x - y)).sqrt()


def _geodesic_symbol(x: Any, y: Any) -> Any:
    x, y = x.normalize(), y.normalize()
    # The angle between two unit vectors to all digits, wherever they are.
    return 2 * _euclidean_symbol(x, y).atan2(_euclidean_symbol(x, -y))


@dataclass(frozen=True)
class NamedCost:
    """A ground cost that has a name.

    Attributes:
        between: The cost between two clouds, which also takes a function that makes it in another dtype, or None.
        products: The factor of centred scalar products in the cost, where it is a function of these and of each point
            alone; None where it is not.
        unit: Whether points are divided by their lengths first.
        nonnegative: Whether no cost is negative but by rounding.
    """

    between: Callable[[Tensor, Tensor, Source], Bilinear | Pointwise]
    products: float | None = None
    unit: bool = False
    nonnegative: bool = True


COSTS: dict[str, NamedCost] = {
    "sqeuclidean": NamedCost(_sqeuclidean, products=-2.0),
    "cosine": NamedCost(_cosine, products=-1.0, unit=True),
    "inner": NamedCost(_inner, products=-1.0, nonnegative=False),
    "euclidean": NamedCost(_euclidean),
    "geodesic": NamedCost(_geodesic),
}


@full_precision
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
    check_points("x", x), check_points("y", y)
    if isinstance(cost, str) and x.shape[-1] != y.shape[-1]:
        raise argument_error("y", f"have the features of `x`, {x.shape[-1]}", y.shape[-1])
    squared = {"sqeuclidean": _sqeuclidean, "cosine": _cosine}.get(cost) if isinstance(cost, str) else None
    c = ground(x, y, cost) if squared is None else squared(x, y, None, every_mode=True)
    values = c.block(slice(None))
    values = values if c.u is None else values + c.u[..., :, None]
    values = values if c.v is None else values + c.v[..., None, :]
    if not (isinstance(cost, str) and COSTS[cost].products and COSTS[cost].nonnegative):
        return values
    # The value alone: clamped points that coincide would have no second derivative.
    return values - values.detach().clamp(max=0)
