r"""Mirror descent on couplings of low rank.

With factors q and k of the cost, of which only :math:`-\langle q_i, k_j \rangle` matters to the plan, the objective is

.. math::
    -\sum_k g_k \langle \mu_k, \nu_k \rangle + \varepsilon \left( \mathrm{KL}(Q \,|\, a \otimes \tfrac1r)
    + \mathrm{KL}(R \,|\, b \otimes \tfrac1r) + \mathrm{KL}(g \,|\, \tfrac1r) \right)

with the means :math:`\mu` and :math:`\nu` of the points of each hub. A step minimises its linearisation at the present
factors, plus :math:`\varepsilon (1 - \theta) / \theta` times the divergence from them, over all
factors with :math:`Q 1 = a`, :math:`R 1 = b` and :math:`Q^\top 1 = R^\top 1 = g` :cite:p:`scetbon:21`. Its solution is

.. math::
    Q \propto a \exp(\langle q, N \rangle + s), \quad R \propto b \exp(\langle k, M \rangle + t), \quad
    \log g = (1 - \theta) \log g^- + \theta (-\log r - \langle \mu, \nu \rangle / \varepsilon)
    + (1 - \theta) (s^- + t^-) - s - t

where :math:`N = (1 - \theta) N^- + \theta \nu / \varepsilon`, :math:`M` likewise, and the offsets s and t are the
minimum of a convex function of 2r variables, found by Newton's method. So the size of a state depends on the number of
hubs alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from otdml.ot._low_rank.hubs import Cloud, Shares
from otdml.ot._low_rank.newton import Expansion, minimum

__all__ = ["Iterate", "State", "descend"]

SharesOfOffsets = Callable[[Tensor], Shares]

# The factor of the step length after a step that succeeds, the factor after one that does not, and the shortest step.
GROWTH, SHRINKAGE, SHORTEST = 1.3, 0.5, 1e-3
# The error of the hubs' masses after a step, in units of the tolerance.
INNER = 3e-2
# The error of the hubs' masses, whose sum is one, from which on a step is not taken however short it is.
LARGEST = 1.0


@dataclass(frozen=True)
class State:
    """What determines the shares: directions (..., r, d) and offsets (..., r) of both clouds, log masses (..., r)."""

    left: Tensor
    right: Tensor
    s: Tensor
    t: Tensor
    log_g: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.left, self.right, self.s, self.t, self.log_g

    def where(self, accepted: Tensor, other: "State") -> "State":
        """This state where ``accepted``, shape (...), is true, and the other one elsewhere."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        return State(*(p.where(accepted[(..., *(None,) * (p.ndim - accepted.ndim))], q) for p, q in pairs))


@dataclass(frozen=True)
class Iterate:
    """A state with the shares that it determines.

    Attributes:
        state: The state.
        q: Shares of the first cloud.
        r: Shares of the second cloud.
        eps: Temperature, shape (...).
    """

    state: State
    q: Shares
    r: Shares
    eps: Tensor

    @classmethod
    def of(cls, state: State, x: Cloud, y: Cloud, eps: Tensor) -> "Iterate":
        """The iterate of a state."""
        q, r = x.shares(x.scores(state.left), state.s), y.shares(y.scores(state.right), state.t)
        return cls(state, q, r, eps)

    def at(self, state: State) -> "Iterate":
        """The iterate of another state."""
        return Iterate.of(state, self.q.cloud, self.r.cloud, self.eps)

    @cached_property
    def means(self) -> tuple[Tensor, Tensor]:
        """The means of the hubs' points in both clouds, shape (..., r, d) each."""
        return self.q.means, self.r.means

    @property
    def divergence(self) -> Tensor:
        """The sum of the three divergences, shape (...)."""
        state, log_rank = self.state, math.log(self.state.s.shape[-1])
        found = 3 * log_rank + (state.log_g.exp() * state.log_g).sum(-1)
        for shares, directions, offsets in ((self.q, state.left, state.s), (self.r, state.right, state.t)):
            found = found + (shares.sums * directions).sum((-2, -1)) + (shares.masses * offsets).sum(-1)
            found = found - shares.log_mass
        return found

    @property
    def objective(self) -> Tensor:
        """The objective, shape (...)."""
        mu, nu = self.means
        return -(self.state.log_g.exp() * (mu * nu).sum(-1)).sum(-1) + self.eps * self.divergence

    @property
    def mismatch(self) -> Tensor:
        """L1 distances of the hubs' masses on both sides from g, shape (...)."""
        g = self.state.log_g.exp()
        return (self.q.masses - g).abs().sum(-1) + (self.r.masses - g).abs().sum(-1)

    @property
    def error(self) -> Tensor:
        """The larger of the mismatch and the mean distance of means from directions times ``eps``, shape (...)."""
        (mu, nu), eps = self.means, self.eps[..., None, None]
        left = self.r.masses * (nu - eps * self.state.left).square().sum(-1)
        right = self.q.masses * (mu - eps * self.state.right).square().sum(-1)
        return torch.maximum((0.5 * (left + right).sum(-1)).sqrt(), self.mismatch)


@torch.no_grad()
def descend(here: Iterate, *, tol: float, max_iter: int) -> tuple[Iterate, int]:
    """The last iterate, and the number of steps."""
    length, n = torch.ones_like(here.eps), 0
    rounding = torch.finfo(length.dtype).eps
    # At the start the masses of hubs differ on the two sides, so the first step is not compared with its objective.
    level = torch.full_like(length, torch.inf)
    for n in range(1, max_iter + 1):  # noqa: B007 -- it is returned
        there = _stepped(here, length, max(INNER * tol, 8 * rounding))
        value = there.objective
        # The objective is known up to the mismatch of the masses, so a rise within that counts as none.
        mismatch = there.mismatch
        noise = 64 * rounding * (1 + value.abs()) + here.mismatch.where(level.isfinite(), 0.0) + mismatch
        lower = value <= level + noise
        better = (lower & (mismatch <= tol)) | ((length <= SHORTEST) & (mismatch < LARGEST))
        moved = better & ~((here.error <= tol) & level.isfinite())
        length = torch.where(better, (GROWTH * length).clamp(max=1), SHRINKAGE * length)
        level = torch.where(moved, value, level)
        here = there if bool(moved.all()) else here.at(there.state.where(moved, here.state))
        if bool((here.error <= tol).all()):
            break
    return here, n


def _stepped(here: Iterate, length: Tensor, tol: float) -> Iterate:
    """The iterate after a mirror step of these lengths, shape (...)."""
    old, x, y, (mu, nu) = here.state, here.q.cloud, here.r.cloud, here.means
    theta, rank = length[..., None], old.s.shape[-1]
    unit = theta[..., None] / here.eps[..., None, None]
    eps = here.eps[..., None, None]
    left, right = old.left + unit * (nu - eps * old.left), old.right + unit * (mu - eps * old.right)
    slope = -math.log(rank) - (mu * nu).sum(-1) / here.eps[..., None]
    level = (1 - theta) * (old.log_g + old.s + old.t) + theta * slope
    # With these offsets the masses of hubs stay the same, to first order, where their means do.
    s, t = old.s - (mu * (left - old.left)).sum(-1), old.t - (nu * (right - old.right)).sum(-1)
    # A constant in the offsets changes no share of a point, and brings the hubs' mass to one, near which Newton's
    # method begins well: a long step may leave it many orders of magnitude away.
    s = s + torch.logsumexp(level - s - t, -1, keepdim=True)
    shares = partial(x.shares, x.scores(left)), partial(y.shares, y.scores(right))
    s, t = _balanced(*shares, level, torch.cat([s, t], -1), tol)
    return here.at(State(left, right, s, t, level - s - t))


def _balanced(
    of_x: SharesOfOffsets, of_y: SharesOfOffsets, level: Tensor, offsets: Tensor, tol: float
) -> tuple[Tensor, Tensor]:
    """The offsets s and t at which hubs have the same masses on both sides, with logarithms level - s - t.

    Args:
        of_x: Shares of the first cloud, given s.
        of_y: Shares of the second cloud, given t.
        level: Shape (..., r).
        offsets: s and t to start from, shape (..., 2 r).
        tol: Error of the masses.
    """

    def function(z: Tensor) -> Expansion:
        s, t = z.chunk(2, -1)
        q, r, g = of_x(s), of_y(t), (level - s - t).exp()

        def curvature() -> Tensor:
            shared = torch.diag_embed(g)
            rows = torch.cat([q.curvature() + shared, shared], -1), torch.cat([shared, r.curvature() + shared], -1)
            return torch.cat(rows, -2)

        gradient = torch.cat([q.masses - g, r.masses - g], -1)
        return Expansion(q.log_mass + r.log_mass + g.sum(-1), gradient, curvature)

    s, t = minimum(function, offsets, tol).chunk(2, -1)
    return s, t
