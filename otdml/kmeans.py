"""Clustering by k-means."""

import torch
from torch import Tensor

from otdml._checks import argument_error, check_integer, check_matrix, device_of_draws
from otdml._precision import full_precision, widest
from otdml.neighbors import nearest_center

__all__ = ["kmeans"]

# Entries of a block of deviations: few enough for the caches of a CPU.
_ENTRIES = {"cpu": 2**16, "cuda": 2**24}


@full_precision
@torch.no_grad()
def kmeans(
    x: Tensor, k: int, *, max_iter: int = 20, generator: torch.Generator | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""Centres and cells of a k-means clustering, by Lloyd's iteration from k random points.

    .. math:: \min_{c_1, \ldots, c_k} \sum_i \min_j \lVert x_i - c_j \rVert^2

    A local minimum, which depends on the start: give a seeded generator to repeat it. A centre that loses all its
    points moves to the point farthest from its own centre, so that no cluster is wasted. An iteration costs n k d
    multiplications; it ends when no point changes its cell :cite:p:`lloyd:82`.

    Args:
        x: Points, shape (n, d).
        k: Number of clusters, at most n.
        max_iter: Limit of the iterations.
        generator: Randomness of the start, on the CPU.
        backend: How the nearest centre is searched, as in :func:`otdml.neighbors.nearest_neighbors`.

    Returns:
        The centres, shape (k, d), and the index of each point's centre, shape (n,).

    Raises:
        ValueError: If k exceeds the number of points, or a point is not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> kmeans(x, 2, generator=torch.Generator().manual_seed(0))[0].sort(dim=0).values
        tensor([[ 0.5000],
                [10.5000]])
    """
    if check_integer("k", k) > len(check_matrix("x", x)):
        raise argument_error("k", f"be at most the number of points, {len(x)}", k)
    max_iter = check_integer("max_iter", max_iter)
    centers = x[torch.randperm(len(x), generator=generator, device=device_of_draws(generator, "cpu"))[:k].to(x.device)]
    distances, cells = nearest_center(x, centers, backend=backend)
    for _ in range(max_iter):
        centers, before = _means(x, cells, distances, centers), cells
        distances, cells = nearest_center(x, centers, backend=backend)
        if torch.equal(cells, before):
            break
    return centers, cells


def _means(x: Tensor, cells: Tensor, distances: Tensor, centers: Tensor) -> Tensor:
    """The means of the cells of these centres; where a cell is empty, a point far from its own centre."""
    counts = cells.bincount(minlength=len(centers))
    means = (centers + _deviations(x, cells, centers) / counts.clamp_min(1)[:, None]).to(x.dtype)
    empty = (counts == 0).nonzero()[:, 0]
    means[empty] = x[distances.topk(len(empty)).indices]
    return means


def _deviations(x: Tensor, cells: Tensor, centers: Tensor) -> Tensor:
    """The sum of the deviations from its centre in each cell, shape (k, d).

    A running sum of the points themselves would be rounded as their sum is, which grows with their number and with
    their distance from the origin.
    """
    sums = torch.zeros_like(centers, dtype=widest(x.device))
    rows = max(1, _ENTRIES.get(x.device.type, _ENTRIES["cuda"]) // x.shape[1])
    for part, own in zip(x.split(rows), cells.split(rows), strict=True):
        sums.index_add_(0, own, (part - centers.index_select(0, own)).to(sums.dtype))
    return sums
