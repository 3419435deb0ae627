"""Gromov problems with constraints on the marginals: from descents to a result."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice, check_fields, check_in_range, check_integer, check_positive
from otdml._warnings import warn_caller
from otdml.ot._gromov.descent import DescentState, Start, descend, settled
from otdml.ot._gromov.objective import GromovObjective, ReadablePlan
from otdml.ot._gromov.result import GromovResult, along
from otdml.ot._problem import Problem, SolverOptions
from otdml.ot._result import OTResult
from otdml.ot._sinkhorn import entropic

__all__ = [
    "GROMOV_BACKENDS",
    "STARTS",
    "GromovOptions",
    "Init",
    "Marginals",
    "constrained",
    "temperatures",
    "warn_unfinished",
]

# Engines that take any number of features and batches of starts.
GROMOV_BACKENDS = ("auto", "dense", "streamed")
STARTS = ("best", "identity", "product")
Init = str | ReadablePlan | Tensor

# The temperature where none is given, over the product of the root mean squares of the two centred costs.
EPS = 0.02

# Over the same product, the temperature at which descents begin.
START_TEMPERATURE = 1.0

# Marginals are met no better than to this many rounding units.
ROUNDING = 64


@dataclass(frozen=True)
class GromovOptions:
    """When and how a problem is solved; see :func:`~otdml.ot.gromov`."""

    eps: float | Tensor | None
    tol: float
    max_iter: int
    init: Init
    backend: str

    def __post_init__(self) -> None:
        check_fields(self, tol=check_positive, max_iter=check_integer)
        check_choice("backend", self.backend, GROMOV_BACKENDS)


@dataclass(frozen=True)
class Marginals:
    """The weights with their graph, and those of both clouds where pairing equal indices is a plan."""

    a: Tensor
    b: Tensor
    shared: Tensor | None

    def to(self, dtype: torch.dtype) -> "Marginals":
        return Marginals(
            self.a.to(dtype), self.b.to(dtype), self.shared if self.shared is None else self.shared.to(dtype)
        )


def constrained(problem: GromovObjective, marginals: Marginals, options: GromovOptions) -> GromovResult:
    """The solution of a problem whose plan has the marginals a and b."""
    frozen, tol, max_iter = problem.detach(), options.tol, options.max_iter
    eps, start_temperature = temperatures(frozen, options.eps)
    starts = _starts(frozen, options.init, marginals.shared is not None)
    if frozen.mass.numel() == 0:
        near = DescentState(frozen.mass, frozen.slope(starts[0].projection), torch.zeros_like(frozen.b), 0)
    else:
        near = descend(frozen, starts, eps, start_temperature, tol, max_iter, options.backend)
    transport, state = _polished(frozen, near, eps, options)
    if not bool(state.converged.all()):
        warn_unfinished(tol, max_iter)
    return _result(problem, transport, state, marginals, eps)


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
    return EPS * scale if eps is None else scale.new_full(
        (),
        check_in_range("eps", eps, scale.dtype),  # type: ignore[arg-type]
    ), start_temperature


def _each(eps: Tensor, scale: Tensor) -> Tensor:
    """One temperature per batch element."""
    if eps.shape != scale.shape:
        must = f"be a number, or one per batch element, shape {tuple(scale.shape)}"
        raise argument_error("eps", must, f"shape {tuple(eps.shape)}")
    if not bool(((eps > 0) & eps.isfinite()).all()):
        raise argument_error("eps", "be positive and finite", eps.tolist())
    return eps.detach().to(scale)


def _starts(problem: GromovObjective, init: Init, paired: bool) -> list[Start]:
    if isinstance(init, Tensor):
        shape = (problem.a.shape[-1], problem.b.shape[-1])
        if init.shape[-2:] != shape:
            raise argument_error("init", f"be a plan of shape (..., {shape[0]}, {shape[1]})", tuple(init.shape))
        return [Start(init if problem.right.z is None else init @ problem.right.z, fixed_cost=True)]
    if not isinstance(init, str):
        return [Start(problem.read(init)[0].detach(), fixed_cost=True)]
    check_choice("init", init, STARTS)
    pairing = [Start(problem.pairing(), fixed_cost=True)] if paired and init != "product" else []
    if init == "identity" and paired:
        return pairing
    # Costs between features leave independence without a tilt.
    even = [] if problem.features is None else [Start(problem.independent(), fixed_cost=False)]
    return pairing + even + [Start(projection, fixed_cost=False) for projection in problem.independents()]


@dataclass(frozen=True)
class _Polished:
    """The cost of the last transport problem, whether its plan has the same cost, and the steps in all."""

    slope: Tensor
    converged: Tensor
    n_iter: int


def _polished(
    problem: GromovObjective, state: DescentState, eps: Tensor, options: GromovOptions
) -> tuple[OTResult, _Polished]:
    """Steps whose plans meet their marginals, until one moves the cost by less than the tolerance."""
    tol, max_iter = options.tol, options.max_iter
    slope, g, last = state.slope, eps[..., None] * state.g, max(max_iter, state.n_iter + 1)
    resolved = _resolved(problem, state, eps)
    inner, least = max(tol, resolved), max(tol / 10, resolved)
    for iteration in range(state.n_iter + 1, last + 1):
        linear = Problem(problem.cost(slope), problem.a, problem.b, eps)
        within = SolverOptions(inner, backend=options.backend, rounding=tol / 2)
        transport = entropic(linear, within, init=(None, g), quiet=True)
        new = problem.slope(problem.read(transport)[0])
        converged = settled(problem, slope, new, eps, tol) & transport.converged
        if iteration == last or bool(converged.all()):
            return transport, _Polished(slope, converged, iteration)
        # Within their tolerance the marginals oscillate, and the cost with them.
        slope, g, inner = new, transport.g, max(inner / 2, least)
        del transport
    raise AssertionError


def _resolved(problem: GromovObjective, state: DescentState, eps: Tensor) -> float:
    """The error of marginals that rounding of the costs over the temperature leaves."""
    costs = (problem.size(state.slope) + problem.feature_size) / eps
    return torch.finfo(eps.dtype).eps * max(ROUNDING, 3 * float(costs.max()) if costs.numel() else 0.0)


def _result(
    problem: GromovObjective, transport: OTResult, state: _Polished, marginals: Marginals, eps: Tensor
) -> GromovResult:
    frozen = problem.detach()
    value = problem.value(transport)
    if any(w.requires_grad for w in (marginals.a, marginals.b)):
        duals = frozen.value_duals(transport, transport.f, transport.g)
        value = value + sum(along(w, d) for w, d in zip((marginals.a, marginals.b), duals, strict=True))
    inherited = {f.name: getattr(transport, f.name) for f in fields(OTResult)}
    own = {"value": value, "converged": state.converged & transport.converged, "n_iter": state.n_iter}
    divergence = (transport.value - frozen.linearised(state.slope, transport)) / eps
    return GromovResult(**inherited | own, eps=eps, divergence=divergence, _problem=problem, _shared=marginals.shared)


def warn_unfinished(tol: float, max_iter: int) -> None:
    warn_caller(
        f"Gromov-Wasserstein stopped at `max_iter`={max_iter} before its steps fell below `tol`={tol:g}. Raise "
        "`max_iter` or `eps`, or accept a larger `tol`."
    )
