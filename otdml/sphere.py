"""The unit sphere: directions, angles, uniform points and great circles."""

import math

import torch
from torch import Tensor, nn

from otdml._checks import argument_error, check_boolean, check_integer, check_points, device_of_draws, has_values
from otdml._derivatives import needs_derivative
from otdml._precision import widest

__all__ = ["UnitRows", "angle", "distinct_directions", "great_circles", "length", "uniform_points", "unit"]

# Directions within this many rounding units of each other count as equal.
_COINCIDENT = 16
# How far they are moved apart: little on a sphere, and enough for a smooth kernel, whose force grows from zero.
_STEP = 1e-3
# Number of random projections by which rows are compared: different rows may agree in one by chance, not in all.
_KEYS = 4


def unit(z: Tensor) -> Tensor:
    r"""Directions of the rows of z.

    .. math:: z_i / \lVert z_i \rVert

    A row of zeros has no direction and stays zero, with the gradient of the identity; so does one whose entries are
    all below the smallest normal number, 1e-38 in float32. Rows of any other length keep their digits.

    Args:
        z: Vectors, shape (..., d).

    Returns:
        Vectors of length one, shape (..., d).

    Example:
        >>> import torch
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    return _directions(z)[0]


def _directions(z: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`unit`, and which rows have no direction, shape (..., 1)."""
    largest = torch.linalg.vector_norm(z.detach(), torch.inf, dim=-1, keepdim=True)
    none = largest < torch.finfo(z.dtype).tiny
    # Relative to the largest entry, for the squares of 1e30 overflow and those of 1e-30 vanish.
    x = z / torch.where(none, 1, largest)
    norm = torch.linalg.vector_norm(_differentiable_at(none, x), dim=-1, keepdim=True)
    return x / torch.where(none, 1, norm), none


def _differentiable_at(none: Tensor, z: Tensor) -> Tensor:
    """Rows of which the norm is to be taken: others in place of zeros, where it has no second derivative."""
    if not needs_derivative(z):
        return z
    # Elsewhere a branch on a value would force a device synchronisation, or break a graph.
    if none.device.type == "cpu" and has_values(none) and not bool(none.any()):
        return z
    return z.masked_fill(none, 1.0)


def length(z: Tensor) -> Tensor:
    r"""Norms of the rows of z, by which to divide them; one for a row of zeros.

    Rows of any length have one to all its digits: in single precision the squares are summed in double precision,
    where none overflows or vanishes, which is quicker than :func:`unit`; in the widest precision of the device a row is
    divided by its largest entry first, and one whose entries are all below the smallest normal number counts as zero.

    Args:
        z: Vectors, shape (..., d).

    Returns:
        Lengths, shape (..., 1).

    Example:
        >>> import torch
        >>> length(torch.tensor([[3e30, 4e30], [0.0, 0.0]]))
        tensor([[5.0000e+30],
                [1.0000e+00]])
    """
    if z.dtype == widest(z.device):
        largest = torch.linalg.vector_norm(z.detach(), torch.inf, dim=-1, keepdim=True)
        none = largest < torch.finfo(z.dtype).tiny
        x = _differentiable_at(none, z / largest.masked_fill(none, 1.0))
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * largest
    else:
        norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True, dtype=widest(z.device))
        none = norm.detach() == 0
        if (x := _differentiable_at(none, z)) is not z:
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=widest(z.device))
    return norm.masked_fill(none, 1.0).to(z.dtype)


def angle(x: Tensor, y: Tensor) -> Tensor:
    r"""Angle between unit vectors, in radians.

    .. math:: t = 2 \operatorname{atan2}(\lVert x - y \rVert, \lVert x + y \rVert)

    Unlike the arc cosine it keeps its digits near 0 and :math:`\pi`, and its gradient there is finite: of length one
    between them and zero at both.

    Args:
        x: Unit vectors, shape (..., d).
        y: Unit vectors, shape (..., d).

    Returns:
        Angles in :math:`[0, \pi]`, shape (...).

    Example:
        >>> import torch
        >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))  # a right angle
        tensor(1.5708)
    """
    return 2 * torch.atan2(torch.linalg.vector_norm(x - y, dim=-1), torch.linalg.vector_norm(x + y, dim=-1))


def distinct_directions(z: Tensor) -> Tensor:
    r"""Directions of the rows of z, those that coincide moved apart: the tie-break of every dispersion loss.

    Two coincident points repel each other in no direction in particular, so a loss alone could never part them. Rows
    whose directions are within :math:`16 \epsilon` of each other coincide, where :math:`\epsilon` is the rounding unit
    of the dtype. All of them but the first are moved by 0.001 along a pseudo-random direction that depends on the row
    number alone, and a row of zeros takes that direction itself. Distinct rows stay as they
    are. The move is a constant to autograd: the gradient is that of the loss at the moved points.

    Every row is compared with the next one in the order of a projection. Between equal directions none comes; between
    two that rounding tells apart another may, and then they stay: one pair in a thousand does among a hundred thousand
    rows of eight features, and three do among three hundred thousand.

    The row of zeros that ``padding_idx`` keeps in an ``nn.Embedding`` would be moved like any other: give a loss the
    other rows alone, such as ``table.weight[1:]``.

    It costs products with a few vectors and a sort; where rows coincide, and on a GPU, memory for a few copies of z.

    Args:
        z: Vectors of any length, shape (..., n, d).

    Returns:
        Unit vectors, shape (..., n, d).

    Example:
        >>> import torch
        >>> x = distinct_directions(torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
        >>> bool((x[0] == x[1]).all()), x[2]
        (False, tensor([0., 1.]))
    """
    x, none = _directions(z)
    with torch.no_grad():
        # In float64 unrelated rows have distinct projections, so none comes to lie between two equal ones.
        precise = x.to(widest(x.device))
        keys = precise @ _scattered(_KEYS, precise).mT
        order = keys[..., 0].argsort(dim=-1, stable=True)
        if _all_distinct(keys, order, none, torch.finfo(x.dtype).eps):
            return x
        moved = _coincident(x, order).unsqueeze(-1)
        shift = torch.where(none, 1, _STEP * moved) * _scattered(z.shape[-2], z)
    return torch.where(moved | none, unit(x + shift), x)


def _all_distinct(keys: Tensor, order: Tensor, none: Tensor, eps: float) -> bool:
    """Whether a glance at the projections shows that nothing is to be moved; where a glance would cost more, False."""
    if keys.device.type != "cpu" or not has_values(keys):
        # A branch on a value would force a device synchronisation, and break a graph.
        return False
    gaps = keys.gather(-2, order.unsqueeze(-1).expand_as(keys)).diff(dim=-2).abs_()
    # A projection shortens a distance, but for the length of its vector, about one.
    near = (gaps <= 2 * _COINCIDENT * eps).all(-1)
    return not (near.any() or none.any())


def _coincident(x: Tensor, order: Tensor) -> Tensor:
    """Whether a row coincides with one of lower index, from an order that keeps equal rows together."""
    # Not by `take_along_dim`, for which the compiler makes a graph for each number of rows.
    ordered = x.gather(-2, order.unsqueeze(-1).expand_as(x))
    gap = torch.linalg.vector_norm(ordered[..., 1:, :] - ordered[..., :-1, :], dim=-1)
    apart = ~(gap <= _COINCIDENT * torch.finfo(x.dtype).eps)
    # The order within a run of equal rows depends on rounding. The row that is kept must not: it is the first.
    run = torch.nn.functional.pad(apart.cumsum(-1), (1, 0))
    first = order.new_full(order.shape, order.shape[-1]).scatter_reduce(-1, run, order, "amin")
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, first.gather(-1, run) < order)


def _scattered(n: int, like: Tensor) -> Tensor:
    """A fixed pseudo-random vector of length about one for each row number, shape (n, d)."""
    d = like.shape[-1]
    rows, columns = (torch.arange(1, m + 1, device=like.device, dtype=like.dtype) for m in (n, d))
    # The golden ratio is the number furthest from rational ones: no two rows are in phase.
    return torch.outer(rows * ((1 + math.sqrt(5)) / 2), columns).cos_().mul_(math.sqrt(2 / d))


def uniform_points(
    *shape: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Independent uniform points of the unit sphere.

    Args:
        shape: The shape (..., d) wanted; the last is the number of coordinates.
        generator: Source of randomness.
        dtype: Data type, torch's default if None.
        device: Device, that of the generator or torch's default if None.

    Returns:
        Unit vectors, shape (..., d).

    Raises:
        ValueError: If a size is negative, or there is no coordinate.

    Example:
        >>> import torch
        >>> uniform_points(5, 3, generator=torch.Generator().manual_seed(0)).square().sum(-1).allclose(torch.ones(5))
        True
    """
    sizes = tuple(check_integer("shape", size, least=0) for size in shape)
    if 0 in sizes[-1:]:
        raise argument_error("shape", "end with the number of coordinates, 1 or more", sizes)
    # Drawn on the generator's device, then moved: the points may be on another one.
    points = torch.randn(sizes, generator=generator, dtype=dtype, device=device_of_draws(generator, device))
    return unit(points if device is None else points.to(device))


def great_circles(
    count: int, like: Tensor, *, axis_aligned: bool = False, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""Random great circles, each given by two orthonormal vectors p and q of its plane.

    Args:
        count: Number of circles.
        like: A tensor of shape (..., d), whose features, dtype and device the circles take.
        axis_aligned: Planes of two coordinates, disjoint until all coordinates are used, instead of uniform planes.
        generator: Source of randomness.

    Returns:
        p and q, each of shape (count, d).

    Raises:
        ValueError: If ``count`` is not positive or there are fewer than two coordinates.

    Example:
        >>> import torch
        >>> p, q = great_circles(1, torch.zeros(2), axis_aligned=True)
        >>> (p + q).abs()
        tensor([[1., 1.]])
    """
    d = like.shape[-1]
    count = check_integer("count", count)
    check_integer("d", d, least=2)
    if check_boolean("axis_aligned", axis_aligned):
        return _coordinate_planes(count, like, generator)
    # Drawn in one dtype, so that the circles are the same in each precision. It is the widest one: the part of v across
    # p may be small, and rounding turns it.
    source = torch.device(device_of_draws(generator, like.device) or "cpu")
    p, v = uniform_points(2, count, d, generator=generator, dtype=widest(source), device=source)
    q = unit(v - (v * p).sum(-1, keepdim=True) * p)
    return p.to(like.dtype).to(like.device), q.to(like.dtype).to(like.device)


def _coordinate_planes(count: int, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    d = like.shape[-1]
    rounds = -(-count // (d // 2))
    source = device_of_draws(generator, like.device)
    # In single precision, so that one seed draws the same planes whatever the default dtype is.
    order = torch.rand((rounds, d), generator=generator, dtype=torch.float32, device=source)
    order = order.argsort(-1).to(like.device)
    pairs = order[:, : d // 2 * 2].reshape(-1, 2)[:count]
    axes = torch.eye(d, dtype=like.dtype, device=like.device)
    return axes[pairs[:, 0]], axes[pairs[:, 1]]


class UnitRows(nn.Module):
    r"""Parametrisation that keeps the rows of a weight on the unit sphere.

    The optimiser moves free vectors, and the weight is their directions. Assigning to the weight sets the vectors.

    Example:
        >>> import torch
        >>> from torch.nn.utils import parametrize
        >>> table = parametrize.register_parametrization(torch.nn.Embedding(10, 3), "weight", UnitRows())
        >>> table.weight.norm(dim=1).allclose(torch.ones(10))
        True
    """

    def forward(self, z: Tensor) -> Tensor:
        return unit(check_points("z", z))

    def right_inverse(self, x: Tensor) -> Tensor:
        return unit(x)
