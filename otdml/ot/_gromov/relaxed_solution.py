"""Gromov problems with relaxed marginals: from starts, cooled down together, to a result."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice
from otdml.ot._gromov.objective import GromovObjective, ReadablePlan, extreme_view, picked
from otdml.ot._gromov.relaxation import Linearised, Relaxation, State
from otdml.ot._gromov.relaxed_objective import Diagonal, Factored, Given, Reading, RelaxedObjective
from otdml.ot._gromov.result import GromovResult, along
from otdml.ot._gromov.solution import STARTS, GromovOptions, Init, Marginals, temperatures, warn_unfinished
from otdml.ot._problem import SolverOptions
from otdml.ot._result import OTResult

__all__ = ["relaxed"]

# By what the temperature falls in each step, and the tolerance of marginals until the best start is known.
COOLING, ROUGH = 0.6, 1e-2

# Starts are compared when their steps, over the temperature, are below this, or after so many at the last temperature.
LOOSE, COMPARE = 0.3, 24

# By how much of itself a step is lengthened where the last had the same direction, and the least share of one where
# steps alternate: with free marginals the objective is not concave, and full steps may not descend.
AHEAD, LEAST = 0.5, 1 / 16

# Marginals are met no better than to this many rounding units.
RESOLVED = 64

# A step of the cost that is smaller than this share of it, in units of the precision, is rounding.
ROUNDING = 40


def relaxed(
    problem: GromovObjective, relaxation: Relaxation, marginals: Marginals, options: GromovOptions
) -> GromovResult:
    """The solution of a problem whose plan has other marginals than a and b."""
    objective = RelaxedObjective(problem)
    frozen, a, b = objective.detach(), marginals.a.detach(), marginals.b.detach()
    eps, start_temperature = temperatures(frozen.centred, options.eps)
    if options.eps is None:
        eps = relaxation.temperature(eps, a, b)
    eps = eps.expand(frozen.centred.mass.shape)
    ratio = (relaxation.temperature(start_temperature, a, b) / eps).clamp(min=1)
    descent = _Descent(frozen, relaxation, eps, options)
    state = _stacked([_scaled(frozen, plan, relaxation) for plan in _starts(frozen, options.init, marginals)])
    found, converged, n_iter = descent.finished(descent.best(descent.cooled(state, ratio)))
    if not bool(converged.all()):
        warn_unfinished(options.tol, options.max_iter)
    return _result(objective, relaxation, marginals, eps, found, converged, n_iter)


@dataclasses.dataclass
class _Descent:
    """Linearisations of a problem, one after another, of which it counts the steps."""

    objective: RelaxedObjective
    relaxation: Relaxation
    eps: Tensor
    options: GromovOptions
    n_iter: int = 0

    def step(self, state: State, eps: Tensor, tol: float) -> tuple[Linearised, State]:
        self.n_iter += 1
        options = SolverOptions(tol, backend=self.options.backend, rounding=max(tol, self.options.tol) / 2)
        found = self.relaxation.solved(self.objective, state, eps.expand(state.constant.shape), options)
        return found, self.relaxation.following(found, eps, state)

    def cooled(self, state: State, ratio: Tensor) -> State:
        """The state at the last temperature."""
        hottest = float(ratio.max()) if ratio.numel() else 1.0
        steps = math.ceil(math.log(hottest) / -math.log(COOLING)) if 1 < hottest < math.inf else 0
        for _ in range(min(steps, self.options.max_iter - 1)):
            _, state = self.step(state, ratio * self.eps, ROUGH)
            ratio = (COOLING * ratio).clamp(min=1)
        return state

    def best(self, state: State) -> State:
        """The best of the starts, when they have nearly converged."""
        most = max(1, min(COMPARE, self.options.max_iter - self.n_iter - 1))
        found, state, _ = self.followed(state, LOOSE, most, ROUGH)
        if state.constant.ndim == self.eps.ndim:
            return state
        penalty, divergence = self.relaxation.penalties(self.objective, found, self.eps)
        energy = self.objective.value(found.transport, state.constant.shape) + penalty + self.eps * divergence
        index = energy.argmin(0)
        g = None if state.g is None else picked(state.g, index)
        return State(state.reading.each(lambda t: picked(t, index)), picked(state.constant, index), g)

    def finished(self, state: State) -> tuple[Linearised, Tensor, int]:
        """The last linearisation, whether its plan has the same costs, and the steps in all."""
        most = max(1, self.options.max_iter - self.n_iter)
        found, _, converged = self.followed(state, self.options.tol, most, self.options.tol)
        return found, converged & found.transport.converged, self.n_iter

    def followed(self, state: State, tol: float, most: int, inner: float) -> tuple[Linearised, State, Tensor]:
        """At most so many steps, until they move the costs by less than ``tol`` times the temperature."""
        share, last = torch.ones_like(state.constant), None
        for iteration in range(1, most + 1):
            found, new = self.step(state, self.eps, inner)
            change = new.reading.each(torch.sub, state.reading)
            scale = self.relaxation.scale(state)
            step = (self.objective.size(change) + (new.constant - state.constant).abs()) / scale
            size = self.objective.size(state.reading) / scale
            noise = ROUNDING * torch.finfo(step.dtype).eps * size
            done = ~(step > tol * self.eps + noise)
            if iteration == most or bool((done & found.transport.converged).all()):
                return found, new, done
            if last is not None:
                back = (change.projection * last.projection).sum((-2, -1)) < 0
                share = torch.where(back, 0.5 * share, (1 + AHEAD) * share).clamp(LEAST, 1 + AHEAD)
            moved = state.reading.each(torch.add, change.scaled(share))
            state = State(moved, torch.lerp(state.constant, new.constant, share), new.g)
            # An error of the marginals changes the costs by the same share of their size.
            needed = tol / float((size / self.eps).max()) if size.numel() else inner
            last, inner = change, max(inner / 2, min(inner, tol / 10, 0.1 * needed), _resolved(size / self.eps))
        raise AssertionError


def _resolved(costs: Tensor) -> float:
    """The error of marginals that rounding of the costs over the temperature leaves."""
    return torch.finfo(costs.dtype).eps * max(RESOLVED, 3 * float(costs.max()) if costs.numel() else 0.0)


def _starts(objective: RelaxedObjective, init: Init, marginals: Marginals) -> Sequence[ReadablePlan]:
    problem = objective.centred
    a, b = problem.a, problem.b
    if isinstance(init, Tensor):
        if init.shape[-2:] != (a.shape[-1], b.shape[-1]):
            must = f"be a plan of shape (..., {a.shape[-1]}, {b.shape[-1]})"
            raise argument_error("init", must, tuple(init.shape))
        return [Given(init.expand(*a.shape, -1))]
    if not isinstance(init, str):
        return [init]
    check_choice("init", init, STARTS)
    pairing: list[ReadablePlan] = [Diagonal(a)] if marginals.shared is not None and init != "product" else []
    if init == "identity" and pairing:
        return pairing
    even = [] if problem.features is None else [0.0]
    h, k = extreme_view(problem.left, a), extreme_view(problem.right, b)
    columns = torch.stack([b, b * k], -1) / b.sum(-1)[..., None, None]
    tilted = [Factored(torch.stack([a, tilt * a * h], -1), columns) for tilt in (*even, 0.5, -0.5)]
    return [*pairing, *tilted]


def _scaled(objective: RelaxedObjective, plan: ReadablePlan, relaxation: Relaxation) -> Reading:
    reading = objective.read(plan).each(torch.Tensor.detach)
    return reading.scaled(relaxation.mass(objective.centred.a, objective.centred.b) / reading.mass)


def _stacked(readings: Sequence[Reading]) -> State:
    """Several starts as a state with a first dimension of its own; one start as it is."""
    reading = readings[0]
    if len(readings) > 1:
        reading = reading.each(lambda *parts: torch.stack(parts), *readings[1:])
    return State(reading, torch.zeros_like(reading.mass), None)


def _result(
    objective: RelaxedObjective,
    relaxation: Relaxation,
    marginals: Marginals,
    eps: Tensor,
    found: Linearised,
    converged: Tensor,
    n_iter: int,
) -> GromovResult:
    frozen = objective.detach()
    penalty, divergence = relaxation.penalties(frozen, found, eps)
    value = objective.value(found.transport) + penalty
    if marginals.a.requires_grad or marginals.b.requires_grad:
        duals = relaxation.duals(frozen, found, eps)
        value = value + sum(along(w, d) for w, d in zip((marginals.a, marginals.b), duals, strict=True))
    inherited = {f.name: getattr(found.transport, f.name) for f in fields(OTResult)}
    own = {"value": value, "converged": converged, "n_iter": n_iter}
    return GromovResult(**inherited | own, eps=eps, divergence=divergence, _problem=None, _shared=None)
