"""Maximum mean discrepancy."""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from otdml._checks import (
    argument_error,
    check_boolean,
    check_choice,
    check_in_range,
    check_positive,
    check_several,
    has_values,
)
from otdml._precision import full_precision
from otdml.kernel_sums import BACKENDS, cross_sum, pair_sum
from otdml.kernels import Kernel, RadialKernel, energy, gaussian, inverse_multiquadric, laplacian, mixture
from otdml.losses._kept import Kept
from otdml.measures import broadcast_clouds, broadcast_measures, weighted, weights

__all__ = ["MMD", "median_distance", "mmd", "mmd_self_term"]

Bandwidth = float | Sequence[float] | str

KERNELS: dict[str, Callable[[float], RadialKernel]] = {
    "gaussian": gaussian,
    "laplacian": laplacian,
    "imq": inverse_multiquadric,
    "energy": energy,
}
# Number of points from which the median distance is computed, to within a few percent.
_SAMPLE = 512
# Lengths whose squares neither overflow nor underflow.
_SAFE = 1e-9, 1e9


@full_precision
def mmd(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    kernel: str = "gaussian",
    bandwidth: Bandwidth = 1.0,
    unbiased: bool = False,
    backend: str = "auto",
    second: Tensor | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy between two weighted point clouds.

    .. math:: \mathrm{MMD}_k^2(\alpha, \beta) = \iint k \, d(\alpha - \beta) \, d(\alpha - \beta)

    It is zero if and only if the measures are equal :cite:p:`gretton:12`. The square is returned because its root has
    no gradient at zero. A Gaussian sees differences at the scale :math:`\sigma` only; a list of bandwidths, the heavier
    tails of the Laplacian and ``"imq"``, or the scale-free energy distance :cite:p:`szekely:13` see more. All are
    differentiable in points and weights; the Laplacian and the energy have a kink where a point of x meets one of y,
    where their gradient is taken as zero. The cost is (n + m)² d, the memory (n + m) d.

    Args:
        x: Support of :math:`\alpha`, shape (..., n, d).
        y: Support of :math:`\beta`, shape (..., m, d).
        a: Weights of :math:`\alpha`, shape (..., n). Uniform if None.
        b: Weights of :math:`\beta`, shape (..., m). Uniform if None.
        kernel: With r the distance in units of the bandwidth: ``"gaussian"`` exp(-r²/2), ``"laplacian"`` exp(-r),
            ``"imq"`` (1 + r²)^(-1/2), or ``"energy"`` -r, which is for measures of equal mass.
        bandwidth: Kernel scale :math:`\sigma`, in the units of the points; several, for the mean of the kernels; or
            ``"median"`` for the median distance between two points, with weight, of the union of x and y, which the
            gradient takes as a constant.
        unbiased: Leave out the pairs of a point with itself (U-statistic). Its mean over samples is that of the
            measures they are drawn from, so that gradients of minibatches are unbiased; it may be negative, and is
            not a number where all weight is on one point.
        backend: ``"dense"``, ``"streamed"``, ``"keops"``, ``"triton"``, or ``"auto"``, as in
            :func:`otdml.kernel_sums.pair_sum`.
        second: The value of :func:`mmd_self_term` of (y, b) with the same options, if it is known: it saves a quarter
            of the work while the second measure is fixed. It needs numbers as ``bandwidth``.

    Returns:
        One value per batch element, shape (...), non-negative up to rounding unless ``unbiased``.

    Raises:
        ValueError: If the shapes do not fit, an option is unknown, or a single point has no unbiased form.

    Example:
        >>> import torch
        >>> mmd(torch.zeros(1, 2), torch.ones(1, 2))  # 2 - 2 exp(-1)
        tensor(1.2642)
    """
    broadcast_measures(x, y, a, b)
    if unbiased and min(x.shape[-2], y.shape[-2]) < 2:
        raise argument_error("unbiased", "be False where a measure has one point", unbiased)
    if isinstance(bandwidth, str) and bandwidth == "median" and second is None:
        scale = median_distance(x, y, a, b)[..., None, None]
        x, y, bandwidth = x / scale, y / scale, 1.0
    (x, y), unit, k = _rescaled(kernel, bandwidth, x, y)
    a, b = weights(x, a), weights(y, b)
    second = unit * _own_term(k, y, b, unbiased, backend) if second is None else second
    rest = _own_term(k, x, a, unbiased, backend) - 2 * cross_sum(k, x, a, y, b, backend=backend)
    # Kernels of distant points vanish, but infinite points are an error upstream.
    return unit * rest + second + _zero_if_finite(x) + _zero_if_finite(y)


@full_precision
def mmd_self_term(
    y: Tensor,
    b: Tensor | None = None,
    *,
    kernel: str = "gaussian",
    bandwidth: float | Sequence[float] = 1.0,
    unbiased: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""Mean of a kernel over the pairs of one measure, which :func:`mmd` takes as ``second``.

    .. math:: \iint k \, d\beta \, d\beta

    Args:
        y: Points, shape (..., m, d).
        b: Weights, shape (..., m). Uniform if None.
        kernel: As in :func:`mmd`.
        bandwidth: Kernel scale, or several.
        unbiased: As in :func:`mmd`.
        backend: As in :func:`mmd`.

    Returns:
        One value per batch element, shape (...).

    Example:
        >>> import torch
        >>> mmd_self_term(torch.tensor([[0.0], [4.0]]), kernel="energy")  # two of four pairs at distance 4
        tensor(-2.)
    """
    weighted(y, b, name="y", weight="b")
    (y,), unit, k = _rescaled(kernel, bandwidth, y)
    return unit * _own_term(k, y, weights(y, b), unbiased, backend) + _zero_if_finite(y)


def _rescaled(kernel: str, bandwidth: Bandwidth, *points: Tensor) -> tuple[tuple[Tensor, ...], Tensor | float, Kernel]:
    """Points and kernel in a unit of length whose squares are numbers, and that of the sums; a power of two."""
    scales, dtype = _scales(bandwidth), points[0].dtype
    if check_choice("kernel", kernel, KERNELS) != "energy":
        power = 2.0 ** round(math.log2(max(check_in_range("bandwidth", s, dtype) for s in scales))) if scales else 1.0
        points = points if power == 1 else tuple(p / power for p in points)
        return points, 1.0, _kernel(kernel, [s / power for s in scales])
    # Its values are lengths themselves.
    unit = _unit_of_length(*points)
    return tuple(p / unit for p in points), _of_sums(unit), _kernel(kernel, scales)


def _unit_of_length(*points: Tensor) -> Tensor:
    """The largest coordinate of each batch element if its square would overflow or vanish, and else one.

    Of shape (..., 1, 1), or () where it is one everywhere: points that a batch shares stay shared.
    """
    largest = reduce(torch.maximum, (p.detach().abs().amax((-2, -1), keepdim=True) for p in points))
    extreme = ((largest < _SAFE[0]) | (largest > _SAFE[1])) & (largest > 0) & largest.isfinite()
    if has_values(extreme) and not extreme.any():
        return largest.new_ones(())
    return torch.where(extreme, largest, 1)


def _of_sums(unit: Tensor) -> Tensor:
    """A unit of points as one of values, shape (...)."""
    return unit[..., 0, 0] if unit.ndim else unit


def _zero_if_finite(x: Tensor) -> Tensor:
    return (0 * x).sum((-2, -1))


def _own_term(kernel: Kernel, x: Tensor, a: Tensor, unbiased: bool, backend: str) -> Tensor:
    pairs, squares = pair_sum(kernel, x, a, backend=backend), a.square().sum(-1)
    if not check_boolean("unbiased", unbiased):
        return pairs + kernel.at_zero * squares
    mass = a.sum(-1).square()
    return pairs * mass / (mass - squares)


def _kernel(name: str, bandwidth: Bandwidth) -> Kernel:
    family = KERNELS[check_choice("kernel", name, KERNELS)]
    return mixture([family(s) for s in _scales(bandwidth)])


def _scales(bandwidth: Bandwidth) -> Sequence[float]:
    if isinstance(bandwidth, (int, float, Real)) or getattr(bandwidth, "ndim", None) == 0:
        return [check_positive("bandwidth", bandwidth)]  # type: ignore[arg-type]
    if isinstance(bandwidth, (Sequence, np.ndarray)) and not isinstance(bandwidth, str):
        if not len(bandwidth):
            raise argument_error("bandwidth", "be one number or more", "none")
        return list(check_several("bandwidth", bandwidth, check_positive))
    kind = ValueError if isinstance(bandwidth, str) else TypeError
    must = "be a number, several numbers, or 'median' (without `second`)"
    raise argument_error("bandwidth", must, repr(bandwidth), kind=kind)


@torch.no_grad()
@full_precision
def median_distance(x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    r"""Median distance between two points of the union of x and y, a usual bandwidth.

    .. math:: \operatorname{median} \{ \lVert z_i - z_j \rVert : i < j \}

    Of large clouds every k-th point is taken, so that some 512 of each are left. It carries no gradient, and is 1
    where more than half of the pairs coincide.

    Args:
        x: Points, shape (..., n, d).
        y: Points, shape (..., m, d).
        a: Weights of x, shape (..., n), of which zeros leave their points out. None for all points.
        b: Weights of y, shape (..., m), likewise.

    Returns:
        One distance per batch element, shape (...).

    Example:
        >>> import torch
        >>> median_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0]]))  # of 1, 3 and 4
        tensor(3.)
    """
    x, y, a, b = broadcast_clouds(x.detach(), y.detach(), a, b)
    steps = [max(1, p.shape[-2] // _SAMPLE) for p in (x, y)]
    z = torch.cat([p[..., ::step, :] for p, step in zip((x, y), steps, strict=True)], dim=-2)
    present = torch.cat([weights(p, w)[..., ::k] > 0 for p, w, k in zip((x, y), (a, b), steps, strict=True)], dim=-1)
    unit = _unit_of_length(z)
    z = z / unit
    i, j = torch.triu_indices(z.shape[-2], z.shape[-2], offset=1, device=z.device)
    # Matrix products lose digits for clouds that are far from the origin.
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")[..., i, j]
    if a is not None or b is not None:
        distance = distance.masked_fill(~(present[..., i] & present[..., j]), torch.nan)
    distance = distance.nanmedian(dim=-1).values
    return torch.where(distance > 0, distance * _of_sums(unit), 1)


class MMD(nn.Module):
    """Module form of :func:`mmd`.

    Args:
        cache_second: Whether to keep the term of the second measure with itself for as long as the same tensors are
            passed and not written to, which saves a quarter of the work. It needs numbers as ``bandwidth``.
    """

    def __init__(
        self,
        *,
        kernel: str = "gaussian",
        bandwidth: Bandwidth = 1.0,
        unbiased: bool = False,
        backend: str = "auto",
        cache_second: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(bandwidth, str) or bandwidth != "median":
            _kernel(kernel, bandwidth)
        elif cache_second:
            raise argument_error("bandwidth", "be a number or several where `cache_second` is on", repr(bandwidth))
        self.kernel = check_choice("kernel", kernel, KERNELS)
        # Python numbers, for comparisons and printing.
        several = isinstance(bandwidth, (str, Sequence, np.ndarray)) and getattr(bandwidth, "ndim", 1) > 0
        scales = bandwidth if isinstance(bandwidth, str) else _scales(bandwidth)
        self.bandwidth: Bandwidth = scales if several else scales[0]
        self.unbiased = check_boolean("unbiased", unbiased)
        self.backend = check_choice("backend", backend, BACKENDS)
        self.cache_second = check_boolean("cache_second", cache_second)
        self._kept = Kept()

    def extra_repr(self) -> str:
        return (
            f"kernel={self.kernel!r}, bandwidth={self.bandwidth!r}, unbiased={self.unbiased}, "
            f"cache_second={self.cache_second}"
        )

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("kernel", "bandwidth", "unbiased", "backend")}

    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        return mmd(x, y, a, b, **self._options(), second=self._second(x, y, a, b))

    def _second(self, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if not self.cache_second:
            return None
        broadcast_measures(x, y, a, b)
        options = self._options()
        return self._kept(lambda: mmd_self_term(y, b, **options), (y, b), options)
