"""Depthwise convolution with a gradient that is fast on CPUs too."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["depthwise"]

# Places of input times places of output up to which a channel is worth a dense matrix: 14 × 14 maps, not 20 × 20.
DENSE = 60_000


def depthwise(maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Convolution of each channel by itself, as ``conv2d(..., groups=channels)`` has it.

    On a processor, torch computes its gradient in bfloat16 a hundred times more slowly than its value. Small maps go
    another way there: the gradient of the kernel is read off a product of matrices for each channel, and that of the
    maps is a convolution again.

    Args:
        maps: Shape (n, channels, height, width).
        weight: Shape (channels, 1, k, k).
        bias: Shape (channels,), or None.
        stride: Of both directions.
        padding: Zeros on every side.

    Example:
        >>> import torch
        >>> depthwise(torch.ones(1, 2, 3, 3), torch.ones(2, 1, 3, 3), None, 2, 1)[0, 0]
        tensor([[4., 4.],
                [4., 4.]])
    """
    size = (maps.shape[-1] + 2 * padding - weight.shape[-1]) // stride + 1
    small = maps.shape[-2] == maps.shape[-1] and (maps.shape[-1] * size) ** 2 <= DENSE
    learns = torch.is_grad_enabled() and (maps.requires_grad or weight.requires_grad)
    if not (small and learns and maps.device.type == "cpu"):
        return F.conv2d(maps, weight, bias, stride, padding, 1, len(weight))
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        maps, weight, bias = maps.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _Depthwise.apply(maps, weight, bias, stride, padding)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(maps, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        asked = ctx.needs_input_grad
        above = _gradient_of_maps(grad, weight, maps.shape[-1], ctx.stride, ctx.padding) if asked[0] else None
        kernel = _gradient_of_kernel(grad, maps, weight, ctx.stride, ctx.padding) if asked[1] else None
        return above, kernel, grad.sum((0, 2, 3)) if asked[2] else None, None, None


def _gradient_of_maps(grad: Tensor, weight: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """A convolution with the mirrored kernel, of the gradient with zeros between its places."""
    if stride > 1:
        apart = grad.new_zeros(*grad.shape[:2], *([stride * (grad.shape[-1] - 1) + 1] * 2))
        apart = apart.contiguous(memory_format=torch.channels_last)
        apart[..., ::stride, ::stride] = grad
        grad = apart
    before = weight.shape[-1] - 1 - padding
    after = side - (grad.shape[-1] + before - weight.shape[-1] + 1)
    if before == after:
        return F.conv2d(grad, weight.flip(-1, -2), None, 1, before, 1, len(weight))
    return F.conv2d(F.pad(grad, (before, after) * 2), weight.flip(-1, -2), None, 1, 0, 1, len(weight))


def _gradient_of_kernel(grad: Tensor, maps: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Sums, over pairs of places as far apart as each entry of the kernel, of the products over the images."""
    rows, columns = (part.permute(1, 2, 3, 0).flatten(1, 2) for part in (grad, maps))
    products = (rows.contiguous() @ columns.transpose(1, 2).contiguous()).flatten(1)
    # A product of matrices in half precision sums in single precision.
    pairs = _pairs(maps.shape[-1], grad.shape[-1], weight.shape[-1], stride, padding, products.dtype)
    return (products @ pairs).view(weight.shape).to(weight.dtype)


@cache
def _pairs(side: int, out: int, kernel: int, stride: int, padding: int, dtype: torch.dtype) -> Tensor:
    """Which entry of the kernel is between a place of the output and one of the input, (out² side², kernel²)."""
    offset = torch.arange(side)[None, :] + padding - stride * torch.arange(out)[:, None]
    entry = torch.arange(kernel)
    line = (offset[..., None] == entry).to(dtype)
    return torch.einsum("oik,pjl->opijkl", line, line).reshape(out * out * side * side, kernel * kernel)
