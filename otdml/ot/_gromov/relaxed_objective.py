r"""The Gromov objective of plans whose marginals are free, and its gradient.

With :math:`A = K + h 1^\top + 1 h^\top`, :math:`B = L + l 1^\top + 1 l^\top` and a plan P of marginals p, q of mass s,

.. math::
    \tfrac12 \sum_{ijkl} (A_{ik} - B_{jl})^2 P_{ij} P_{kl}
    = \tfrac12 \langle p, A^{\circ 2} p \rangle + \tfrac12 \langle q, B^{\circ 2} q \rangle - \langle A P B, P \rangle

and the gradient is :math:`(A^{\circ 2} p)_i + (B^{\circ 2} q)_j - 2 (A P B)_{ij}`. Up to terms of rows and columns
:math:`A P B = K P L + (K p + s h) \, l^\top + h \, (L q)^\top`, a product of factors where K and L are.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from otdml.costs import Bilinear, Matrix
from otdml.ot._gromov.centred_cost import CentredCost
from otdml.ot._gromov.objective import GromovObjective
from otdml.ot._gromov.plans import ReadablePlan

__all__ = ["Reading", "RelaxedObjective"]


@dataclass(frozen=True)
class Reading:
    r"""What the objective reads of a plan P, all of it linear in the plan.

    Attributes:
        projection: P Z, shape (..., n, e), or P itself, see :class:`~otdml.ot._gromov.objective.GromovObjective`.
        p: Row sums, shape (..., n).
        q: Column sums, shape (..., m).
        forward: P l, shape (..., n).
        backward: :math:`P^\top h`, shape (..., m).
    """

    projection: Tensor
    p: Tensor
    q: Tensor
    forward: Tensor
    backward: Tensor

    @property
    def mass(self) -> Tensor:
        return self.p.sum(-1)

    def each(self, function: Callable[..., Tensor], *others: "Reading") -> "Reading":
        """The reading whose parts are a function of the parts of readings."""
        return Reading(*(function(*(getattr(r, f.name) for r in (self, *others))) for f in fields(Reading)))

    def scaled(self, factor: Tensor) -> "Reading":
        """The reading of the plan times a factor, shape (...)."""
        return self.each(lambda t: factor.reshape(*factor.shape, *(1,) * (t.ndim - self.mass.ndim)) * t)


@dataclass(frozen=True)
class RelaxedObjective:
    """The objective between two weighted clouds, of plans with any marginals.

    Attributes:
        centred: The costs within the clouds and between features, and the weights.
    """

    centred: GromovObjective

    @cached_property
    def h(self) -> tuple[Tensor, Tensor]:
        """The parts h and l of the two costs that depend on one point, shapes (..., n) and (..., m)."""
        left, right = self.centred.left, self.centred.right
        return left.alpha + 0.5 * left.mean[..., None], right.alpha + 0.5 * right.mean[..., None]

    def detach(self) -> "RelaxedObjective":
        return RelaxedObjective(self.centred.detach())

    def read(self, plan: ReadablePlan, batch: torch.Size | None = None) -> Reading:
        """The plan's reading, differentiable in the points with the plan held fixed.

        Args:
            plan: The plan.
            batch: Its batch dimensions, where they are more than those of the weights.
        """
        (h, k), z = self.h, self.centred.right.z
        if z is None:
            P = plan.plan.detach()
            return Reading(P, P.sum(-1), P.sum(-2), (P @ k[..., None])[..., 0], (P.mT @ h[..., None])[..., 0])
        batch = h.shape[:-1] if batch is None else batch
        forward = plan.apply(torch.cat([z, torch.stack([torch.ones_like(k), k], -1)], -1).expand(*batch, -1, -1))
        backward = plan.apply_transpose(torch.stack([torch.ones_like(h), h], -1).expand(*batch, -1, -1))
        return Reading(forward[..., :-2], forward[..., -2], backward[..., 0], forward[..., -1], backward[..., 1])

    def offsets(self, at: Reading) -> tuple[Tensor, Tensor]:
        """The gradient's terms of rows and of columns, shapes (..., n) and (..., m), without those of features."""
        (h, k), left, right = self.h, self.centred.left, self.centred.right
        moved, back = _times(left, at.forward), _times(right, at.backward)
        rows = _squares(left, h, at.p) - 2 * (moved + h * (k * at.q).sum(-1, keepdim=True))
        columns = _squares(right, k, at.q) - 2 * (back + k * (h * at.p).sum(-1, keepdim=True))
        return rows, columns - 2 * (h * at.forward).sum(-1, keepdim=True)

    def factors(self, at: Reading) -> tuple[Tensor, Tensor]:
        """Left and right factors of the gradient's other terms, besides those of the projection."""
        (h, k), left, right = self.h, self.centred.left, self.centred.right
        first = 2 * (_times(left, at.p) + at.mass[..., None] * h)
        return torch.stack([first, 2 * h.expand_as(first)], -1), torch.stack(
            [k.expand_as(at.q), _times(right, at.q)], -1
        )

    def gradient(self, at: Reading) -> Bilinear | Matrix:
        """The gradient at a plan, with the cost of features, as a cost between the points."""
        features, z = self.centred.features, self.centred.right.z
        (u, v), (q, k), slope = self.offsets(at), self.factors(at), self.centred.slope(at.projection)
        if features is not None:
            u, v = u + features.u, v + features.v
        if z is None or (features is not None and features.factors is None):
            R = -(slope if z is None else slope @ z.mT) - q @ k.mT
            return Matrix(R if features is None else R + features.matrix, u, v)
        batch, extra = u.shape[:-1], ((), ()) if features is None else [(t,) for t in features.factors or ()]
        left, right = ([t.expand(*batch, -1, -1) for t in side] for side in ((slope, q, *extra[0]), (z, k, *extra[1])))
        return Bilinear(torch.cat(left, -1), torch.cat(right, -1), u, v)

    def pairing(self, at: Reading, plan: Reading) -> Tensor:
        """The scalar product of the gradient at one plan with another plan, without features, shape (...)."""
        (u, v), (q, k) = self.offsets(at), self.factors(at)
        slope = (self.centred.slope(at.projection) * plan.projection).sum((-2, -1))
        return (
            (u * plan.p).sum(-1)
            + (v * plan.q).sum(-1)
            - slope
            - (q[..., 0] * plan.forward).sum(-1)
            - 2 * (k[..., 1] * plan.backward).sum(-1)
        )

    def features(self, plan: ReadablePlan, reading: Reading) -> Tensor:
        """The plan's cost between features, shape (...)."""
        features = self.centred.features
        if features is None:
            return torch.zeros_like(reading.mass)
        offsets = features.offsets(reading.p, reading.q)
        if features.factors is None:
            return offsets + (plan.plan.detach() * features.matrix).sum((-2, -1))
        q, k = features.factors
        return offsets - (q * plan.apply(k.expand(*reading.q.shape[:-1], -1, -1))).sum((-2, -1))

    def value(self, plan: ReadablePlan, batch: torch.Size | None = None) -> Tensor:
        """The objective, shape (...), differentiable in the points with the plan held fixed."""
        reading = self.read(plan, batch)
        return 0.5 * self.pairing(reading, reading) + self.features(plan, reading)

    def size(self, at: Reading) -> Tensor:
        """A bound of the root mean square of the gradient's costs at a plan, or at a difference of plans, (...)."""
        a, b = (w / w.sum(-1, keepdim=True) for w in (self.centred.a, self.centred.b))
        (u, v), (q, k) = self.offsets(at), self.factors(at)
        grams = [f.mT @ (w[..., None] * f) for f, w in ((q, a), (k, b))]
        squares = (a * u.square()).sum(-1), (b * v.square()).sum(-1), (grams[0] * grams[1]).sum((-2, -1))
        slope = self.centred.size(self.centred.slope(at.projection))
        return slope + sum(square.clamp(min=0).sqrt() for square in squares)


def _times(cost: CentredCost, v: Tensor) -> Tensor:
    return cost.times(v[..., None])[..., 0]


def _squares(cost: CentredCost, h: Tensor, p: Tensor) -> Tensor:
    r""":math:`\sum_k A_{ik}^2 p_k`, shape (..., n)."""
    mass, mean, square = p.sum(-1, keepdim=True), (h * p).sum(-1, keepdim=True), (h.square() * p).sum(-1, keepdim=True)
    return cost.energies(p) + h.square() * mass + square + 2 * (h * (_times(cost, p) + mean) + _times(cost, h * p))
