"""Costs that are given as a matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from otdml._cost_forms.base import Gradients, Ground, LinkedPlan, Plan, Scale, per_batch, with_zero

__all__ = ["Matrix"]


@dataclass(frozen=True)
class Matrix(Ground):
    """A reduced cost given as a matrix, shape (..., n, m), and offsets that are constants."""

    C: Tensor
    u: Tensor | None = None
    v: Tensor | None = None
    argument: ClassVar[str] = "C"
    look_for: ClassVar[str] = "NaN, minus infinity, or a row or a column with weight of nothing but infinity"

    @property
    def shape(self) -> torch.Size:
        return self.C.shape

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.C,)

    @property
    def mT(self) -> "Matrix":
        return Matrix(self.C.mT, self.v, self.u)

    def block(self, rows: slice) -> Tensor:
        return self.C[..., rows, :]

    def rows(self, index: Tensor) -> "Matrix":
        return Matrix(self.C[index], self.u if self.u is None else self.u[index], self.v)

    def scaled(self, scale: Scale) -> "Matrix":
        return Matrix(self.C * per_batch(scale))

    def detach(self) -> "Matrix":
        return Matrix(self.C.detach(), self.u, self.v)

    def double(self) -> "Matrix":
        u, v = (t if t is None else t.double() for t in (self.u, self.v))
        return Matrix(self.C.double(), u, v)

    def extended(self) -> "Matrix":
        u = torch.zeros_like(self.C[..., 0]) if self.u is None else self.u
        v = torch.zeros_like(self.C[..., 0, :]) if self.v is None else self.v
        # Offsets stay, and the costs of the added points take them back.
        C = torch.cat([torch.cat([self.C, -u[..., None]], -1), with_zero(-v)[..., None, :]], -2)
        return Matrix(C) if self.u is None and self.v is None else Matrix(C, with_zero(u), with_zero(v))

    def sizes(self) -> Tensor:
        # Infinity forbids a pair and is no cost.
        values = self.C.detach().abs()
        return values.where(values < torch.inf, 0.0).amax((-2, -1))

    def near_zero(self, scale: Scale) -> "Matrix":
        low = self.C.detach().amin((-2, -1))
        if self.u is not None or not bool((low.abs() > 64 * scale).any()):
            return self
        return Matrix(self.C - low[..., None, None], low[..., None].expand(self.C.shape[:-1]))

    def without(self, rows: Tensor, columns: Tensor) -> "Matrix":
        return Matrix(self.C.masked_fill(rows[..., :, None] | columns[..., None, :], 0.0), self.u, self.v)

    def pullback(
        self, plan: Plan, left: Tensor, right: Tensor, needs: Sequence[bool], *, offsets: bool = True
    ) -> Gradients:
        if not any(needs):
            return (None,)
        out = torch.empty_like(self.C)
        for rows, block in plan.blocks(left, right):
            out[..., rows, :] = block
        return (out,)

    def linked_pullback(self, plan: LinkedPlan, leaves: Sequence[Tensor], grad: Tensor) -> Gradients:
        return (grad[..., None, None] * plan.entries(leaves[0]),)
