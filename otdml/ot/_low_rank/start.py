"""Where the descent starts: hubs at the means of clusters of the second cloud, to which the first is transported.

This is the best plan through these clusters. With as many hubs as points it is an optimal plan.
"""

import math

import torch
from torch import Tensor

from otdml.ot._low_rank.descent import Iterate, State
from otdml.ot._low_rank.hubs import Cloud
from otdml.ot._low_rank.newton import Expansion, minimum

__all__ = ["start"]

# Steps of Lloyd's iteration; the least mass of a hub, in units of the mean one.
STEPS, LEAST = 10, 1e-3
# The highest temperature at which offsets are computed, for points of root mean square one, and the factor to the next.
HIGHEST, COOLING = 0.5, 0.25
# The error of the hubs' masses.
TOL = 1e-2
GOLDEN = (math.sqrt(5) - 1) / 2


@torch.no_grad()
def start(x: Cloud, y: Cloud, rank: int, eps: Tensor) -> Iterate:
    """The point to start from at the temperature ``eps``, shape (...)."""
    centres, masses = _clusters(y, rank)
    masses = masses.clamp(min=LEAST / rank)
    masses = masses / masses.sum(-1, keepdim=True)
    s = _offsets(x, centres, masses, eps)
    directions = centres / eps[..., None, None]
    means = x.shares(x.scores(directions), s).means
    t = _offsets(y, means, masses, eps)
    return Iterate.of(State(directions, means / eps[..., None, None], s, t, masses.log()), x, y, eps)


def _offsets(cloud: Cloud, centres: Tensor, masses: Tensor, eps: Tensor) -> Tensor:
    """The offsets at which hubs with these centres have these masses, computed at falling temperatures."""
    products = cloud.scores(centres)
    temperature = eps.clamp(min=HIGHEST)
    offsets = masses.log()
    while True:
        scores = products / temperature[..., None, None]

        def function(s: Tensor, scores: Tensor = scores) -> Expansion:
            found = cloud.shares(scores, s)
            return Expansion(found.log_mass - (masses * s).sum(-1), found.masses - masses, found.curvature)

        offsets = minimum(function, offsets, TOL)
        if bool((temperature <= eps).all()):
            return offsets
        lower = torch.maximum(eps, COOLING * temperature)
        offsets, temperature = offsets * (temperature / lower)[..., None], lower


def _clusters(cloud: Cloud, rank: int) -> tuple[Tensor, Tensor]:
    """Means and masses of a clustering by Lloyd's iteration, shapes (..., r, d) and (..., r)."""
    x, w = cloud.points, cloud.weights
    centres = _seeds(cloud, rank)
    masses = torch.zeros_like(centres[..., 0])
    for _ in range(STEPS):
        near = (x @ centres.mT - 0.5 * centres.square().sum(-1)[..., None, :]).argmax(-1)
        masses = torch.zeros_like(masses).scatter_add_(-1, near, w)
        sums = torch.zeros_like(centres).scatter_add_(-2, near[..., None].expand_as(x), w[..., None] * x)
        full = masses > 0
        centres = torch.where(full[..., None], sums / torch.where(full, masses, 1)[..., None], centres)
    return centres, masses


def _seeds(cloud: Cloud, rank: int) -> Tensor:
    """Points drawn in proportion to their squared distance from the nearest one drawn before, shape (..., r, d).

    As in k-means++ :cite:p:`arthur:07`, with multiples of the golden ratio in place of random numbers, and with points
    in the order of the coordinate of largest variance, so that the result depends neither on chance nor on the order
    in which points are given.
    """
    x, w = cloud.points, cloud.weights
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
