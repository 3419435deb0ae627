r"""Costs between the points of one cloud, in the centred form that Gromov problems read.

Gromov problems compare :math:`A_{ik} = c(x_i, x_k)` with :math:`B_{jl} = c'(y_j, y_l)` and never see a pair (x, y).
Every symmetric cost splits into

.. math:: A_{ik} = \bar A + \alpha_i + \alpha_k + K_{ik}, \qquad \sum_i a_i \alpha_i = 0, \quad \sum_i a_i K_{ik} = 0

and all formulas split likewise: between plans of given marginals, the mixed terms vanish. Bilinear costs have
:math:`K = \sigma Z Z^\top` with centred features Z, and need no matrix of n² entries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice
from otdml._cost_forms import GivenCost
from otdml._transforms import arguments_only
from otdml.costs import COSTS, cost_matrix
from otdml.sphere import length

__all__ = [
    "CentredCost",
    "ScaledCostLike",
    "WithinCost",
    "centred",
    "centred_matrix",
    "check_symmetric",
    "check_within",
    "cost_block",
    "scale_and_cost",
]


@runtime_checkable
class ScaledCostLike(Protocol):
    """A positive multiple ``scale`` of the named cost ``cost``; the scale may carry a gradient."""

    cost: str

    @property
    def scale(self) -> Tensor: ...


Function = Callable[[Tensor, Tensor], Tensor]
WithinCost = str | ScaledCostLike | Function


def check_within(name: str, cost: WithinCost) -> WithinCost:
    """``cost``, if it is one within a cloud, or the name of one."""
    return cost if isinstance(cost, ScaledCostLike) or callable(cost) else check_choice(name, cost, COSTS)


@dataclass(frozen=True)
class CentredCost:
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

    def size(self, a: Tensor, power: int = 1) -> Tensor:
        r"""The norm :math:`(\sum_k \lambda_k^{2 p})^{1 / 2 p}` of the eigenvalues of K as a kernel, shape (...).

        It is the root mean square of K at the power 1, and tends to the largest eigenvalue.
        """
        if self.matrix is None:
            assert self.z is not None
            gram = self.sigma * (self.z.mT @ (a[..., None] * self.z))
        else:
            root = a.sqrt()
            gram = root[..., None] * self.matrix * root[..., None, :]
        # In units of its largest entry, whose powers would overflow or vanish.
        top = gram.abs().amax((-2, -1))
        top = torch.where(top > 0, top, torch.ones_like(top))
        norm = torch.linalg.matrix_norm(torch.linalg.matrix_power(gram / top[..., None, None], power))
        return top * norm ** (1 / power) / a.sum(-1)

    def scaled(self, factor: float) -> "CentredCost":
        """``factor`` times the cost."""
        if factor == 1:
            return self
        matrix = None if self.matrix is None else factor * self.matrix
        return CentredCost(factor * self.mean, factor * self.alpha, self.z, factor * self.sigma, matrix)

    def detach(self) -> "CentredCost":
        z, matrix = (t if t is None else t.detach() for t in (self.z, self.matrix))
        return CentredCost(self.mean.detach(), self.alpha.detach(), z, self.sigma.detach(), matrix)


def centred(name: str, x: Tensor, a: Tensor, cost: WithinCost) -> CentredCost:
    """The cost within the cloud (x, a), centred in its weights, and in their dtype.

    Features are kept where they are fewer than the points, and the matrix otherwise: the smaller of the two.

    Args:
        name: The argument that errors name.
        x: Points, shape (..., n, d), in the dtype in which a function of them is called.
        a: Weights, shape (..., n).
        cost: The cost.
    """
    scale, cost = scale_and_cost(cost, a)
    total = a.sum(-1, keepdim=True)
    if isinstance(cost, str) and COSTS[check_choice(name, cost, COSTS)].products is not None:
        form = _from_features if x.shape[-2] > x.shape[-1] else _from_products
        return form(x.to(a.dtype), a / total, cost, scale)
    return centred_matrix(scale * cost_block(name, x, x, cost, a.dtype), a)


def scale_and_cost(cost: WithinCost, like: Tensor) -> tuple[Tensor, str | Function]:
    """The scale of a cost, in the dtype of ``like``, and the cost without it."""
    if not isinstance(cost, str) and isinstance(cost, ScaledCostLike):
        return _scale(cost).to(like), cost.cost
    return like.new_ones(()), cost


def _scale(cost: ScaledCostLike) -> Tensor:
    with arguments_only():
        # A scale that is a tensor, and not computed from one, is used here.
        return cost.scale.view_as(cost.scale)


def centred_matrix(matrix: Tensor, a: Tensor) -> CentredCost:
    """A symmetric matrix of costs, shape (..., n, n), centred in the weights a."""
    p = a / a.sum(-1, keepdim=True)
    potential = (matrix @ p[..., None])[..., 0]
    mean = (potential * p).sum(-1)
    alpha = potential - mean[..., None]
    K = matrix - mean[..., None, None] - alpha[..., :, None] - alpha[..., None, :]
    return CentredCost(mean, alpha, None, matrix.new_ones(()), K)


def check_symmetric(name: str, C: Tensor) -> Tensor:
    """A matrix of costs within one cloud, shape (..., n, n), if it is finite and symmetric but for rounding."""
    if C.shape[-1] != C.shape[-2]:
        raise argument_error(name, "have shape (..., n, n)", tuple(C.shape))
    found, size = C.detach(), C.detach().abs().amax((-2, -1), keepdim=True)
    if not bool(((found - found.mT).abs() <= 1e-4 * size).all()):
        remedy = "Pass (C + C.mT) / 2, or look for NaN and infinity, as between parts of a graph."
        raise argument_error(name, "be symmetric and finite", "a matrix that is not", remedy)
    return C


def cost_block(name: str, rows: Tensor, x: Tensor, cost: WithinCost, dtype: torch.dtype | None = None) -> Tensor:
    """The costs between some ``rows`` of a cloud and all of its points, shape (..., rows, n), in a dtype or theirs."""
    dtype = x.dtype if dtype is None else dtype
    if isinstance(cost, ScaledCostLike):
        return _scale(cost).to(x.device, dtype) * cost_block(name, rows, x, cost.cost, dtype)
    if isinstance(cost, str):
        return cost_matrix(rows.to(dtype), x.to(dtype), check_choice(name, cost, COSTS))
    return GivenCost(cost, x.dtype, name)(rows, x).to(dtype)


def _from_features(x: Tensor, p: Tensor, cost: str, scale: Tensor) -> CentredCost:
    x = x / length(x) if COSTS[cost].unit else x
    centre = (p[..., None, :] @ x)[..., 0, :]
    z = x - centre[..., None, :]
    if cost == "sqeuclidean":
        square = z.square().sum(-1)
        half = (p * square).sum(-1)
        mean, alpha = 2 * half, square - half[..., None]
    else:
        mean = (1.0 if cost == "cosine" else 0.0) - centre.square().sum(-1)
        alpha = -(z @ centre[..., None])[..., 0]
    return CentredCost(scale * mean, scale[..., None] * alpha, z, _sigma(cost, scale), None)


def _from_products(x: Tensor, p: Tensor, cost: str, scale: Tensor) -> CentredCost:
    """The same from scalar products, so that many features are read few times."""
    products = _Products.apply(x, COSTS[cost].unit)
    between, along, square = products[..., :-1, :-1], products[..., :-1, -1], products[..., -1, -1]
    potential = (between @ p[..., None])[..., 0]
    offset = (p * potential).sum(-1)[..., None]
    centred = between - potential[..., :, None] - (potential - offset)[..., None, :]
    if cost == "sqeuclidean":
        squares = centred.diagonal(dim1=-2, dim2=-1)
        half = (p * squares).sum(-1)
        mean, alpha = 2 * half, squares - half[..., None]
    else:
        shifted = potential + along
        shift = (p * shifted).sum(-1)
        mean = (1.0 if cost == "cosine" else 0.0) - shift - (p * along).sum(-1) - square
        alpha = shift[..., None] - shifted
    sigma = _sigma(cost, scale)
    return CentredCost(scale * mean, scale[..., None] * alpha, None, sigma, sigma * centred)


def _sigma(cost: str, scale: Tensor) -> Tensor:
    return scale[..., None, None] * (COSTS[cost].products or 0.0)


class _Products(torch.autograd.Function):
    r"""Scalar products of n points less their mean, and of the mean, which comes last; of unit vectors if ``unit``.

    Shape (..., n + 1, n + 1). The gradient is one product, of n x (n + 1) weights with the same rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: bool) -> Tensor:
        n, d = x.shape[-2:]
        rows = x.new_empty(*x.shape[:-2], n + 1, d)
        points, mean = rows[..., :-1, :], rows[..., -1:, :]
        norm = length(x) if unit else x.new_ones(())
        torch.div(x, norm, out=points)
        torch.mean(points, -2, keepdim=True, out=mean)
        points.sub_(mean)
        products = rows @ rows.mT
        ctx.unit = unit
        ctx.save_for_backward(rows, products, norm)
        return products

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, products, norm = ctx.saved_tensors
        weights = (grad + grad.mT)[..., :-1, :]
        if ctx.unit:
            # Along itself a point of unit length does not move.
            along = (weights * (products[..., :-1, :] + products[..., -1:, :])).sum(-1)
            weights.diagonal(dim1=-2, dim2=-1).sub_(along)
            weights[..., -1].sub_(along)
            weights.div_(norm)
        return weights @ rows, None
