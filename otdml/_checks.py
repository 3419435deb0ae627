"""Every argument error of the library, phrased once.

An error names the argument, says what it must be, shows what was received, and ends with the remedy.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from otdml._arguments import (
    argument_error,
    check_boolean,
    check_choice,
    check_fields,
    check_fraction,
    check_integer,
    check_known,
    check_nonnegative,
    check_number,
    check_optional_function,
    check_positive,
    check_several,
    check_share,
)

__all__ = [
    "argument_error",
    "argument_names",
    "check_batches",
    "check_boolean",
    "check_choice",
    "check_equal_mass",
    "check_fields",
    "check_finite",
    "check_fraction",
    "check_generator",
    "check_images",
    "check_in_range",
    "check_integer",
    "check_integers",
    "check_known",
    "check_labels",
    "check_matrix",
    "check_nonnegative",
    "check_number",
    "check_optional_function",
    "check_pixels",
    "check_points",
    "check_positive",
    "check_several",
    "check_share",
    "check_signs",
    "check_tensor",
    "check_views",
    "check_weight_shape",
    "check_weights",
    "device_of_draws",
    "has_values",
    "numbers",
    "vanishing_costs",
]


def check_generator(generator: torch.Generator | None, *, needed: bool = False) -> torch.Generator | None:
    """``generator``, if it is one of torch, or None where none is ``needed``."""
    if not (isinstance(generator, torch.Generator) or (generator is None and not needed)):
        must, remedy = "be a torch.Generator", "Pass `torch.Generator().manual_seed(0)` for a seed of 0."
        raise argument_error("generator", must if needed else f"{must} or None", repr(generator), remedy, TypeError)
    return generator


def device_of_draws(
    generator: torch.Generator | None, device: torch.device | str | None = None
) -> torch.device | str | None:
    """Where to draw: on the device of the ``generator``, which draws nowhere else, and on ``device`` without one."""
    return device if check_generator(generator) is None else generator.device  # type: ignore[union-attr]


@contextlib.contextmanager
def argument_names(**names: str) -> Iterator[None]:
    """Let errors of what is called within name the arguments as the caller knows them.

    Example:
        >>> with argument_names(x="z"):
        ...     check_positive("x", -1)
        Traceback (most recent call last):
        ValueError: `z` must be a positive number, got -1.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        pattern = "`(" + "|".join(map(re.escape, names)) + ")`"
        renamed = re.sub(pattern, lambda found: f"`{names[found[1]]}`", str(error))
        if renamed == str(error):
            raise
        raise type(error)(renamed) from error.__cause__


def check_in_range(name: str, value: float, dtype: torch.dtype) -> float:
    """``value`` as a number of Python, if it is positive, and no less and no more than numbers of a dtype can be."""
    value, limits = check_positive(name, value), torch.finfo(dtype)
    if not limits.tiny <= value <= limits.max:
        raise argument_error(name, f"be a number of {dtype}", f"{value:g}", "Rescale, or pass float64.")
    return value


def check_tensor(name: str, x: Tensor, must: str = "be a torch.Tensor") -> None:
    """Raise unless ``x`` is a floating-point tensor that holds numbers."""
    if not isinstance(x, Tensor):
        remedy = "Convert it with `torch.as_tensor`." if isinstance(x, (np.ndarray, Sequence)) else ""
        raise argument_error(name, must, type(x).__name__, remedy, TypeError)
    if not x.is_floating_point():
        raise argument_error(name, "be of floating point", x.dtype, "Convert it with `.float()`.", TypeError)
    if x.dtype.itemsize < 2:
        raise argument_error(name, "be of half precision or finer", x.dtype, "Convert it with `.float()`.", TypeError)
    if x.is_nested:
        remedy = "Make one of its parts with `otdml.ot.pad_clouds`."
        raise argument_error(name, "be a dense tensor", "a nested tensor", remedy, TypeError)
    if x.layout != torch.strided:
        raise argument_error(name, "be a dense tensor", x.layout, "Convert it with `.to_dense()`.", TypeError)
    _check_has_numbers(name, x)


def _check_has_numbers(name: str, x: Tensor) -> None:
    if x.is_meta:
        raise argument_error(name, "hold numbers", "a tensor on the meta device", "Move it to the CPU or a GPU first.")


def check_points(name: str, x: Tensor) -> Tensor:
    """``x``, if it is a floating-point point cloud of shape (..., n, d) with n, d >= 1."""
    check_tensor(name, x)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        remedy = f"Write `{name}[:, None]` for points on a line." if x.ndim == 1 and len(x) else ""
        raise argument_error(name, "have shape (..., n, d) with n, d >= 1", tuple(x.shape), remedy)
    return x


def check_finite(name: str, x: Tensor) -> Tensor:
    """``x``, shape (n, ...), if no row holds NaN or infinity."""
    # A finite sum has finite terms, and takes a tenth of the time of a check of each.
    if not math.isfinite(x.detach().sum()) and not (finite := x.isfinite().flatten(1).all(1)).all():
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


def check_images(
    name: str,
    x: Tensor,
    *,
    channels: int | None = None,
    sides: tuple[int, ...] | None = None,
    stored: bool = False,
) -> Tensor:
    """``x``, if it holds images of floating point, or bytes where they are ``stored``; shape (n, channels, h, w)."""
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        if not stored:
            raise argument_error(name, "be of floating point", "bytes", f"Write `{name}.float() / 255`.", TypeError)
    else:
        check_tensor(name, x, "be a torch.Tensor of images")
    if x.ndim != 4 or 0 in x.shape or channels not in (None, x.shape[1]) or sides not in (None, x.shape[2:]):
        wanted = ", ".join(map(str, ("n", channels or "channels", *(sides or "hw"))))
        remedy = f"Write `{name}[None]` for one image." if x.ndim == 3 else ""
        raise argument_error(name, f"have shape ({wanted}), none of them 0", tuple(x.shape), remedy)
    return x


def check_pixels(name: str, x: Tensor) -> Tensor:
    """``x``, if its pixels are bytes or lie in [0, 1]."""
    if x.dtype != torch.uint8:
        low, high = map(float, x.detach().aminmax())
        if not 0 <= low <= high <= 1:
            got, remedy = f"numbers from {low:g} to {high:g}", "Divide by their largest value."
            raise argument_error(name, "lie in [0, 1]", got, "" if math.isnan(low) else remedy)
    return x


def has_values(x: Tensor) -> bool:
    """Whether Python may branch on the numbers in ``x``: not in a traced or recorded graph, and not under ``vmap``."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return False
        x = functorch.get_unwrapped(x)
    # Launches that a CUDA graph records have not been carried out.
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def numbers(x: Tensor) -> list[float]:
    """The numbers in ``x``, shape (n,), if it has values; one tensor, because to read it forces a synchronisation."""
    # Before torch 2.8 `tolist` of a tensor within a transform works for single numbers only.
    return [float(v) for v in x] if torch._C._are_functorch_transforms_active() else x.tolist()


def check_weights(name: str, a: Tensor | None, x: Tensor) -> None:
    """Raise unless ``a`` is None or holds one weight per point of ``x``, shape (..., n), finite and not negative."""
    if a is None:
        return
    check_weight_shape(name, a, x.shape[:-1], x.device)
    if a.shape != x.shape[:-1]:
        must = f"hold one weight per point, shape {tuple(x.shape[:-1])}"
        raise argument_error(name, must, tuple(a.shape), "Pass None for uniform weights.")
    check_signs(**{name: a})


def check_weight_shape(
    name: str, a: Tensor, points: torch.Size, device: torch.device, remedy: str = "Pass None for uniform weights."
) -> None:
    """Raise unless ``a`` is a tensor of weights for points of shape (..., n), whose batches may be others."""
    check_tensor(name, a, "be a torch.Tensor or None")
    if a.shape[-1:] != points[-1:]:
        must = f"hold one weight per point, shape {tuple(points)}"
        raise argument_error(name, must, tuple(a.shape), remedy)
    if a.device != device:
        raise argument_error(name, f"be on the points' device {device}", a.device)


def check_signs(**weights: Tensor | None) -> None:
    """Raise if one of these weights is negative, infinite or not a number; it takes one synchronisation for all."""
    known = {name: w.detach() for name, w in weights.items() if w is not None and w.numel() and has_values(w)}
    if not known:
        return
    extremes = numbers(torch.stack([end for w in known.values() for end in w.aminmax()]))
    for name, low, high in zip(known, extremes[::2], extremes[1::2], strict=True):
        if low < 0:
            raise argument_error(name, "hold no negative weight", f"{low:.3g}")
        if not math.isfinite(low + high):
            raise argument_error(name, "hold finite weights", "NaN or infinity")


def check_batches(**shapes: torch.Size) -> torch.Size:
    """The shape to which the batch dimensions of these arguments broadcast."""
    if len(set(shapes.values())) == 1:
        # By far the most frequent case, in a tenth of the time.
        return next(iter(shapes.values()))
    names = list(shapes)
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        pass
    for i, second in enumerate(names):
        for first in names[:i]:
            try:
                torch.broadcast_shapes(shapes[first], shapes[second])
            except RuntimeError:
                must = f"have the batch dimensions of `{first}`, {tuple(shapes[first])}"
                remedy = "They broadcast: one of size 1, or left out, is shared."
                raise argument_error(second, must, tuple(shapes[second]), remedy) from None
    raise AssertionError("two of them differ")


def check_equal_mass(a: Tensor, b: Tensor) -> None:
    """Raise unless the weights ``a`` and ``b``, shapes (..., n) and (..., m), have equal sums."""
    if not (a.numel() and has_values(a) and has_values(b)):
        # A branch on a value would break the graph.
        return
    p, q = a.detach().sum(-1), b.detach().sum(-1)
    # Two measures without mass have equal masses.
    difference = torch.where(p == q, 0, (p - q).abs() / torch.maximum(p.abs(), q.abs()))
    if not float(difference.max()) <= 1e-3:
        worst = int(difference.flatten().argmax())
        where = f" in batch element {tuple(map(int, np.unravel_index(worst, p.shape)))}" if p.ndim else ""
        got = f"{float(q.flatten()[worst]):g} and {float(p.flatten()[worst]):g}{where}"
        raise argument_error("b", "have the mass of `a`", got, "Normalise the weights.")


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


def check_integers(name: str, values: Tensor | ArrayLike) -> Tensor:
    """``values`` as a tensor of 64-bit integers, if they are integers: in a tensor, an array or a list."""
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise argument_error(name, "be a tensor of integers", values.dtype, "Convert it with `.long()`.", TypeError)
        _check_has_numbers(name, values)
        return values.long()
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        got = type(values).__name__ + ("" if array.dtype.kind == "O" else f" of {array.dtype}")
        remedy = "Map class names to 0, 1, ... first." if array.dtype.kind in "US" else ""
        raise argument_error(name, "be integers, in a tensor, an array or a list", got, remedy, TypeError)
    return torch.from_numpy(array.astype(np.int64))


def check_labels(name: str, labels: Tensor | ArrayLike, n: int, num_classes: int | None = None) -> Tensor:
    """``labels`` as a tensor, if they are ``n`` integers, in [0, num_classes) where that is given."""
    labels = check_integers(name, labels)
    if labels.shape != (n,):
        raise argument_error(name, f"have shape ({n},), one label per row", tuple(labels.shape))
    if num_classes is not None and n and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        found = f"values from {int(labels.min())} to {int(labels.max())}"
        raise argument_error(name, f"lie in [0, {num_classes})", found, "Map class names to 0, 1, ... first.")
    return labels


def vanishing_costs(name: str, dtype: torch.dtype) -> Exception:
    """The error for points so close to each other that all their costs are zero."""
    must = f"give costs that {dtype} tells from zero"
    return argument_error(name, must, "points whose squares vanish", "Rescale them.")
