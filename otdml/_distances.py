"""Distances and angles between all points of two clouds, with gradients in few passes over memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from otdml._transforms import refuse_forward_twice, transforming
from otdml.sphere import length

__all__ = ["angle", "centres", "distance", "excess_distance", "squared_distance"]

Factors = tuple[Tensor, Tensor, Tensor, Tensor]


def squared_distance(x: Tensor, y: Tensor, *, every_mode: bool = False) -> Factors:
    r"""Factors q, k and offsets u, v with :math:`\lVert x_i - y_j \rVert^2 = u_i + v_j - \langle q_i, k_j \rangle`.

    Each cloud is centred on its own, so that no digit of a distance inside it is lost to its position. Their centres
    are constants, and their distance is all in v: it would drown what a penalty on the rows compares u with.

    Args:
        x: Shape (..., n, d).
        y: Shape (..., m, d).
        every_mode: Whether forward derivatives and the transforms of ``torch.func`` may come, for a few passes more.
    """
    if every_mode or transforming(x, y):
        return _squared(x, y, *centres(x, y), _sum_of_squares)
    linked = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    return _Squared.apply(x, y) if linked else _squared(x, y, *centres(x, y), _squared_length)


def centres(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The centres of two clouds, shape (..., 1, d) each, as constants."""
    return x.detach().mean(-2, keepdim=True), y.detach().mean(-2, keepdim=True)


def _squared(x: Tensor, y: Tensor, p: Tensor, q: Tensor, square: Callable[[Tensor], Tensor]) -> Factors:
    near = x - p
    return 2 * near, y - q, (near * torch.add(near, p - q, alpha=2)).sum(-1), square(y - p)


def _sum_of_squares(t: Tensor) -> Tensor:
    return t.square().sum(-1)


# Number of features above which a sum of squares is rounded anyway, so that one more rounding is worth less memory.
_WIDE = 64


def _squared_length(t: Tensor) -> Tensor:
    # Without an intermediate tensor of squares, which would pass between the caches of two threads.
    return torch.linalg.vector_norm(t, dim=-1).square_() if t.shape[-1] >= _WIDE else _sum_of_squares(t)


class _Squared(torch.autograd.Function):
    """The same, with one step for a gradient in place of one for each operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Factors:
        p, q = centres(x, y)
        ctx.save_for_backward(x, y, p, q)
        ctx.set_materialize_grads(False)
        factors = _squared(x, y, p, q, _squared_length)
        of_x, of_y = factors[::2], factors[1::2]
        ctx.mark_non_differentiable(*(() if x.requires_grad else of_x), *(() if y.requires_grad else of_y))
        return factors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        x, y, p, q = ctx.saved_tensors
        dq, dk, du, dv = grads
        moving_x, moving_y = ctx.needs_input_grad
        dx = _slope(x - q, du, None if dq is None else 2 * dq) if moving_x else None
        return dx, _slope(y - p, dv, dk) if moving_y else None


def _slope(difference: Tensor, weights: Tensor | None, straight: Tensor | None) -> Tensor | None:
    """The gradient of some multiples of squares of lengths, and of what is linear."""
    if weights is None:
        return straight
    curved = difference * (2 * weights)[..., None]
    return curved if straight is None else curved + straight


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The distances, shape (..., n, m)."""
    return _Distance.apply(x, y)


def excess_distance(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """The distances |x - y + t| - |t| between clouds that are far from each other, to all their digits."""
    return _Excess.apply(x, y, t)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The direct form: the matrix-product form loses half of the digits of a small distance.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


class _Excess(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        along = 2 * ((x @ t.mT) - (y @ t.mT).mT)
        both = _distances(x + t, y) + t.norm(dim=-1, keepdim=True)
        # Zero over zero where points meet, in a batch element whose centres do.
        return (along + _distances(x, y).square()) / both.clamp(min=torch.finfo(x.dtype).tiny)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y, t, excess = ctx.saved_tensors
        return *_direction_sums(x + t, y, excess + t.norm(dim=-1, keepdim=True), grad), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, dt: Tensor | None) -> Tensor:
        refuse_forward_twice()
        x, y, t, excess = ctx.saved_tensors
        return _along_directions(x + t, y, excess + t.norm(dim=-1, keepdim=True), dx, dy)


class _Distance(torch.autograd.Function):
    """Distances with matrix products for a gradient, which torch.cdist can neither do so nor do twice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _distances(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, distances = ctx.saved_tensors
        return _direction_sums(x, y, distances, grad)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> Tensor:
        refuse_forward_twice()
        x, y, distances = ctx.saved_tensors
        return _along_directions(x, y, distances, dx, dy)


def _direction_sums(x: Tensor, y: Tensor, distances: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    centre = y.detach().mean(-2, keepdim=True)
    x, y = x - centre, y - centre
    # Zero at coincident points, a subgradient.
    w = torch.where(distances > 0, grad / distances.clamp(min=torch.finfo(x.dtype).tiny), 0.0)
    dx = w.sum(-1)[..., None] * x - w @ y
    return dx, w.sum(-2)[..., None] * y - w.mT @ x


def _along_directions(x: Tensor, y: Tensor, distances: Tensor, dx: Tensor | None, dy: Tensor | None) -> Tensor:
    """The changes of the distances where the points move by dx and dy."""
    centre = y.detach().mean(-2, keepdim=True)
    x, y = x - centre, y - centre
    change = torch.zeros_like(distances)
    if dx is not None:
        change = change + (x * dx).sum(-1, keepdim=True) - dx @ y.mT
    if dy is not None:
        change = change + (y * dy).sum(-1)[..., None, :] - x @ dy.mT
    return torch.where(distances > 0, change / distances.clamp(min=torch.finfo(x.dtype).tiny), 0.0)


def angle(x: Tensor, y: Tensor) -> Tensor:
    """The angles, shape (..., n, m)."""
    # 2 arcsin(|x - y| / 2), as arccos of a cosine near one has no digits and an infinite slope; and the angle to
    # the antipode where the chord is the long one.
    x, y = x / length(x), y / length(y)
    obtuse = torch.cdist(x.detach(), y.detach(), compute_mode="use_mm_for_euclid_dist").square() > 2
    near = 2 * torch.asin((distance(x, y) / 2).clamp(max=0.75))
    far = torch.pi - 2 * torch.asin((distance(x, -y) / 2).clamp(max=0.75))
    return torch.where(obtuse, far, near)
