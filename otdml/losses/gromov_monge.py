"""The distortion of a map, and the Gromov-Monge gap: how much of it is avoidable."""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from otdml._checks import argument_error, check_boolean, check_choice, check_integer, check_positive, has_values
from otdml._precision import SINGLE_ONLY, full_precision
from otdml._transforms import transformable
from otdml.costs import COSTS, cost_matrix
from otdml.measures import broadcast_pairs, weights
from otdml.ot._gromov.centred_cost import WithinCost, check_within, cost_block
from otdml.ot._gromov.scale import vanishing_squares
from otdml.ot._gromov.solver import GROMOV_BACKENDS, STARTS, gromov

__all__ = ["Distortion", "GromovMongeGap", "ScaledCost", "distortion", "gromov_monge_gap"]


class ScaledCost(nn.Module):
    r"""A positive multiple of a named cost, :math:`s \, c(x, x')`, whose scale may be learnt.

    The distortion of a map depends on the units in which its images are measured; a learnt scale leaves them free.

    Args:
        cost: Name of the cost, see :func:`otdml.costs.ground`.
        scale: The scale s, or its initial value.
        learnable: Whether the scale is a parameter; it is learnt through its logarithm, so it stays positive.

    Example:
        >>> import torch
        >>> cost = ScaledCost("sqeuclidean", 3.0)
        >>> cost(torch.zeros(1, 1), torch.full((1, 1), 2.0))
        tensor([[12.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, cost: str = "sqeuclidean", scale: float = 1.0, *, learnable: bool = True) -> None:
        super().__init__()
        self.cost = check_choice("cost", cost, COSTS)
        log = torch.tensor(math.log(check_positive("scale", scale)))
        self.log_scale = nn.Parameter(log, requires_grad=check_boolean("learnable", learnable))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def extra_repr(self) -> str:
        return f"cost={self.cost!r}, scale={float(self.scale.detach()):g}, learnable={self.log_scale.requires_grad}"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale * cost_matrix(x, y, self.cost)


# Most entries of each cost matrix in memory at a time.
BLOCK = 2**22


@transformable
@full_precision
def distortion(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    *,
    cost_x: WithinCost = "cosine",
    cost_y: WithinCost = "cosine",
) -> Tensor:
    r"""Distortion of the map that sends each point of a cloud to its image.

    .. math:: \mathrm{DST}(T) = \sum_{ij} \tfrac12 a_i a_j \, \bigl( c_X(x_i, x_j) - c_Y(y_i, y_j) \bigr)^2,
        \qquad y_i = T(x_i)

    It is zero if and only if the map preserves the costs, for instance if it is an isometry under ``sqeuclidean``.
    Choose it where such a map exists; where none does, :func:`gromov_monge_gap` leaves out what no map can avoid.
    Differentiable everywhere for the bilinear costs. Time O(n² d); no matrix of n² entries is in memory beyond
    2,048 points.

    Args:
        x: Points, shape (..., n, d).
        y: Their images, shape (..., n, e); row i is the image of row i of ``x``.
        a: Weights, shape (..., n). Uniform if None.
        cost_x: Cost between points: ``sqeuclidean``, ``cosine``, ``inner`` or another name of
            :func:`otdml.costs.ground`, a :class:`ScaledCost`, or a symmetric function of two sets of points.
        cost_y: Cost between images.

    Returns:
        One value per batch element, shape (...), non-negative.

    Raises:
        ValueError: If ``x`` and ``y`` differ in their rows, or the value is not finite.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
        >>> distortion(x, y, cost_x="euclidean", cost_y="euclidean")  # 2/4 * 1/2 * (1 - 3)^2
        tensor(1.)

    The ½ and the name follow :cite:p:`uscidda:24`.
    """
    x, y, a = broadcast_pairs(x, y, a)
    a = weights(x, a)
    value = _distortion(x, y, a, cost_x, cost_y)
    if _loses_digits(value):
        value = _distortion(x, y, a.double(), cost_x, cost_y).to(x.dtype)
    return _checked(value, (x, cost_x), (y, cost_y))


def _distortion(x: Tensor, y: Tensor, a: Tensor, cost_x: WithinCost, cost_y: WithinCost) -> Tensor:
    """The distortion in the dtype of the weights, in blocks of rows."""
    n = x.shape[-2]
    size = max(1, BLOCK // n)
    if size >= n:
        return _distortion_of_rows(x, y, a, slice(None), cost_x, cost_y)
    parts = [slice(i, i + size) for i in range(0, n, size)]
    # Each block is computed again in the backward pass instead of being stored.
    values = [checkpoint(_distortion_of_rows, x, y, a, p, cost_x, cost_y, use_reentrant=False) for p in parts]
    return torch.stack(values).sum(0)


def _loses_digits(value: Tensor) -> bool:
    """Whether some of the squares that it is a sum of may have left the range of single precision."""
    if value.dtype == torch.float64 or value.device.type in SINGLE_ONLY or not has_values(value):
        return False
    known, limits = value.detach(), torch.finfo(value.dtype)
    return not bool((known.isfinite() & (known > limits.tiny / limits.eps)).all())


def _checked(value: Tensor, *sides: tuple[Tensor, WithinCost]) -> Tensor:
    """The value, if it neither overflows nor is zero by underflow: its gradient would be wrong."""
    known, tiny = value.detach(), torch.finfo(value.dtype).tiny
    if not has_values(value) or bool((known.isfinite() & (known >= tiny)).all()):
        return value
    # Of a batch, the elements without a value alone: squares of one side may vanish where those of the other count.
    zero = known < tiny
    if not bool(known.isfinite().all()):
        remedy = f"Look for NaN or infinity in `x` and `y`, or rescale them: squares of costs overflow {value.dtype}."
        raise argument_error("x", "give a finite distortion", "NaN or infinity", remedy)
    for name, (points, cost) in zip("xy", sides, strict=True):
        if points.numel() and _squares_vanish(points.detach()[zero], cost):
            raise vanishing_squares(name, value.dtype)
    return value


@torch.no_grad()
def _squares_vanish(x: Tensor, cost: WithinCost) -> bool:
    """Whether the squares of nonzero costs are zero or denormal, in any batch element."""
    step = max(1, BLOCK // x.shape[-2])
    blocks = [slice(i, i + step) for i in range(0, x.shape[-2], step)]
    top = torch.stack([cost_block("cost", x[..., rows, :], x, cost).abs().amax((-2, -1)) for rows in blocks]).amax(0)
    # The costs themselves are squares or products of coordinates here, and may be zero where these are not.
    spread = (x != (0 if cost == "inner" else x[..., :1, :])).flatten(-2).any(-1)
    lost = (top > 0) | (spread if cost in ("sqeuclidean", "inner") else torch.zeros_like(spread))
    return bool((lost & (top.square() < torch.finfo(x.dtype).tiny)).any())


def _distortion_of_rows(x: Tensor, y: Tensor, a: Tensor, rows: slice, cost_x: WithinCost, cost_y: WithinCost) -> Tensor:
    A = cost_block("cost_x", x[..., rows, :], x, cost_x, a.dtype)
    B = cost_block("cost_y", y[..., rows, :], y, cost_y, a.dtype)
    return 0.5 * (a[..., rows] * ((A - B).square() @ a[..., None])[..., 0]).sum(-1)


class Distortion(nn.Module):
    """Module form of :func:`distortion`."""

    def __init__(self, *, cost_x: WithinCost = "cosine", cost_y: WithinCost = "cosine") -> None:
        super().__init__()
        self.cost_x, self.cost_y = check_within("cost_x", cost_x), check_within("cost_y", cost_y)

    def extra_repr(self) -> str:
        return f"cost_x={self.cost_x!r}, cost_y={self.cost_y!r}"

    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None) -> Tensor:
        return distortion(x, y, a, cost_x=self.cost_x, cost_y=self.cost_y)


@transformable
@full_precision
def gromov_monge_gap(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    *,
    cost_x: WithinCost = "cosine",
    cost_y: WithinCost = "cosine",
    eps: float | None = None,
    tol: float = 1e-3,
    max_iter: int = 300,
    init: str = "best",
    backend: str = "auto",
) -> Tensor:
    r"""Gromov-Monge gap of the map that sends each point of a cloud to its image.

    .. math:: \mathrm{GMG}(T) = \mathrm{DST}(T) - \min_{P \in \Pi(a, a)} \tfrac12
        \sum_{ijkl} \bigl( c_X(x_i, x_k) - c_Y(y_j, y_l) \bigr)^2 P_{ij} P_{kl}, \qquad y_i = T(x_i)

    the distortion of the map less the least distortion of any coupling of the points with the same images
    :cite:p:`uscidda:24`: how much of the distortion is avoidable. It is zero for isometries, and for any map that no
    rearrangement of its images improves; where the images are an isometric copy in another order, it equals
    :func:`distortion`. Choose it to keep the geometry of the data as far as a target measure (a prior, say) allows.

    The least distortion is solved at temperature ``eps`` (:func:`otdml.ot.gromov`) and the value is that of the plan
    found, without the entropy. So the value carries a bias towards negative values that vanishes with ``eps``, and
    it is negative where the solver ends in a worse local optimum than the map itself, where the gradient has the
    wrong sign: it is not clamped, and ``gromov(x, y, a, a, ...)`` returns a result whose ``gap`` is this value and
    whose ``negative_gap`` and ``suboptimal`` tell the two apart. As ``eps`` grows, the plan tends to independence and
    the gradient to that of a plain alignment of the two Gram matrices. The gradient holds the plan fixed, so there
    are no second derivatives.

    Args:
        x: Points, shape (..., n, d).
        y: Their images, shape (..., n, e); row i is the image of row i of ``x``.
        a: Weights, shape (..., n). Uniform if None.
        cost_x: Cost between points: ``sqeuclidean``, ``cosine``, ``inner`` or another name of
            :func:`otdml.costs.ground`, a :class:`ScaledCost`, or a symmetric function of two sets of points.
        cost_y: Cost between images.
        eps: Temperature, in units of the product of the two costs. 0.02 times the product of the root mean squares of
            the two costs, centred, if None; the paper scales with the product of the means, which in high dimension
            exceeds what the costs differ by.
        tol: Tolerance of the solver, see :func:`otdml.ot.gromov`.
        max_iter: Most linearisations.
        init: Plan to start from: "best", "identity" or "product", see :func:`otdml.ot.gromov`.
        backend: "auto", "dense" or "streamed".

    Returns:
        One value per batch element, shape (...).

    Raises:
        ValueError: If ``x`` and ``y`` differ in their rows.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [3.0], [1.0]])
        >>> # y is x in another order, so that all of the distortion is avoidable: (9 - 1)^2 * 4 / (2 * 9).
        >>> gromov_monge_gap(x, y, cost_x="sqeuclidean", cost_y="sqeuclidean", eps=0.01)
        tensor(14.2222)
    """
    x, y, a = broadcast_pairs(x, y, a)
    result = gromov(
        x,
        y,
        a,
        a,
        cost_x=cost_x,
        cost_y=cost_y,
        eps=eps,
        tol=tol,
        max_iter=max_iter,
        init=init,
        backend=backend,
    )
    return _checked(result.gap, (x, cost_x), (y, cost_y))


class GromovMongeGap(nn.Module):
    """Module form of :func:`gromov_monge_gap`."""

    def __init__(
        self,
        *,
        cost_x: WithinCost = "cosine",
        cost_y: WithinCost = "cosine",
        eps: float | None = None,
        tol: float = 1e-3,
        max_iter: int = 300,
        init: str = "best",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.cost_x, self.cost_y = check_within("cost_x", cost_x), check_within("cost_y", cost_y)
        self.eps = eps if eps is None else check_positive("eps", eps)
        self.tol = check_positive("tol", tol)
        self.max_iter = check_integer("max_iter", max_iter)
        self.init = check_choice("init", init, STARTS)
        self.backend = check_choice("backend", backend, GROMOV_BACKENDS)

    def extra_repr(self) -> str:
        eps = "None" if self.eps is None else f"{self.eps:g}"
        return f"cost_x={self.cost_x!r}, cost_y={self.cost_y!r}, eps={eps}, tol={self.tol:g}"

    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None) -> Tensor:
        return gromov_monge_gap(
            x,
            y,
            a,
            cost_x=self.cost_x,
            cost_y=self.cost_y,
            eps=self.eps,
            tol=self.tol,
            max_iter=self.max_iter,
            init=self.init,
            backend=self.backend,
        )
