"""Optimal transport on the line, and its average over directions."""

import torch
from torch import Tensor

from otdml._checks import argument_error, check_equal_mass, check_integer, check_measures
from otdml._precision import full_precision
from otdml.measures import weights

__all__ = ["check_exponent", "directions", "sliced", "wasserstein_1d"]


def directions(d: int, n: int, *, generator: torch.Generator | None = None, like: Tensor | None = None) -> Tensor:
    """Uniformly distributed unit vectors, shape (n, d), in the dtype and on the device of ``like``.

    Example:
        >>> import torch
        >>> directions(3, 2, generator=torch.Generator().manual_seed(0)).norm(dim=-1)
        tensor([1., 1.])
    """
    like = torch.empty(0) if like is None else like
    device = like.device if generator is None else generator.device
    # Drawn in double precision, so that one seed gives the same directions in every precision.
    normal = torch.randn(n, d, generator=generator, dtype=torch.float64, device=device).to(like)
    return torch.nn.functional.normalize(normal, dim=-1)


@full_precision
def wasserstein_1d(x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, p: float = 2.0) -> Tensor:
    r"""The p-th power of the Wasserstein distance between two measures on the line.

    .. math:: W_p^p(\alpha, \beta) = \int_0^1 | F_\alpha^{-1}(t) - F_\beta^{-1}(t) |^p \, dt

    Exact for any weights of equal mass, in O((n + m) log(n + m)); differentiable wherever no two points of a measure
    coincide :cite:p:`santambrogio:15`.

    Args:
        x: First points, shape (..., n).
        y: Second points, shape (..., m).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m), of the same mass. Uniform if None.
        p: Exponent of the distance, at least 1.

    Returns:
        Shape (...), in the units of the points to the power p.

    Raises:
        ValueError: If shapes do not fit, masses differ, or p < 1.

    Example:
        >>> import torch
        >>> wasserstein_1d(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 1.0]), p=1)  # 0 to 1, and 1 to 3
        tensor(1.5000)
    """
    check_exponent(p)
    check_measures(x[..., None], y[..., None], a, b)
    if a is None and b is None and x.shape[-1] == y.shape[-1]:
        return (x.sort(-1).values - y.sort(-1).values).abs().pow(p).mean(-1)
    a, b = weights(x[..., None], a), weights(y[..., None], b)
    check_equal_mass(a, b)
    return _quantile_distance(x, y, a, b, p)


def check_exponent(p: float) -> float:
    """``p``, if it is the exponent of a distance."""
    if not 1 <= p < float("inf"):
        raise argument_error("p", "be a number in [1, infinity)", p)
    return p


def _quantile_distance(x: Tensor, y: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
    x, order = x.sort(-1)
    s = a.gather(-1, order).cumsum(-1)
    y, order = y.sort(-1)
    t = b.gather(-1, order).cumsum(-1)
    # Both quantile functions are constant between two neighbours of these levels.
    levels = torch.cat([s, t], -1).sort(-1).values
    lengths = torch.diff(levels, prepend=torch.zeros_like(levels[..., :1]))
    middles = (levels - lengths / 2).detach()
    i = torch.searchsorted(s.detach(), middles).clamp_(max=x.shape[-1] - 1)
    j = torch.searchsorted(t.detach(), middles).clamp_(max=y.shape[-1] - 1)
    return (lengths * (x.gather(-1, i) - y.gather(-1, j)).abs().pow(p)).sum(-1)


@full_precision
def sliced(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    n_projections: int = 64,
    p: float = 2.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The p-th power of the sliced Wasserstein distance, by Monte Carlo over directions.

    .. math:: \mathrm{SW}_p^p(\alpha, \beta) = \mathbb{E}_\theta \, W_p^p(\theta_\# \alpha, \theta_\# \beta)

    with :math:`\theta` uniform on the sphere :cite:p:`bonneel:15`. Zero if and only if the measures are equal; the
    estimate is unbiased, and costs O(L (n + m) (d + log(n + m))) for L directions.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m), of the same mass. Uniform if None.
        n_projections: Number of directions, the same ones for all batch elements.
        p: Exponent of the distance, at least 1.
        generator: Source of the directions.

    Returns:
        Shape (...).

    Raises:
        ValueError: If shapes do not fit, masses differ, or an option is out of range.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0]])  # On the line there is one direction, up to its sign.
        >>> sliced(x, x + 2)
        tensor(4.)
    """
    check_measures(x, y, a, b)
    check_integer("n_projections", n_projections)
    check_exponent(p)
    theta = directions(x.shape[-1], n_projections, generator=generator, like=x)
    u, v = (theta @ x.mT), (theta @ y.mT)
    if a is not None or b is not None:
        a = weights(x, a)[..., None, :].expand_as(u)
        b = weights(y, b)[..., None, :].expand_as(v)
    return wasserstein_1d(u, v, a, b, p=p).mean(-1)
