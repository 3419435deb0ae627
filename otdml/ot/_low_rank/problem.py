"""The transport problem that a plan of low rank solves: a bilinear cost, and two measures of equal mass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error, check_equal_mass, check_in_range, vanishing_costs
from otdml._derivatives import once
from otdml._precision import SINGLE_ONLY
from otdml.costs import Bilinear, Cost, ground
from otdml.measures import weights
from otdml.ot._low_rank.coupling import LowRankCoupling, rounded
from otdml.ot._low_rank.descent import Iterate
from otdml.ot._low_rank.hubs import Cloud
from otdml.ot._problem import check_mass_of

__all__ = ["LowRankProblem"]

# The default temperature, in units of the largest amount by which a plan can be cheaper than the independent one.
_SHARE = 0.01
_NO_SECOND = "low_rank_sinkhorn has no second derivatives. Take `sinkhorn`, or leave out `create_graph`."


@dataclass(frozen=True)
class LowRankProblem:
    """A bilinear cost and two measures of equal mass, with their graph.

    Attributes:
        cost: The cost.
        a: Row weights, of mass one, shape (..., n).
        b: Column weights, of mass one, shape (..., m).
        mass: The mass, shape (...).
        units: Root mean squares of the centred factors, shape (..., 2).
        eps: Temperature in units of the cost, shape (...).
    """

    cost: Bilinear
    a: Tensor
    b: Tensor
    mass: Tensor
    units: Tensor
    eps: Tensor

    @classmethod
    def between(
        cls, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, cost: Cost, eps: float | None
    ) -> "LowRankProblem":
        """The problem between two weighted clouds with equal batch dimensions."""
        x, y, a, b = (once(t, _NO_SECOND) for t in (x, y, weights(x, a), weights(y, b)))
        check_equal_mass(a, b)
        check_mass_of("a", a)
        masses = torch.stack([a.sum(-1), b.sum(-1)], -1)
        a, b = a / masses[..., :1], b / masses[..., 1:]
        between = ground(x, y, cost)
        assert isinstance(between, Bilinear)
        units = torch.stack([_unit(between.q, a), _unit(between.k, b)], -1)
        if not bool(units.isfinite().all()):
            remedy = f"Look for {between.look_for}, or for costs that overflow {between.dtype}; rescale them."
            raise argument_error("x", "give finite costs", "NaN or infinity", remedy)
        product = units.prod(-1)
        if between.vanishes():
            raise vanishing_costs("x", between.dtype)
        temperature = _SHARE * product
        if eps is not None:
            temperature = torch.full_like(product, check_in_range("eps", eps, product.dtype))
        return cls(between, a, b, masses.mean(-1), units, temperature)

    @property
    def temperature(self) -> Tensor:
        """The temperature for factors of root mean square one, shape (...)."""
        return (self.eps / self.units.prod(-1)).to(self.clouds[0].weights)

    @property
    def clouds(self) -> tuple[Cloud, Cloud]:
        """The factors of the cost, centred and of root mean square one, in double precision where the device has it."""
        units = self.units[..., None, None].unbind(-3)
        parts = zip((self.cost.q, self.cost.k), (self.a, self.b), units, strict=True)
        dtype = self.a.dtype if self.a.device.type in SINGLE_ONLY else torch.float64
        left, right = (
            Cloud((_centred(z, w) / unit).to(dtype), _normalised(w.detach().to(dtype))) for z, w, unit in parts
        )
        return left, right

    @torch.no_grad()
    def plan(self, found: Iterate) -> LowRankCoupling:
        """The plan between the measures as they were given, not normalised."""
        mass = self.mass[..., None]
        rows, columns, g = (t.to(mass) for t in rounded(found.q, found.r))
        return LowRankCoupling(mass * self.a, mass * self.b, rows, columns, mass * g, self._duals(found))

    def _duals(self, found: Iterate) -> tuple[Tensor, Tensor]:
        """The derivatives of the objective in the weights, with means zero."""
        q, k, u, v = self.cost.leaves
        # The descent leaves out the terms of the cost that depend on one point; they are added here.
        f = u - (q @ (self.b[..., None, :] @ k).mT)[..., 0] - self.eps[..., None] * found.q.logs.to(u)
        g = v - (k @ (self.a[..., None, :] @ q).mT)[..., 0] - self.eps[..., None] * found.r.logs.to(v)
        return f - (self.a * f).sum(-1, keepdim=True), g - (self.b * g).sum(-1, keepdim=True)

    def value(self, found: Iterate, plan: LowRankCoupling) -> Tensor:
        """The cost of the plan, shape (...), with the derivatives of the objective at fixed plan."""
        q, k, u, v = self.cost.leaves
        left, right, g = plan.factors
        # The product of two sums may be beyond all numbers where the masses are not.
        flow = ((left.mT @ q) * ((right.mT @ k) / torch.where(g > 0, g, 1.0)[..., None])).sum(-1)
        cost = (plan.a * u).sum(-1) + (plan.b * v).sum(-1) - flow.sum(-1)
        mass = self.mass.detach()
        f, g = plan.potentials
        # The derivatives in the normalised weights are the potentials, and the objective is proportional to the mass.
        shares = ((self.a - self.a.detach()) * f).sum(-1) + ((self.b - self.b.detach()) * g).sum(-1)
        objective = cost.detach() / mass + self.eps * found.divergence.to(cost)
        return cost + mass * shares + (self.mass - mass) * objective


def _centred(z: Tensor, w: Tensor) -> Tensor:
    z, w = z.detach(), w.detach()
    return z - w[..., None, :] @ z


def _normalised(w: Tensor) -> Tensor:
    return w / w.sum(-1, keepdim=True)


def _unit(z: Tensor, w: Tensor) -> Tensor:
    """The root mean square of the distances from the mean, shape (...); one where all points coincide."""
    unit = (w.detach() * _centred(z, w).square().sum(-1)).sum(-1).sqrt()
    return torch.where(unit == 0, 1.0, unit)
