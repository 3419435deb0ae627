"""The transforms of ``torch.func``, and forward-mode derivatives, for functions that contain a solver.

A solver branches on values and writes in place, which the tensors of a transform do not allow. So the function is
called inside an ``autograd.Function``, on plain tensors: a batch of a ``vmap`` becomes a batch of the solver, and first
and second derivatives are those that ordinary automatic differentiation gives there.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["Call", "arguments_only", "batch_first", "called", "refuse_forward_twice", "transformable", "transforming"]

P = ParamSpec("P")
R = TypeVar("R")
Tensors = tuple[Tensor, ...]

# Dimensions of a tensor argument after those of the batch, where they are not two.
EVENT = {"a": 1, "b": 1, "f": 1, "g": 1, "mass": 0, "second": 0}


def transforming(*tensors: Tensor | None) -> bool:
    """Whether some of the tensors are seen through a transform of ``torch.func``, or carry a tangent.

    Example:
        >>> import torch
        >>> transforming(torch.ones(2))
        False
    """
    if torch._C._are_functorch_transforms_active():
        return True
    # Dual tensors exist only within a level of forward-mode differentiation.
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def refuse_forward_twice() -> None:
    """Raise inside two levels of forward-mode differentiation; first in every ``jvp`` of an ``autograd.Function``.

    PyTorch calls that without forward-mode differentiation, so the outer level would read its result as a constant.
    """
    levels = torch._C._functorch.get_interpreter_stack() or ()
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels) > 1:
        raise NotImplementedError(
            "A function with a formula for its derivative has no forward-mode derivatives of forward-mode derivatives: "
            "torch would take them to be zero. Take `torch.func.hessian`, which is `jacfwd` of `jacrev`, or `jacrev` "
            "of `jacfwd`."
        )


def transformable(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A function of batches of points and weights, one value per batch element, that takes every transform.

    What is no floating-point tensor is passed on as it is.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if not transforming(*[v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]):
            return function(*args, **kwargs)
        return called(function, signature.bind(*args, **kwargs).arguments)

    return wrapper


@dataclass(frozen=True)
class Call:
    """A function with the names of its tensors and with its other arguments.

    Attributes:
        function: Of keyword arguments; one value per batch element if ``scalar``.
        names: Those of the tensors that it is differentiated in.
        others: All other arguments.
        scalar: Whether it has one value per batch element.
        differentiable: Whether gradients are on where it is called.
    """

    function: Callable[..., Tensor]
    names: tuple[str, ...]
    others: Mapping[str, Any]
    scalar: bool = True
    differentiable: bool = True

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        # `self` of a method has no name here: arguments are passed as they were bound.
        return self.function(**dict(zip(self.names, tensors, strict=True)), **self.others)


def called(function: Callable[..., Tensor], arguments: Mapping[str, Any], *, scalar: bool = True) -> Tensor:
    """The value of a function of batches, under whatever transforms are at work."""
    named = {k: v for k, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
    others = {k: v for k, v in arguments.items() if k not in named}
    events = {k: EVENT.get(k, 2) for k in named}
    batch = torch.broadcast_shapes(*(v.shape[: v.ndim - events[k]] for k, v in named.items()))
    # Equal batch dimensions, so that every derivative belongs to one element of the batch.
    tensors = [v.expand((*batch, *v.shape[v.ndim - events[k] :])) for k, v in named.items()]
    call = Call(function, tuple(named), others, scalar, torch.is_grad_enabled())
    return cast(Tensor, _Value.apply(call, *tensors))


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def batch_first(info: Any, in_dims: Sequence[int | None], args: Sequence[Any]) -> list[Any]:
    """The tensors with the dimension of a ``vmap`` as their first one."""
    return [
        t.movedim(d, 0) if d is not None else t.expand(info.batch_size, *t.shape) if isinstance(t, Tensor) else t
        for d, t in zip(in_dims, args, strict=True)
    ]


def _gradients(found: Sequence[Tensor | None], of: Sequence[Tensor]) -> Tensors:
    return tuple(torch.zeros_like(t) if g is None else g.detach() for g, t in zip(found, of, strict=True))


# Whether what runs is the function of a `Call`, whose tensors are plain.
_inside: ContextVar[bool] = ContextVar("_inside", default=False)


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def arguments_only() -> contextlib.AbstractContextManager[Any]:
    """A context for calls of what a caller has given, which may refer to other tensors than the arguments of a solver.

    Of a tensor of a transform the value would be right there, and the derivative zero: it raises an error.
    """
    # A compiler does not trace context variables, and none of this happens within what it compiles.
    if torch.compiler.is_compiling() or not _inside.get():
        return contextlib.nullcontext()
    return _ArgumentsOnly()


class _ArgumentsOnly(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        used = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        if any(map(_is_transformed, used)):
            raise RuntimeError(_ARGUMENTS_ONLY)
        return func(*args, **(kwargs or {}))


def _is_transformed(t: Tensor) -> bool:
    """Whether it is a batch of a ``vmap``, or may depend on what a transform differentiates in."""
    functorch = torch._C._functorch
    if not functorch.is_functorch_wrapped_tensor(t):
        return _has_tangent(t)
    # In forward mode a tensor does not say outside of its transform whether it has a tangent.
    live = functorch.is_batchedtensor(t) or t.requires_grad or forward_ad._current_level >= 0
    return live or _is_transformed(functorch.get_unwrapped(t))


def _has_tangent(t: Tensor) -> bool:
    if forward_ad._current_level < 0:
        return False
    # Functions with a formula for their derivative are called without forward mode.
    with forward_ad._set_fwd_grad_enabled(True):
        return forward_ad.unpack_dual(t).tangent is not None


_ARGUMENTS_ONLY = (
    "A function that contains a solver has transforms of torch.func and derivatives in forward mode in its arguments "
    "only, and none in parameters of a cost or in what else a cost refers to. Differentiate in these by "
    "`torch.autograd.grad` or `backward` without a transform, or compute them outside of it and detach them."
)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(call: Call, *tensors: Tensor) -> Tensor:
        with _plain(), torch.set_grad_enabled(call.differentiable):
            value = call([t.detach() for t in tensors])
        if value.requires_grad:
            raise RuntimeError(_ARGUMENTS_ONLY)
        return value.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Gradient.apply(ctx.call, grad, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        refuse_forward_twice()
        _check_scalar(ctx.call)
        tensors = ctx.saved_tensors
        batch = tensors[0].shape[: tensors[0].ndim - EVENT.get(ctx.call.names[0], 2)]
        gradients = _Gradient.apply(ctx.call, tensors[0].new_ones(batch), *tensors)
        pairs = [(g * t).flatten(len(batch)) for g, t in zip(gradients, tangents, strict=True) if t is not None]
        return cast(Tensor, sum(p.sum(-1) if p.ndim > len(batch) else p for p in pairs))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        return _Value.apply(*batch_first(info, in_dims, args)), 0


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(call: Call, grad: Tensor, *tensors: Tensor) -> Tensors:
        leaves = _leaves(tensors)
        with torch.enable_grad():
            value = call(leaves)
        if not value.requires_grad:
            return _gradients([None] * len(leaves), leaves)
        return _gradients(torch.autograd.grad(value, leaves, grad, allow_unused=True), leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensors) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Second.apply(ctx.call, len(cotangents), *cotangents, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, grad_tangent: Tensor | None, *tangents: Tensor | None) -> Tensors:
        refuse_forward_twice()
        _check_scalar(ctx.call)
        grad, *tensors = ctx.saved_tensors
        moved = [torch.zeros_like(x) if t is None else t for t, x in zip(tangents, tensors, strict=True)]
        # Second derivatives of a value are symmetric.
        found = _Second.apply(ctx.call, len(moved), *moved, grad, *tensors)[1:]
        if grad_tangent is None:
            return tuple(found)
        more = _Gradient.apply(ctx.call, grad_tangent, *tensors)
        return tuple(s + t for s, t in zip(found, more, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensors, tuple[int, ...]]:
        found = _Gradient.apply(*batch_first(info, in_dims, args))
        return found, (0,) * len(found)


class _Second(torch.autograd.Function):
    """The gradient of <gradient, cotangents> in the incoming gradient and in the tensors."""

    @staticmethod
    def forward(call: Call, count: int, *tensors: Tensor) -> Tensors:
        cotangents, leaves = tensors[:count], _leaves(tensors[count:])
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                call(leaves[1:]), leaves[1:], leaves[0], create_graph=True, allow_unused=True
            )
        pairs = [(g, t) for g, t in zip(gradients, cotangents, strict=True) if g is not None and g.requires_grad]
        outputs, weights = zip(*pairs, strict=True) if pairs else ((), ())
        found = torch.autograd.grad(outputs, leaves, weights, allow_unused=True) if pairs else [None] * len(leaves)
        return _gradients(found, leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensors) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensors:
        raise NotImplementedError("What a solver finds has no third derivatives.")

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        raise NotImplementedError("What a solver finds has no third derivatives.")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensors, tuple[int, ...]]:
        found = _Second.apply(*batch_first(info, in_dims, args))
        return found, (0,) * len(found)


def _check_scalar(call: Call) -> None:
    if not call.scalar:
        raise NotImplementedError(
            "Potentials, plans and maps have no forward-mode derivatives. Take reverse mode (`torch.func.jacrev`, "
            "`torch.func.vjp`), or differentiate the value."
        )
