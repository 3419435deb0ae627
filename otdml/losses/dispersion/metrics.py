"""How evenly points are spread over the sphere."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from otdml._checks import check_integer, check_points
from otdml._precision import full_precision
from otdml.losses.dispersion.energy import check_several
from otdml.losses.dispersion.nearest import nearest_indices
from otdml.losses.dispersion.uniform import mmd_to_uniform
from otdml.sphere import angle, uniform_points, unit

__all__ = [
    "dispersion_metrics",
    "effective_rank",
    "frame_potential",
    "nearest_angles",
    "spherical_variance",
    "uniform_baseline",
    "uniform_smallest_angle",
]


@torch.no_grad()
@full_precision
def nearest_angles(z: Tensor) -> Tensor:
    r"""Angle of each point to its nearest neighbour, in degrees.

    .. math:: \min_{j \ne i} \angle(z_i, z_j)

    Duplicates have angle zero: a measurement moves nothing apart.

    Args:
        z: Points, shape (..., n, d), of any length.

    Returns:
        Angles in degrees, shape (..., n).

    Example:
        >>> import torch
        >>> nearest_angles(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
        tensor([90., 90., 90.])
    """
    x = unit(check_several(z))
    nearest = x.reshape(-1, z.shape[-1])[nearest_indices(x, 1)[..., 0]]
    return angle(x, nearest).rad2deg()


@torch.no_grad()
@full_precision
def spherical_variance(z: Tensor) -> Tensor:
    r"""Spherical variance.

    .. math:: 1 - \lVert \tfrac{1}{n} \sum_i x_i \rVert

    Zero if all points coincide and one if they balance, as two antipodal clusters do: the first moment alone.

    Args:
        z: Points, shape (..., n, d), of any length.

    Returns:
        One value per batch element, shape (...).

    Example:
        >>> import torch
        >>> spherical_variance(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        tensor(1.)
    """
    return 1 - torch.linalg.vector_norm(unit(check_points("z", z)).mean(-2), dim=-1)


@torch.no_grad()
@full_precision
def frame_potential(z: Tensor) -> Tensor:
    r"""Mean squared cosine of all pairs, the second moment.

    .. math:: \frac{1}{n^2} \sum_{i,j} \langle x_i, x_j \rangle^2 = \lVert \tfrac{1}{n} X^\top X \rVert_F^2

    Between 1/d, for a tight frame, and 1, for points on one line :cite:p:`benedetto:03`.

    Args:
        z: Points, shape (..., n, d), of any length.

    Returns:
        One value per batch element, shape (...).

    Example:
        >>> import torch
        >>> frame_potential(torch.eye(4))
        tensor(0.2500)
    """
    x = unit(check_points("z", z))
    return (x.mT @ x / z.shape[-2]).square().sum((-2, -1))


@torch.no_grad()
@full_precision
def effective_rank(z: Tensor) -> Tensor:
    r"""Exponential of the entropy of the normalised singular values.

    .. math:: \exp\Bigl( -\sum_k p_k \log p_k \Bigr), \qquad p_k = \sigma_k(X) / \textstyle\sum_l \sigma_l(X)

    The number of directions that the points fill :cite:p:`roy:07`, between 1 and min(n, d); zero where all points are.

    Args:
        z: Points, shape (..., n, d), of any length.

    Returns:
        One value per batch element, shape (...).

    Example:
        >>> import torch
        >>> effective_rank(torch.eye(4))
        tensor(4.)
    """
    sigma = torch.linalg.svdvals(unit(check_points("z", z)))
    total = sigma.sum(-1, keepdim=True)
    p = sigma / total.where(total > 0, 1.0)
    # Points at the origin have no direction.
    return torch.special.entr(p).sum(-1).exp() * (total[..., 0] > 0)


_METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    "spherical_variance": spherical_variance,
    "frame_potential": frame_potential,
    "effective_rank": effective_rank,
    "mmd_to_uniform": lambda z: mmd_to_uniform(z, unbiased=True),
}


@torch.no_grad()
def dispersion_metrics(z: Tensor) -> dict[str, float]:
    r"""Measures of how evenly points are spread, by name.

    ``smallest_angle``, ``mean_nearest_angle``, ``median_nearest_angle`` in degrees; ``spherical_variance``;
    ``frame_potential``; ``effective_rank``; and ``mmd_to_uniform``, squared, unbiased, Gaussian with gamma = 2. Each
    says little beside the value of uniform points, :func:`uniform_baseline`, for the same n and d.

    Args:
        z: Points, shape (n, d), of any length.

    Returns:
        The values by name.

    Example:
        >>> import torch
        >>> dispersion_metrics(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))["smallest_angle"]
        90.0
    """
    nearest = nearest_angles(z)
    angles = {
        "smallest_angle": nearest.min(),
        "mean_nearest_angle": nearest.mean(),
        "median_nearest_angle": nearest.median(),
    }
    return {name: float(value) for name, value in (angles | {k: f(z) for k, f in _METRICS.items()}).items()}


def uniform_baseline(
    n: int, d: int, *, draws: int = 5, generator: torch.Generator | None = None, device: torch.device | None = None
) -> dict[str, float]:
    r"""Medians of :func:`dispersion_metrics` over draws of independent uniform points.

    Args:
        n: Number of points, at least 2.
        d: Number of coordinates, at least 2.
        draws: Number of draws.
        generator: Source of randomness.
        device: Where to compute.

    Returns:
        The values by name.

    Example:
        >>> import torch
        >>> baseline = uniform_baseline(1000, 64, generator=torch.Generator().manual_seed(0))
        >>> round(baseline["spherical_variance"], 2)  # about 1 - 1 / sqrt(1000)
        0.97
    """
    n, d, draws = check_integer("n", n, least=2), check_integer("d", d, least=2), check_integer("draws", draws)
    clouds = (uniform_points(n, d, generator=generator, device=device) for _ in range(draws))
    found = [dispersion_metrics(z) for z in clouds]
    return {name: float(torch.tensor([m[name] for m in found], device="cpu").median()) for name in found[0]}


def uniform_smallest_angle(n: int, d: int) -> float:
    r"""Median of the smallest angle between n independent uniform points, in degrees, for large n.

    .. math:: F_d(t) = \frac{2 \log 2}{n (n - 1)}

    where :math:`F_d(t)` is the part of the sphere within t of a point: the number of pairs within a small angle is
    nearly a Poisson variable :cite:p:`cai:13`.

    Args:
        n: Number of points, at least 3.
        d: Number of coordinates, at least 2.

    Returns:
        The angle in degrees.

    Example:
        >>> round(uniform_smallest_angle(24, 3), 1)
        5.7
    """
    from scipy.special import betaincinv

    n, d = check_integer("n", n, least=3), check_integer("d", d, least=2)
    part = 2 * math.log(2) / (n * (n - 1))
    # A cap of angle t < 90° is half the regularised incomplete beta function at sin² t.
    return math.degrees(math.asin(math.sqrt(betaincinv((d - 1) / 2, 0.5, 2 * part))))
