"""Arithmetic in float32 or better, whatever the caller's autocast and dtypes."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["SINGLE_ONLY", "full_arithmetic", "full_precision", "multiplies_in_bfloat16", "widest"]

P = ParamSpec("P")
R = TypeVar("R")


# Kinds of device without double precision.
SINGLE_ONLY = ("mps",)
# Kinds of device that every release of torch has autocast for, and the context where nothing is to be changed.
_KNOWN = ("cpu", "cuda")
_AS_IT_IS: contextlib.AbstractContextManager[None] = contextlib.nullcontext()

# The argument that a solver starts from: it may be the result of another precision, and has no say in this one's.
START = "init"


def widest(device: torch.device) -> torch.dtype:
    """The finest precision that a device has.

    Example:
        >>> widest(torch.device("cpu"))
        torch.float64
    """
    return torch.float32 if device.type in SINGLE_ONLY else torch.float64


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 by itself.

    Where it does not, torch converts to float32 and back, or leaves its libraries: on a processor with AVX2 alone a
    step of a small residual network takes ten times as long as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool({"avx512_bf16", "amx_bf16"} & _processor_flags())


@functools.cache
def _processor_flags() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    return frozenset(cpuinfo.read_text().split() if cpuinfo.exists() else ())


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with autocast off and its floating-point tensors in one dtype of at least float32.

    Half inputs become float32, float64 stays, and mixed dtypes are promoted, so a loss fed by a half-precision
    layer and float32 parameters computes in float32 and returns float32. Tensors in a tuple count as arguments.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        values = [
            value
            for argument in (*args, *[value for name, value in kwargs.items() if name != START])
            for value in (argument if type(argument) is tuple else (argument,))
            if isinstance(value, Tensor) and _has_numbers(value)
        ]
        if not values:
            return function(*args, **kwargs)
        dtypes = {v.dtype for v in values}
        if dtypes != {torch.float32} and dtypes != {torch.float64}:
            # As in torch, a tensor of one number has no say in the dtype of others; it keeps its own if that is wider.
            wide = {v.dtype for v in values if v.ndim} or dtypes
            dtype = functools.reduce(torch.promote_types, wide, torch.float32)

            def cast(value: Any) -> Any:
                if type(value) is tuple:
                    return tuple(map(cast, value))
                if not (isinstance(value, Tensor) and _has_numbers(value)):
                    return value
                return value.to(dtype if value.ndim else torch.promote_types(value.dtype, dtype))

            args = tuple(map(cast, args))  # type: ignore[assignment]
            kwargs = {k: v if k == START else cast(v) for k, v in kwargs.items()}  # type: ignore[assignment]
        with full_arithmetic(values[0].device.type):
            return function(*args, **kwargs)

    return wrapper


def _has_numbers(x: Tensor) -> bool:
    """Whether the tensor's dtype is one to compute from: those of a byte are refused by the checks of arguments."""
    return x.is_floating_point() and x.dtype.itemsize > 1


def full_arithmetic(device: str) -> contextlib.AbstractContextManager[Any]:
    """A context without autocast on a kind of device."""
    # Disabling autocast costs as much as an iteration of a small solve, and some kinds of device have no autocast. The
    # compiler has it for all that it knows, and that of torch 2.7 cannot trace the question.
    known = device in _KNOWN or torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    on = known and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else _AS_IT_IS
