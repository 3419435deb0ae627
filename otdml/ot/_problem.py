"""An entropic transport problem as an object: cost, two marginals, temperature; and the options of its solver."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice, check_fields, check_integer, check_positive
from otdml._cost_forms import Mask
from otdml._cost_forms.temperature import temperature_of
from otdml._precision import SINGLE_ONLY
from otdml.costs import Cost, Ground, Matrix, ground
from otdml.measures import weights
from otdml.ot._idle import Idle, without_idle
from otdml.ot._marginal import Marginal
from otdml.ot.engines import BACKENDS, Engine, engine

__all__ = [
    "HARD",
    "Penalties",
    "Posed",
    "Problem",
    "Rho",
    "SolverOptions",
    "check_mass_of",
    "check_rho",
    "extended_weights",
    "given_rho",
    "given_temperature",
    "of_equal_mass",
    "with_mass",
]

Rho = float | tuple[float | None, float | None] | None
Penalties = tuple[float | None, float | None]
# Constraints on both marginals.
HARD: Penalties = (None, None)


@dataclass(frozen=True)
class Problem:
    r"""Entropic transport between two weighted sets, in units of the cost.

    Attributes:
        cost: The cost, with its graph.
        a: Row weights, shape (..., n), with their graph.
        b: Column weights, shape (..., m), with their graph.
        eps: Temperature, a number or shape (...), without graph.
        rho: Penalties of the two marginals; None for a hard constraint.
        mask: Forbidden pairs, or None.
        idle: Points without admissible partner that have been taken out, or None.
        moved: Mass that moves in a partial problem, whose last row and last column are the added points, shape (...);
            None of others.
    """

    cost: Ground
    a: Tensor
    b: Tensor
    eps: Tensor | float
    rho: Penalties = HARD
    mask: Mask | None = None
    idle: Idle | None = None
    moved: Tensor | None = None

    @classmethod
    def between(
        cls,
        x: Tensor,
        y: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        *,
        cost: Cost = "sqeuclidean",
        eps: Tensor | float | None = None,
        rho: Rho = None,
        partial: bool = False,
    ) -> "Problem":
        """The problem between two weighted clouds of one space, with equal batch dimensions.

        Of a ``partial`` one the weights are bounds of the marginals, and may have any masses.
        """
        penalties, uniform = check_rho(rho), a is None and b is None
        a, b = weights(x, a), weights(y, b)
        if not uniform:
            a, b = _with_masses(a, b, penalties, partial=partial)
        # What all costs have in common belongs to the side whose potential is free up to a constant.
        columns_only = penalties[0] is None and penalties[1] is not None and isinstance(cost, str)
        between = ground(y, x, cost).mT if columns_only else ground(x, y, cost)
        if callable(cost) and not (uniform and penalties == HARD and not partial):
            return cls._without_idle(between, a, b, penalties, eps, partial=partial)
        return cls(between, a, b, temperature_of(eps, between, a, b), penalties)

    @classmethod
    def with_itself(cls, x: Tensor, a: Tensor, *, cost: Cost, eps: Tensor | float, rho: Rho = None) -> "Problem":
        """The problem of a cloud with itself, whose weights have been found to have mass."""
        return cls(ground(x, x, cost), a, a, eps, check_rho(rho))

    @classmethod
    def of_matrix(
        cls,
        C: Tensor,
        a: Tensor,
        b: Tensor,
        *,
        eps: Tensor | float | None = None,
        rho: Rho = None,
        partial: bool = False,
    ) -> "Problem":
        """The problem for a matrix of costs, with equal batch dimensions; ``partial`` as in :meth:`between`."""
        return cls._without_idle(Matrix(C), a, b, check_rho(rho), eps, partial=partial)

    @classmethod
    def _without_idle(
        cls, cost: Ground, a: Tensor, b: Tensor, penalties: Penalties, eps: Tensor | float | None, *, partial: bool
    ) -> "Problem":
        """The problem of the points that have an admissible partner."""
        rows, columns = (p is not None for p in penalties)
        cost, a, b, idle = without_idle(cost, a, b, free=(rows, columns))
        a, b = _with_masses(a, b, penalties, partial=partial)
        temperature = temperature_of(eps, cost, a, b)
        idle = idle and idle.priced(a, b, temperature, penalties)
        return cls(cost.near_zero(temperature), a, b, temperature, penalties, idle=idle)

    @property
    def mT(self) -> "Problem":
        """The problem with rows and columns exchanged."""
        mask = self.mask
        turned = mask and (lambda rows, columns: mask(columns, rows).mT)
        return Problem(self.cost.mT, self.b, self.a, self.eps, self.rho[::-1], turned)

    @property
    def balanced(self) -> bool:
        """Whether both marginals are constraints."""
        return self.rho == HARD

    @property
    def extended(self) -> bool:
        """Whether the last row and the last column are the added points of a partial problem."""
        return self.moved is not None

    @property
    def linked(self) -> bool:
        """Whether some input of the problem has a gradient."""
        return any(t.requires_grad for t in (self.a, self.b, *self.cost.leaves))

    @cached_property
    def rows(self) -> Marginal:
        """The first marginal, dimensionless."""
        return self._marginal(self.a, self.cost.u, self.rho[0])

    @cached_property
    def columns(self) -> Marginal:
        """The second marginal, dimensionless."""
        return self._marginal(self.b, self.cost.v, self.rho[1])

    def _marginal(self, weights: Tensor, offset: Tensor | None, rho: float | None) -> Marginal:
        weights = weights.detach() if weights.requires_grad else weights
        if rho is None:
            return Marginal(weights)
        scale = self.scale(1)
        # Beyond the largest number a penalty is as good as a constraint, which infinity would make no number of.
        most = torch.finfo(scale.dtype if isinstance(scale, Tensor) else torch.float64).max
        penalty = (rho * scale).clamp(max=most) if isinstance(scale, Tensor) else min(rho * scale, most)
        return Marginal(weights, None if offset is None else offset.detach() * scale, penalty)

    def scale(self, dims: int) -> Tensor | float:
        """The inverse temperature, as a factor of tensors with ``dims`` dimensions after those of the batch."""
        return 1 / (self.eps[(..., *(None,) * dims)] if isinstance(self.eps, Tensor) else self.eps)

    def at(self, factor: float) -> "Problem":
        """The problem at ``factor`` times the temperature."""
        return dataclasses.replace(self, eps=self.eps * factor)

    @property
    def resolves_more(self) -> bool:
        """Whether the problem is in single precision, on a device that has double precision as well."""
        return self.cost.dtype != torch.float64 and self.a.device.type not in SINGLE_ONLY

    @property
    def loses_penalties(self) -> bool:
        """Whether single precision has few digits of a penalty over the temperature, or none."""
        limits, given = torch.finfo(self.cost.dtype), [rho for rho in self.rho if rho is not None]
        if not (given and self.resolves_more and self.a.numel()):
            return False
        low, high = torch.stack(torch.as_tensor(self.scale(0), dtype=torch.float64, device="cpu").aminmax()).tolist()
        return low * min(given) < limits.tiny / limits.eps or high * max(given) > limits.max * limits.eps

    def double(self) -> "Problem":
        """The problem in double precision, its cost computed anew from the points."""
        eps = self.eps.double() if isinstance(self.eps, Tensor) else self.eps
        if self.moved is None:
            a, b = _doubled(self.a), _doubled(self.b)
            # What masses of single precision differ by is more than rounding there.
            b = of_equal_mass(a, b) if self.balanced else b
            return dataclasses.replace(self, cost=self.cost.double(), a=a, b=b, eps=eps)
        # What stays behind was rounded, perhaps by more than what moves.
        moved = self.moved.double()
        a, b = extended_weights(self.a[..., :-1].double(), self.b[..., :-1].double(), moved)
        a, b = (torch.where(rounded == 0, 0.0, w) for rounded, w in ((self.a, a), (self.b, b)))
        return dataclasses.replace(self, cost=self.cost.double(), a=a, b=b, eps=eps, moved=moved)

    def detach(self) -> "Problem":
        """The problem without gradients."""
        moved = None if self.moved is None else self.moved.detach()
        return dataclasses.replace(self, cost=self.cost.detach(), a=self.a.detach(), b=self.b.detach(), moved=moved)

    def mass_at(self, g: Tensor) -> Tensor:
        """The mass of the plan at a column potential that is optimal given the row potential, shape (...)."""
        return self.columns.mass if self.columns.rho is None else self.columns.target(g).sum(-1)

    def symmetric_shift(self) -> Tensor | float:
        """What the reduced column potential of a symmetric problem has beyond the row potential."""
        u, v = (0.0 if t is None else t.detach() for t in (self.cost.u, self.cost.v))
        difference = u - v
        return difference * self.scale(1) if isinstance(difference, Tensor) else difference


@dataclass(frozen=True)
class SolverOptions:
    """When and how a problem is solved; see :func:`~otdml.ot.sinkhorn`.

    Attributes:
        tol: L1 error of the marginals, relative to the mass, at which to stop.
        max_iter: Most iterations.
        backend: An engine by name, or "auto".
        rounding: The part of the error that rounding may take before double precision is used; half of ``tol`` if None.
    """

    tol: float = 1e-3
    max_iter: int = 2000
    backend: str = "auto"
    rounding: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, tol=check_positive, max_iter=check_integer)
        check_choice("backend", self.backend, BACKENDS)

    @property
    def resolved(self) -> float:
        """The error from rounding up to which a dtype resolves the problem."""
        return self.tol / 2 if self.rounding is None else self.rounding


def check_rho(rho: Rho, name: str = "rho") -> Penalties:
    """The penalties of both marginals, if they are positive numbers or None; an infinite one is a constraint."""
    pair = rho if isinstance(rho, (tuple, list)) else (rho, rho)
    if len(pair) != 2:
        raise argument_error(name, "be a number, a pair of numbers, or None", rho)
    first, second = (
        None if value is None or (isinstance(value, Real) and value == math.inf) else check_positive(name, value)
        for value in pair
    )
    return first, second


def extended_weights(a: Tensor, b: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of a partial problem with those of the added points, shapes (..., n + 1) and (..., m + 1)."""
    added = [(w.sum(-1, keepdim=True) - mass[..., None]).clamp(min=0) for w in (b, a)]
    return torch.cat([a, added[0]], -1), torch.cat([b, added[1]], -1)


def _doubled(w: Tensor) -> Tensor:
    """Weights in double precision, where what rounding has left of a mass of one would be a part of it."""
    rounding, w = 32 * torch.finfo(w.dtype).eps, w.double()
    mass = w.detach().sum(-1, keepdim=True)
    return w / mass.where((mass - 1).abs() <= rounding, 1.0)


# The mass of a marginal without any, which leaves the value of an unbalanced problem as it is to all digits.
NEXT_TO_NOTHING = 1e-30


def _with_masses(a: Tensor, b: Tensor, penalties: Penalties, *, partial: bool) -> tuple[Tensor, Tensor]:
    """Copies of the weights, if a plan can have them as marginals, or as bounds of those."""
    # Copies, as potentials and plans are read later, and the caller's weights may be others by then.
    a, b, balanced = a.clone(), b.clone(), penalties == HARD and not partial
    if a.numel() == 0 or b.numel() == 0:
        return a, b
    masses = torch.stack((a.detach().sum(-1), b.detach().sum(-1)))
    apart = (masses[1] - masses[0]).abs() / masses[0]
    # One tensor, because to read it forces a device synchronisation.
    least, difference = torch.stack((masses.amin(), apart.max())).tolist()
    if least == 0:
        return with_mass("a", a, balanced=balanced), with_mass("b", b, balanced=balanced)
    if balanced and not difference <= 1e-3:
        remedy = "Normalise the weights in float32 or float64, or pass `rho` for unbalanced transport."
        got = f"a relative difference of {difference:.3g}{_where(~(apart <= 1e-3))}"
        raise argument_error("b", "have the mass of `a`", got, remedy)
    return a, of_equal_mass(a, b) if balanced and difference else b


def of_equal_mass(a: Tensor, b: Tensor) -> Tensor:
    """``b`` with the mass of ``a``, as no plan has marginals whose masses differ, be it by rounding of the weights."""
    masses = [w.detach().sum(-1, keepdim=True) for w in (a, b)]
    return b * (masses[0] / masses[1])


def with_mass(name: str, w: Tensor, *, balanced: bool) -> Tensor:
    """Weights of mass next to nothing where they have none, which is an error without penalties."""
    empty = w.detach().sum(-1) == 0
    if balanced:
        _refuse(empty, name, "Leave that problem out, or pass `rho` for unbalanced transport, which has a value there.")
    return w + torch.where(empty, NEXT_TO_NOTHING, 0.0)[..., None].to(w.dtype)


def check_mass_of(name: str, w: Tensor) -> None:
    """Raise unless the weights have a mass, where no problem without any has a value."""
    _refuse(w.detach().sum(-1) == 0, name, "Leave that problem out.")


def _refuse(empty: Tensor, name: str, remedy: str) -> None:
    if bool(empty.any()):
        raise argument_error(name, "have mass", f"weights that are all zero{_where(empty)}", remedy)


def _where(bad: Tensor) -> str:
    """Which elements of a batch are bad, in words."""
    if bad.ndim == 0:
        return ""
    indices = [tuple(index) if len(index) > 1 else index[0] for index in bad.nonzero().tolist()]
    shown = ", ".join(map(str, indices[:5])) + (", ..." if len(indices) > 5 else "")
    return f" in batch element{'s' if len(indices) > 1 else ''} {shown}"


def given_temperature(eps: float | None) -> float | None:
    """The temperature that a caller passes, if it is one positive number or None."""
    return eps if eps is None else check_positive("eps", eps)


def given_rho(rho: Rho, name: str = "rho") -> Rho:
    """The penalties in the form in which they are passed: one for both marginals, or a pair."""
    penalties = check_rho(rho, name)
    return penalties if isinstance(rho, (tuple, list)) else penalties[0]


@dataclass(frozen=True)
class Posed:
    """A problem with the engine that computes with it.

    Attributes:
        problem: The problem.
        engine: Soft minima and plan products of its reduced cost over its temperature.
    """

    problem: Problem
    engine: Engine

    @classmethod
    def of(cls, problem: Problem, backend: str) -> "Posed":
        """The problem with an engine by name."""
        with torch.no_grad():
            return cls(problem, engine(problem.cost, problem.eps, backend, problem.mask))

    def double(self) -> "Posed":
        """The same in double precision."""
        problem = self.problem.double()
        return Posed(problem, self.engine.like(problem.cost.detach().scaled(problem.scale(0))))

    @property
    def mT(self) -> "Posed":
        return Posed(self.problem.mT, self.engine.mT)
