"""Weighted point clouds."""

from torch import Tensor

__all__ = ["weights"]


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
    return x.new_full(x.shape[:-1], 1 / x.shape[-2]) if a is None else a.to(x.dtype)
