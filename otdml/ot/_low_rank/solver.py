"""Transport by plans of low rank."""

from torch import Tensor

from otdml._checks import argument_error, check_integer, check_positive
from otdml._derivatives import refuse_transforms
from otdml._precision import full_precision
from otdml._warnings import warn_caller
from otdml.costs import COSTS, Cost, check_cost
from otdml.measures import broadcast_measures
from otdml.ot._low_rank.descent import descend
from otdml.ot._low_rank.problem import LowRankProblem
from otdml.ot._low_rank.result import LowRankResult
from otdml.ot._low_rank.start import start

__all__ = ["low_rank_sinkhorn"]


@full_precision
def low_rank_sinkhorn(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    rank: int,
    cost: Cost = "sqeuclidean",
    eps: float | None = None,
    tol: float = 1e-3,
    max_iter: int = 500,
) -> LowRankResult:
    r"""Optimal transport between two weighted point clouds by plans of low rank.

    .. math::
        \min_{Q, R, g} \; \langle P, C \rangle + \varepsilon \left( \mathrm{KL}(Q \,|\, a \otimes \tfrac1r)
        + \mathrm{KL}(R \,|\, b \otimes \tfrac1r) + \mathrm{KL}(g \,|\, \tfrac1r) \right),
        \quad P = Q \, \mathrm{diag}(1/g) \, R^\top, \; Q 1 = a, \; R 1 = b, \; Q^\top 1 = R^\top 1 = g

    All mass passes through r *hubs*, and a hub distributes its mass independently of where it came from. So the plan
    costs more than an optimal one, by about the variance of the points of a hub, which falls as :math:`r^{-2/d}` for
    clouds without structure in d dimensions. Memory is :math:`O((n + m)(r + d))`, and time is linear in n and m. Choose
    it for clouds with too many pairs to evaluate them all; :doc:`/performance` shows where it takes less time than
    :func:`sinkhorn`.

    Solved by the mirror descent of :cite:p:`scetbon:21`. Each step is a small convex problem, solved by Newton's method
    in double precision, and is shortened where it does not descend. The problem is not convex, so the optimum is local.
    Nothing is random: the start is the best plan through clusters of y, which at rank m is near an optimal plan. The
    plan that is returned has the marginals a and b, so its cost is never below that of exact transport. Where the
    iteration has converged, the gradient of the value in points and weights is that of the whole objective, entropies
    included, and not that of the cost alone. There are no second derivatives.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m), of the same mass. Uniform of mass one if None.
        rank: Number of hubs, at most n and m. Some ten suffice for a coarse plan; a step takes :math:`O((n + m) r (r +
            d))`.
        cost: ``"sqeuclidean"``, ``"cosine"`` or ``"inner"``, whose matrices have the rank of the points.
        eps: Temperature in units of the cost. If None, a hundredth of the largest amount by which a plan can be cheaper
            than the independent one: :math:`(\mathbb{E} \lVert q \rVert^2 \, \mathbb{E} \lVert k \rVert^2)^{1/2}`, with
            the centred factors q and k of the cost.
        tol: Error at which to stop, see :class:`LowRankResult`.
        max_iter: Most steps; beyond them the result has ``converged`` False, and a warning says so.

    Returns:
        The result; its value, :math:`\langle P, C \rangle`, has shape (...).

    Raises:
        ValueError: If shapes do not fit, a weight is negative, masses differ, the cost has no factors, or costs are not
            finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> result = low_rank_sinkhorn(x, x + 1, rank=2)  # Two pairs, with a hub for each
        >>> result.value  # 1, and twice the variance of a pair, which is .0025
        tensor(1.0050)
        >>> result.factors[0].shape
        torch.Size([4, 2])
    """
    x, y, a, b = broadcast_measures(x, y, a, b)
    refuse_transforms("low_rank_sinkhorn", x, y, a, b)
    _check_factors(cost)
    rank = _check_rank(rank, min(x.shape[-2], y.shape[-2]))
    tol, max_iter = check_positive("tol", tol), check_integer("max_iter", max_iter)
    problem = LowRankProblem.between(x, y, a, b, cost, None if eps is None else check_positive("eps", eps))
    found, n_iter = descend(start(*problem.clouds, rank, problem.temperature), tol=tol, max_iter=max_iter)
    converged = found.error <= tol
    if not bool(converged.all()):
        warn_caller(
            f"The descent stopped at `max_iter`={max_iter} with an error of {float(found.error.max()):.2g} > "
            f"`tol`={tol:g}. Raise `max_iter` or `eps`, or accept a larger `tol`."
        )
    plan = problem.plan(found)
    return LowRankResult(
        value=problem.value(found, plan),
        converged=converged,
        n_iter=n_iter,
        marginal_error=plan.marginal_error,
        _coupling=plan,
        _y=y,
        eps=problem.eps,
        divergence=problem.mass.detach() * found.divergence.to(plan.a),
        error=found.error.to(plan.a),
    )


def _check_factors(cost: Cost) -> None:
    """Raise unless the cost is a scalar product of factors, up to terms of one point."""
    if not isinstance(check_cost(cost), str) or COSTS[str(cost)].products is None:
        got = cost if isinstance(cost, str) else "a function"
        must = "be 'sqeuclidean', 'cosine' or 'inner', which have factors"
        raise argument_error("cost", must, got, "Take `sinkhorn` for other costs.")


def _check_rank(rank: int, most: int) -> int:
    """The rank, if both clouds have as many points."""
    if (rank := check_integer("rank", rank)) > most:
        raise argument_error("rank", f"be at most the number of points of each cloud, {most}", rank)
    return rank
