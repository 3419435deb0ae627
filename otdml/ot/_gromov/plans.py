"""Plans as the Gromov objective reads them: through their products."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["FactoredPlan", "MatrixPlan", "PairedPlan", "ReadablePlan"]


class ReadablePlan(Protocol):
    """A plan, read as :class:`~otdml.ot.OTResult` lets it be read."""

    @property
    def plan(self) -> Tensor:
        """Shape (..., n, m)."""

    def apply(self, v: Tensor) -> Tensor:
        """The plan times ``v``, shape (..., n, e) for ``v`` of shape (..., m, e)."""

    def apply_transpose(self, v: Tensor) -> Tensor:
        """The transposed plan times ``v``, shape (..., m, e) for ``v`` of shape (..., n, e)."""


@dataclass(frozen=True)
class FactoredPlan:
    """The product of ``left``, shape (..., n, r), and the transpose of ``right``, shape (..., m, r)."""

    left: Tensor
    right: Tensor

    @property
    def plan(self) -> Tensor:
        return self.left @ self.right.mT

    def apply(self, v: Tensor) -> Tensor:
        return self.left @ (self.right.mT @ v)

    def apply_transpose(self, v: Tensor) -> Tensor:
        return self.right @ (self.left.mT @ v)


@dataclass(frozen=True)
class PairedPlan:
    """The plan that pairs equal indices, with the weights ``a``, shape (..., n)."""

    a: Tensor

    @property
    def plan(self) -> Tensor:
        return torch.diag_embed(self.a)

    def apply(self, v: Tensor) -> Tensor:
        return self.a[..., None] * v

    apply_transpose = apply


@dataclass(frozen=True)
class MatrixPlan:
    """A plan that is given as a matrix, shape (..., n, m)."""

    plan: Tensor

    def apply(self, v: Tensor) -> Tensor:
        return self.plan @ v

    def apply_transpose(self, v: Tensor) -> Tensor:
        return self.plan.mT @ v
