r"""The Gromov objective: a quadratic function of the plan.

With two centred costs (:mod:`otdml.ot._gromov.centred_cost`) and a plan P of marginals a, b and mass s,

.. math::
    \tfrac12 \sum_{ijkl} (A_{ik} - B_{jl})^2 P_{ij} P_{kl} = \tfrac12 s^2 (\bar A - \bar B)^2
    + s \sum_{ij} P_{ij} (\alpha_i - \beta_j)^2 + \tfrac12 \lVert K \rVert_a^2 + \tfrac12 \lVert L \rVert_b^2
    - \langle K P L, P \rangle

so that only :math:`Q(P) = 2 s \langle \alpha, P \beta \rangle + \langle K P L, P \rangle` depends on the plan. A fused
problem adds the cost :math:`\langle M, P \rangle` between features (:mod:`otdml.ot._gromov.feature_cost`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otdml.costs import Bilinear, Matrix
from otdml.ot._gromov.centred_cost import CentredCost
from otdml.ot._gromov.feature_cost import FeatureCost
from otdml.ot._gromov.plans import ReadablePlan

__all__ = ["GromovObjective", "picked"]


@dataclass(frozen=True)
class GromovObjective:
    r"""The objective between two weighted clouds.

    Where L is kept as :math:`\sigma Z Z^\top`, a plan is read through its *projection* P Z, and otherwise as a matrix.
    """

    left: CentredCost
    right: CentredCost
    a: Tensor
    b: Tensor
    features: FeatureCost | None = None

    @cached_property
    def mass(self) -> Tensor:
        return self.a.sum(-1)

    @cached_property
    def b_shares(self) -> Tensor:
        return self.b / self.mass[..., None]

    @cached_property
    def log_b(self) -> Tensor:
        return self.b.log()

    @cached_property
    def absent(self) -> Tensor:
        """Which second points have no weight."""
        return self.b <= 0

    @cached_property
    def _linear_factor(self) -> Tensor:
        return (2 * self.mass[..., None] * self.left.alpha)[..., None]

    @cached_property
    def _readout(self) -> Tensor:
        """The columns that a plan is multiplied with: Z where it is kept, beta, and ones."""
        beta = self.right.alpha[..., None]
        return torch.cat([*([] if self.right.z is None else [self.right.z]), beta, torch.ones_like(beta)], -1)

    @cached_property
    def _left_factor(self) -> Tensor:
        """Twice the left factor of K, or K itself, times the factor of L where the projection has none of it."""
        left, scale = self.left, 2 * (1 if self.right.matrix is not None else self.right.sigma)
        if left.matrix is not None:
            return scale * left.matrix
        assert left.z is not None
        return scale * left.sigma * left.z

    @cached_property
    def _gram(self) -> Tensor:
        assert self.right.z is not None
        return self.right.z.mT @ (self.b[..., None] * self.right.z)

    @cached_property
    def _right_factor(self) -> Tensor:
        assert self.right.z is not None
        return torch.cat([self.right.alpha[..., None], self.right.z, *self._features(1, self.b.shape[:-1])], -1)

    def _features(self, side: int, batch: torch.Size) -> list[Tensor]:
        """The factors of the features of one side, where there are any."""
        if self.features is None or self.features.factors is None:
            return []
        return [self.features.factors[side].expand(*batch, -1, -1)]

    def detach(self) -> "GromovObjective":
        features = None if self.features is None else self.features.detach()
        return GromovObjective(self.left.detach(), self.right.detach(), self.a.detach(), self.b.detach(), features)

    def read(self, plan: ReadablePlan) -> tuple[Tensor, Tensor]:
        r"""The projection of the plan, and :math:`P \beta`, with its rows scaled to their exact mass.

        At a low temperature the rounding of the potentials is largest in the mass of the rows.
        """
        if self.right.z is None:
            matrix = plan.plan.detach()
            read = torch.cat([matrix, matrix @ self._readout], -1)
        else:
            read = plan.apply(self._readout)
        read = _with_mass(read, self.a)
        return read[..., :-1], read[..., -1]

    def pairing(self) -> Tensor:
        """The projection of the plan that pairs equal indices."""
        return torch.diag_embed(self.a) if self.right.z is None else self.a[..., None] * self.right.z

    def slope(self, projection: Tensor) -> Tensor:
        """Left factor of the gradient of <K P L, P>: with Z, or with the identity, as the right one."""
        v = projection if self.right.matrix is None else projection @ self.right.matrix
        return self._left_factor @ (v if self.left.z is None else self.left.z.mT @ v)

    def cost(self, slope: Tensor) -> Bilinear | Matrix:
        """The gradient of <M, P> - Q, up to constants of rows and columns, which transport ignores."""
        features, right, batch = self.features, self.right, slope.shape[:-2]
        if right.z is not None and (features is None or features.factors is not None):
            q = torch.cat([self._linear_factor.expand(*batch, -1, -1), slope, *self._features(0, batch)], -1)
            return Bilinear(q, self._right_factor.expand(*batch, -1, -1))
        matrix = -self._linear_factor * right.alpha[..., None, :] - (slope if right.z is None else slope @ right.z.mT)
        return Matrix(matrix if features is None else matrix + features.matrix)

    def size(self, slope: Tensor) -> Tensor:
        """Root mean square of the costs that ``slope`` stands for, shape (...)."""
        # In units of the largest entry, for these are products of two costs, whose squares would overflow.
        top = slope.abs().amax((-2, -1))
        top = torch.where(top > 0, top, torch.ones_like(top))
        slope = slope / top[..., None, None]
        if self.right.z is None:
            square = (self.a * (slope.square() @ self.b[..., None])[..., 0]).sum(-1)
        else:
            left = slope.mT @ (self.a[..., None] * slope)
            square = (left * self._gram).sum((-2, -1))
        return top * square.clamp(min=0).sqrt() / self.mass

    @cached_property
    def feature_size(self) -> Tensor:
        """Root mean square of the costs between features, centred, shape (...)."""
        return torch.zeros_like(self.mass) if self.features is None else self.features.size(self.a, self.b)

    def linear(self, transported: Tensor) -> Tensor:
        r""":math:`2 s \langle \alpha, P \beta \rangle`, shape (...)."""
        return 2 * self.mass * (self.left.alpha * transported).sum(-1)

    def value(self, plan: ReadablePlan) -> Tensor:
        """The objective, shape (...), differentiable in the points with the plan held fixed."""
        left, right, a, b, s = self.left, self.right, self.a, self.b, self.mass
        projection, transported = self.read(plan)
        squares = (a * left.alpha.square()).sum(-1) + (b * right.alpha.square()).sum(-1)
        energies = (a * left.energies(a)).sum(-1) + (b * right.energies(b)).sum(-1)
        apart = 0.5 * (s * (left.mean - right.mean)).square() + s * squares + 0.5 * energies
        apart = apart - self.linear(transported) - 0.5 * (self.slope(projection) * projection).sum((-2, -1))
        return apart if self.features is None else apart + self.features.offsets(a, b) + self.between_features(plan)

    def between_features(self, plan: ReadablePlan) -> Tensor:
        """The plan's cost between features without the offsets of rows and columns, shape (...)."""
        features = self.features
        if features is None:
            return torch.zeros_like(self.mass)
        if features.factors is None:
            return (plan.plan.detach() * features.matrix).sum((-2, -1))
        q, k = features.factors
        read = _with_mass(plan.apply(torch.cat([k, torch.ones_like(k[..., :1])], -1)), self.a)
        return -(q * read).sum((-2, -1))

    def linearised(self, slope: Tensor, plan: ReadablePlan) -> Tensor:
        """The plan's costs of :meth:`cost`, shape (...)."""
        projection, transported = self.read(plan)
        return self.between_features(plan) - self.linear(transported) - (slope * projection).sum((-2, -1))

    def gap(self, plan: ReadablePlan) -> Tensor:
        """Q at the plan less Q at the pairing D of equal indices, shape (...), differentiable in the points.

        The product of the difference and the sum, <K (P - D) L, P + D>, keeps its digits where P is close to D.
        """
        projection, transported = self.read(plan)
        paired = self.pairing()
        bilinear = (self.slope(projection - paired) * (projection + paired)).sum((-2, -1))
        gap = self.linear(transported - self.a * self.right.alpha) + 0.5 * bilinear
        if self.features is None:
            return gap
        return gap + (self.a * self.features.diagonal).sum(-1) - self.between_features(plan)

    def value_duals(self, plan: ReadablePlan, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the entropic objective in the two weights, up to a constant.

        ``f`` and ``g`` are the potentials of :meth:`cost` at the plan, which leaves out the constants of rows and
        columns that come back here.
        """
        if self.features is not None:
            f, g = f + self.features.u, g + self.features.v
        return _dual(self.left, self.right, self.a, f, plan.apply), _dual(
            self.right, self.left, self.b, g, plan.apply_transpose
        )

    def gap_dual(self, plan: ReadablePlan, f: Tensor, g: Tensor) -> Tensor:
        """The gradient of the entropic gap in the weights that both clouds share, up to a constant."""
        left, right, a = self.left, self.right, self.a[..., None]
        alpha, beta = left.alpha[..., None], right.alpha[..., None]
        moved = left.times(plan.apply(beta) - a * beta) + right.times(plan.apply_transpose(alpha) - a * alpha)
        slope = self.slope(self.pairing())
        diagonal = slope.diagonal(dim1=-2, dim2=-1) if right.z is None else (slope * right.z).sum(-1)
        diagonal = diagonal if self.features is None else diagonal - self.features.diagonal
        return 2 * moved[..., 0] - 2 * self.mass[..., None] * left.alpha * right.alpha - diagonal - f - g


def _with_mass(read: Tensor, a: Tensor) -> Tensor:
    """The products of a plan with rows scaled to their exact mass; the last column holds their computed mass."""
    # A point without weight has a row of zeros, which stays one.
    mass = read[..., -1:].clamp(min=torch.finfo(read.dtype).tiny)
    return (read[..., :-1] / mass).mul_(a[..., None])


def _dual(
    left: CentredCost, right: CentredCost, a: Tensor, f: Tensor, plan_product: Callable[[Tensor], Tensor]
) -> Tensor:
    s = a.sum(-1, keepdim=True)
    square = s * (left.mean[..., None] + left.alpha).square() + left.energies(a)
    shifts = left.times((a * left.alpha)[..., None] - plan_product(right.alpha[..., None]))[..., 0]
    return square + 2 * shifts - 2 * s * right.mean[..., None] * left.alpha + f


def picked(stack: Tensor, index: Tensor) -> Tensor:
    """The entry ``index`` of the first dimension, for each batch element."""
    index = index[(None, ..., *(None,) * (stack.ndim - 1 - index.ndim))]
    return torch.take_along_dim(stack, index, 0)[0]
