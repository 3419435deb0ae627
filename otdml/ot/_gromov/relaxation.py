r"""How marginals are relaxed: the linearised problem, and the state from which the next one follows.

An *unbalanced* problem penalises marginals by :math:`\tfrac12 \rho \mathrm{KL}(p \otimes p \,|\, a \otimes a)`, and its
entropy is :math:`\tfrac12 \varepsilon \mathrm{KL}(P \otimes P \,|\, (a \otimes b) \otimes (a \otimes b))`
:cite:p:`sejourne:21`. With one of two equal plans held fixed, all terms are linear in the other or a divergence of it
from the weights: an unbalanced transport problem. A *partial* one bounds marginals by a and b and prescribes the mass
:cite:p:`chapel:20`.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml.costs import Bilinear, Matrix
from otdml.ot._annealing import Init
from otdml.ot._gromov.options import zero_with_gradient
from otdml.ot._gromov.relaxed_objective import Reading, RelaxedObjective
from otdml.ot._partial import Mass, RestrictedPlan, extended, extended_options, restricted
from otdml.ot._problem import Problem, SolverOptions, check_rho
from otdml.ot._result import OTResult
from otdml.ot._sinkhorn import entropic

__all__ = ["Linearised", "Partial", "Relaxation", "State", "Unbalanced", "check_alone", "check_penalties"]

# Logarithms of the factors by which a plan's mass falls or grows at most in a step, and by which that of a solution
# differs from it at most for the solution to be read.
PACE, READABLE = 7.0, 30.0

# Logarithm of the least mass that is followed, relative to that of the weights. Costs of features are divided by the
# mass: it stops in a range where so many digits are left beside them.
LEAST, LEAST_FUSED, DIGITS = -40.0, (-14.0, -2.0), 1e-6


@dataclass(frozen=True)
class State:
    """Where a descent is.

    Attributes:
        reading: What the objective reads of the plan.
        constant: A constant that is added to all costs of the next problem, shape (...).
        g: Column potential to start from, or None.
    """

    reading: Reading
    constant: Tensor
    g: Tensor | None


@dataclass(frozen=True)
class Linearised:
    """A solved linearisation.

    Attributes:
        transport: Its solution.
        reading: What the objective reads of its plan.
        costs: The plan's costs, without constants that all plans share, shape (...).
        g: The column potential, of a partial problem with that of the added point.
        itself: The solution, where those of some batch elements have no mass in the range of numbers, and the one above
            has multiples of them.
    """

    transport: OTResult
    reading: Reading
    costs: Tensor
    g: Tensor
    itself: "Linearised | None" = None


class Relaxation(ABC):
    """The parts of a relaxed problem besides its objective."""

    @abstractmethod
    def mass(self, a: Tensor, b: Tensor) -> Tensor:
        """The mass of the plan to start from, shape (...)."""

    @abstractmethod
    def temperature(self, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """A temperature for the full plan between weights, as one for this problem."""

    @abstractmethod
    def scale(self, state: State) -> Tensor:
        """What the linearised costs are divided by, shape (...)."""

    @abstractmethod
    def solved(self, objective: RelaxedObjective, state: State, eps: Tensor, options: SolverOptions) -> Linearised:
        """The solution of the problem that is linearised at a state."""

    @abstractmethod
    def following(self, objective: RelaxedObjective, found: Linearised, eps: Tensor, state: State) -> State:
        """The state at which the next problem is linearised, if the step is a full one."""

    @abstractmethod
    def penalties(self, objective: RelaxedObjective, found: Linearised, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The penalties of the marginals, and the entropic part over the temperature, shape (...) each."""

    @abstractmethod
    def duals(self, objective: RelaxedObjective, found: Linearised, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of objective, penalties and entropy in the two weights."""

    def giving_up(self, objective: RelaxedObjective, state: State, energy: Tensor, eps: Tensor) -> State:
        """The state, with next to no mass where the objective of no plan at all is below ``energy``, shape (...)."""
        return state

    def differentiated(self, value: Tensor, found: Linearised) -> Tensor:
        """``value``, with its gradient in what is prescribed beside the weights."""
        return value


@dataclass(frozen=True)
class Partial(Relaxation):
    """A plan of the mass ``prescribed``, shape (...), which may have a graph."""

    prescribed: Tensor

    @property
    def moved(self) -> Tensor:
        return self.prescribed.detach()

    def mass(self, a: Tensor, b: Tensor) -> Tensor:
        return self.moved

    def temperature(self, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return eps * self.moved / a.sum(-1)

    def scale(self, state: State) -> Tensor:
        return torch.ones_like(state.constant)

    def solved(self, objective: RelaxedObjective, state: State, eps: Tensor, options: SolverOptions) -> Linearised:
        moved = self.moved.expand(state.constant.shape)
        whole = extended(_problem(objective, objective.gradient(state.reading), state, eps), moved)
        found = entropic(whole, extended_options(options, whole, moved), init=_start(state), quiet=True)
        transport = restricted(found, moved)
        reading = objective.read(transport, state.constant.shape)
        return Linearised(transport, reading, _costs(objective, state, transport, reading), found.g)

    def following(self, objective: RelaxedObjective, found: Linearised, eps: Tensor, state: State) -> State:
        # The mass is met to a tolerance.
        factor = self.moved / found.reading.mass
        return State(found.reading.scaled(factor), torch.zeros_like(factor), found.g)

    def penalties(self, objective: RelaxedObjective, found: Linearised, eps: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.moved), (found.transport.value - found.costs) / eps

    def duals(self, objective: RelaxedObjective, found: Linearised, eps: Tensor) -> tuple[Tensor, Tensor]:
        da, db = _extended_duals(found)
        # The weight of an added point depends on the weights of the other side.
        return da[..., :-1] + db[..., -1:], db[..., :-1] + da[..., -1:]

    def differentiated(self, value: Tensor, found: Linearised) -> Tensor:
        if not self.prescribed.requires_grad:
            return value
        da, db = _extended_duals(found)
        # The weights of both added points fall by as much as the mass grows.
        return value + zero_with_gradient(self.prescribed[..., None], -da[..., -1:] - db[..., -1:])


def _extended_duals(found: Linearised) -> tuple[Tensor, Tensor]:
    """The gradients in the weights of a partial problem, with those of the added points."""
    plan = found.transport._coupling
    assert isinstance(plan, RestrictedPlan)
    with torch.no_grad():
        return plan.whole.duals()


@dataclass(frozen=True)
class Unbalanced(Relaxation):
    """Penalties of the two marginals."""

    rho: tuple[float, float]

    def mass(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.sum(-1) * b.sum(-1)).sqrt()

    def temperature(self, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        # All terms are quadratic in the plan.
        return eps / a.sum(-1)

    def scale(self, state: State) -> Tensor:
        return state.reading.mass

    def solved(self, objective: RelaxedObjective, state: State, eps: Tensor, options: SolverOptions) -> Linearised:
        found, mass = self._solved(objective, state, eps, options), state.reading.mass
        excess = self._log_mass(objective, found) - mass.log()
        excess = torch.where(excess.abs() > READABLE, excess, 0.0)
        if not bool(excess.any()):
            return found
        # A constant that is added to all costs multiplies the solution.
        constant = state.constant + mass * self._unit(eps) * excess
        start = found.g + self.rho[1] * excess[..., None]
        readable = self._solved(objective, dataclasses.replace(state, constant=constant, g=start), eps, options)
        return dataclasses.replace(readable, itself=found)

    def _solved(self, objective: RelaxedObjective, state: State, eps: Tensor, options: SolverOptions) -> Linearised:
        gradient, mass = objective.gradient(state.reading), state.reading.mass
        # Divided by the mass of the plan that is held fixed, the problem has the given penalties and temperature.
        u, v = (t / mass[..., None] for t in (gradient.u, gradient.v) if t is not None)
        shifted = dataclasses.replace(gradient.scaled(1 / mass), u=u + (state.constant / mass)[..., None], v=v)
        linear = _problem(objective, shifted, state, eps)
        transport = entropic(dataclasses.replace(linear, rho=self.rho), options, init=_start(state), quiet=True)
        reading = objective.read(transport, state.constant.shape)
        costs = (_costs(objective, state, transport, reading) + state.constant * reading.mass) / mass
        return Linearised(transport, reading, costs, transport.g)

    def following(self, objective: RelaxedObjective, found: Linearised, eps: Tensor, state: State) -> State:
        # The objective depends only on the product of the two plans, so both get the geometric mean of their masses.
        mass, before, centred = found.reading.mass, state.reading.mass.log(), objective.centred
        own = read = mass.log()
        if found.itself is not None:
            own = self._log_mass(objective, found.itself)
            own = torch.where((own - read).abs() > READABLE / 2, own, read)
        least = self._least(objective, eps) + self.mass(centred.a, centred.b).log()
        mean = (0.5 * (before + own)).clamp(before - PACE, before + PACE).maximum(least)
        constant = (mean - read).exp() * (mass * (mean - read) * self._unit(eps) - found.costs)
        return State(found.reading.scaled((mean - read).exp()), constant, found.g)

    def _unit(self, eps: Tensor) -> Tensor:
        """The constant that divides the solution by e where it is added to all costs."""
        return sum(self.rho) + eps

    def _least(self, objective: RelaxedObjective, eps: Tensor) -> Tensor:
        """The logarithm of the least mass that is followed, of that of the weights."""
        features = objective.centred.features
        if features is None:
            return torch.full_like(eps, LEAST)
        size = torch.maximum(features.u.abs().amax(-1), features.v.abs().amax(-1)) / eps
        return (size * (torch.finfo(eps.dtype).eps / DIGITS)).log().clamp(*LEAST_FUSED)

    def _log_mass(self, objective: RelaxedObjective, found: Linearised) -> Tensor:
        """The logarithm of the mass of a solution, which is a function of its potential."""
        return (objective.centred.a.log() - found.transport.f / self.rho[0]).logsumexp(-1)

    def penalties(self, objective: RelaxedObjective, found: Linearised, eps: Tensor) -> tuple[Tensor, Tensor]:
        mass, a, b = found.reading.mass, objective.centred.a, objective.centred.b
        value, entropy = torch.zeros_like(mass), -found.costs
        for w, marginal, potential, rho in self._sides(objective, found):
            along = torch.where(marginal > 0, marginal * potential, 0.0).sum(-1)
            value = value - mass * along + 0.5 * rho * (w.sum(-1).square() - mass.square())
            entropy = entropy + along
        return value, mass * entropy / eps + 0.5 * ((a.sum(-1) * b.sum(-1)).square() - mass.square())

    def duals(self, objective: RelaxedObjective, found: Linearised, eps: Tensor) -> tuple[Tensor, Tensor]:
        mass, both = found.reading.mass, objective.centred.a.sum(-1) * objective.centred.b.sum(-1)
        found_duals = []
        for w, _, potential, rho in self._sides(objective, found):
            own = w.sum(-1)
            fixed = rho * own + eps * both.square() / own
            found_duals.append(fixed[..., None] - ((rho + eps) * mass)[..., None] * (-potential / rho).exp())
        return found_duals[0], found_duals[1]

    def giving_up(self, objective: RelaxedObjective, state: State, energy: Tensor, eps: Tensor) -> State:
        if objective.centred.features is None:
            return state
        # Near no plan the costs of features, which are linear, exceed all other terms: descents from mass stop before.
        a, b = (w.sum(-1).square() for w in (objective.centred.a, objective.centred.b))
        better = 0.5 * (self.rho[0] * a + self.rho[1] * b + eps * a * b) < energy
        if not bool(better.any()):
            return state
        factor = torch.where(better, math.exp(LEAST_FUSED[0]), 1.0).to(energy.dtype)
        g = None if state.g is None else torch.where(better[..., None], 0.0, state.g)
        return State(state.reading.scaled(factor), torch.where(better, 0.0, state.constant), g)

    def _sides(self, objective: RelaxedObjective, found: Linearised) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        """Weights, marginal, potential and penalty of each side."""
        transport, centred = found.transport, objective.centred
        yield centred.a, found.reading.p, transport.f, self.rho[0]
        yield centred.b, found.reading.q, transport.g, self.rho[1]


def check_penalties(rho: float | tuple[float, float]) -> tuple[float, float]:
    """The penalties of both marginals, if they are positive numbers."""
    first, second = check_rho(rho)
    if first is None or second is None:
        remedy = "A Gromov problem relaxes both marginals or none."
        raise argument_error("rho", "be a positive number or a pair of them", rho, remedy)
    return first, second


def check_alone(rho: float | tuple[float, float] | None, mass: Mass | None) -> None:
    """Raise unless at most one of the two is given."""
    if rho is not None and mass is not None:
        raise argument_error("mass", "be None where `rho` is given", mass)


def _problem(objective: RelaxedObjective, cost: Bilinear | Matrix, state: State, eps: Tensor) -> Problem:
    reading, centred = state.reading, objective.centred
    return Problem(cost, centred.a.expand_as(reading.p), centred.b.expand_as(reading.q), eps)


def _start(state: State) -> Init | None:
    return None if state.g is None else (None, state.g)


def _costs(objective: RelaxedObjective, state: State, transport: OTResult, reading: Reading) -> Tensor:
    return objective.pairing(state.reading, reading) + objective.features(transport, reading)
