r"""Costs between the points of one cloud, in the centred form that Gromov problems read.

Gromov problems compare :math:`A_{ik} = c(x_i, x_k)` with :math:`B_{jl} = c'(y_j, y_l)` and never see a pair (x, y).
Every symmetric cost splits into

.. math:: A_{ik} = \bar A + \alpha_i + \alpha_k + K_{ik}, \qquad \sum_i a_i \alpha_i = 0, \quad \sum_i a_i K_{ik} = 0

and so do all formulas: over couplings of given marginals, the mixed terms between the parts vanish. For the bilinear
costs :math:`K = \sigma Z Z^\top` with centred features Z, which no matrix of n² entries is needed for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice
from otdml.costs import COSTS, cost_matrix

__all__ = ["Intrinsic", "IntrinsicCost", "ScaledCostLike", "intrinsic", "intrinsic_block"]


@runtime_checkable
class ScaledCostLike(Protocol):
    """A positive multiple ``scale`` of the named cost ``cost``; the scale may carry a gradient."""

    cost: str

    @property
    def scale(self) -> Tensor: ...


IntrinsicCost = str | ScaledCostLike | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Intrinsic:
    r"""A centred symmetric cost :math:`A_{ik} = \bar A + \alpha_i + \alpha_k + K_{ik}` within one weighted cloud.

    Attributes:
        mean: The mean cost :math:`\bar A`, shape (...).
        alpha: Centred mean costs of the points, shape (..., n).
        z: Centred features with :math:`K = \sigma Z Z^\top`, shape (..., n, e), or None where only K is kept.
        sigma: The factor of that product, shape (..., 1, 1) or ().
        matrix: The centred matrix, shape (..., n, n), or None where the features are smaller.
    """

    mean: Tensor
    alpha: Tensor
    z: Tensor | None
    sigma: Tensor
    matrix: Tensor | None

    def times(self, v: Tensor) -> Tensor:
        """The product K v, shape (..., n, e) for v of that shape."""
        if self.matrix is not None:
            return self.matrix @ v
        assert self.z is not None
        return self.sigma * (self.z @ (self.z.mT @ v))

    def energies(self, a: Tensor) -> Tensor:
        r""":math:`\sum_k a_k K_{ik}^2`, shape (..., n)."""
        if self.matrix is not None:
            return (self.matrix.square() @ a[..., None])[..., 0]
        assert self.z is not None
        return (self.sigma * (self.z @ (self.z.mT @ (a[..., None] * self.z))) * self.sigma * self.z).sum(-1)

    def size(self, a: Tensor) -> Tensor:
        """Root mean square of K, shape (...)."""
        return (a * self.energies(a)).sum(-1).clamp(min=0).sqrt() / a.sum(-1)

    def detach(self) -> "Intrinsic":
        z, matrix = (t if t is None else t.detach() for t in (self.z, self.matrix))
        return Intrinsic(self.mean.detach(), self.alpha.detach(), z, self.sigma.detach(), matrix)


def intrinsic(name: str, x: Tensor, a: Tensor, cost: IntrinsicCost) -> Intrinsic:
    """The cost within the cloud (x, a), centred in its weights; ``name`` is the argument that errors blame.

    Features are kept where they are fewer than the points, and the matrix otherwise: the smaller of the two.
    """
    scale = x.new_ones(())
    if isinstance(cost, ScaledCostLike):
        scale, cost = cost.scale.to(x), check_choice(name, cost.cost, COSTS)
    total = a.sum(-1, keepdim=True)
    if isinstance(cost, str) and check_choice(name, cost, COSTS) in _FEATURES:
        return _from_features(x, a / total, cost, scale)
    matrix = scale * intrinsic_block(name, x, x, cost)
    potential = (matrix @ (a / total)[..., None])[..., 0]
    mean = (potential * a / total).sum(-1)
    alpha = potential - mean[..., None]
    K = matrix - mean[..., None, None] - alpha[..., :, None] - alpha[..., None, :]
    return Intrinsic(mean, alpha, None, scale, K)


def intrinsic_block(name: str, rows: Tensor, x: Tensor, cost: IntrinsicCost) -> Tensor:
    """The costs between some ``rows`` of a cloud and all of its points ``x``, shape (..., rows, n)."""
    if isinstance(cost, ScaledCostLike):
        return cost.scale.to(x) * intrinsic_block(name, rows, x, cost.cost)
    if isinstance(cost, str):
        return cost_matrix(rows, x, check_choice(name, cost, COSTS))
    matrix = cost(rows, x)
    expected = (*rows.shape[:-1], x.shape[-2])
    if matrix.shape != expected:
        raise argument_error(name, f"return a matrix of shape {expected}", tuple(matrix.shape))
    return matrix


_FEATURES = {"sqeuclidean": -2.0, "cosine": -1.0, "inner": -1.0}


def _from_features(x: Tensor, p: Tensor, cost: str, scale: Tensor) -> Intrinsic:
    x = _unit(x) if cost == "cosine" else x
    centre = (p[..., None, :] @ x)[..., 0, :]
    z = x - centre[..., None, :]
    if cost == "sqeuclidean":
        square = z.square().sum(-1)
        half = (p * square).sum(-1)
        mean, alpha = 2 * half, square - half[..., None]
    else:
        mean = (1.0 if cost == "cosine" else 0.0) - centre.square().sum(-1)
        alpha = -(z @ centre[..., None])[..., 0]
    sigma = (scale * _FEATURES[cost])[..., None, None]
    n, e = z.shape[-2:]
    K = sigma * (z @ z.mT) if n <= e else None
    return Intrinsic(scale * mean, scale[..., None] * alpha, z if K is None else None, sigma, K)


def _unit(x: Tensor) -> Tensor:
    # A zero row stays zero and its slope finite; normalize() would divide it by 1e-12.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.where(norm > 0, 1.0)
