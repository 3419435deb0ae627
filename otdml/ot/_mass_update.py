"""The iteration of partial problems, which keeps the mass that moves."""

import dataclasses

import torch
from torch import Tensor

from otdml.ot._updates import Alternating, Step
from otdml.ot.engines import Engine

__all__ = ["MassKeeping"]

# The factor by which the mass that moves may be off before it is set right.
FAR = 2.0


class MassKeeping(Alternating):
    r"""Sinkhorn's iteration of an extended problem, with the mass that moves set right where it is far off.

    Where next to nothing moves all marginals are nearly met, by points that stay, and an iteration changes the
    potential between moving and staying by no more than the share that is to move. An extrapolation that leads there
    would not find back. So the dual is maximised along that potential: all entries of the plan but those of the added
    points, which are the last row and the last column, are multiplied by what makes their sum the mass.
    """

    def step(self, g: Tensor, times: int) -> Step:
        step = super().step(g, times)
        rows, columns, new = self.rows, self.columns, step.new[-1]
        mass = rows.weights[..., :-1].sum(-1) - columns.weights[..., -1]
        stays = (columns.weights[..., :-1] * (step.f[..., -1:] + new[..., :-1]).exp()).sum(-1) * rows.weights[..., -1]
        moves = columns.weights[..., :-1].sum(-1) - stays
        # What is not a number is not far: it is for the loop to give up.
        far = (moves <= mass / FAR) | (moves >= mass * FAR)
        # On a device the question would cost more than the answer.
        if not (g.is_cuda or bool(far.any())):
            return step
        shift = torch.where(far, mass.log() - self._log_moved(step.f, new), 0.0)[..., None]
        f = torch.cat((step.f[..., :-1], step.f[..., -1:] - shift), -1)
        new = torch.cat((new[..., :-1] + shift, new[..., -1:]), -1)
        if not g.is_cuda:
            self.softmin.prepare(new)
        return dataclasses.replace(step, f=f, new=torch.cat((step.new[:-1], new[None])))

    def _log_moved(self, f: Tensor, g: Tensor) -> Tensor:
        """The logarithm of the mass that moves, shape (...)."""
        h = g + self.columns.log
        h = torch.cat((h[..., :-1], torch.full_like(h[..., -1:], -torch.inf)), -1)
        # Evaluated anew: a kernel that is kept has no entry of a plan that moves next to nothing.
        assert isinstance(self.softmin, Engine)
        softmin = Engine.row_softmin(self.softmin, h)
        return (self.rows.log + f - softmin)[..., :-1].logsumexp(-1)
