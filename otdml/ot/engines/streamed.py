"""Soft minima and plan products in blocks of rows: memory linear in the number of points."""

from collections.abc import Callable

import torch
from torch import Tensor

from otdml.ot.engines.base import Engine, RowUpdate, exponential

__all__ = ["Streamed"]


class Streamed(Engine):
    """Everything is evaluated anew in blocks of rows, and an iteration evaluates the cost once."""

    @property
    def mT(self) -> "Streamed":
        return Streamed(self.cost.mT, self._transposed_mask())

    def sweep(self, h: Tensor, log: Tensor, update: RowUpdate) -> tuple[Tensor, Tensor]:
        if bool(h.isneginf().any()):
            # A column without mass has a soft minimum, too, which cannot be computed from ``h``.
            return super().sweep(h, log, update)
        f, sums = torch.empty_like(log), torch.zeros_like(h)
        for rows, scores in self.score_blocks(h):
            top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(h.dtype).min)
            powers = exponential(scores.sub_(top))
            f[..., rows] = update(powers.sum(-1).log_().add_(top[..., 0]).neg_(), rows)
            masses = (f[..., rows] + log[..., rows]).add_(top[..., 0]).exp_()
            sums += (masses[..., None, :] @ powers)[..., 0, :]
        # In single precision a column that is far below its rows' largest entries has lost them to underflow.
        safe = (sums > torch.finfo(h.dtype).tiny ** 0.5) & sums.isfinite()
        return (f, h - sums.log_()) if bool(safe.all()) else (f, self.column_softmin(f + log))

    def plan_products(self, hf: Tensor, hg: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        by_row, by_column = v.new_empty(*self.shape[:-1], v.shape[-1]), w.new_zeros(*hg.shape, w.shape[-1])
        for rows, plan in self.plan_blocks(hf, hg):
            by_row[..., rows, :] = plan @ v
            by_column += plan.mT @ w[..., rows, :]
        return by_row, by_column

    def gram(self, hf: Tensor, hg: Tensor) -> Callable[[Tensor], Tensor]:
        def product(v: Tensor) -> Tensor:
            out = torch.zeros_like(v)[..., None]
            for _, plan in self.plan_blocks(hf, hg):
                out += plan.mT @ (plan @ v[..., None])
            return out[..., 0]

        return product
