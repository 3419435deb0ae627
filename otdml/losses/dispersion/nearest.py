"""Regularisers on each point's nearest neighbours."""

import torch
from torch import Tensor, nn

from otdml._checks import argument_error, check_integer, has_values
from otdml._precision import SINGLE_ONLY, full_precision, widest
from otdml.losses.dispersion.energy import check_several
from otdml.neighbors import nearest_neighbors
from otdml.sphere import angle, distinct_directions, unit

__all__ = [
    "KoLeo",
    "MaxCosine",
    "MaxMinAngle",
    "koleo",
    "max_cosine",
    "max_min_angle",
    "nearest_indices",
    "neighbor_pairs",
]

# Number of points up to which the matrix of cosines is cheaper than setting up a search.
_FEW = 1024
# Number of distances in memory where they are found from differences.
_BLOCK = 2**22
# Rounding units of a square below which it has no three digits.
_DIGITS = 1e3


@full_precision
def koleo(z: Tensor, *, k: int = 1) -> Tensor:
    r"""Negative mean logarithm of the distance to the k nearest neighbours, to be minimised.

    .. math:: -\frac{1}{n k} \sum_i \sum_{j \in \mathrm{NN}_k(i)} \log \lVert x_i - x_j \rVert, \qquad
        x_i = z_i / \lVert z_i \rVert

    The Kozachenko-Leonenko estimate of (minus) the entropy, up to scale and constants :cite:p:`sablayrolles:19`. Its
    force grows like the inverse of the nearest distance: it parts near points first. Averaging over k > 1 neighbours
    is less noisy. Differentiable where the neighbours are unique. Neighbours are found exactly, without gradient, by
    :func:`otdml.neighbors.nearest_neighbors`; cost n² d, memory n (d + k). On a minibatch neighbours are further apart
    than among all points: value and gradient are biased. Coincident rows are moved apart first as described at
    :func:`otdml.sphere.distinct_directions`.

    Args:
        z: Points, shape (..., n, d), d >= 2, of any length: their directions are what counts.
        k: Neighbours of each point, less than n.

    Returns:
        One value per batch element, shape (...), at least -log 2.

    Raises:
        ValueError: If there are not more than k points, or fewer than two coordinates.

    Example:
        >>> import torch
        >>> koleo(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))  # antipodes: -log 2
        tensor(-0.6931)
    """
    x, y = neighbor_pairs(z, k)
    return -torch.linalg.vector_norm(x - y, dim=-1).log().mean((-2, -1))


@full_precision
def max_min_angle(z: Tensor) -> Tensor:
    r"""Negative mean angle to the nearest neighbour in radians, to be minimised.

    .. math:: -\frac{1}{n} \sum_i \min_{j \ne i} \angle(z_i, z_j)

    Each point is pushed from its nearest with a force of length one :cite:p:`wang:21`, whatever the angle: unlike
    :func:`koleo` it does not favour near pairs, and unlike :func:`max_cosine` it does not forget them. Differentiable
    where the neighbours are unique. Cost, bias on minibatches and tie-break are those of :func:`koleo`.

    Args:
        z: Points, shape (..., n, d), d >= 2, of any length: their directions are what counts.

    Returns:
        One value per batch element, shape (...), in :math:`[-\pi, 0]`.

    Raises:
        ValueError: If there are fewer than two points or two coordinates.

    Example:
        >>> import torch
        >>> max_min_angle(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # a right angle
        tensor(-1.5708)
    """
    x, y = neighbor_pairs(z, 1)
    return -angle(x, y).mean((-2, -1))


@full_precision
def max_cosine(z: Tensor) -> Tensor:
    r"""Mean cosine to the nearest neighbour, to be minimised.

    .. math:: \frac{1}{n} \sum_i \max_{j \ne i} \cos \angle(z_i, z_j)

    Its force is the sine of the angle :cite:p:`mettes:19`: near points are hardly pushed, orthogonal ones most. So it
    suits points that are spread already, such as class prototypes, and not a collapsed embedding. Differentiable where
    the neighbours are unique. Cost, bias on minibatches and tie-break are those of :func:`koleo`.

    Args:
        z: Points, shape (..., n, d), d >= 2, of any length: their directions are what counts.

    Returns:
        One value per batch element, shape (...), in [-1, 1].

    Raises:
        ValueError: If there are fewer than two points or two coordinates.

    Example:
        >>> import torch
        >>> max_cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))  # half a right angle
        tensor(0.7071)
    """
    x, y = neighbor_pairs(z, 1)
    return (x * y).sum(-1).mean((-2, -1))


def neighbor_pairs(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The directions of z, shape (..., n, 1, d), and those of their k nearest neighbours, shape (..., n, k, d).

    Example:
        >>> import torch
        >>> neighbor_pairs(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]), 1)[1][0]
        tensor([[0., 1.]])
    """
    n = check_several(z).shape[-2]
    if check_integer("k", k) >= n:
        raise argument_error("k", f"be less than the number of points, {n}", k)
    x = distinct_directions(z)
    nearest = nearest_indices(x, k)
    # The gradient of index_select adds rows; that of indexing sorts them first.
    found = x.reshape(-1, x.shape[-1]).index_select(0, nearest.flatten())
    return x.unsqueeze(-2), found.view(*nearest.shape, x.shape[-1])


@torch.no_grad()
def nearest_indices(x: Tensor, k: int) -> Tensor:
    """The k nearest other rows of each row of x, as indices into ``x.reshape(-1, d)``, shape (..., n, k).

    Example:
        >>> import torch
        >>> nearest_indices(torch.eye(2).expand(2, 2, 2), 1).squeeze(-1)
        tensor([[1, 0],
                [3, 2]])
    """
    n, d = x.shape[-2:]
    if n <= _FEW:
        # What is traced cannot be looked at, and is compared in double precision.
        cosines, found = _most_similar(x if has_values(x) else _finest(x), k)
        if _coarse(cosines):
            finer = _finest(x)
            cosines, found = _most_similar(finer, k)
            found = _closest(finer, finer, torch.arange(n, device=x.device), k) if _coarse(cosines) else found
    else:
        found = torch.stack([_searched(cloud, k) for cloud in x.reshape(-1, n, d)]).view(*x.shape[:-1], k)
    return found + torch.arange(0, x.numel() // d, n, device=x.device).view(*x.shape[:-2], 1, 1)


def _searched(x: Tensor, k: int) -> Tensor:
    """The k nearest other rows of each row of one cloud, shape (n, k)."""
    # By distance: near one, cosines have no digits of the angle.
    squares, found = nearest_neighbors(x, x, k, metric="l2", exclude=torch.arange(len(x), device=x.device))
    # The search has squares of double precision, which lose angles of less than a ten-millionth.
    near = squares[:, 0] < 4 * _DIGITS * torch.finfo(widest(x.device)).eps
    if k == 1:
        # Nothing is nearer than a copy.
        near &= (x[found[:, 0]] != x).any(1)
    for rows in near.nonzero()[:, 0].split(max(1, _BLOCK // len(x))):
        found[rows] = _closest(x[rows], x, rows, k)
    return found


def _closest(x: Tensor, y: Tensor, own: Tensor, k: int) -> Tensor:
    """The k rows of y nearest to each row of x, but its own, by differences: to all digits, and slowly."""
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    distances.scatter_(-1, own[:, None].expand(*x.shape[:-1], 1), torch.inf)
    return distances.topk(k, dim=-1, largest=False).indices


def _most_similar(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosines of each direction with the others, and whose they are, shape (..., n, k)."""
    cosines = x @ x.mT
    cosines.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    found = cosines.max(-1, keepdim=True) if k == 1 else cosines.topk(k, dim=-1)
    return found.values, found.indices


def _finest(x: Tensor) -> Tensor:
    """The directions in the finest precision of their device."""
    finest = widest(x.device)
    return x if x.dtype == finest else unit(x.to(finest))


def _coarse(cosines: Tensor) -> bool:
    """Whether some are so near to one that their precision has no three digits of their difference from it."""
    if cosines.device.type in SINGLE_ONLY or not has_values(cosines):
        return False
    return cosines.numel() > 0 and float(cosines.amax()) > 1 - _DIGITS * torch.finfo(cosines.dtype).eps


class KoLeo(nn.Module):
    """Module form of :func:`koleo`."""

    def __init__(self, *, k: int = 1) -> None:
        super().__init__()
        self.k = check_integer("k", k)

    def extra_repr(self) -> str:
        return f"k={self.k}"

    def forward(self, z: Tensor) -> Tensor:
        return koleo(z, k=self.k)


class MaxMinAngle(nn.Module):
    """Module form of :func:`max_min_angle`."""

    def forward(self, z: Tensor) -> Tensor:
        return max_min_angle(z)


class MaxCosine(nn.Module):
    """Module form of :func:`max_cosine`."""

    def forward(self, z: Tensor) -> Tensor:
        return max_cosine(z)
