"""Errors of arguments that are plain: numbers, names and choices.

Apart from those of tensors, so that the command line can refuse a word before torch is imported.
"""

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

N = TypeVar("N", int, float)

__all__ = [
    "argument_error",
    "check_boolean",
    "check_choice",
    "check_fields",
    "check_fraction",
    "check_integer",
    "check_known",
    "check_nonnegative",
    "check_number",
    "check_optional_function",
    "check_positive",
    "check_several",
    "check_share",
]


def argument_error(
    name: str, must: str, got: object, remedy: str = "", kind: type[Exception] = ValueError
) -> Exception:
    """The exception for argument ``name``; raise what this returns."""
    return kind(f"`{name}` must {must}, got {got}.{' ' + remedy if remedy else ''}")


def check_number(name: str, value: float, must: str = "be a finite number") -> float:
    """``value`` as a number of Python, if it is finite."""
    value = _of_python(name, value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        remedy = "Pass one number." if hasattr(value, "ndim") else ""
        raise argument_error(name, must, repr(value), remedy, TypeError)
    if not math.isfinite(value):
        raise argument_error(name, must, value)
    return value if isinstance(value, (int, float)) else float(value)


def _of_python(name: str, value: Any) -> Any:
    """The number of Python that one of NumPy, or an array or a tensor of one number, holds; all else as it is."""
    if isinstance(value, (int, float)) or getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        # A number of NumPy that is one of Python too prints as what it is.
        return float(value) if isinstance(value, float) else value
    if hasattr(value, "requires_grad"):
        _check_constant(name, value)
    # A NumPy scalar times a tensor is an array, and one of low precision would round results.
    return value.item()


def _check_constant(name: str, value: Any) -> None:
    """Raise for a tensor in which a derivative is taken, which a number would silently leave out."""
    import torch
    from torch.autograd import forward_ad

    if value.is_meta:
        raise argument_error(name, "be a number", "a tensor on the meta device")
    tangent = forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None
    if value.requires_grad or tangent or torch._C._functorch.is_functorch_wrapped_tensor(value):
        remedy = "It is a constant of the function: pass `.detach()` of it, and a loop in place of `vmap` over it."
        raise argument_error(name, "be a number", "a tensor under a derivative or a transform", remedy, TypeError)


def check_positive(name: str, value: float) -> float:
    """``value`` as a number of Python, if it is positive and finite."""
    must = "be a positive number"
    if (value := check_number(name, value, must)) <= 0:
        raise argument_error(name, must, value)
    return value


def check_nonnegative(name: str, value: float) -> float:
    """``value``, if it is a finite number that is not negative."""
    must = "be a number that is not negative"
    if (value := check_number(name, value, must)) < 0:
        raise argument_error(name, must, value)
    # Not minus zero.
    return value or type(value)(0)


def check_fraction(name: str, value: float) -> float:
    """``value``, if it lies in (0, 1]."""
    value = check_positive(name, value)
    if value > 1:
        raise argument_error(name, "lie in (0, 1]", value)
    return value


def check_share(name: str, value: float) -> float:
    """``value``, if it lies in [0, 1]."""
    value = check_nonnegative(name, value)
    if value > 1:
        raise argument_error(name, "lie in [0, 1]", value)
    return value


def check_integer(name: str, value: int, least: int | None = 1) -> int:
    """``value`` as an integer of Python, if it is one, and of at least ``least`` where that is no None."""
    must = "be an integer" if least is None else f"be an integer >= {least}"
    value = _of_python(name, value)
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        raise argument_error(name, must, repr(value), kind=TypeError)
    if least is not None and value < least:
        raise argument_error(name, must, value)
    return value if isinstance(value, int) else int(value)


def check_several(name: str, values: Iterable[N], check: Callable[[str, N], N]) -> tuple[N, ...]:
    """``values`` as a tuple, each of which passes a check, if they are several."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise argument_error(name, "be a list or a tuple of numbers", repr(values), kind=TypeError)
    if getattr(values, "ndim", 1) != 1:
        raise argument_error(name, "be a list or a tuple of numbers", f"shape {tuple(values.shape)}", kind=TypeError)  # type: ignore[attr-defined]
    return tuple(check(name, value) for value in values)


def check_fields(record: Any, **checks: Callable[[str, Any], Any]) -> None:
    """Put in place of fields of a frozen dataclass what their checks make of them."""
    for name, check in checks.items():
        object.__setattr__(record, name, check(name, getattr(record, name)))


def check_optional_function(name: str, value: Any) -> Any:
    """``value``, if it can be called, or None."""
    if not (value is None or callable(value)):
        raise argument_error(name, "be a function or None", repr(value), kind=TypeError)
    return value


def check_boolean(name: str, value: bool) -> bool:
    """``value`` as a boolean of Python, if it is one, or one of NumPy: the word "False" would count as true."""
    numpy = getattr(getattr(value, "dtype", None), "kind", None) == "b" and getattr(value, "ndim", None) == 0
    if not (isinstance(value, bool) or numpy):
        raise argument_error(name, "be True or False", repr(value), kind=TypeError)
    return bool(value)


def check_choice(name: str, value: str, choices: Collection[str]) -> str:
    """``value``, if it is one of ``choices``."""
    if value not in choices:
        raise argument_error(name, f"be one of {', '.join(map(repr, choices))}", repr(value))
    return value


def check_known(what: str, name: str, known: Collection[str]) -> str:
    """``name``, if it is one of the ``known`` ones; else the error lists them and says which is closest."""
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown {what} {name!r}. {hint}Known: {', '.join(known) or 'none'}.")
    return name
