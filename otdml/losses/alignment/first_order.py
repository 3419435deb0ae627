"""An error in place of a second derivative that would be wrong without a word."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_order", "first_order_only"]


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that may not itself be differentiated.

    ``once_differentiable`` of torch says nothing as long as the gradient that comes in is a constant, as it is for a
    loss, and the gradient that goes out is then a constant, too.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "This loss has second derivatives for `marginals`='rows' and `backend`='dense' alone. "
                "Pass these, or differentiate without `create_graph`."
            )
        return backward(ctx, *grads)

    return wrapper


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def first_order_only(value: Tensor) -> Tensor:
    """``value``, whose gradient may not be differentiated."""
    return _FirstOrder.apply(value)
