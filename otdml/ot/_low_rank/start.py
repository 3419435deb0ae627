"""Where the descent starts: hubs at the means of clusters of the second cloud, to which the first is transported.

Of the plans through these clusters that is the best one, and as many hubs as points make it an optimal plan.
"""

import math

import torch
from torch import Tensor

from otdml.ot._low_rank.descent import Point, State
from otdml.ot._low_rank.hubs import Side
from otdml.ot._low_rank.newton import Local, minimum

__all__ = ["start"]

# Steps of Lloyd; the least mass of a hub, in units of the mean one.
STEPS, LEAST = 10, 1e-3
# The highest temperature at which hubs are fed, for points of root mean square one, and the factor to the next one.
HIGHEST, COOLING = 0.5, 0.25
# The error of the hubs' masses.
TOL = 1e-2
GOLDEN = (math.sqrt(5) - 1) / 2


@torch.no_grad()
def start(x: Side, y: Side, rank: int, eps: Tensor) -> Point:
    """The point to start from at the temperature ``eps``, shape (...)."""
    centres, masses = _clusters(y, rank)
    masses = masses.clamp(min=LEAST / rank)
    masses = masses / masses.sum(-1, keepdim=True)
    s = _fed(x, centres, masses, eps)
    directions = centres / eps[..., None, None]
    means = x.shares(x.scores(directions), s).means
    t = _fed(y, means, masses, eps)
    return Point.of(State(directions, means / eps[..., None, None], s, t, masses.log()), x, y, eps)


def _fed(side: Side, centres: Tensor, masses: Tensor, eps: Tensor) -> Tensor:
    """The offsets at which hubs with these centres have these masses, by way of higher temperatures."""
    products = side.scores(centres)
    temperature = eps.clamp(min=HIGHEST)
    offsets = masses.log()
    while True:
        scores = products / temperature[..., None, None]

        def function(s: Tensor, scores: Tensor = scores) -> Local:
            found = side.shares(scores, s)
            return Local(found.log_mass - (masses * s).sum(-1), found.masses - masses, found.curvature)

        offsets = minimum(function, offsets, TOL)
        if bool((temperature <= eps).all()):
            return offsets
        lower = torch.maximum(eps, COOLING * temperature)
        offsets, temperature = offsets * (temperature / lower)[..., None], lower


def _clusters(side: Side, rank: int) -> tuple[Tensor, Tensor]:
    """Means and masses of a clustering by Lloyd's iteration, shapes (..., r, d) and (..., r)."""
    x, w = side.points, side.weights
    centres = _spread(side, rank)
    masses = torch.zeros_like(centres[..., 0])
    for _ in range(STEPS):
        near = (x @ centres.mT - 0.5 * centres.square().sum(-1)[..., None, :]).argmax(-1)
        masses = torch.zeros_like(masses).scatter_add_(-1, near, w)
        sums = torch.zeros_like(centres).scatter_add_(-2, near[..., None].expand_as(x), w[..., None] * x)
        full = masses > 0
        centres = torch.where(full[..., None], sums / torch.where(full, masses, 1)[..., None], centres)
    return centres, masses


def _spread(side: Side, rank: int) -> Tensor:
    """Points that are drawn with the weights of their squared distance to those drawn before, shape (..., r, d).

    As in k-means++ :cite:p:`arthur:07`, with multiples of the golden ratio for random numbers, and in the order of the
    widest coordinate: so neither chance nor the order of the points has a part in it.
    """
    x, w = side.points, side.weights
    widest = (w[..., None] * x.square()).sum(-2).argmax(-1)[..., None, None]
    order = x.take_along_dim(widest, -1)[..., 0].argsort(dim=-1, stable=True)
    x, w = x.take_along_dim(order[..., None], -2), w.take_along_dim(order, -1)
    near, found = torch.ones_like(w), []
    for k in range(rank):
        levels = (w * near).cumsum(-1)
        level = levels[..., -1:] * (GOLDEN * (k + 1) % 1)
        index = torch.searchsorted(levels.contiguous(), level).clamp(max=x.shape[-2] - 1)
        found.append(x.take_along_dim(index[..., None], -2))
        distance = (x - found[-1]).square().sum(-1)
        near = distance if k == 0 else torch.minimum(near, distance)
    return torch.cat(found, -2)
