"""Gromov problems with constraints on the marginals: from descents to a result."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error, check_in_range
from otdml.ot._gromov.convergence import rounding_of_marginals
from otdml.ot._gromov.descent import DescentState, descend, settled
from otdml.ot._gromov.objective import GromovObjective
from otdml.ot._gromov.options import GromovOptions, Marginals
from otdml.ot._gromov.result import GromovResult
from otdml.ot._gromov.starts import starts
from otdml.ot._problem import Problem, SolverOptions
from otdml.ot._result import OTResult
from otdml.ot._sinkhorn import entropic

__all__ = ["constrained", "temperatures"]

# The temperature where none is given, over the product of the root mean squares of the two centred costs.
EPS = 0.02

# Over the same product, the temperature at which descents begin.
START_TEMPERATURE = 1.0


def constrained(problem: GromovObjective, marginals: Marginals, options: GromovOptions) -> GromovResult:
    """The solution of a problem whose plan has the marginals a and b."""
    frozen = problem.detach()
    eps, start_temperature = temperatures(frozen, options.eps)
    given = starts(frozen, options.init, paired=marginals.shared is not None)
    if frozen.mass.numel() == 0:
        slope = frozen.slope(frozen.read(given[0].plan)[0])
        near = DescentState(frozen.mass, slope, torch.zeros_like(frozen.b), 0)
    else:
        near = descend(frozen, given, eps, start_temperature, options)
    last = _polished(frozen, near, eps, options)
    options.warn_unless(last.converged)
    return _result(problem, last, marginals, eps)


def temperatures(problem: GromovObjective, eps: float | Tensor | None) -> tuple[Tensor, Tensor]:
    """The temperature to solve at, shape (...) or (), and the one to cool down from."""
    left, right, a, b = problem.left, problem.right, problem.a, problem.b
    scale, start_temperature = (left.size(a, k) * right.size(b, k) * problem.mass for k in (1, 2))
    # Each root by itself, for the squares multiplied are fourth powers of costs.
    shifts = (a * left.alpha.square()).sum(-1).sqrt() * (b * right.alpha.square()).sum(-1).sqrt()
    start_temperature = START_TEMPERATURE * (start_temperature + 2 * shifts + problem.feature_size)
    scale = scale + problem.feature_size
    if not bool((scale + start_temperature).isfinite().all()):
        remedy = f"Look for NaN or infinity in `x` and `y`, or rescale them: squares of these overflow {scale.dtype}."
        raise argument_error("x", "give costs whose products are finite", "NaN or infinity", remedy)
    # The floor is for clouds that are a single point, on which every temperature gives the same plan.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if isinstance(eps, Tensor) and eps.ndim:
        return _each(eps, scale), start_temperature
    if eps is None:
        return EPS * scale, start_temperature
    number = check_in_range("eps", eps, scale.dtype)  # type: ignore[arg-type]
    return scale.new_tensor(number), start_temperature


def _each(eps: Tensor, scale: Tensor) -> Tensor:
    """One temperature per batch element."""
    if eps.shape != scale.shape:
        must = f"be a number, or one per batch element, shape {tuple(scale.shape)}"
        raise argument_error("eps", must, f"shape {tuple(eps.shape)}")
    if eps.requires_grad and torch.is_grad_enabled():
        raise argument_error("eps", "be a constant", "a tensor that requires a gradient", "Pass `.detach()` of it.")
    if not bool(((eps > 0) & eps.isfinite()).all()):
        raise argument_error("eps", "be positive and finite", eps.tolist())
    return eps.detach().to(scale)


@dataclass(frozen=True)
class _Last:
    """The last linearisation of a descent.

    Attributes:
        slope: Left factor of its cost, see :meth:`GromovObjective.slope`.
        transport: Its solution.
        converged: Whether the objective linearised at its plan has the same cost, and the marginals are met.
        n_iter: The number of steps in all.
    """

    slope: Tensor
    transport: OTResult
    converged: Tensor
    n_iter: int


def _polished(problem: GromovObjective, state: DescentState, eps: Tensor, options: GromovOptions) -> _Last:
    """Steps whose plans meet their marginals, until one moves the cost by less than the tolerance."""
    tol = options.tol
    slope, g, last = state.slope, eps[..., None] * state.g, max(options.max_iter, state.n_iter + 1)
    resolved = rounding_of_marginals((problem.size(slope) + problem.feature_size) / eps)
    inner, least = max(tol, resolved), max(tol / 10, resolved)
    for iteration in range(state.n_iter + 1, last + 1):
        linear = Problem(problem.cost(slope), problem.a, problem.b, eps)
        within = SolverOptions(inner, backend=options.backend, rounding=tol / 2)
        transport = entropic(linear, within, init=(None, g), quiet=True)
        new = problem.slope(problem.read(transport)[0])
        converged = settled(problem, slope, new, eps, tol) & transport.converged
        if iteration == last or bool(converged.all()):
            return _Last(slope, transport, converged, iteration)
        # Within their tolerance the marginals oscillate, and the cost with them.
        slope, g, inner = new, transport.g, max(inner / 2, least)
        del transport
    raise AssertionError


def _result(problem: GromovObjective, last: _Last, marginals: Marginals, eps: Tensor) -> GromovResult:
    frozen, transport = problem.detach(), last.transport
    value = problem.value(transport)
    value = marginals.differentiated(value, lambda: frozen.value_duals(transport, transport.f, transport.g))
    return GromovResult(
        value,
        last.converged,
        last.n_iter,
        transport.marginal_error,
        transport._coupling,
        eps=eps,
        divergence=(transport.value - frozen.linearised(last.slope, transport)) / eps,
        _problem=problem,
        _shared=marginals.shared,
    )
