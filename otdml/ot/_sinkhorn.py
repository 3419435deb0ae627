"""Entropic optimal transport between point clouds, or for a cost matrix."""

import math

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml._precision import full_precision
from otdml._warnings import warn_caller
from otdml.costs import Cost
from otdml.measures import broadcast_matrix, broadcast_measures
from otdml.ot._annealing import Init, Solved, resolution, solve
from otdml.ot._partial import Mass, check_mass, extended, extended_options, restricted
from otdml.ot._problem import Posed, Problem, Rho, SolverOptions, given_temperature
from otdml.ot._result import OTResult
from otdml.ot._small import small_sinkhorn
from otdml.ot._solution import EntropicSolution
from otdml.ot._transformed import transformable_result

__all__ = ["entropic", "sinkhorn", "sinkhorn_matrix", "solution"]


@transformable_result
@full_precision
def sinkhorn(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    cost: Cost = "sqeuclidean",
    eps: float | None = None,
    rho: Rho = None,
    mass: Mass | None = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    init: Init | None = None,
    backend: str = "auto",
) -> OTResult:
    r"""Entropic optimal transport between two weighted point clouds.

    .. math::
        \min_{P \ge 0} \langle P, C \rangle + \varepsilon \mathrm{KL}(P \,|\, a \otimes b)
        + \rho_a \mathrm{KL}(P 1 \,|\, a) + \rho_b \mathrm{KL}(P^\top 1 \,|\, b)

    with :math:`C_{ij} = c(x_i, y_j)` and :math:`\mathrm{KL}(p | q) = \sum p \log (p / q) - p + q`; without
    :math:`\rho` the marginals are constraints. Solved by Sinkhorn's algorithm :cite:p:`cuturi:13` under Anderson
    acceleration :cite:p:`walker:11`, at low temperatures by way of higher ones; unbalanced as in
    :cite:p:`sejourne:19`. Gradients are those of the optimum, never of the iterations, and second derivatives of
    the value exist on the dense and streamed backends, those of potentials, plans and maps on the dense one.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m). Uniform of mass one if None.
        cost: Ground cost, see :func:`~otdml.costs.ground`.
        eps: Temperature in units of the cost: small is close to exact transport and slow, large is smooth and
            quick. 0.05 times the mean excess of the costs over the least one, of each batch element, if None; see
            :func:`~otdml.costs.default_temperature`.
        rho: Marginal penalty in units of the cost, a number, or a pair for ``a`` and ``b`` in which None, or infinity,
            is a hard constraint. None for both: ``a`` and ``b`` must have equal mass, or ``mass`` be given.
        mass: Mass of the plan, a number or shape (...), where it is *partial*: its marginals are at most a and b, which
            may have different masses. What stays behind goes to one more point on either side, at no cost, and has
            entropy as well; as ``eps`` falls the plan is that of :func:`exact`. Without ``rho`` and ``init``.
        tol: L1 error of the marginals, relative to the mass, at which to stop. In float32, costs of r temperatures
            define a plan to r times 2e-7 of itself. Where that is more than half of ``tol`` the problem is solved in
            double precision inside: up to twice the time of single precision, some of which has been spent by then,
            and twice the memory of a dense matrix.
        max_iter: Most iterations in either precision; beyond them ``converged`` is False, and a warning says so.
        init: Potentials (f, g) to start from, in units of the cost; one of them may be None.
        backend: "dense" keeps the matrix; "streamed" needs memory linear in n and m; "keops" does too and is compiled
            at first use, for few features; "multiscale" is "streamed" from potentials of GeomLoss, for balanced
            problems without batch and three features at most; "triton" is for CUDA devices, fused kernels in single
            precision. "auto" is dense where the matrix takes at most 1 GiB, and streamed beyond; on a CUDA device with
            triton it is "triton" beyond, and from 2,048 points on where these have at most 16 features. On a CPU it
            first tries some iterations on NumPy arrays, which are quicker, for squared distances of points of equal
            weights, up to 2^16 pairs without a batch. On tensor cores
            "triton-tf32x3" multiplies the points of bilinear costs nearly as exactly; with "triton-tf32" an entry of
            the cost is off by up to 2e-3, with "triton-bf16" by up to 8e-3 of the product of two points' lengths, and
            by twice that for "sqeuclidean", whose points are centred before.

    Returns:
        The result; its value has shape (...).

    Raises:
        ValueError: If shapes do not fit, a weight is negative, masses differ without ``rho``, or costs are not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0]])
        >>> sinkhorn(x, x + torch.tensor([3.0, 4.0])).value  # One point goes to the other whatever eps is.
        tensor(25.)
    """
    x, y, a, b = broadcast_measures(x, y, a, b)
    options, eps = SolverOptions(tol, max_iter, backend), given_temperature(eps)
    ordinary = cost == "sqeuclidean" and rho is None and mass is None and init is None
    if ordinary and a is None and b is None and (found := small_sinkhorn(x, y, eps, options)) is not None:
        return found
    problem = Problem.between(x, y, a, b, cost=cost, eps=eps, rho=rho, partial=mass is not None)
    if mass is not None:
        return _partial(problem, mass, options, init=init, points=y)
    return entropic(problem, options, init=init, points=y)


@transformable_result
@full_precision
def sinkhorn_matrix(
    C: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float | None = None,
    rho: Rho = None,
    mass: Mass | None = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    init: Init | None = None,
) -> OTResult:
    r"""Entropic optimal transport for a given matrix of costs; see :func:`sinkhorn`.

    Args:
        C: Costs, shape (..., n, m); plus infinity forbids a pair.
        a: Weights of the rows, shape (..., n). Uniform of mass one if None.
        b: Weights of the columns, shape (..., m). Uniform of mass one if None.
        eps: Temperature in units of the cost. That of :func:`~otdml.costs.default_temperature` if None.
        rho: Marginal penalty, a number or a pair; None for a hard constraint.
        mass: Mass of a partial plan, see :func:`sinkhorn`.
        tol: L1 error of the marginals, relative to the mass, at which to stop.
        max_iter: Most iterations.
        init: Potentials (f, g) to start from, in units of the cost.

    Returns:
        The result; its value has shape (...) and is differentiable in C, a and b.

    Raises:
        ValueError: If shapes do not fit, a weight is negative, masses differ without ``rho``, or costs are not finite.

    Example:
        >>> import torch
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> sinkhorn_matrix(C, eps=0.01).value  # Each row goes to its own column: eps log 2.
        tensor(0.0069)
    """
    C, a, b = broadcast_matrix(C, a, b)
    options = SolverOptions(tol, max_iter, "dense")
    problem = Problem.of_matrix(C, a, b, eps=given_temperature(eps), rho=rho, partial=mass is not None)
    if mass is not None:
        return _partial(problem, mass, options, init=init)
    return entropic(problem, options, init=init)


def _partial(
    problem: Problem, mass: Mass, options: SolverOptions, *, init: Init | None, points: Tensor | None = None
) -> OTResult:
    """The partial plan of this mass."""
    if not problem.balanced:
        raise argument_error("rho", "be None where `mass` is given", problem.rho, "A mass bounds the marginals.")
    if init is not None:
        raise argument_error("init", "be None where `mass` is given", type(init).__name__)
    mass = check_mass(mass, problem.a, problem.b)
    whole = extended(problem, mass)
    return restricted(entropic(whole, extended_options(options, whole, mass), points=points), mass)


def entropic(
    problem: Problem,
    options: SolverOptions,
    *,
    init: Init | None = None,
    symmetric: bool = False,
    quiet: bool = False,
    points: Tensor | None = None,
) -> OTResult:
    """The solution of a problem in any form; what :func:`sinkhorn` and other solvers of the library call.

    Args:
        problem: The problem.
        options: When to stop, and how to compute.
        init: Potentials (f, g) to start from, in units of the cost.
        symmetric: Whether both marginals are the same measure and the cost is symmetric, which takes less time.
        quiet: Whether the caller looks at ``converged`` itself, so that no warning is due.
        points: The second points, shape (..., m, d), where they are known, for the barycentric map.

    Returns:
        The result, differentiable in the leaves of the cost and in the weights.
    """
    found = solution(problem, options, init=init, symmetric=symmetric, quiet=quiet)
    potentials, dtype, value = found.solved.potentials, found.dtype, found.value()
    error = potentials.error.to(dtype)
    return OTResult(value.to(dtype), potentials.converged, potentials.n_iter, error, found, points, value)


def solution(
    problem: Problem,
    options: SolverOptions,
    *,
    init: Init | None = None,
    symmetric: bool = False,
    quiet: bool = False,
) -> EntropicSolution:
    """The solved problem with a warning where it is due, and without its value, which not all callers read."""
    dtype = problem.cost.dtype
    linked = problem.linked
    differentiable = torch.is_grad_enabled() and (linked or problem.cost.depends_on_parameters)
    if linked and not differentiable:
        # Otherwise what is read later, in another mode, would have a part of its derivative.
        problem = problem.detach()
    posed = Posed.of(problem.double() if problem.loses_penalties else problem, options.backend)
    solved = solve(posed, options, init, symmetric=symmetric)
    found = EntropicSolution.of(solved, dtype, differentiable=differentiable)
    if not quiet and not found.solved.done:
        _warn(found.solved, options)
    return found


def _warn(solved: Solved, options: SolverOptions) -> None:
    found, problem = solved.potentials, solved.posed.problem
    # Of a partial plan errors are relative to the mass that moves.
    one = torch.ones((), device="cpu")
    mass = one if problem.moved is None else problem.moved.detach() / problem.rows.mass
    error, rounding = (float((t / mass).max()) for t in (found.error, resolution(solved.posed, found)))
    tol, dtype = options.tol / float(mass.min()), found.g.dtype
    stopped, remedy = f"at `max_iter`={options.max_iter}", "Raise `max_iter` or `eps`, or accept a larger `tol`."
    if rounding > tol / 2:
        other = "" if dtype == torch.float64 else ", or pass float64"
        stopped = f"where {dtype} resolves {rounding:.1g} at this temperature,"
        steepness = problem.rows.steepness + problem.columns.steepness
        steepness = torch.finfo(dtype).eps * torch.as_tensor(steepness, device="cpu")
        raised = "`rho`" if float(steepness.max()) > rounding / 2 else "`eps`"
        raised = raised if problem.moved is None else "`mass` or `eps`"
        remedy = f"Raise {raised}, or accept a larger `tol`{other}."
    if math.isinf(error):
        stopped, remedy = "at a plan of a mass beyond all numbers,", "Raise `eps` or `rho`, or pass float64."
    warn_caller(f"Sinkhorn stopped {stopped} with a marginal error of {error:.2g} > `tol`={tol:g}. {remedy}")
