"""Gromov problems with relaxed marginals: from starts, cooled down together, to a result."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml.ot._gromov.convergence import cooling_steps, is_small, rounding_of_marginals
from otdml.ot._gromov.objective import GromovObjective, picked
from otdml.ot._gromov.options import GromovOptions, Marginals
from otdml.ot._gromov.plans import ReadablePlan
from otdml.ot._gromov.relaxation import Linearised, Relaxation, State
from otdml.ot._gromov.relaxed_objective import Reading, RelaxedObjective
from otdml.ot._gromov.result import GromovResult
from otdml.ot._gromov.solution import temperatures
from otdml.ot._gromov.starts import starts
from otdml.ot._problem import SolverOptions

__all__ = ["relaxed"]

# Factor of the temperature in each step, and the tolerance of marginals until the best start is known.
COOLING, ROUGH = 0.6, 1e-2

# Starts are compared when their steps, over the temperature, are below this, or after so many at the last temperature.
LOOSE, COMPARE = 0.3, 24

# The share of itself by which a step is lengthened where the last had the same direction, and the least share of a step
# that is taken where steps alternate: with free marginals the objective is not concave, and full steps may not descend.
EXTRAPOLATION, LEAST = 0.5, 1 / 16


@dataclass(frozen=True)
class _Last:
    """The last linearisation of a descent, whether its plan has the same costs, and the number of steps in all."""

    found: Linearised
    converged: Tensor
    n_iter: int


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
    given = starts(problem.detach(), options.init, paired=marginals.shared is not None, free=True)
    state = _stacked([_scaled(frozen, start.plan, relaxation) for start in given])
    last = descent.finished(descent.best(descent.cooled(state, ratio)))
    options.warn_unless(last.converged)
    return _result(objective, relaxation, marginals, eps, last)


@dataclass
class _Descent:
    """Linearisations of a problem, one after another, and their number."""

    objective: RelaxedObjective
    relaxation: Relaxation
    eps: Tensor
    options: GromovOptions
    n_iter: int = 0

    def step(self, state: State, eps: Tensor, tol: float) -> tuple[Linearised, State]:
        self.n_iter += 1
        options = SolverOptions(tol, backend=self.options.backend, rounding=max(tol, self.options.tol) / 2)
        found = self.relaxation.solved(self.objective, state, eps.expand(state.constant.shape), options)
        return found, self.relaxation.following(self.objective, found, eps, state)

    def cooled(self, state: State, ratio: Tensor) -> State:
        """The state at the last temperature."""
        for _ in range(cooling_steps(ratio, COOLING, self.options.max_iter - 1)):
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
        state = State(state.reading.each(lambda t: picked(t, index)), picked(state.constant, index), g)
        return self.relaxation.giving_up(self.objective, state, energy.amin(0), self.eps)

    def finished(self, state: State) -> _Last:
        """The last step, after which the costs stay the same or no step is left."""
        most = max(1, self.options.max_iter - self.n_iter)
        found, _, converged = self.followed(state, self.options.tol, most, self.options.tol)
        found = found.itself or found
        return _Last(found, converged & found.transport.converged, self.n_iter)

    def followed(self, state: State, tol: float, most: int, inner: float) -> tuple[Linearised, State, Tensor]:
        """At most ``most`` steps, until they move the costs by less than ``tol`` times the temperature."""
        share, last = torch.ones_like(state.constant), None
        for iteration in range(1, most + 1):
            found, new = self.step(state, self.eps, inner)
            change = new.reading.each(torch.sub, state.reading)
            scale = self.relaxation.scale(state)
            step = (self.objective.size(change) + (new.constant - state.constant).abs()) / scale
            size = self.objective.size(state.reading) / scale
            done = is_small(step, tol * self.eps, size)
            if iteration == most or bool((done & found.transport.converged).all()):
                return found, new, done
            if last is not None:
                back = (change.projection * last.projection).sum((-2, -1)) < 0
                share = torch.where(back, 0.5 * share, (1 + EXTRAPOLATION) * share).clamp(LEAST, 1 + EXTRAPOLATION)
            # Beyond a fall by half there may be no mass.
            fell = new.reading.mass < 0.5 * state.reading.mass
            share = torch.where(fell, share.clamp(max=1), share)
            moved = state.reading.each(torch.add, change.scaled(share))
            state = State(moved, torch.lerp(state.constant, new.constant, share), new.g)
            # An error of the marginals changes the costs by the same share of their size.
            needed = tol / max(float((size / self.eps).max()), 1.0) if size.numel() else inner
            resolved = rounding_of_marginals(size / self.eps)
            last, inner = change, max(inner / 2, min(inner, tol / 10, 0.1 * needed), resolved)
        raise AssertionError


def _scaled(objective: RelaxedObjective, plan: ReadablePlan, relaxation: Relaxation) -> Reading:
    reading = objective.read(plan).each(torch.Tensor.detach)
    if not bool((reading.mass > 0).all()):
        raise argument_error("init", "be a plan with mass", "none")
    return reading.scaled(relaxation.mass(objective.centred.a, objective.centred.b) / reading.mass)


def _stacked(readings: Sequence[Reading]) -> State:
    """Several starts as a state with a first dimension of its own; one start as it is."""
    reading = readings[0]
    if len(readings) > 1:
        reading = reading.each(lambda *parts: torch.stack(parts), *readings[1:])
    return State(reading, torch.zeros_like(reading.mass), None)


def _result(
    objective: RelaxedObjective, relaxation: Relaxation, marginals: Marginals, eps: Tensor, last: _Last
) -> GromovResult:
    frozen, transport = objective.detach(), last.found.transport
    penalty, divergence = relaxation.penalties(frozen, last.found, eps)
    value = relaxation.differentiated(objective.value(transport) + penalty, last.found)
    return GromovResult(
        marginals.differentiated(value, lambda: relaxation.duals(frozen, last.found, eps)),
        last.converged,
        last.n_iter,
        transport.marginal_error,
        transport._coupling,
        eps=eps,
        divergence=divergence,
        _problem=None,
        _shared=None,
    )
