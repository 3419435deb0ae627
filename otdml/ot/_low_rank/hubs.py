r"""How the mass of a cloud is divided among the hubs.

Point i sends :math:`Q_{ik} = a_i \, \mathrm{softmax}_k (\langle q_i, N_k \rangle + s_k)` to hub k. So the *directions*
N and the *offsets* s determine all shares; their size does not depend on the number of points.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Cloud", "Shares"]


@dataclass(frozen=True)
class Cloud:
    """A weighted point cloud, without graph.

    Attributes:
        points: Factors of the cost, centred and of root mean square one, shape (..., n, d).
        weights: Of mass one, shape (..., n).
    """

    points: Tensor
    weights: Tensor

    def scores(self, directions: Tensor) -> Tensor:
        """The products of the points with the directions (..., r, d), shape (..., n, r)."""
        return self.points @ directions.mT

    def shares(self, scores: Tensor, offsets: Tensor) -> "Shares":
        """The shares with these scores and offsets."""
        logits = scores + offsets[..., None, :]
        logs = logits.amax(-1, keepdim=True)
        # One exponential for the shares and for what they are divided by.
        conditional = logits.sub_(logs).exp_()
        sums = conditional.sum(-1, keepdim=True)
        return Shares(self, conditional.div_(sums), (logs + sums.log())[..., 0])


@dataclass(frozen=True)
class Shares:
    """The shares of the hubs in the mass of a cloud.

    Attributes:
        cloud: The cloud.
        conditional: The shares of the hubs in each point, shape (..., n, r), with rows of sum one.
        logs: Logarithms of the normalising sums of the softmax, shape (..., n).
    """

    cloud: Cloud
    conditional: Tensor
    logs: Tensor

    @cached_property
    def masses(self) -> Tensor:
        """The mass of each hub, shape (..., r)."""
        return (self.cloud.weights[..., None, :] @ self.conditional)[..., 0, :]

    @cached_property
    def sums(self) -> Tensor:
        """The sum of the points of each hub, shape (..., r, d)."""
        return self.conditional.mT @ (self.cloud.weights[..., None] * self.cloud.points)

    @property
    def means(self) -> Tensor:
        """The mean of the points of each hub, shape (..., r, d)."""
        return self.sums / self.masses.clamp(min=torch.finfo(self.masses.dtype).tiny)[..., None]

    @property
    def log_mass(self) -> Tensor:
        """The mean of the logarithms, shape (...): a convex function of the offsets, with gradient ``masses``."""
        return (self.cloud.weights * self.logs).sum(-1)

    def curvature(self) -> Tensor:
        """The second derivative of :attr:`log_mass` in the offsets, shape (..., r, r)."""
        products = self.conditional.mT @ (self.cloud.weights[..., None] * self.conditional)
        return torch.diag_embed(self.masses) - products
