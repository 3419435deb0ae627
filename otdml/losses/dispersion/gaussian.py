"""Distances to the standard Gaussian: dispersion off the sphere."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from otdml._checks import (
    argument_error,
    check_boolean,
    check_choice,
    check_generator,
    check_integer,
    check_points,
    check_positive,
)
from otdml._precision import full_precision
from otdml.kernel_sums import BACKENDS, pair_sum
from otdml.kernels import check_bandwidth, gaussian, mixture
from otdml.ot._sliced import directions

__all__ = ["MMDToGaussian", "SIGReg", "mmd_to_gaussian", "sigreg"]

Bandwidth = float | Sequence[float] | None


@full_precision
def mmd_to_gaussian(z: Tensor, *, bandwidth: Bandwidth = None, unbiased: bool = False, backend: str = "auto") -> Tensor:
    r"""Squared maximum mean discrepancy between points and the standard Gaussian of their space.

    .. math::
        \frac{1}{n^2} \sum_{i,j} k(z_i, z_j) - \frac{2}{n} \sum_i \mu(z_i) + c, \qquad
        \mu(x) = \Bigl( \tfrac{\sigma^2}{1 + \sigma^2} \Bigr)^{d/2} e^{- \lVert x \rVert^2 / 2 (1 + \sigma^2)}, \quad
        c = \Bigl( \tfrac{\sigma^2}{2 + \sigma^2} \Bigr)^{d/2}

    with the Gaussian kernel k of bandwidth :math:`\sigma`, whose means over the Gaussian :math:`\gamma` are those of
    sums of independent Gaussians: :math:`\mu(x) = \mathbb{E} \, k(x, Y)` and :math:`c = \mathbb{E} \, k(X, Y)`. Nothing
    is sampled. It is zero for :math:`\gamma` alone, and (1 - c) / n on average for n points of it (zero with
    ``unbiased``): the statistic by which :cite:t:`henze:90` test for normality, without their estimate of mean and
    covariance. To be minimised by embeddings that are not to be normalised: points are parted where they are too dense,
    and called back where they are too far out. Smooth in the points; points that coincide move as one. The cost is
    n² d, the memory n d.

    Args:
        z: Points, shape (..., n, d).
        bandwidth: :math:`\sigma`, where the Gaussian has the standard deviation one; several, for the mean of the
            kernels; :math:`\sqrt{d}` if None, of the size of the distances between its points, without which a kernel
            sees nothing in high dimensions.
        unbiased: Leave out the pairs of a point with itself (U-statistic), so that value and gradient of minibatches
            are unbiased; it may be negative.
        backend: ``"dense"``, ``"streamed"``, ``"keops"``, ``"triton"``, or ``"auto"``, as in
            :func:`otdml.kernel_sums.pair_sum`.

    Returns:
        One value per batch element, shape (...), non-negative up to rounding unless ``unbiased``.

    Raises:
        ValueError: If the shape does not fit, an option is unknown, or a single point has no unbiased form.

    Example:
        >>> import torch
        >>> mmd_to_gaussian(torch.zeros(1, 2), bandwidth=1.0)  # 1 - 2 / 2 + 1 / 3
        tensor(0.3333)
    """
    n, d = check_points("z", z).shape[-2:]
    if check_boolean("unbiased", unbiased) and n < 2:
        raise argument_error("unbiased", "be False where there is one point", unbiased)
    scales = _scales(bandwidth, d)
    squares = z.square().sum(-1)
    means = [_power(s, 1, d) * (squares / (-2 * (1 + s**2))).exp().mean(-1) for s in scales]
    constant = sum(_power(s, 2, d) for s in scales) / len(scales)
    mean = 1 / (n * (n - 1)) if unbiased else 1 / n**2
    pairs = pair_sum(mixture([gaussian(s) for s in scales]), z, z.new_full(z.shape[:-1], mean**0.5), backend=backend)
    cross = sum(means[1:], means[0]) / len(scales)
    # Kernels of distant points vanish, but infinite points are an error upstream.
    return pairs - 2 * cross + (constant + (0 if unbiased else 1 / n)) + (0 * z).sum((-2, -1))


def _scales(bandwidth: Bandwidth, d: int) -> list[float]:
    scales = [math.sqrt(d)] if bandwidth is None else _several(bandwidth)
    if not scales:
        raise argument_error("bandwidth", "be a number, several numbers, or None", bandwidth)
    return [check_bandwidth(s) for s in scales]


def _several(bandwidth: float | Sequence[float]) -> list[float]:
    return list(bandwidth) if isinstance(bandwidth, (list, tuple)) else [bandwidth]  # type: ignore[list-item]


def _power(sigma: float, variance: int, d: int) -> float:
    """The mean of the kernel at zero over a Gaussian of this variance in each of d coordinates."""
    return math.exp(-0.5 * d * math.log1p(variance / sigma**2))


@full_precision
def sigreg(
    z: Tensor,
    *,
    n_projections: int = 256,
    n_knots: int = 17,
    largest: float = 5.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sliced distance of characteristic functions between points and the standard Gaussian: SIGReg.

    .. math::
        \frac{1}{L} \sum_{l=1}^L \int \Bigl| \tfrac1n \sum_j e^{\mathrm{i} t \langle \theta_l, z_j \rangle}
        - e^{-t^2/2} \Bigr|^2 e^{-t^2/2} \, dt

    for random directions :math:`\theta_l`: the test of :cite:t:`epps:83` on each of L lines, by which LeJEPA
    :cite:p:`balestriero:25` keeps embeddings from collapsing, without pairs and without a second view. Only the
    Gaussian is Gaussian on every line. It is :math:`\sqrt{2 \pi}` times the mean of :func:`mmd_to_gaussian` over the
    lines with bandwidth one, for the weight is the kernel's spectrum; here it takes n K operations on each line for K
    values of t, by the trapezoidal rule, which is exact to some 1e-5 as long as no two projections are further apart
    than 10. The statistic of the paper is n times this. For n points of the Gaussian it is
    :math:`\sqrt{2 \pi} (1 - 1 / \sqrt{3}) / n` on average. Smooth in the points; points that coincide move as one. The
    cost is L n (d + K), the memory L n K. Over several processes, gather the points first
    (:func:`otdml.distributed.gather`).

    Args:
        z: Points, shape (..., n, d).
        n_projections: Number L of directions, the same ones for all batch elements.
        n_knots: Number K of values of t in [0, ``largest``].
        largest: The largest t.
        generator: Source of the directions.

    Returns:
        One value per batch element, shape (...), non-negative.

    Raises:
        ValueError: If the shape does not fit, or an option is out of range.

    Example:
        >>> import torch
        >>> sigreg(torch.zeros(4, 3))  # sqrt(2 pi) (1 - 2 / sqrt(2) + 1 / sqrt(3))
        tensor(0.4089)
    """
    check_points("z", z)
    theta = directions(z.shape[-1], check_integer("n_projections", n_projections), generator=generator, like=z)
    last, n_knots = check_positive("largest", largest), check_integer("n_knots", n_knots, 2)
    t = torch.linspace(0, last, n_knots, dtype=torch.float64, device="cpu").to(z)
    goal = (-0.5 * t.square()).exp()
    # The integrand is even, so that all weights but that of zero are doubled.
    weights = 2 * (t[1] - t[0]) * goal
    weights = torch.cat([weights[:1] / 2, weights[1:]])
    phases = (theta @ z.mT)[..., None] * t
    distances = (phases.cos().mean(-2) - goal).square() + phases.sin().mean(-2).square()
    return (distances @ weights).mean(-1)


class MMDToGaussian(nn.Module):
    """Module form of :func:`mmd_to_gaussian`."""

    def __init__(self, *, bandwidth: Bandwidth = None, unbiased: bool = False, backend: str = "auto") -> None:
        super().__init__()
        scales = bandwidth if bandwidth is None else _scales(bandwidth, 1)
        several = isinstance(bandwidth, (list, tuple)) or scales is None
        self.bandwidth: Bandwidth = scales if several else scales[0]  # type: ignore[index]
        self.unbiased = check_boolean("unbiased", unbiased)
        self.backend = check_choice("backend", backend, BACKENDS)

    def extra_repr(self) -> str:
        return f"bandwidth={self.bandwidth}, unbiased={self.unbiased}"

    def forward(self, z: Tensor) -> Tensor:
        return mmd_to_gaussian(z, bandwidth=self.bandwidth, unbiased=self.unbiased, backend=self.backend)


class SIGReg(nn.Module):
    """Module form of :func:`sigreg`; each call draws new directions."""

    def __init__(
        self,
        *,
        n_projections: int = 256,
        n_knots: int = 17,
        largest: float = 5.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_projections = check_integer("n_projections", n_projections)
        self.n_knots, self.largest = check_integer("n_knots", n_knots, 2), check_positive("largest", largest)
        self.generator = check_generator(generator)

    def extra_repr(self) -> str:
        return f"n_projections={self.n_projections}, n_knots={self.n_knots}, largest={self.largest:g}"

    def forward(self, z: Tensor) -> Tensor:
        options: dict[str, Any] = {"n_knots": self.n_knots, "largest": self.largest, "generator": self.generator}
        return sigreg(z, n_projections=self.n_projections, **options)
