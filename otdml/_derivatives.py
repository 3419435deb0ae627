"""Which derivatives of a tensor may be asked for, and what refuses those that would be wrong."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

__all__ = ["may_move", "once", "refuse_transforms", "transformed"]


def transformed(x: Tensor) -> bool:
    """Whether ``x`` is under a transform of ``torch.func``, or carries a tangent of forward mode."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def may_move(x: Tensor) -> bool:
    """Whether a derivative in ``x`` may be asked for."""
    # Dynamo traces neither question, and prunes what is not used.
    return torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()) or transformed(x)


def refuse_transforms(what: str, *tensors: Tensor | None) -> None:
    """Raise if one of the tensors is under a transform, which ``what`` could not follow."""
    if any(t is not None and transformed(t) for t in tensors):
        raise RuntimeError(
            f"{what} has no transforms of torch.func and no derivatives in forward mode. Use `torch.autograd.grad` or "
            "`backward`, and a batch dimension or a loop in place of `vmap`."
        )


def once(x: Tensor) -> Tensor:
    """``x``, of which first derivatives alone may be asked for."""
    return _Once.apply(x) if x.requires_grad and torch.is_grad_enabled() else x


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
