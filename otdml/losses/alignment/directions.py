"""Anchors and candidates as factors of the similarities."""

from typing import Any

import torch
from torch import Tensor

from otdml.sphere import length, unit

__all__ = ["directions", "factors"]


def factors(z1: Tensor, z2: Tensor, eps: Tensor | float, *, joint: bool) -> tuple[Tensor, Tensor]:
    """Anchors and candidates whose scalar products are cosines over ``eps``: one and the same tensor if ``joint``."""
    root = eps**0.5
    fixed = 1.0 if isinstance(root, Tensor) else root
    parts = (torch.cat([z1, z2]),) if joint else (z1, z2)
    found = [directions(z, fixed) for z in parts]
    found = [z / root for z in found] if isinstance(root, Tensor) else found
    return found[0], found[-1]


def directions(z: Tensor, divisor: float = 1.0) -> Tensor:
    """:func:`otdml.sphere.unit` over a number, with a shorter way back.

    Args:
        z: Vectors, shape (n, d).
        divisor: The number.

    Returns:
        Shape (n, d).

    Example:
        >>> import torch
        >>> directions(torch.tensor([[3.0, 4.0]]), 0.1)
        tensor([[6., 8.]])
    """
    # A compiler makes its own way back, shorter than what it can trace.
    return unit(z) / divisor if torch.compiler.is_compiling() else _Directions.apply(z, divisor)


class _Directions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, divisor: float) -> Tensor:
        norm = length(z)
        norm *= divisor
        x = z / norm
        ctx.divisor = divisor
        ctx.save_for_backward(z, x, norm)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, x, norm = ctx.saved_tensors
        if torch.is_grad_enabled():
            # For a second derivative, which has to see how the length depends on z.
            norm = ctx.divisor * length(z)
            x = z / norm
        along = (x * grad).sum(-1, keepdim=True)
        return torch.addcmul(grad, x, along, value=-(ctx.divisor**2)).div_(norm), None
