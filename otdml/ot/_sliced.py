"""Optimal transport on the line, and its average over directions."""

import torch
from torch import Tensor

from otdml._checks import (
    argument_error,
    check_equal_mass,
    check_integer,
    check_points,
    check_positive,
    check_tensor,
    device_of_draws,
)
from otdml._precision import full_precision, widest
from otdml.measures import broadcast_measures, weights

__all__ = ["check_exponent", "check_projections", "directions", "sliced", "wasserstein_1d"]


def directions(d: int, n: int, *, generator: torch.Generator | None = None, like: Tensor | None = None) -> Tensor:
    """Uniformly distributed unit vectors, shape (n, d), in the dtype and on the device of ``like``.

    Example:
        >>> import torch
        >>> directions(3, 2, generator=torch.Generator().manual_seed(0)).norm(dim=-1)
        tensor([1., 1.])
    """
    like = torch.empty(0) if like is None else like
    source = torch.device(device_of_draws(generator, like.device) or "cpu")
    # Drawn in the widest precision, so that one seed gives the same directions in every precision.
    normal = torch.randn(n, d, generator=generator, dtype=widest(source), device=source).to(like.dtype).to(like.device)
    return torch.nn.functional.normalize(normal, dim=-1)


@full_precision
def wasserstein_1d(x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, p: float = 2.0) -> Tensor:
    r"""The p-th power of the Wasserstein distance between two measures on the line.

    .. math:: W_p^p(\alpha, \beta) = \int_0^1 | F_\alpha^{-1}(t) - F_\beta^{-1}(t) |^p \, dt

    Exact for any weights of equal mass, in O((n + m) log(n + m)); differentiable in points wherever no two of a measure
    coincide :cite:p:`santambrogio:15`, and in weights where no partial sums of both measures agree, as all of uniform
    ones do: the gradient is that of one side there.

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
    x, y, a, b = broadcast_measures(_points_of_line("x", x), _points_of_line("y", y), a, b)
    return _on_the_line(x[..., 0], y[..., 0], a, b, check_exponent(p))


def _points_of_line(name: str, x: Tensor) -> Tensor:
    """Numbers, shape (..., n), as points, shape (..., n, 1)."""
    check_tensor(name, x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise argument_error(name, "have shape (..., n) with n >= 1", tuple(x.shape))
    return x[..., None]


def check_exponent(p: float) -> float:
    """``p`` as a number of Python, if it is the exponent of a distance."""
    p = check_positive("p", p)
    if p < 1:
        raise argument_error("p", "be a number in [1, infinity)", p)
    return p


def _on_the_line(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, p: float) -> Tensor:
    if a is None and b is None and x.shape[-1] == y.shape[-1]:
        return (x.sort(-1).values - y.sort(-1).values).abs().pow(p).mean(-1)
    a, b = weights(x[..., None], a), weights(y[..., None], b)
    check_equal_mass(a, b)
    return _quantile_distance(x, y, a, b, p)


def _quantile_distance(x: Tensor, y: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
    x, order = x.sort(-1)
    s = a.gather(-1, order).cumsum(-1)
    y, order = y.sort(-1)
    t = b.gather(-1, order).cumsum(-1)
    # Both quantile functions are constant from one of these levels to the next, at the points whose levels come next.
    # Equal levels have an interval of no length between them, whose points decide the gradient in the weights.
    levels, order = torch.cat([s, t], -1).sort(dim=-1, stable=True)
    lengths = torch.diff(levels, prepend=torch.zeros_like(levels[..., :1]))
    of_x = (order < x.shape[-1]).long()
    i, j = ((own.cumsum(-1) - own).clamp(max=z.shape[-1] - 1) for own, z in ((of_x, x), (1 - of_x, y)))
    return (lengths * (x.gather(-1, i) - y.gather(-1, j)).abs().pow(p)).sum(-1)


@full_precision
def sliced(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    n_projections: int | None = None,
    projections: Tensor | None = None,
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
        n_projections: Number of directions to draw, the same ones for all batch elements; 64 if None.
        projections: The directions, shape (L, d), where they are not to be drawn; taken as they are.
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
    x, y, a, b = broadcast_measures(x, y, a, b)
    p, n = check_exponent(p), check_projections(n_projections, projections)
    if projections is None:
        projections = directions(x.shape[-1], n, generator=generator, like=x)
    elif projections.shape[-1] != x.shape[-1]:
        raise argument_error("projections", f"have shape (L, {x.shape[-1]})", tuple(projections.shape))
    u, v = projections @ x.mT, projections @ y.mT
    a, b = (None if w is None else w[..., None, :].expand_as(t) for w, t in ((a, u), (b, v)))
    return _on_the_line(u, v, a, b, p).mean(-1)


def check_projections(n: int | None, projections: Tensor | None) -> int:
    """The number of directions, from what is given of ``n_projections`` and ``projections``."""
    if projections is None:
        return 64 if n is None else check_integer("n_projections", n)
    if n is not None:
        raise argument_error("n_projections", "be None where `projections` are given", n)
    if check_points("projections", projections).ndim != 2:
        raise argument_error("projections", "have shape (L, d)", tuple(projections.shape))
    return len(projections)
