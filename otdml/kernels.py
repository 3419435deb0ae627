"""Radial kernels, and their means over the uniform measure of a sphere.

A kernel is a *profile* of the squared distance, or its exponential, on chords or on great-circle distances. The squared
distance is the variable because sums of kernels need only products of matrices then: the gradient of
:math:`k(\\lVert x - y \\rVert^2)` is :math:`2 k' (x - y)`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor

from otdml._checks import argument_error, check_integer, check_positive
from otdml._profiles import Geodesic, Logarithm, Profile, Quadric, Root, Square

__all__ = [
    "Kernel",
    "Mixture",
    "RadialKernel",
    "energy",
    "gaussian",
    "geodesic",
    "inverse_multiquadric",
    "laplacian",
    "logarithmic",
    "mixture",
    "riesz",
    "uniform_mean",
]

# Bandwidths whose squares and the inverses of these neither overflow nor vanish in double precision.
_BANDWIDTHS = 1e-150, 1e150


class Kernel(Protocol):
    """The interface of a kernel for kernel sums.

    Attributes:
        smooth: Whether the derivative by the squared distance is finite at distance zero.
        length: The distance over which the kernel changes, beside which rounding has to be small; infinite for those
            that look alike at every scale.
        at_zero: The value at distance zero, possibly infinite.
        tile: Of the exponential of a cost, how fused kernels evaluate that: a form, ``"product"`` for the squared
            distance or ``"distance"``, and a factor. None for others.
        shift: What is subtracted from its logarithm, shape (..., 1, 1), or None.
    """

    @property
    def tile(self) -> tuple[str, float] | None: ...

    @property
    def shift(self) -> Tensor | None: ...

    @property
    def smooth(self) -> bool: ...

    @property
    def length(self) -> float: ...

    @property
    def at_zero(self) -> float: ...

    def least(self, dtype: torch.dtype) -> float:
        """The squared distance below which the kernel is held constant and its force proportional to the distance."""
        ...

    def __call__(self, r2: Tensor) -> tuple[Tensor, Tensor]:
        """The value and its derivative at squared distances r2 > 0."""
        ...


def check_bandwidth(bandwidth: float) -> float:
    """``bandwidth`` as a number of Python, if it is positive, and its square and the inverse of that are numbers.

    Example:
        >>> check_bandwidth(1e-200)
        Traceback (most recent call last):
        ValueError: `bandwidth` must lie between 1e-150 and 1e+150, got 1e-200. Rescale the points.
    """
    low, high = _BANDWIDTHS
    if not low <= check_positive("bandwidth", bandwidth) <= high:
        must = f"lie between {low:g} and {high:g}"
        raise argument_error("bandwidth", must, f"{float(bandwidth):g}", "Rescale the points.")
    return check_positive("bandwidth", bandwidth)


@dataclass(frozen=True, eq=False)
class RadialKernel:
    """A profile of the squared distance, or ``exp(profile - shift)``."""

    profile: Profile
    exponential: bool = True
    shift: Tensor | None = None

    @property
    def tile(self) -> tuple[str, float] | None:
        return self.profile.tile if self.exponential else None

    @property
    def smooth(self) -> bool:
        return self.profile.smooth

    @property
    def length(self) -> float:
        return self.profile.length if self.exponential else math.inf

    @property
    def singular(self) -> bool:
        return isinstance(self._radial, Logarithm)

    @property
    def _radial(self) -> Profile:
        return self.profile.profile if isinstance(self.profile, Geodesic) else self.profile

    @property
    def at_zero(self) -> float:
        return math.inf if self.singular else float(self.exponential)

    def least(self, dtype: torch.dtype) -> float:
        limits = torch.finfo(dtype)
        radial = self._radial
        if not isinstance(radial, Logarithm):
            return limits.tiny**0.8
        if not self.exponential or self.shift is not None:
            return limits.eps**2
        # Slopes grow like r^-(s+2), and sums of many must not overflow: at most about 1e30 in float32.
        return max(limits.eps**2, math.exp(-1.6 * math.log(limits.max) / (radial.s + 2)))

    def __call__(self, r2: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self.profile(r2)
        if not self.exponential:
            return value, cast(Tensor, slope)
        value = (value if self.shift is None else value - self.shift).exp()
        return value, value * slope

    def relative_to(self, r2: Tensor) -> tuple["RadialKernel", Tensor]:
        """The kernel divided by its value at r2, and the logarithm of that value: sums then cannot underflow."""
        logarithm = self.profile(r2)[0]
        return replace(self, shift=logarithm), logarithm


@dataclass(frozen=True, eq=False)
class Mixture:
    """The mean of several kernels."""

    kernels: tuple[RadialKernel, ...]
    tile: None = None
    shift: None = None

    @property
    def smooth(self) -> bool:
        return all(k.smooth for k in self.kernels)

    @property
    def length(self) -> float:
        return min(k.length for k in self.kernels)

    @property
    def at_zero(self) -> float:
        return sum(k.at_zero for k in self.kernels) / len(self.kernels)

    def least(self, dtype: torch.dtype) -> float:
        return max(k.least(dtype) for k in self.kernels)

    def __call__(self, r2: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = zip(*(k(r2) for k in self.kernels), strict=True)
        return sum(values[1:], values[0]) / len(values), sum(slopes[1:], slopes[0]) / len(values)


def check_kernel(kernel: Kernel, dtype: torch.dtype) -> Kernel:
    """``kernel``, if it is one, for points of a dtype.

    Example:
        >>> check_kernel("gaussian", torch.float32)
        Traceback (most recent call last):
        TypeError: `kernel` must be one of `otdml.kernels`, got 'gaussian'. Write for example `gaussian(1.0)`.
    """
    if not (callable(kernel) and hasattr(kernel, "at_zero")):
        remedy = "Write for example `gaussian(1.0)`."
        raise argument_error("kernel", "be one of `otdml.kernels`", repr(kernel), remedy, TypeError)
    # Squares of distances of this length must not vanish.
    least = math.sqrt(torch.finfo(dtype).tiny)
    if kernel.length < least:
        got = f"one that changes over {kernel.length:g}"
        raise argument_error(
            "kernel", f"have a bandwidth of {least:.1g} or more for {dtype}", got, "Rescale the points."
        )
    return kernel


def gaussian(bandwidth: float = 1.0) -> RadialKernel:
    r"""Gaussian kernel :math:`\exp(-r^2 / 2 \sigma^2)`.

    Args:
        bandwidth: :math:`\sigma`, in the units of the points. On the sphere :math:`\gamma = 1 / 2 \sigma^2`.

    Example:
        >>> import torch
        >>> gaussian(1.0)(torch.tensor(2.0))[0]  # exp(-1)
        tensor(0.3679)
    """
    return RadialKernel(Square(0.5 / check_bandwidth(bandwidth) ** 2))


def laplacian(bandwidth: float = 1.0) -> RadialKernel:
    r"""Laplacian kernel :math:`\exp(-r / \sigma)`.

    Args:
        bandwidth: :math:`\sigma`, in the units of the points.

    Example:
        >>> import torch
        >>> laplacian(2.0)(torch.tensor(4.0))[0]  # exp(-1)
        tensor(0.3679)
    """
    return RadialKernel(Root(1 / check_bandwidth(bandwidth)))


def inverse_multiquadric(bandwidth: float = 1.0) -> RadialKernel:
    r"""Inverse multiquadric kernel :math:`(1 + r^2 / \sigma^2)^{-1/2}`, of heavier tails than a Gaussian.

    Args:
        bandwidth: :math:`\sigma`, in the units of the points.

    Example:
        >>> import torch
        >>> inverse_multiquadric(1.0)(torch.tensor(3.0))[0]  # 1 / sqrt(4)
        tensor(0.5000)
    """
    return RadialKernel(Quadric(check_bandwidth(bandwidth)))


def energy(bandwidth: float = 1.0) -> RadialKernel:
    r"""Energy kernel :math:`-r / \sigma`, conditionally positive definite: for measures of equal mass.

    Args:
        bandwidth: :math:`\sigma`, the unit of length.

    Example:
        >>> import torch
        >>> energy()(torch.tensor(4.0))[0]
        tensor(-2.)
    """
    return RadialKernel(Root(1 / check_bandwidth(bandwidth)), exponential=False)


def riesz(s: float = 1.0) -> RadialKernel:
    r"""Riesz kernel :math:`r^{-s}`, the Coulomb potential for s = 1 in three dimensions.

    It is meant for points about a unit apart: sums hold it constant below a rounding unit, 1e-7 in single precision,
    and below the distance where their slopes :math:`r^{-s-2}` would overflow, 0.04 in single precision for s = 20. Its
    force is proportional to the distance there. Rescale points that are nearer, or take double precision.

    Args:
        s: Exponent, positive; the larger, the more the nearest pairs count.

    Example:
        >>> import torch
        >>> riesz(2.0)(torch.tensor(4.0))[0]
        tensor(0.2500)
    """
    return RadialKernel(Logarithm(check_positive("s", s)))


def logarithmic() -> RadialKernel:
    r"""Logarithmic kernel :math:`-\log r`, the limit of :math:`(r^{-s} - 1) / s` at s = 0.

    As :func:`riesz` it is held constant below a rounding unit.

    Example:
        >>> import torch
        >>> logarithmic()(torch.tensor(1.0))[0]
        tensor(-0.)
    """
    return RadialKernel(Logarithm(1.0), exponential=False)


def geodesic(kernel: RadialKernel) -> RadialKernel:
    r"""The kernel of the angle :math:`t = 2 \arcsin(r / 2)` between points of the unit sphere.

    A squared distance near 4 defines the angle to the root of a rounding unit: antipodes are 7e-4 short of
    :math:`\pi` in single precision, and 3e-8 in double.

    Example:
        >>> import math, torch
        >>> geodesic(laplacian(math.pi))(torch.tensor(4.0))[0]  # antipodes: exp(-1), but for that
        tensor(0.3680)
    """
    return replace(kernel, profile=Geodesic(kernel.profile))


def mixture(kernels: Sequence[RadialKernel]) -> Kernel:
    """The mean of several kernels, e.g. of one family at several bandwidths.

    Example:
        >>> import torch
        >>> mixture([riesz(2.0), riesz(4.0)])(torch.tensor(2.0))[0]  # (1/2 + 1/4) / 2
        tensor(0.3750)
    """
    if not kernels:
        raise argument_error("kernels", "hold at least one kernel", "none")
    return kernels[0] if len(kernels) == 1 else Mixture(tuple(kernels))


def uniform_mean(kernel: Kernel, d: int) -> float:
    r"""Mean of a kernel over pairs of independent uniform points of the unit sphere of :math:`\mathbb R^d`.

    .. math:: c_k = \iint k(x, y) \, d\sigma(x) \, d\sigma(y)

    On chords it is in closed form for the Gaussian, the Riesz (:math:`s < d - 1`, else infinite) and the logarithmic
    kernel; otherwise an integral over the angle, whose density is proportional to :math:`\sin^{d-2} t`, by a
    double-exponential rule of some 1e-12 relative accuracy.

    Args:
        kernel: A radial kernel, or a :func:`mixture` of some.
        d: Number of coordinates, at least 2.

    Returns:
        The mean, in float64.

    Raises:
        TypeError: If the kernel is neither.

    Example:
        >>> round(uniform_mean(riesz(1.0), 3), 6)  # the energy of a unit charge on a unit sphere
        1.0
    """
    d = check_integer("d", d, least=2)
    kernels = kernel.kernels if isinstance(kernel, Mixture) else (kernel,)
    if not all(isinstance(k, RadialKernel) for k in kernels):
        raise argument_error("kernel", "be one of `otdml.kernels`", repr(kernel), kind=TypeError)
    return sum(float(constant_mean(cast(RadialKernel, k), d)) for k in kernels) / len(kernels)


def constant_mean(kernel: RadialKernel, d: int) -> Tensor | float:
    """:func:`uniform_mean`, as a tensor where it is an integral: a graph has no numbers.

    Example:
        >>> constant_mean(gaussian(1e9), 3)
        1.0
    """
    profile = kernel.profile
    if isinstance(profile, Square):
        return math.exp(_log_gaussian_mean(profile.gamma, d))
    if isinstance(kernel._radial, Logarithm) and kernel.exponential and kernel._radial.s >= d - 1:
        return math.inf
    if isinstance(profile, Logarithm):
        return _riesz_mean(profile.s, d) if kernel.exponential else _logarithmic_mean(d)
    return _quadrature(kernel, d)


def _log_gaussian_mean(gamma: float, d: int) -> float:
    r"""log of :math:`e^{-2\gamma} {}_0F_1(; d/2; \gamma^2)`: a series of positive terms, summed in logarithms.

    It is the modified Bessel function of the closed form, which under- or overflows for large d or gamma. Where gamma
    is far beyond d², logarithms of as many terms lose digits, and Hankel's expansion of that function has all of them.
    """
    x, order = 2 * gamma, (d - 2) ** 2
    if x > max(1000, 10 * order):
        term = total = 1.0
        for step in range(1, 12):
            term *= ((2 * step - 1) ** 2 - order) / (8 * step * x)
            total += term
        return math.lgamma(d / 2) + (1 - d / 2) * math.log(gamma) - 0.5 * math.log(2 * math.pi * x) + math.log(total)
    k = torch.arange(int(2 * gamma) + 200, dtype=torch.float64, device="cpu")
    half = torch.tensor(d / 2, dtype=torch.float64, device="cpu")
    terms = 2 * k * math.log(gamma) - (k + 1).lgamma() - (half + k).lgamma() + half.lgamma()
    return float(terms.logsumexp(0)) - 2 * gamma


def _riesz_mean(s: float, d: int) -> float:
    gammas = math.lgamma(d / 2) + math.lgamma((d - 1 - s) / 2) - math.lgamma(d - 1 - s / 2)
    return math.exp((d - 2 - s) * math.log(2) + gammas) / math.sqrt(math.pi)


def _logarithmic_mean(d: int) -> float:
    """The derivative of the Riesz mean at s = 0."""
    digamma = torch.tensor([d - 1, (d - 1) / 2], dtype=torch.float64, device="cpu").digamma()
    return float(digamma[0] - digamma[1]) / 2 - math.log(2)


def _quadrature(kernel: RadialKernel, d: int) -> Tensor:
    u = torch.linspace(-5, 5, 8001, dtype=torch.float64, device="cpu")
    # The angle and its supplement, each exact near zero: t = π / (1 + exp(-π sinh u)).
    t, rest = math.pi * torch.sigmoid(math.pi * u.sinh()), math.pi * torch.sigmoid(-math.pi * u.sinh())
    density = (d - 2) * torch.minimum(t, rest).sin().log() + t.log() + rest.log() + u.cosh().log()
    value, _ = kernel.profile((2 * (t / 2).sin()).square())
    if kernel.exponential:
        return (density + value).logsumexp(0).sub(density.logsumexp(0)).exp()
    return (density.softmax(0) * value).sum()
