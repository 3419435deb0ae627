"""One marginal of an entropic problem: its weights, its penalty, and what these make of soft minima."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Marginal"]

ALL = slice(None)


@dataclass(frozen=True)
class Marginal:
    r"""One marginal of a dimensionless problem, without graph.

    Attributes:
        weights: Shape (..., n).
        offset: Offset u of the cost over the temperature, shape (..., n), or None for zero.
        rho: Marginal penalty over the temperature, shape (..., 1) or a number; None for a hard constraint.
    """

    weights: Tensor
    offset: Tensor | None = None
    rho: Tensor | float | None = None

    @cached_property
    def log(self) -> Tensor:
        """The logarithms of the weights."""
        return self.weights.log()

    @cached_property
    def mass(self) -> Tensor:
        """The sum of the weights, shape (...)."""
        return self.weights.sum(-1)

    @cached_property
    def shares(self) -> Tensor:
        """The weights over their sum."""
        return self.weights / self.mass[..., None]

    def update(self, softmin: Tensor, points: slice = ALL) -> Tensor:
        """The reduced potential that is optimal given the soft minimum over the other side, of some or all points."""
        if self.rho is None:
            return softmin
        tau = self.rho / (1 + self.rho)
        return tau * softmin if self.offset is None else tau * softmin - (1 - tau) * self.offset[..., points]

    def scaling(self, centre: Tensor) -> tuple[Tensor, Tensor | float | None]:
        r"""How the weights times exp(f - ``centre``) follow from sums s with exp(``centre``): as :math:`c s^{-t}`.

        Returns:
            c, shape (..., n), and t, None for one.
        """
        if self.rho is None:
            return self.weights, None
        tau = self.rho / (1 + self.rho)
        return self.weights * torch.exp((tau - 1) * self._full(centre)), tau

    def softmin(self, f: Tensor) -> Tensor:
        """The soft minimum of which ``f`` is the update, the inverse of :meth:`update`."""
        return f if self.rho is None else f + self._full(f) / self.rho

    def target(self, f: Tensor) -> Tensor:
        """The marginal that the optimal plan has at the potential ``f``."""
        if self.rho is None:
            return self.weights
        # A point without weight may have any potential, and its exponential may be infinite.
        return torch.where(self.weights > 0, self.weights * self.share(f), 0.0)

    def share(self, f: Tensor) -> Tensor:
        """The part of each point's weight that the optimal plan moves at the potential ``f``."""
        return torch.ones_like(f) if self.rho is None else torch.exp(-self._full(f) / self.rho)

    def error(self, f: Tensor, softmin: Tensor) -> Tensor:
        """L1 distance of the plan's marginal to its target, relative to the target's mass, shape (...).

        The plan's marginal is the target times exp(softmin(f) - ``softmin``). A target with a penalty may have a mass
        below all numbers; its shares are then those of its logarithm.
        """
        if self.rho is None:
            return torch.expm1(f - softmin).abs_().mul_(self.shares).sum(-1)
        shares = torch.softmax(self.log - torch.where(self.weights > 0, self._full(f) / self.rho, 0.0), -1)
        return torch.where(shares > 0, shares * torch.expm1(self.softmin(f) - softmin).abs_(), 0.0).sum(-1)

    @cached_property
    def steepness(self) -> Tensor | float:
        """The offset in units of the penalty, shape (...), by which rounding of a potential moves the target."""
        if self.rho is None or self.offset is None:
            return 0.0
        return (self.offset / self.rho).abs().amax(-1)

    @property
    def stiffness(self) -> Tensor | float:
        """The derivative of :meth:`softmin`."""
        return 1.0 if self.rho is None else 1 + 1 / self.rho

    def _full(self, f: Tensor) -> Tensor:
        return f if self.offset is None else f + self.offset
