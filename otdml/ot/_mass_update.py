"""The iteration of partial problems, with the transported mass corrected where it is far off."""

import dataclasses

import torch
from torch import Tensor

from otdml.ot._updates import Alternating, Step
from otdml.ot.engines import Engine

__all__ = ["MassKeeping"]

# The factor by which the transported mass may be off before it is corrected.
FAR = 2.0


class MassKeeping(Alternating):
    r"""Sinkhorn's iteration of an extended problem, with the transported mass corrected where it is far off.

    A plan that transports next to nothing nearly has the right marginals, as the added points take the rest, and each
    iteration changes the transported mass little. An extrapolation that leads there is not recovered from in reasonable
    time. So the dual is maximised in one more direction: all entries of the plan but those of the added points, the
    last row and the last column, are multiplied by the factor that makes their sum the mass.
    """

    def step(self, g: Tensor, times: int, tol: float = 0.0) -> Step:
        step = super().step(g, times, tol)
        rows, columns, new = self.rows, self.columns, step.new[-1]
        mass = rows.weights[..., :-1].sum(-1) - columns.weights[..., -1]
        stays = (columns.weights[..., :-1] * (step.f[..., -1:] + new[..., :-1]).exp()).sum(-1) * rows.weights[..., -1]
        moves = columns.weights[..., :-1].sum(-1) - stays
        # Comparisons with NaN are false, so an iteration that is not finite is left to the loop.
        far = (moves <= mass / FAR) | (moves >= mass * FAR)
        # On a GPU, to read this forces a synchronisation, which takes longer than the correction.
        if not (g.is_cuda or bool(far.any())):
            return step
        shift = torch.where(far, mass.log() - self._log_moved(step.f, new), 0.0)[..., None]
        f = torch.cat((step.f[..., :-1], step.f[..., -1:] - shift), -1)
        new = torch.cat((new[..., :-1] + shift, new[..., -1:]), -1)
        # A kernel that had to be given up stays so: made anew and given up again, it would keep a batch where it is.
        if self.softmin.has_kernel and not g.is_cuda:
            self.softmin.prepare(new)
        return dataclasses.replace(step, f=f, new=torch.cat((step.new[:-1], new[None])))

    def _log_moved(self, f: Tensor, g: Tensor) -> Tensor:
        """The logarithm of the transported mass, shape (...)."""
        h = g + self.columns.log
        h = torch.cat((h[..., :-1], torch.full_like(h[..., -1:], -torch.inf)), -1)
        # Without the stored kernel, in which entries of so small a plan are zero.
        assert isinstance(self.softmin, Engine)
        softmin = Engine.row_softmin(self.softmin, h)
        return (self.rows.log + f - softmin)[..., :-1].logsumexp(-1)
