r"""The cost between features, the linear part of a fused Gromov problem.

It is kept as :math:`M_{ij} = u_i + v_j - \langle q_i, k_j \rangle` where it is bilinear, so that no matrix of n × m
entries is needed, and as :math:`M_{ij} = u_i + v_j + R_{ij}` with the matrix R otherwise.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otdml._checks import argument_error, check_batches, check_choice, check_points
from otdml.costs import COSTS, Cost, cost_matrix, ground
from otdml.measures import expand

__all__ = ["FeatureCost", "between_features", "check_between", "check_features", "check_pair", "given_between"]


@dataclass(frozen=True)
class FeatureCost:
    """A cost between two weighted sets of features.

    Attributes:
        u: Row offsets, shape (..., n).
        v: Column offsets, shape (..., m).
        factors: q and k, shapes (..., n, e) and (..., m, e), or None where only the matrix is kept.
        R: The matrix without the offsets, shape (..., n, m), or None where the factors are kept.
    """

    u: Tensor
    v: Tensor
    factors: tuple[Tensor, Tensor] | None
    R: Tensor | None = None

    @cached_property
    def matrix(self) -> Tensor:
        """The cost without its offsets, shape (..., n, m)."""
        if self.factors is not None:
            return -self.factors[0] @ self.factors[1].mT
        assert self.R is not None
        return self.R

    @property
    def diagonal(self) -> Tensor:
        """The entries of the matrix at pairs of equal indices, shape (..., n)."""
        if self.factors is None:
            return self.matrix.diagonal(dim1=-2, dim2=-1)
        return -(self.factors[0] * self.factors[1]).sum(-1)

    def detach(self) -> "FeatureCost":
        factors = None if self.factors is None else (self.factors[0].detach(), self.factors[1].detach())
        return FeatureCost(self.u.detach(), self.v.detach(), factors, None if self.R is None else self.R.detach())

    def offsets(self, p: Tensor, q: Tensor) -> Tensor:
        """What the offsets contribute to the cost of a plan of these marginals, shape (...)."""
        return (p * self.u).sum(-1) + (q * self.v).sum(-1)

    def size(self, a: Tensor, b: Tensor) -> Tensor:
        """Root mean square of the cost, centred in rows and columns, shape (...)."""
        p, r = (w / w.sum(-1, keepdim=True) for w in (a, b))
        if self.factors is None:
            R = self.matrix
            rows, columns = (R @ r[..., None])[..., 0], (p[..., None, :] @ R)[..., 0, :]
            centred = R - rows[..., None] - (columns - (p * rows).sum(-1, keepdim=True))[..., None, :]
            return (p * (centred.square() @ r[..., None])[..., 0]).sum(-1).sqrt()
        grams = []
        for factor, w in zip(self.factors, (p, r), strict=True):
            z = factor - w[..., None, :] @ factor
            grams.append(z.mT @ (w[..., None] * z))
        return (grams[0] * grams[1]).sum((-2, -1)).clamp(min=0).sqrt()


def between_features(u: Tensor, v: Tensor, cost: Cost, factor: float, dtype: torch.dtype) -> FeatureCost:
    """``factor`` times the cost between two sets of features, shapes (..., n, d) and (..., m, d), in a dtype."""
    if isinstance(cost, str) and COSTS[check_choice("cost_features", cost, COSTS)].products is not None:
        q, k, row, column = ground(u.to(dtype), v.to(dtype), cost).leaves
        return FeatureCost(factor * row, factor * column, (factor * q, k))
    return given_between(cost_matrix(u, v, cost).to(dtype), factor)


def given_between(M: Tensor, factor: float) -> FeatureCost:
    """``factor`` times a given matrix of costs, shape (..., n, m)."""
    if not bool(M.detach().isfinite().all()):
        raise argument_error("features", "give finite costs", "NaN or infinity")
    # Costs near zero keep their digits.
    low = factor * M.detach().amin(-1)
    return FeatureCost(low, torch.zeros_like(M[..., 0, :]), None, factor * M - low[..., None])


def check_pair(features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The features, if they are two."""
    if not isinstance(features, (tuple, list)) or len(features) != 2:
        must = "be a pair of tensors of shapes (..., n, k) and (..., m, k)"
        raise argument_error("features", must, type(features).__name__)
    return features[0], features[1]


def check_features(
    features: tuple[Tensor, Tensor] | None, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The features of both clouds, with the batch dimensions of the points, if they have one row per point."""
    if features is None:
        return None, None
    features, found = check_pair(features), []
    for i, (feature, points) in enumerate(zip(features, (x, y), strict=True)):
        name = f"features[{i}]"
        check_points(name, feature)
        if feature.shape[-2] != points.shape[-2] or feature.shape[-1] != features[0].shape[-1]:
            must = f"have shape (..., {points.shape[-2]}, {features[0].shape[-1]}), one row per point"
            raise argument_error(name, must, tuple(feature.shape))
        found.append(_expanded(name, feature, points.shape[:-2]))
    return found[0], found[1]


def check_between(M: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A matrix of costs between features, shape (..., n, m), with the batch dimensions of the weights."""
    n, m = a.shape[-1], b.shape[-1]
    if not isinstance(M, Tensor) or not M.is_floating_point() or M.shape[-2:] != (n, m):
        got = tuple(M.shape) if isinstance(M, Tensor) else type(M).__name__
        raise argument_error("features", f"be a floating-point tensor of shape (..., {n}, {m})", got)
    return _expanded("features", M, a.shape[:-1]).to(a.dtype)


def _expanded(name: str, t: Tensor, batch: torch.Size) -> Tensor:
    if check_batches(x=batch, **{name: t.shape[:-2]}) != batch:
        raise argument_error(name, f"have the batch dimensions of the points, {tuple(batch)}, or none", tuple(t.shape))
    return expand(t, batch, 2)
