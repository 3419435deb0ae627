"""Similarities to classes of several centres, in few passes over memory."""

from typing import Any

import torch
from torch import Tensor

from otdml.sphere import length, unit

__all__ = ["class_similarities"]

# Number of cosines above which memory traffic takes longer than calls into torch, and that of a block that fits into
# the cache.
_MANY, _BLOCK = 2**20, 2**17


def class_similarities(z: Tensor, proxies: Tensor, gamma: float) -> Tensor:
    r"""Softmax-weighted cosines :math:`\sum_k \frac{e^{s_k / \gamma}}{\sum_l e^{s_l / \gamma}} s_k` to each class.

    Args:
        z: Unit embeddings, shape (n, d).
        proxies: Centres of any norm, shape (C, K, d).
        gamma: Temperature of the softmax.

    Returns:
        Shape (n, C).
    """
    many = len(z) * proxies.shape[0] * proxies.shape[1] >= _MANY
    traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(proxies)
    return _Softened.apply(z, proxies, gamma) if many and not traced else _softened(z, proxies, gamma)


def _softened(z: Tensor, proxies: Tensor, gamma: float) -> Tensor:
    """The definition, for small batches and for derivatives of derivatives."""
    cosines = (z @ unit(proxies).flatten(0, 1).T).unflatten(-1, proxies.shape[:2])
    return ((cosines / gamma).softmax(dim=-1) * cosines).sum(dim=-1)


class _Softened(torch.autograd.Function):
    """The same for many classes, where memory traffic is the cost.

    Products are divided by the lengths of the centres, so that no normalised copy of these is made; the softmax runs
    over blocks of rows that stay in cache, and is computed again for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, proxies: Tensor, gamma: float) -> Tensor:
        lengths = length(proxies)[..., 0].T.contiguous()
        cosines = z.new_empty(len(lengths), len(z), len(proxies))
        for k, products in enumerate(cosines):
            torch.mm(z, proxies[:, k].T, out=products)
        found = z.new_empty(len(z), len(proxies))
        for rows in _blocks(cosines):
            block = cosines[:, rows].div_(lengths[:, None])
            found[rows] = (block / gamma).softmax(dim=0).mul_(block).sum(dim=0)
        ctx.save_for_backward(z, proxies, cosines, lengths, found)
        ctx.gamma = gamma
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, proxies, cosines, lengths, found = ctx.saved_tensors
        if torch.is_grad_enabled():
            value, needed = _softened(z, proxies, ctx.gamma), ctx.needs_input_grad[:2]
            leaves = [t for t, wanted in zip((z, proxies), needed, strict=True) if wanted]
            found = iter(torch.autograd.grad(value, leaves, grad, create_graph=True))
            return (*(next(found) if wanted else None for wanted in needed), None)
        pull, along = torch.empty_like(cosines), torch.zeros_like(lengths)
        for rows in _blocks(cosines):
            block = cosines[:, rows]
            # d/ds_k of the mean is w_k (1 + (s_k - mean) / gamma).
            slope = (block - found[rows]).div_(ctx.gamma).add_(1).mul_(grad[rows])
            slope.mul_((block / ctx.gamma).softmax(dim=0))
            along += (slope * block).sum(dim=1)
            torch.div(slope, lengths[:, None], out=pull[:, rows])
        return *_gradients(z, proxies, pull, along / lengths, lengths), None


def _gradients(z: Tensor, proxies: Tensor, pull: Tensor, along: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of embeddings and centres, from those of their products and of the lengths."""
    to_z, to_proxies = torch.zeros_like(z), torch.empty_like(proxies)
    for k, products in enumerate(pull):
        to_z.addmm_(products, proxies[:, k])
        torch.mm(products.T, z, out=to_proxies[:, k])
    # Divided by lengths one at a time, as their squares can overflow or underflow.
    return to_z, to_proxies.sub_((proxies / lengths.T[:, :, None]).mul_(along.T[:, :, None]))


def _blocks(cosines: Tensor) -> list[slice]:
    centres, n, classes = cosines.shape
    rows = max(1, _BLOCK // (centres * classes))
    return [slice(start, start + rows) for start in range(0, n, rows)]
