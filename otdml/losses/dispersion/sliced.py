"""Uniformity on random great circles."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from otdml._checks import check_boolean, check_generator, check_integer
from otdml._precision import full_precision
from otdml.losses.dispersion.energy import check_several
from otdml.sphere import distinct_directions, great_circles

__all__ = [
    "SlicedDispersion",
    "SlicedWassersteinToUniform",
    "circle_wasserstein",
    "sliced_dispersion",
    "sliced_wasserstein_to_uniform",
]

# Projections shorter than this fraction of the typical length are 1 in 400: clipping them leaves the gradient all but
# unbiased, and its variance finite.
_SHORT = 0.05


@full_precision
def sliced_dispersion(
    z: Tensor,
    *,
    n_projections: int = 64,
    axis_aligned: bool = False,
    unbiased: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Mean squared angular distance to equispaced points, on random great circles, to be minimised.

    .. math:: \frac{1}{L} \sum_{l=1}^L \min_{\phi} \frac{1}{2 n} \sum_i (\theta_{(i)} - 2 \pi i / n - \phi)^2
        = \frac{1}{L} \sum_{l=1}^L 2 \pi^2 \left( W_2^2(\mu_l, \mathrm{Unif}) - \tfrac{1}{12 n^2} \right)

    where :math:`\theta_i` are the angles of the points projected on the plane of circle l, in ascending order, and
    :math:`\mu_l` is their distribution on a circle of length one :cite:p:`bonet:23`. It is zero if the points are
    equispaced on every circle, which more than two points in d > 2 cannot be; uniform measures come nearest. The cost
    is n log n per circle: the regulariser for very many points, though weak at parting near ones. Coincident rows
    are moved apart first as described at :func:`otdml.sphere.distinct_directions`.

    The gradient of an angle is 1 / the length of the projection, which has no variance. It is clipped at a twentieth of
    the typical length, reached by 1 projection in 400; a projection of length zero gives no gradient.

    Args:
        z: Points, shape (..., n, d), d >= 2, of any length: their directions are what counts.
        n_projections: Number of great circles.
        axis_aligned: Circles through two coordinate axes, which need no products: cheap, for embeddings whose
            coordinates carry no meaning of their own.
        unbiased: Leave out the pairs of a point with itself, as a U-statistic does: the mean over minibatches
            is then that of all points, in value and gradient.
        generator: Source of the circles' randomness.

    Returns:
        One value per batch element, shape (...), non-negative unless ``unbiased``.

    Raises:
        ValueError: If there are fewer than two points or two coordinates.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> bool(sliced_dispersion(z) < 1e-10)  # equispaced
        True
    """
    turns = _turns(z, n_projections, axis_aligned, generator)
    least = 0 if unbiased else 1 / (12 * turns.shape[-1] ** 2)
    return 2 * math.pi**2 * (circle_wasserstein(turns, unbiased=unbiased) - least).mean(-1)


@full_precision
def sliced_wasserstein_to_uniform(
    z: Tensor,
    *,
    n_projections: int = 64,
    axis_aligned: bool = False,
    unbiased: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Squared spherical sliced Wasserstein distance to the uniform measure.

    .. math:: \frac{1}{L} \sum_{l=1}^L W_2^2(\mu_l, \mathrm{Unif}(S^1))

    on circles of length one :cite:p:`bonet:23`: :func:`sliced_dispersion` on another scale, which see for cost,
    gradient and tie-break. A uniform measure has zero; n uniform points have 1 / 12 n on average.

    Args:
        z: Points, shape (..., n, d), d >= 2, of any length: their directions are what counts.
        n_projections: Number of great circles.
        axis_aligned: Circles through two coordinate axes.
        unbiased: Leave out the pairs of a point with itself.
        generator: Source of the circles' randomness.

    Returns:
        One value per batch element, shape (...), at least :math:`1 / 12 n^2` unless ``unbiased``.

    Raises:
        ValueError: If there are fewer than two points or two coordinates.

    Example:
        >>> import torch
        >>> sliced_wasserstein_to_uniform(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # 1 / 48
        tensor(0.0208)
    """
    turns = _turns(z, n_projections, axis_aligned, generator)
    return circle_wasserstein(turns, unbiased=unbiased).mean(-1)


def circle_wasserstein(u: Tensor, *, unbiased: bool = False) -> Tensor:
    r"""Squared Wasserstein distance between points of a circle of length one and its uniform measure.

    .. math:: W_2^2 = \tfrac{1}{12 n^2} + \operatorname{Var}_i \left( u_{(i)} - i / n \right)
        = \tfrac{1}{2 n^2} \sum_{i,j} B_2(\lvert u_i - u_j \rvert), \qquad B_2(x) = x^2 - x + \tfrac16

    The second form, a maximum mean discrepancy, takes n² terms; the first takes a sort.

    Args:
        u: Positions on the circle, in turns, shape (..., n).
        unbiased: Leave out the terms i = j of the second form and divide by n (n - 1) in place of n²:
            :math:`(W_2^2 - \tfrac{1}{12 n}) \tfrac{n}{n - 1}`, whose mean over samples is that of their distribution.

    Returns:
        One value per batch element, shape (...).

    Example:
        >>> import torch
        >>> circle_wasserstein(torch.tensor([0.1, 0.6]))  # 1 / (12 * 4)
        tensor(0.0208)
    """
    n = u.shape[-1]
    targets = torch.arange(n, dtype=u.dtype, device=u.device) / n
    shifts = u.sort(dim=-1, stable=True).values - targets
    value = (shifts - shifts.mean(dim=-1, keepdim=True)).square().mean(dim=-1) + 1 / (12 * n**2)
    return (value - 1 / (12 * n)) * n / (n - 1) if check_boolean("unbiased", unbiased) else value


def _turns(z: Tensor, n_projections: int, axis_aligned: bool, generator: torch.Generator | None) -> Tensor:
    """Angles of the points on random great circles, in turns, shape (..., n_projections, n)."""
    n_projections = check_integer("n_projections", n_projections)
    p, q = great_circles(n_projections, check_several(z), axis_aligned=axis_aligned, generator=generator)
    x = distinct_directions(z)
    short = _SHORT * math.sqrt(2 / z.shape[-1])
    return _polar_angle(p @ x.mT, q @ x.mT, short) / (2 * math.pi)


def _polar_angle(a: Tensor, b: Tensor, short: float) -> Tensor:
    """atan2(b, a), with the gradient of a vector no shorter than ``short``."""
    a0, b0 = a.detach(), b.detach()
    long = a0.square() + b0.square() >= short**2
    # The last term is zero and carries the gradient (a db - b da) / r².
    clipped = torch.atan2(b0, a0) + (a0 * b - b0 * a) / short**2
    return torch.where(long, torch.atan2(torch.where(long, b, 0), torch.where(long, a, 1)), clipped)


class SlicedDispersion(nn.Module):
    """Module form of :func:`sliced_dispersion`."""

    def __init__(
        self,
        *,
        n_projections: int = 64,
        axis_aligned: bool = False,
        unbiased: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_projections = check_integer("n_projections", n_projections)
        self.axis_aligned = check_boolean("axis_aligned", axis_aligned)
        self.unbiased, self.generator = check_boolean("unbiased", unbiased), check_generator(generator)

    def extra_repr(self) -> str:
        return f"n_projections={self.n_projections}, axis_aligned={self.axis_aligned}, unbiased={self.unbiased}"

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("n_projections", "axis_aligned", "unbiased", "generator")}

    def forward(self, z: Tensor) -> Tensor:
        return sliced_dispersion(z, **self._options())


class SlicedWassersteinToUniform(SlicedDispersion):
    """Module form of :func:`sliced_wasserstein_to_uniform`."""

    def forward(self, z: Tensor) -> Tensor:
        return sliced_wasserstein_to_uniform(z, **self._options())
