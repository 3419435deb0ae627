"""Sums of a kernel over pairs of points, without the matrix of pairs.

Small problems are summed densely by differentiable operations. Large ones go through tiles of pairs, or through KeOps;
value and gradient come from one pass, so the memory is that of the points and of one tile.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from otdml._checks import argument_error, check_batches, check_choice, check_points, check_tensor, check_weight_shape
from otdml._derivatives import needs_derivative
from otdml._fused.sums import check_fusible, fused_sums
from otdml._precision import full_arithmetic, full_precision
from otdml._tiles import Arithmetic, tiles
from otdml._transforms import batch_first, refuse_forward_twice
from otdml.kernels import Kernel, RadialKernel, check_kernel
from otdml.measures import expand

__all__ = ["BACKENDS", "cross_sum", "pair_sum", "quadratic_form", "smallest_squared_distance"]

BACKENDS = ("auto", "dense", "streamed", "keops", "triton")

# Differences kept by the dense form; beyond it a tile is faster.
_DENSE = 2**17


@full_precision
def quadratic_form(kernel: Kernel, x: Tensor, a: Tensor, *, backend: str = "auto") -> Tensor:
    r"""Sum of a kernel over all pairs of points of one measure.

    .. math:: \sum_{i,j} a_i a_j \, k(x_i, x_j)

    Args:
        kernel: A kernel that is finite at distance zero.
        x: Points, shape (..., n, d).
        a: Weights of any sign, shape (..., n).
        backend: As in :func:`pair_sum`.

    Returns:
        One value per batch element, shape (...).

    Raises:
        ValueError: If shapes or devices do not fit, the kernel is infinite at distance zero, or an option is unknown.
        TypeError: If the kernel is none, or points or weights are no tensors of floating point.

    Example:
        >>> import torch
        >>> from otdml.kernels import energy
        >>> quadratic_form(energy(), torch.tensor([[0.0], [3.0]]), torch.tensor([1.0, -1.0]))
        tensor(6.)
    """
    if _checked(kernel, x, a).at_zero == math.inf:
        remedy = "Sum over pairs of distinct points by `pair_sum`."
        raise argument_error("kernel", "be finite at distance zero", "one that is not", remedy)
    return pair_sum(kernel, x, a, backend=backend) + kernel.at_zero * a.square().sum(-1)


@full_precision
def pair_sum(kernel: Kernel, x: Tensor, a: Tensor, *, backend: str = "auto") -> Tensor:
    r"""Sum of a kernel over the pairs of distinct points of one measure.

    .. math:: \sum_{i \ne j} a_i a_j \, k(x_i, x_j)

    Differentiable in x and a; second derivatives take the memory of the dense form. The cost is n² d / 2, since each
    pair is visited once. Tiles of kernels with a length are in single precision where it resolves that length; under
    ``torch.compile``, which looks at no value, they are in double precision.

    Args:
        kernel: A kernel of :mod:`otdml.kernels`.
        x: Points, shape (..., n, d).
        a: Weights of any sign, shape (..., n).
        backend: ``"dense"``, memory n² d; ``"streamed"``, tiles of pairs in memory n d; ``"keops"``, compiled at first;
            on a GPU ``"triton"``, for Gaussians and Laplacians; or ``"auto"``, dense or streamed by size.

    Returns:
        One value per batch element, shape (...).

    Raises:
        ValueError: If shapes or devices do not fit, or an option is unknown.
        TypeError: If the kernel is none, or points or weights are no tensors of floating point.

    Example:
        >>> import torch
        >>> from otdml.kernels import riesz
        >>> pair_sum(riesz(1.0), torch.tensor([[0.0], [2.0]]), torch.ones(2))  # 1/2, twice
        tensor(1.)
    """
    _checked(kernel, x, a)
    x, a = _with_one_batch(x, a)
    engine = _chosen(backend, kernel, x, x)
    if engine == "dense":
        return _dense(kernel, x, a, x, a, pairs=True)
    return _streamed(kernel, engine, True, x, a, x.detach(), a.detach())


@full_precision
def cross_sum(kernel: Kernel, x: Tensor, a: Tensor, y: Tensor, b: Tensor, *, backend: str = "auto") -> Tensor:
    r"""Sum of a kernel over the pairs of points of two measures.

    .. math:: \sum_{i,j} a_i b_j \, k(x_i, y_j)

    Args:
        kernel: A kernel of :mod:`otdml.kernels`.
        x: Points, shape (..., n, d).
        a: Weights of any sign, shape (..., n).
        y: Points, shape (..., m, d).
        b: Weights of any sign, shape (..., m).
        backend: As in :func:`pair_sum`.

    Returns:
        One value per batch element, shape (...).

    Raises:
        ValueError: If shapes or devices do not fit, or an option is unknown.
        TypeError: If the kernel is none, or points or weights are no tensors of floating point.

    Example:
        >>> import torch
        >>> from otdml.kernels import energy
        >>> cross_sum(energy(), torch.zeros(1, 1), torch.ones(1), torch.ones(2, 1), torch.ones(2))
        tensor(-2.)
    """
    _checked(kernel, x, a, y, b)
    x, a, y, b = _with_one_batch(x, a, y, b)
    engine = _chosen(backend, kernel, x, y)
    if engine == "dense":
        return _dense(kernel, x, a, y, b, pairs=False)
    return _streamed(kernel, engine, False, x, a, y, b)


@full_precision
def smallest_squared_distance(x: Tensor) -> Tensor:
    """The smallest squared distance between two points of each batch element, without gradient, shape (..., 1, 1).

    Example:
        >>> import torch
        >>> smallest_squared_distance(torch.tensor([[0.0], [1.0], [3.0]]))
        tensor([[1.]])
    """
    x = check_points("x", x).detach()
    least = x.new_full((*x.shape[:-2], 1, 1), torch.inf)
    with torch.no_grad():
        for _, _, r2, _ in tiles(x, x, True, Arithmetic(x.dtype, exact=True)):
            least = torch.minimum(least, r2.amin((-2, -1), keepdim=True))
    return least


def _checked(kernel: Kernel, x: Tensor, a: Tensor, y: Tensor | None = None, b: Tensor | None = None) -> Kernel:
    """The kernel, if it is one for these measures, and they are measures of one space."""
    _check_measure(x=x, a=a)
    batches = {"x": x.shape[:-2], "a": a.shape[:-1]}
    if y is not None and b is not None:
        _check_measure(y=y, b=b)
        if y.shape[-1] != x.shape[-1]:
            raise argument_error("y", f"have the features of `x`, {x.shape[-1]}", y.shape[-1])
        if y.device != x.device:
            raise argument_error("y", f"be on the device of `x`, {x.device}", y.device)
        batches |= {"y": y.shape[:-2], "b": b.shape[:-1]}
    check_batches(**batches)
    return check_kernel(kernel, x.dtype)


def _check_measure(**measure: Tensor) -> None:
    """Raise unless these are points, shape (..., n, d), and weights of any sign, shape (..., n), by their names."""
    (points, x), (name, w) = measure.items()
    check_points(points, x)
    check_tensor(name, w)
    remedy = f"Write `torch.ones({points}.shape[:-1])` for equal ones."
    check_weight_shape(name, w, x.shape[:-1], x.device, remedy)


def _with_one_batch(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Points and weights in turn, with batch dimensions that broadcast to each other."""
    own = (2, 1) * (len(tensors) // 2)
    batch = torch.broadcast_shapes(*(t.shape[:-k] for t, k in zip(tensors, own, strict=True)))
    return tuple(expand(t, batch, k) for t, k in zip(tensors, own, strict=True))


def _chosen(backend: str, kernel: Kernel, x: Tensor, y: Tensor) -> str:
    if check_choice("backend", backend, BACKENDS) == "triton":
        return check_fusible(kernel.tile, x)
    if backend != "auto":
        return backend
    return "dense" if x.numel() * y.shape[-2] <= _DENSE else "streamed"


def _dense(kernel: Kernel, x: Tensor, a: Tensor, y: Tensor, b: Tensor, pairs: bool) -> Tensor:
    r2 = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    own = torch.eye(x.shape[-2], dtype=torch.bool, device=x.device) if pairs else None
    if own is not None:
        # Any finite value at which every kernel is finite.
        r2 = torch.where(own, r2.detach().amax((-2, -1), keepdim=True), r2)
    least = kernel.least(x.dtype)
    # The value of the floor with the gradient of the squared distance, as in a tile.
    k, _ = kernel(r2 + (least - r2.detach()).relu())
    if own is not None:
        k = torch.where(own, 0, k)
    # `einsum` takes three times as long for small clouds, and a graph for each number of points where it is compiled.
    return ((a.unsqueeze(-2) @ k).squeeze(-2) * b).sum(-1)


def _streamed(kernel: Kernel, backend: str, pairs: bool, *measures: Tensor) -> Tensor:
    shift = None
    if isinstance(kernel, RadialKernel):
        # A kernel may contain a tensor, which transforms have to track.
        kernel, shift = replace(kernel, shift=None), kernel.shift
    form = _Form(kernel, backend, pairs)
    return _KernelSum.apply(form, (needs_derivative(measures[0]), needs_derivative(measures[2])), shift, *measures)[0]


@dataclass(frozen=True)
class _Form:
    """A sum over pairs: kernel, pairs, and how it is computed."""

    kernel: Kernel
    backend: str
    pairs: bool

    def shifted(self, shift: Tensor | None) -> Kernel:
        return replace(self.kernel, shift=shift) if isinstance(self.kernel, RadialKernel) else self.kernel

    def sums(self, x: Tensor, y: Tensor) -> Callable[..., "Sums"]:
        if self.backend == "triton" and _arithmetic(self.kernel, x, y).dtype == x.dtype:
            return fused_sums
        # Fused tiles have no double precision, which points far apart take.
        return _keops_sums if self.backend == "keops" else _tile_sums

    def dense(self, shift: Tensor | None, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return _dense(self.shifted(shift), x, a, *((x, a) if self.pairs else (y, b)), pairs=self.pairs)


class _KernelSum(torch.autograd.Function):
    """The sum over pairs, and its gradient, which is linear in a kernel's slope and found in the same pass."""

    @staticmethod
    def forward(
        form: _Form, wanted: tuple[bool, bool], shift: Tensor | None, x: Tensor, a: Tensor, y: Tensor, b: Tensor
    ) -> tuple[Tensor, ...]:
        # A sum of radial kernels is the same around any origin; near zero the products keep their digits.
        origin = y.mean(-2, keepdim=True)
        near_x = x - origin
        near_y = near_x if form.pairs else y - origin
        sums = form.sums(near_x, near_y)
        kb, ka, *forces = sums(form.shifted(shift), near_x, a, near_y, b, form.pairs, wanted)
        dx, dy = (torch.zeros_like(t) if force is None else force for t, force in zip((x, y), forces, strict=True))
        value = (a * kb).sum(-1)
        return value, *((2 * dx, 2 * kb, torch.zeros_like(y), torch.zeros_like(b)) if form.pairs else (dx, kb, dy, ka))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.form, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.save_for_forward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        slopes = _Slopes.apply(ctx.form, *ctx.saved_tensors)
        wanted = zip(slopes, ctx.needs_input_grad[3:], strict=True)
        return None, None, None, *(s * _to_rows(grad, s) if needed else None for s, needed in wanted)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        refuse_forward_twice()
        slopes = _Slopes.apply(ctx.form, *ctx.saved_tensors)
        parts = (s * t for s, t in zip(slopes, tangents[3:], strict=True) if t is not None)
        return sum(part.flatten(ctx.saved_tensors[2].ndim - 1).sum(-1) for part in parts), None, None, None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], form: _Form, wanted: Any, *tensors: Tensor | None) -> Any:
        return _KernelSum.apply(form, wanted, *batch_first(info, dims[2:], tensors)), (0,) * 5


class _Slopes(torch.autograd.Function):
    """The gradient that a sum has found; its own derivatives are those of the dense form, whose memory is n m d."""

    @staticmethod
    def forward(form: _Form, shift: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(slope.clone() for slope in tensors[4:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.form, *tensors = inputs
        ctx.save_for_backward(*tensors[:5])
        ctx.save_for_forward(*tensors[:5])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        shift, *measures = ctx.saved_tensors
        with full_arithmetic(measures[0].device.type):
            pull = torch.func.vjp(_gradient(ctx.form, shift), *measures)[1]
            return None, None, *pull(grads), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, form: None, shift: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        refuse_forward_twice()
        shift, *measures = ctx.saved_tensors
        moving = tuple(torch.zeros_like(m) if t is None else t for m, t in zip(measures, tangents, strict=False))
        with full_arithmetic(measures[0].device.type):
            return torch.func.jvp(_gradient(ctx.form, shift), tuple(measures), moving)[1]

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], form: _Form, *tensors: Tensor | None) -> Any:
        return _Slopes.apply(form, *batch_first(info, dims[1:], tensors)), (0,) * 4


def _gradient(form: _Form, shift: Tensor | None) -> Callable[..., tuple[Tensor, ...]]:
    def total(*measures: Tensor) -> Tensor:
        return form.dense(shift, *measures).sum()

    return torch.func.grad(total, argnums=(0, 1, 2, 3))


def _to_rows(scale: Tensor, like: Tensor) -> Tensor:
    return scale[(...,) + (None,) * (like.ndim - scale.ndim)]


Sums = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _tile_sums(
    kernel: Kernel, x: Tensor, a: Tensor, y: Tensor, b: Tensor, pairs: bool, wanted: tuple[bool, bool]
) -> Sums:
    """K b, Kᵀ a, and the gradients in x and y; where pairs are wanted, those of x alone count and Kᵀ a is K b."""
    arithmetic = _arithmetic(kernel, x, y)
    dtype = arithmetic.dtype
    kb, by = torch.zeros_like(a), _moments(y, b, dtype)
    ka, ax = (kb, by) if pairs else (torch.zeros_like(b), _moments(x, a, dtype))
    sx, sy = torch.zeros_like(ax) if wanted[0] else None, torch.zeros_like(by) if wanted[1] else None
    least = kernel.least(x.dtype)
    for rows, cols, r2, meet in tiles(x, y, pairs, arithmetic):
        k, slope = kernel(r2 if kernel.smooth and arithmetic.looked else r2.clamp_(min=least))
        if meet is not None:
            slope.masked_fill_(meet, 0)
        mirrored = pairs and rows != cols
        if pairs and not mirrored:
            k.diagonal(dim1=-2, dim2=-1).zero_()
            slope.diagonal(dim1=-2, dim2=-1).zero_()
        slope = slope.to(dtype)
        kb[..., rows].add_((k @ b[..., cols, None])[..., 0])
        if sx is not None:
            sx[..., rows, :].add_(slope @ by[..., cols, :])
        if mirrored:
            kb[..., cols].add_((k.mT @ b[..., rows, None])[..., 0])
            if sx is not None:
                sx[..., cols, :].add_(slope.mT @ by[..., rows, :])
        elif not pairs:
            ka[..., cols].add_((k.mT @ a[..., rows, None])[..., 0])
            if sy is not None:
                sy[..., cols, :].add_(slope.mT @ ax[..., rows, :])
    return kb, ka, _force(sx, x, a), _force(sy, y, b)


def _arithmetic(kernel: Kernel, x: Tensor, y: Tensor) -> Arithmetic:
    return Arithmetic.of(x, y, smooth=kernel.smooth, length=kernel.length)


def _moments(z: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """Columns (w z, w): their products with slopes s_ij give both parts of Σ_j w_j s_ij (z_i - z_j)."""
    z, w = z.to(dtype), w.to(dtype)[..., None]
    return torch.cat([w * z, w], -1)


def _force(s: Tensor | None, x: Tensor, a: Tensor) -> Tensor | None:
    """2 a_i (x_i Σ_j b_j s_ij - Σ_j s_ij b_j y_j): the gradient of a sum in x, from its slopes s."""
    return None if s is None else 2 * a[..., None] * (x * s[..., -1:] - s[..., :-1]).to(x.dtype)


def _keops_sums(
    kernel: Kernel, x: Tensor, a: Tensor, y: Tensor, b: Tensor, pairs: bool, wanted: tuple[bool, bool]
) -> Sums:
    kb, force_x = _keops_rows(kernel, x, y, b, pairs, wanted[0])
    ka, force_y = (kb, None) if pairs else _keops_rows(kernel, y, x, a, pairs, wanted[1])
    scaled = [None if f is None else 2 * w[..., None] * f for f, w in ((force_x, a), (force_y, b))]
    return kb, ka, scaled[0], scaled[1]


def _keops_rows(
    kernel: Kernel, x: Tensor, y: Tensor, b: Tensor, pairs: bool, force: bool
) -> tuple[Tensor, Tensor | None]:
    """K b and Σ_j b_j k'(r²) (x_i - y_j), as KeOps reductions."""
    from pykeops.torch import LazyTensor

    xi, yj = LazyTensor(x.unsqueeze(-2).contiguous()), LazyTensor(y.unsqueeze(-3).contiguous())
    bj, columns = LazyTensor(b[..., None, :, None].contiguous()), x.ndim - 1
    r2, least, symbolic = ((xi - yj) ** 2).sum(-1), kernel.least(x.dtype), kernel
    if isinstance(kernel, RadialKernel) and kernel.shift is not None:
        symbolic = replace(kernel, shift=LazyTensor(kernel.shift.unsqueeze(-1)))
    if pairs:
        index = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)
        other = ((LazyTensor(index.view(-1, 1, 1)) - LazyTensor(index.view(1, -1, 1))).abs() - 0.5).step()
        r2, bj = r2 + (1 - other) * 4, bj * other  # Pairs of a point with itself: weight zero, no large kernel.
    k, slope = symbolic((r2 - least).relu() + least)
    return (k * bj).sum(columns)[..., 0], (slope * bj * (xi - yj)).sum(columns) if force else None
