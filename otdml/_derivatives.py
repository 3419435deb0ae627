"""Which derivatives of a tensor may be requested, and functions that raise for those that would be wrong."""

from typing import Any

import torch
from torch import Tensor

from otdml._transforms import transforming

__all__ = ["fixed", "needs_derivative", "once", "refuse_transforms"]


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
