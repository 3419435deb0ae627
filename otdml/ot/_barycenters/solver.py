"""Barycentres of measures, as users call them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import (
    argument_error,
    check_batches,
    check_boolean,
    check_generator,
    check_integer,
    check_points,
    check_positive,
    device_of_draws,
)
from otdml._derivatives import refuse_transforms
from otdml._precision import full_precision, widest
from otdml._warnings import warn_caller
from otdml.costs import Cost, check_cost, ground
from otdml.measures import expand
from otdml.ot._barycenters.fixed_support import fixed_weights
from otdml.ot._barycenters.free_support import free_points
from otdml.ot._barycenters.measures import Measures, check_clouds, check_numbers
from otdml.ot._problem import SolverOptions

__all__ = ["BarycenterResult", "sinkhorn_barycenter"]

# Root mean square of the noise that separates drawn points, in units of that of the distances of points from the mean
# of their cloud.
JITTER = 0.05
# The points are found to this many rounding units of their coordinates.
ROUNDING = 16.0


@dataclass(frozen=True)
class BarycenterResult:
    """A barycentre.

    Attributes:
        points: Its points, shape (..., m, d).
        weights: Their weights, shape (..., m), of mass one.
        converged: Whether the error is within the tolerance, shape (...).
        error: With free points, the root mean square of the next step, in units of the root mean square distance of all
            points from the mean of their cloud. Where clouds are single points that is zero, and the unit is the
            distance of the points to start from from the mean of all. On a support, the L1 error of the plans'
            marginals. Shape (...).
        n_iter: Number of steps, or iterations.
    """

    points: Tensor
    weights: Tensor
    converged: Tensor
    error: Tensor
    n_iter: int


@full_precision
def sinkhorn_barycenter(
    clouds: Tensor,
    weights: Tensor | None = None,
    a: Tensor | None = None,
    *,
    support: Tensor | None = None,
    n_points: int | None = None,
    init: Tensor | None = None,
    debias: bool = True,
    cost: Cost = "sqeuclidean",
    eps: float | None = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    backend: str = "auto",
    generator: torch.Generator | None = None,
) -> BarycenterResult:
    r"""Barycentre of weighted point clouds under the Sinkhorn divergence.

    .. math:: \min_\beta \; \sum_{k=1}^K w_k \, S_\varepsilon(\beta, \alpha_k)

    with the divergence of :func:`otdml.losses.sinkhorn_divergence`: the mean that moves mass, where the mean of the
    densities would superpose it. Translations give the translated cloud, and equal clouds themselves, whatever ``eps``
    is. Without ``debias`` it is the entropic cost that is averaged: of free points the barycentre is then shrunken, on
    a support (where the entropy is relative to its uniform measure) it is blurred. For Gaussians on the line of
    standard deviations :math:`\sigma_k` its own, s, solves, with :math:`\delta = \varepsilon / 4` :cite:p:`janati:20`,

    .. math:: \sum_k w_k \sqrt{\delta^2 + s^2 \sigma_k^2} = \sqrt{\delta^2 + s^4}, \qquad = s^2 + \delta, \qquad
        = s^2 - \delta

    debiased, of free points, and on a support. As ``eps`` falls all tend to the Wasserstein barycentre.

    **Free points** of equal weights move by what the maps to the clouds differ from the map to themselves
    :cite:p:`cuturi:14`, which finds a stationary point: the problem is not convex. **On a support** the weights are
    found, a convex problem, by the debiased Sinkhorn iteration :cite:p:`janati:20`. On a grid much finer than
    :math:`\sqrt{\varepsilon}` debiased weights are hardly determined: those of a few separate points concentrate on a
    few points of the grid, and their gradient needs a ``tol`` of 1e-4 or less. Costs are streamed as in
    :func:`sinkhorn`, so memory is linear in the number of points. Points and weights are differentiable in all tensors
    to first order, by the implicit function theorem; directions in which the objective is flat to ``tol`` are left out.

    Args:
        clouds: Points, shape (..., K, n, d); clouds of different sizes become one tensor by :func:`pad_clouds`.
        weights: Weights of the clouds, shape (..., K), which are divided by their sum. Equal if None.
        a: Weights of the points, shape (..., K, n), divided by their sum in each cloud. Uniform if None.
        support: Points on which the barycentre is to lie, shape (..., m, d). None for free points.
        n_points: Number of free points; n if None.
        init: Free points to start from, shape (..., m, d). If None, the points of the cloud of most weight, moved to
            the mean of all. Where its weights differ, or its size is not ``n_points``, points are drawn from it by
            weight, and noise is added.
        debias: Whether the divergence is averaged, or the entropic cost.
        cost: Ground cost, see :func:`otdml.costs.ground`. Free points need "sqeuclidean".
        eps: Temperature in units of the cost. If None, 0.05 times the mean excess of the costs between the points of a
            cloud over the least one, averaged over the clouds by their weights.
        tol: Error at which to stop, see :class:`BarycenterResult`.
        max_iter: Most steps of the points, or iterations on a support.
        backend: As in :func:`sinkhorn`.
        generator: Of the points to start from.

    Returns:
        The result.

    Raises:
        ValueError: If shapes do not fit, weights are negative or all zero, or costs are not finite.

    Example:
        >>> import torch
        >>> cloud = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> clouds = torch.stack([cloud, cloud + torch.tensor([0.0, 4.0])])
        >>> sinkhorn_barycenter(clouds, torch.tensor([0.75, 0.25])).points
        tensor([[0., 1.],
                [1., 1.]])
    """
    refuse_transforms("sinkhorn_barycenter", clouds, weights, a, support)
    options = SolverOptions(check_positive("tol", tol), check_integer("max_iter", max_iter), backend)
    check_boolean("debias", debias), check_generator(generator)
    measures = check_clouds(clouds, weights, a, check_cost(cost), eps)
    if support is None:
        start = _start(measures, n_points, init, generator)
        return _free(measures.expand(start.shape[:-2]), start, debias, options)
    for name, value in (("n_points", n_points), ("init", init)):
        if value is not None:
            raise argument_error(name, "be None where `support` is given", type(value).__name__)
    return _fixed(*_with_equal_batches(measures, support), debias, options)


def _free(measures: Measures, y: Tensor, debias: bool, options: SolverOptions) -> BarycenterResult:
    if measures.cost != "sqeuclidean":
        remedy = "Pass `support` for other costs."
        raise argument_error("cost", "be 'sqeuclidean' where points are free", measures.cost, remedy)
    # Far from the origin, steps would be lost to rounding.
    origin = measures.average(measures.means()).detach()[..., None, :]
    near = measures.of(measures.x - origin[..., None, :], measures.a, measures.shares)
    largest = measures.x.detach().abs().amax() if measures.x.numel() else measures.x.new_ones(())
    rounding = (ROUNDING * torch.finfo(y.dtype).eps * largest).clamp(min=torch.finfo(y.dtype).tiny ** 0.5)
    found = free_points(near, y - origin, rounding, debias=debias, options=options)
    points = found.point + origin
    uniform = points.new_full(points.shape[:-1], 1 / points.shape[-2])
    return _checked(points, uniform, found.error, found.n_iter, options)


def _fixed(measures: Measures, support: Tensor, debias: bool, options: SolverOptions) -> BarycenterResult:
    if callable(measures.cost) and ground(support, support, measures.cost).depends_on_parameters:
        remedy = "A barycentre has no derivative in them: detach them."
        raise argument_error("cost", "depend on nothing but the points", "parameters with gradients", remedy)
    found = fixed_weights(measures, support, debias=debias, options=options)
    return _checked(support, found.weights, found.error, found.n_iter, options)


def _checked(points: Tensor, weights: Tensor, error: Tensor, n_iter: int, options: SolverOptions) -> BarycenterResult:
    converged = error <= options.tol
    if not bool(converged.all()):
        warn_caller(
            f"The barycentre stopped at `max_iter`={options.max_iter} with an error of {float(error.max()):.2g} > "
            f"`tol`={options.tol:g}. Raise `max_iter` or `eps`, or accept a larger `tol`."
        )
    return BarycenterResult(points, weights, converged, error, n_iter)


def _with_equal_batches(measures: Measures, support: Tensor) -> tuple[Measures, Tensor]:
    """Measures and support with equal batch dimensions."""
    _check_features("support", check_points("support", support), measures)
    batch = check_batches(clouds=measures.x.shape[:-3], support=support.shape[:-2])
    return measures.expand(batch), expand(support.to(measures.x), batch, 2)


def _check_features(name: str, points: Tensor, measures: Measures) -> None:
    d = measures.x.shape[-1]
    if points.shape[-1] != d:
        raise argument_error(name, f"have the features of `clouds`, {d}", points.shape[-1])
    check_numbers(name, points)


@torch.no_grad()
def _start(measures: Measures, n_points: int | None, init: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Free points to start from."""
    batch = measures.x.shape[:-3]
    if init is not None:
        if n_points is not None:
            raise argument_error("n_points", "be None where `init` is given", n_points)
        _check_features("init", check_points("init", init), measures)
        return expand(init.to(measures.x), check_batches(clouds=batch, init=init.shape[:-2]), 2).detach()
    heaviest = measures.shares.argmax(-1)[..., None]
    x = measures.x.take_along_dim(heaviest[..., None, None], -3)[..., 0, :, :]
    a = measures.a.take_along_dim(heaviest[..., None], -2)[..., 0, :]
    moved = x + (measures.average(measures.means()) - (a[..., None] * x).sum(-2))[..., None, :]
    n = x.shape[-2]
    m = n if n_points is None else check_integer("n_points", n_points)
    if m == n and bool((a == a[..., :1]).all()):
        return moved
    levels = (torch.arange(m, dtype=a.dtype, device=a.device) + 0.5) / m
    drawn = torch.searchsorted(a.cumsum(-1), levels.expand(*batch, m).contiguous()).clamp_(max=n - 1)
    points = moved.take_along_dim(drawn[..., None], -2)
    # Points that coincide would move alike for ever.
    source = torch.device(device_of_draws(generator, points.device) or "cpu")
    noise = torch.randn(points.shape, generator=generator, device=source, dtype=widest(source))
    noise = noise.to(points.dtype).to(points.device)
    return points + JITTER * measures.scale()[..., None, None] / x.shape[-1] ** 0.5 * noise
