r"""Partial transport: plans of a given mass, between marginals that are upper bounds of theirs.

A plan P with :math:`P 1 \le a`, :math:`P^\top 1 \le b` and mass s is a plan between a and b with one more point on each
side, which takes the mass that is not transported: of weight :math:`\lvert b \rvert - s` beside a, and
:math:`\lvert a \rvert - s` beside b. Pairs with these points cost nothing, and the pair of the two is forbidden
:cite:p:`chapel:20`. The problem so *extended* is balanced.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error, check_batches, check_positive, has_values
from otdml._cost_forms import with_zero_row
from otdml._fused.barred import Barred
from otdml.ot._implicit import conditional_product
from otdml.ot._problem import Posed, Problem, SolverOptions, extended_weights
from otdml.ot._result import Coupling, OTResult
from otdml.ot._solution import EntropicSolution
from otdml.ot.engines import Streamed

__all__ = ["Mass", "RestrictedPlan", "check_mass", "extended", "extended_options", "restricted"]

Mass = float | Tensor

# A mass may exceed that of the smaller side by this share, the rounding of equal masses.
ROUNDING = 1e-5


def check_mass(mass: Mass, a: Tensor, b: Tensor) -> Tensor:
    """The mass of a partial plan, shape (...), if it is positive and no more than that of either side."""
    most = torch.minimum(a.sum(-1), b.sum(-1))
    if not isinstance(mass, Tensor) or mass.dtype == torch.bool:
        mass = most.new_tensor(check_positive("mass", mass))  # type: ignore[arg-type]
    if check_batches(a=most.shape, mass=mass.shape) != most.shape:
        must = f"have the batch dimensions of the weights, {tuple(most.shape)}, or none"
        raise argument_error("mass", must, tuple(mass.shape), "Give the points a batch dimension.")
    mass = mass.to(most).expand(most.shape)
    inside = (mass > 0) & (mass <= (1 + ROUNDING) * most)
    if has_values(inside) and not bool(inside.all()):
        must = f"be positive, and at most the mass of either side, {_shown(most)}"
        raise argument_error("mass", must, _shown(mass), "It is a mass, not a share of it.")
    # Not their minimum, which would have no derivative, or half of it, at all of the mass.
    return mass - (mass - most).detach().clamp(min=0)


def _shown(t: Tensor) -> str:
    return f"{float(t.detach().amin()):g}" if t.numel() else "none"


def extended(problem: Problem, mass: Tensor) -> Problem:
    """The balanced problem with a point more on each side."""
    a, b = extended_weights(problem.a, problem.b, mass)
    below = [torch.arange(1 - w.shape[-1], 1, device=w.device) for w in (a, b)]
    # Numbers below zero on one side and above on the other, so that only the two added points share one.
    barred = Barred(own=(below[0], -below[1]))
    return dataclasses.replace(problem, cost=problem.cost.extended(), a=a, b=b, mask=barred, moved=mass)


def extended_options(options: SolverOptions, problem: Problem, mass: Tensor) -> SolverOptions:
    """The options with a tolerance that is relative to the mass that moves, not to all."""
    share = mass.detach() / problem.a.detach().sum(-1)
    least = float(share.amin()) if share.numel() else 1.0
    return dataclasses.replace(options, tol=options.tol * least)


def restricted(result: OTResult, mass: Tensor) -> OTResult:
    """The result of the extended problem, read without the added points."""
    solution = result._coupling
    assert isinstance(solution, EntropicSolution)
    error = result.marginal_error * (solution.problem.a.detach().sum(-1) / mass.detach()).to(result.marginal_error)
    return dataclasses.replace(result, marginal_error=error, _coupling=RestrictedPlan(solution))


@dataclass(frozen=True)
class RestrictedPlan(Coupling):
    """An extended plan without its last row and column."""

    whole: EntropicSolution

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        f, g = self.whole.potentials
        return f[..., :-1], g[..., :-1]

    def plan(self) -> Tensor:
        return self.whole.plan()[..., :-1, :-1]

    def product(self, v: Tensor) -> Tensor:
        return self.whole.product(with_zero_row(v))[..., :-1, :]

    def product_transposed(self, v: Tensor) -> Tensor:
        return self.whole.product_transposed(with_zero_row(v))[..., :-1, :]

    def conditional_product(self, v: Tensor) -> Tensor:
        """The product for mass that has to go to the second points, even where nearly all of a row stays behind."""
        g = self.whole.exponents[1]
        g = torch.cat([g[..., :-1], torch.full_like(g[..., -1:], -torch.inf)], -1)
        # A stored kernel has zeros for entries that are negligible in the whole plan, but not in the rest of it.
        problem = self.whole.problem
        fresh = Posed(problem, Streamed(problem.cost.detach().scaled(problem.scale(0)), problem.mask))
        return conditional_product(fresh, g, with_zero_row(v)).to(v.dtype)[..., :-1, :]
