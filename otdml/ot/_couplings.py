"""Pairs of points drawn from a transport plan, as flow matching trains on them."""

from typing import Any

import torch
from torch import Tensor

from otdml._checks import (
    argument_error,
    argument_names,
    check_choice,
    check_fraction,
    check_generator,
    check_integer,
    check_points,
)
from otdml._derivatives import refuse_transforms
from otdml._precision import full_precision
from otdml.costs import Cost
from otdml.ot._exact import exact, uniform_plan
from otdml.ot._problem import Problem, Rho, SolverOptions, given_temperature
from otdml.ot._semidiscrete import semidiscrete
from otdml.ot._sinkhorn import entropic
from otdml.ot._solution import EntropicSolution
from otdml.ot.engines import Streamed

__all__ = ["METHODS", "couple"]

METHODS = ("exact", "sinkhorn", "unbalanced", "partial", "semidiscrete")
ENTROPIC = ("sinkhorn", "unbalanced")
# The methods that an option belongs to.
USERS = {"rho": ("unbalanced",), "mass": ("partial",)} | dict.fromkeys(("eps", "tol", "max_iter", "backend"), ENTROPIC)

# The share of the mass that a partial plan moves, where none is given.
MASS = 0.9

Pairs = tuple[Tensor, Tensor]


@full_precision
@torch.no_grad()
@argument_names(x="x0", y="x1")
def couple(
    x0: Tensor,
    x1: Tensor,
    *,
    method: str = "exact",
    n_pairs: int | None = None,
    cost: Cost = "sqeuclidean",
    eps: float | None = None,
    rho: Rho = None,
    mass: float | None = None,
    tol: float | None = None,
    max_iter: int | None = None,
    backend: str | None = None,
    generator: torch.Generator | None = None,
) -> Pairs:
    r"""Indices of pairs drawn from a transport plan between two batches of points of equal weights.

    Flow matching on pairs :math:`(x_0[i], x_1[j]) \sim P` in place of independent ones has straighter paths and
    targets of less variance :cite:p:`tong:24`. The plan stays on the points' device; that of ``"sinkhorn"`` and
    ``"unbalanced"`` is drawn from in blocks of rows, and no matrix of n × m entries is needed for it.

    Args:
        x0: First points, shape (n, d).
        x1: Second points, shape (m, d).
        method: The plan: "exact", without regularisation (n and m to some thousands); "sinkhorn", entropic;
            "unbalanced", entropic with penalties ``rho`` in place of the marginals, so that outliers are seldom drawn;
            "partial", exact for the share ``mass`` of both that it costs least to move; "semidiscrete", each of x0 to
            the cell that it lies in, when x1 is the whole data and x0 a batch of noise.
        n_pairs: Number of pairs, drawn with replacement from the plan. None for one pair for each point of ``x0``, for
            "partial" of those that move by more than half, in their order, which has less variance; for "unbalanced"
            for as many pairs as points, whose first points are drawn as well.
        cost: Ground cost, see :func:`~otdml.costs.ground`.
        eps: Temperature of "sinkhorn" and "unbalanced", see :func:`sinkhorn`.
        rho: Penalty of "unbalanced", see :func:`sinkhorn`.
        mass: Share of the mass that "partial" moves, in (0, 1]; 0.9 if None.
        tol: Tolerance of "sinkhorn" and "unbalanced"; 1e-3 if None.
        max_iter: Most iterations of "sinkhorn" and "unbalanced"; 2000 if None.
        backend: Engine of "sinkhorn" and "unbalanced", see :func:`sinkhorn`; "auto" if None.
        generator: Of the pairs.

    Returns:
        The indices i and j of the pairs, integers of shape (n_pairs,) each.

    Raises:
        ValueError: If shapes do not fit, a method is unknown, ``rho`` is missing, or an option is given that the
            method leaves aside.

    Example:
        >>> import torch
        >>> x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [1.0]])
        >>> couple(x0, x1)  # 0 goes to 1, and 1 goes to 3.
        (tensor([0, 1]), tensor([1, 0]))
    """
    refuse_transforms("couple", x0, x1)
    check_choice("method", method, METHODS)
    _check_batches(x0, x1)
    if method == "unbalanced" and rho is None:
        raise argument_error("rho", "be given with method='unbalanced'", rho)
    given: dict[str, Any] = {"rho": rho, "eps": eps, "mass": mass, "tol": tol, "max_iter": max_iter, "backend": backend}
    for name, value in given.items():
        if value is not None and method not in USERS[name]:
            raise argument_error(name, f"be None with method={method!r}", value, f"Pass method={USERS[name][0]!r}.")
    n_pairs = n_pairs if n_pairs is None else check_integer("n_pairs", n_pairs)
    check_generator(generator)
    settings = {name: given[name] for name in ("tol", "max_iter", "backend") if given[name] is not None}
    options, eps = SolverOptions(**settings), given_temperature(eps)
    share = MASS if mass is None else check_fraction("mass", mass)
    if method in ENTROPIC:
        problem = Problem.between(x0, x1, None, None, cost=cost, eps=eps, rho=rho)
        return _from_potentials(problem, options, n_pairs, generator)
    if method == "semidiscrete":
        i = _rows(x0.new_ones(len(x0)), n_pairs, generator, all_rows=True)
        return i, semidiscrete(x0, x1, cost=cost, generator=generator).cells(x0)[i]
    plan = uniform_plan(x0, x1, cost) if method == "exact" else exact(x0, x1, cost=cost, mass=share).plan
    i = _rows(plan.sum(1), n_pairs, generator, all_rows=method == "exact")
    if method == "exact" and len(x0) == len(x1):
        # A vertex of the polytope of plans is a permutation, so nothing is drawn.
        return i, plan.argmax(1)[i]
    return i, torch.multinomial(plan[i], 1, generator=generator)[:, 0]


def _check_batches(x0: Tensor, x1: Tensor) -> None:
    """Raise unless these are two clouds of one space on one device, without batch dimensions."""
    for name, x in (("x0", x0), ("x1", x1)):
        if check_points(name, x).ndim != 2:
            raise argument_error(name, "have shape (n, d)", tuple(x.shape), "Couple one batch at a time.")
    if x1.shape[1] != x0.shape[1]:
        raise argument_error("x1", f"have the features of `x0`, {x0.shape[1]}", x1.shape[1])
    if x1.device != x0.device:
        raise argument_error("x1", f"be on the device of `x0`, {x0.device}", x1.device)


def _rows(mass: Tensor, n_pairs: int | None, generator: torch.Generator | None, *, all_rows: bool) -> Tensor:
    """Rows drawn by their mass, or each once."""
    if n_pairs is None and all_rows:
        return torch.arange(len(mass), device=mass.device)
    if n_pairs is None:
        # Of a partial plan, the rows that move at least half of their mass.
        return (mass > 0.5 / len(mass)).nonzero()[:, 0]
    return torch.multinomial(mass, n_pairs, replacement=True, generator=generator)


def _from_potentials(
    problem: Problem, options: SolverOptions, n_pairs: int | None, generator: torch.Generator | None
) -> Pairs:
    """Pairs of an entropic plan: rows by their mass, and for each a column by the Gumbel-max trick, block by block."""
    result = entropic(problem, options)
    assert isinstance(result._coupling, EntropicSolution)
    solution = result._coupling
    mass = solution.product(torch.ones_like(problem.b)[:, None])[:, 0]
    count = len(mass) if n_pairs is None and not problem.balanced else n_pairs
    i = _rows(mass, count, generator, all_rows=problem.balanced)
    cost = solution.problem.cost.detach().rows(i).scaled(solution.problem.scale(0))
    j = torch.empty_like(i)
    for block, scores in Streamed(cost).score_blocks(solution.constant_exponents[1]):
        noise = torch.empty_like(scores).exponential_(generator=generator).log_()
        j[block] = scores.sub_(noise).argmax(-1)
    return i, j
