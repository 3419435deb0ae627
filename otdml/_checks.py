"""Every argument error of the library, phrased once.

An error names the argument, says what it must be, shows what was received, and ends with the remedy.
"""

import difflib
import math
from collections.abc import Collection

import torch
from torch import Tensor

__all__ = [
    "argument_error",
    "check_choice",
    "check_clouds",
    "check_equal_mass",
    "check_finite",
    "check_fraction",
    "check_integer",
    "check_known",
    "check_labels",
    "check_matrix",
    "check_measures",
    "check_nonnegative",
    "check_paired",
    "check_points",
    "check_positive",
    "check_views",
    "check_weights",
]


def argument_error(
    name: str, must: str, got: object, remedy: str = "", kind: type[Exception] = ValueError
) -> Exception:
    """The exception for argument ``name``; raise what this returns."""
    return kind(f"`{name}` must {must}, got {got}.{' ' + remedy if remedy else ''}")


def check_positive(name: str, value: float) -> float:
    """``value``, if it is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise argument_error(name, "be a positive number", repr(value), kind=TypeError)
    if not (value > 0 and math.isfinite(value)):
        raise argument_error(name, "be a positive number", value)
    return value


def check_nonnegative(name: str, value: float) -> float:
    """``value``, if it is a finite number that is not negative."""
    return value if value == 0 and not isinstance(value, bool) else check_positive(name, value)


def check_fraction(name: str, value: float) -> float:
    """``value``, if it lies in (0, 1]."""
    if check_positive(name, value) > 1:
        raise argument_error(name, "lie in (0, 1]", value)
    return value


def check_integer(name: str, value: int, least: int = 1) -> int:
    """``value``, if it is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise argument_error(name, f"be an integer >= {least}", repr(value), kind=TypeError)
    if value < least:
        raise argument_error(name, f"be an integer >= {least}", value)
    return value


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


def check_points(name: str, x: Tensor) -> Tensor:
    """``x``, if it is a floating-point point cloud of shape (..., n, d) with n, d >= 1."""
    if not isinstance(x, Tensor):
        raise argument_error(name, "be a torch.Tensor", type(x).__name__, kind=TypeError)
    if not x.is_floating_point():
        raise argument_error(name, "be of floating point", x.dtype, "Convert it with `.float()`.", TypeError)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        remedy = f"Write `{name}[:, None]` for points on a line." if x.ndim == 1 and len(x) else ""
        raise argument_error(name, "have shape (..., n, d) with n, d >= 1", tuple(x.shape), remedy)
    return x


def check_finite(name: str, x: Tensor) -> Tensor:
    """``x``, shape (n, ...), if no row holds NaN or infinity."""
    # A finite sum has finite terms, and costs a tenth of looking at each.
    if not x.sum().isfinite() and not (finite := x.isfinite().flatten(1).all(1)).all():
        rows = (~finite).nonzero()[:, 0].tolist()
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        found = f"NaN or infinity in {len(rows)} of {len(x)} rows: {shown}"
        raise argument_error(name, "be finite", found, "Look at the step or the image that made these rows.")
    return x


def check_matrix(name: str, x: Tensor) -> Tensor:
    """``x``, if it is floating-point and finite, of shape (n, d) with n, d >= 1."""
    if check_points(name, x).ndim != 2:
        raise argument_error(name, "have shape (n, d)", tuple(x.shape))
    return check_finite(name, x)


def check_weights(name: str, a: Tensor | None, x: Tensor) -> None:
    """Raise unless ``a`` is None or holds one weight per point of ``x``, shape (..., n)."""
    if a is None:
        return
    if not isinstance(a, Tensor):
        raise argument_error(name, "be a torch.Tensor or None", type(a).__name__, kind=TypeError)
    if not a.is_floating_point():
        raise argument_error(name, "be of floating point", a.dtype, "Convert it with `.float()`.", TypeError)
    if a.shape != x.shape[:-1]:
        must = f"hold one weight per point, shape {tuple(x.shape[:-1])}"
        raise argument_error(name, must, tuple(a.shape), "Pass None for uniform weights.")
    if a.device != x.device:
        raise argument_error(name, f"be on the points' device {x.device}", a.device)


def check_measures(x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> None:
    """Raise unless (x, a) and (y, b) are two weighted point clouds of one space, with equal batch dimensions."""
    check_points("x", x)
    check_points("y", y)
    if x.shape[-1] != y.shape[-1]:
        remedy = "Use a Gromov loss to compare points of different spaces."
        raise argument_error("y", f"have the features of `x`, {x.shape[-1]}", y.shape[-1], remedy)
    _check_alike(x, y)
    check_weights("a", a, x)
    check_weights("b", b, y)


def check_clouds(x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> None:
    """Raise unless (x, a) and (y, b) are weighted point clouds, of spaces that may differ, with equal batches."""
    check_points("x", x)
    check_points("y", y)
    _check_alike(x, y)
    check_weights("a", a, x)
    check_weights("b", b, y)


def check_equal_mass(a: Tensor, b: Tensor) -> None:
    """Raise unless the weights ``a`` and ``b``, shapes (..., n) and (..., m), have equal sums."""
    if torch.compiler.is_compiling():
        # A branch on a value would break the graph.
        return
    difference = float(((a.sum(-1) - b.sum(-1)).abs() / a.sum(-1)).detach().max())
    if not difference <= 1e-3:
        got = f"a relative difference of {difference:.3g}"
        raise argument_error("b", "have the mass of `a`", got, "Normalise the weights.")


def check_paired(x: Tensor, y: Tensor, second: str = "y") -> None:
    """Raise unless row i of ``y`` is the image of row i of ``x``: equal shapes up to the features."""
    check_points("x", x)
    check_points(second, y)
    if x.shape[-2] != y.shape[-2]:
        raise argument_error(second, f"hold one row per row of `x`, {x.shape[-2]}", y.shape[-2])
    _check_alike(x, y, second=second)


def check_views(z1: Tensor, z2: Tensor, *, paired: bool) -> None:
    """Raise unless ``z1`` and ``z2`` are point clouds of one space with equal batches, and of equal size if paired."""
    check_points("z1", z1)
    check_points("z2", z2)
    if z1.shape[-1] != z2.shape[-1]:
        remedy = "Project both modalities to one dimension."
        raise argument_error("z2", f"have the features of `z1`, {z1.shape[-1]}", z2.shape[-1], remedy)
    if paired and z1.shape[-2] != z2.shape[-2]:
        remedy = "Pass `target` to align sets of different sizes."
        raise argument_error("z2", f"hold one row per row of `z1`, {z1.shape[-2]}", z2.shape[-2], remedy)
    _check_alike(z1, z2, "z1", "z2")


def _check_alike(x: Tensor, y: Tensor, first: str = "x", second: str = "y") -> None:
    if x.shape[:-2] != y.shape[:-2]:
        must = f"have the batch dimensions of `{first}`, {tuple(x.shape[:-2])}"
        raise argument_error(second, must, tuple(y.shape[:-2]), "Expand the smaller one with `.expand`.")
    if x.device != y.device:
        raise argument_error(second, f"be on the device of `{first}`, {x.device}", y.device)


def check_labels(name: str, labels: Tensor, n: int, num_classes: int | None = None) -> Tensor:
    """``labels``, if they are ``n`` integers, in [0, num_classes) where that is given."""
    if not isinstance(labels, Tensor) or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        got = str(labels.dtype) if isinstance(labels, Tensor) else type(labels).__name__
        raise argument_error(name, "be a tensor of integers", got, "Convert it with `.long()`.", TypeError)
    if labels.shape != (n,):
        raise argument_error(name, f"have shape ({n},), one label per row", tuple(labels.shape))
    if num_classes is not None and n and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        found = f"values from {int(labels.min())} to {int(labels.max())}"
        raise argument_error(name, f"lie in [0, {num_classes})", found, "Map class names to 0, 1, ... first.")
    return labels
