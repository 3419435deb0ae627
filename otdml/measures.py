"""Weighted point clouds: their weights, and the batches they share."""

import torch
from torch import Tensor

from otdml._checks import (
    argument_error,
    argument_names,
    check_batches,
    check_points,
    check_signs,
    check_tensor,
    check_weight_shape,
)

__all__ = [
    "broadcast_clouds",
    "broadcast_matrix",
    "broadcast_measures",
    "broadcast_pairs",
    "expand",
    "weighted",
    "weights",
]

Measures = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def weights(x: Tensor, a: Tensor | None) -> Tensor:
    """The weights ``a`` of the points ``x``, uniform and of mass one if None.

    Args:
        x: Points, shape (..., n, d).
        a: Weights, shape (..., n), or None.

    Returns:
        Weights, shape (..., n), in the dtype and on the device of ``x``.

    Example:
        >>> import torch
        >>> weights(torch.zeros(4, 2), None)
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    # NumPy reads no view whose negation is due.
    return x.new_full(x.shape[:-1], 1 / x.shape[-2]) if a is None else a.to(x.dtype).resolve_neg()


def expand(x: Tensor, batch: torch.Size, own: int) -> Tensor:
    """``x`` with these batch dimensions before its last ``own``, of which it has some; nothing is copied.

    Example:
        >>> import torch
        >>> expand(torch.zeros(4, 2), torch.Size([3]), 2).shape
        torch.Size([3, 4, 2])
    """
    return x if x.shape[:-own] == batch else x.expand(*batch, *x.shape[-own:])


def broadcast_measures(x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Measures:
    """Two weighted point clouds of one space, checked, with batch dimensions that broadcast to each other.

    A cloud or weights without a batch dimension, or with one of size 1, are shared by all batch elements; nothing is
    copied. Weights that are None stay None.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n).
        b: Weights of the second points, shape (..., m).

    Returns:
        The same with equal batch dimensions.

    Raises:
        TypeError: If one of them is no floating-point tensor.
        ValueError: If shapes or devices do not fit, or a weight is negative or not finite.

    Example:
        >>> import torch
        >>> x, y, a, b = broadcast_measures(torch.zeros(4, 2), torch.zeros(3, 5, 2), None, torch.ones(5))
        >>> x.shape, y.shape, a, b.shape
        (torch.Size([3, 4, 2]), torch.Size([3, 5, 2]), None, torch.Size([3, 5]))
    """
    x, y, a, b = broadcast_clouds(x, y, a, b)
    if x.shape[-1] != y.shape[-1]:
        remedy = "Use a Gromov loss to compare points of different spaces."
        raise argument_error("y", f"have the features of `x`, {x.shape[-1]}", y.shape[-1], remedy)
    return x, y, a, b


def broadcast_clouds(
    x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, second: str = "y"
) -> Measures:
    """:func:`broadcast_measures` for clouds of spaces that may differ; ``second`` is what ``y`` is called.

    Example:
        >>> import torch
        >>> broadcast_clouds(torch.zeros(4, 2), torch.zeros(3, 5, 7))[0].shape
        torch.Size([3, 4, 2])
    """
    check_points("x", x)
    check_points(second, y)
    if x.device != y.device:
        raise argument_error(second, f"be on the device of `x`, {x.device}", y.device)
    if a is None and b is None and x.shape[:-2] == y.shape[:-2]:
        return x, y, None, None
    batches = {"x": x.shape[:-2], second: y.shape[:-2]}
    for name, w, points in (("a", a, x), ("b", b, y)):
        if w is not None:
            check_weight_shape(name, w, points.shape[:-1], points.device)
            batches[name] = w.shape[:-1]
    check_signs(a=a, b=b)
    batch = check_batches(**batches)
    a, b = (w if w is None else expand(w, batch, 1) for w in (a, b))
    return expand(x, batch, 2), expand(y, batch, 2), a, b


def broadcast_pairs(
    x: Tensor, y: Tensor, a: Tensor | None = None, *, second: str = "y"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Points, their images row by row, and the weights of both, checked and broadcast as in :func:`broadcast_measures`.

    Example:
        >>> import torch
        >>> broadcast_pairs(torch.zeros(4, 2), torch.zeros(3, 4, 7))[0].shape
        torch.Size([3, 4, 2])
    """
    x, y, a, _ = broadcast_clouds(x, y, a, second=second)
    if x.shape[-2] != y.shape[-2]:
        raise argument_error(second, f"hold one row per row of `x`, {x.shape[-2]}", y.shape[-2])
    return x, y, a


def weighted(x: Tensor, a: Tensor | None = None, *, name: str = "x", weight: str = "a") -> tuple[Tensor, Tensor]:
    """One weighted point cloud, checked and broadcast as in :func:`broadcast_measures`; uniform where ``a`` is None.

    Example:
        >>> import torch
        >>> x, a = weighted(torch.zeros(4, 2), torch.ones(3, 4))
        >>> x.shape, a.shape
        (torch.Size([3, 4, 2]), torch.Size([3, 4]))
    """
    check_points(name, x)
    if a is None:
        return x, weights(x, None)
    check_weight_shape(weight, a, x.shape[:-1], x.device)
    check_signs(**{weight: a})
    batch = check_batches(**{name: x.shape[:-2], weight: a.shape[:-1]})
    x = expand(x, batch, 2)
    return x, weights(x, expand(a, batch, 1))


def broadcast_matrix(
    C: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, name: str = "C"
) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix of costs, shape (..., n, m), and weights of its rows and columns, uniform of mass one where None.

    Checked and broadcast as in :func:`broadcast_measures`.

    Example:
        >>> import torch
        >>> C, a, b = broadcast_matrix(torch.zeros(2, 3), torch.ones(5, 2))
        >>> C.shape, a.shape, b.shape
        (torch.Size([5, 2, 3]), torch.Size([5, 2]), torch.Size([5, 3]))
    """
    check_tensor(name, C)
    if C.ndim < 2 or 0 in C.shape[-2:]:
        raise argument_error(name, "have shape (..., n, m) with n, m >= 1", tuple(C.shape))
    with argument_names(x=name, y=name):
        C, transposed, a, b = broadcast_clouds(C, C.mT, a, b)
    return C, weights(C, a), weights(transposed, b)
