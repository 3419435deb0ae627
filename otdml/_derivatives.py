"""Which derivatives of a tensor may be requested, and functions that raise for those that would be wrong."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from otdml._transforms import transforming

__all__ = ["fixed", "for_each_value", "needs_derivative", "once", "refuse_several", "refuse_transforms"]


def needs_derivative(x: Tensor) -> bool:
    """Whether a derivative in ``x`` may be requested."""
    # Dynamo traces neither call, and removes unused results by itself.
    return torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()) or transforming(x)


def refuse_transforms(what: str, *tensors: Tensor | None) -> None:
    """Raise if one of the tensors is under a transform, which ``what`` could not follow."""
    if transforming(*tensors):
        raise RuntimeError(
            f"{what} has no transforms of torch.func and no derivatives in forward mode. Use `torch.autograd.grad` or "
            "`backward`, and a batch dimension or a loop in place of `vmap`."
        )


def once(x: Tensor, what: str) -> Tensor:
    """``x``, of which only first derivatives may be requested; ``what`` is the text of the error for a second one."""
    return _Once.apply(x, what) if x.requires_grad and torch.is_grad_enabled() else x


def fixed(value: Tensor, what: str, *sources: Tensor) -> Tensor:
    """``value``, whose dependence on ``sources`` is not known; ``what`` is the text of the error for a derivative."""
    return _Fixed.apply(what, value, *sources)


def refuse_several(*gradients: Tensor | None) -> None:
    """Raise if several incoming gradients are given at once, which ``vectorize`` of ``torch.autograd`` asks for."""
    if any(map(_are_several, gradients)):
        raise RuntimeError(
            "What a solver finds, its value apart, has no gradients for several incoming ones at once. Leave out "
            "`is_grads_batched` or `vectorize`, or take `torch.func.jacrev`."
        )


def for_each_value(grad: Tensor, gradients: Callable[[Tensor], Sequence[Tensor | None]]) -> tuple[Tensor | None, ...]:
    """The gradients of one value per batch element, on which nothing but its element of the inputs depends.

    Args:
        grad: The incoming gradient, or several of them at once.
        gradients: Those for one incoming gradient.
    """
    if not _are_several(grad):
        return tuple(gradients(grad))
    found = gradients(torch.ones(grad.shape, dtype=grad.dtype, device=grad.device))
    return tuple(g if g is None else grad[(..., *(None,) * (g.ndim - grad.ndim))] * g for g in found)


def _are_several(grad: Tensor | None) -> bool:
    return grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad)


class _Once(torch.autograd.Function):
    # Functions under transforms do without it, and a call with `setup_context` takes several times as long.
    @staticmethod
    def forward(ctx: Any, x: Tensor, what: str) -> Tensor:
        ctx.what = what
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # `once_differentiable` would pass a gradient that is a constant, whose derivative is then read as zero.
        return (fixed(grad, ctx.what, *ctx.saved_tensors) if torch.is_grad_enabled() else grad), None


class _Fixed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(what: str, value: Tensor, *sources: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.what = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(ctx.what)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        raise NotImplementedError(ctx.what)
