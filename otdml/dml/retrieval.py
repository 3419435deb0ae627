"""Retrieval metrics: how well nearest neighbours share a class."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from otdml._checks import argument_error, check_choice, check_integer, check_labels, check_matrix
from otdml._precision import full_precision
from otdml.dml.clustering import cluster_agreement
from otdml.kmeans import kmeans
from otdml.neighbors import nearest_neighbors

__all__ = ["retrieval_metrics"]

EXTRA = ("map@1000", "map@1000_legacy", "nmi", "f1")
# Neighbours held at a time, some 200 MB with what is computed from them, and queries, as many as FAISS takes at once.
_BLOCK, _ROWS = 2**22, 4096


class _Task(NamedTuple):
    """Whom to search for whom. ``relevant`` counts the items a query should find, ``own`` is its place among them."""

    z: Tensor
    labels: Tensor
    gallery: Tensor
    gallery_labels: Tensor
    relevant: Tensor
    own: Tensor | None


@full_precision
@torch.no_grad()
def retrieval_metrics(
    z: Tensor,
    labels: Tensor,
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    extra: Collection[str] = (),
    similarity: str = "cosine",
    seed: int = 0,
    backend: str = "auto",
) -> dict[str, float]:
    r"""Recall@K, R-precision and MAP@R of embeddings searched for items of their own class.

    Each embedding queries all others, or the gallery where one is given. With :math:`R_i` items of its class there,
    and :math:`r_{ik} = 1` if its k-th neighbour is one of them,

    .. math::
        \text{Recall@}K = \operatorname{mean}_i \max_{k \le K} r_{ik}, \quad
        \text{R-precision} = \operatorname{mean}_i \frac{1}{R_i} \sum_{k \le R_i} r_{ik}, \quad
        \text{MAP@R} = \operatorname{mean}_i \frac{1}{R_i} \sum_{k \le R_i} \frac{r_{ik}}{k} \sum_{l \le k} r_{il}.

    Recall@1 is what the field compares; MAP@R says more, since it sees the whole class and saturates later
    :cite:p:`musgrave:20`. The neighbours are exact, and a query is left out by its index, so that a duplicate counts
    as the neighbour it is. Equally near items are taken in order of index. Queries without any item of their class
    (:math:`R_i = 0`) have no value: they are left out of every mean, and counted.

    Time is that of the search for max(K, R_i) neighbours; memory that of the embeddings and of one block of queries,
    whatever their number.

    Args:
        z: Embeddings, shape (n, d).
        labels: Their classes, integers, shape (n,).
        gallery: Items to be found, shape (m, d). None for the other rows of ``z``.
        gallery_labels: Their classes, shape (m,).
        ks: The K of Recall@K. A K beyond the number of items asks whether any is found.
        extra: More metrics by name: ``"map@1000"``, the mean average precision of the first 1000 neighbours, best 1;
            ``"map@1000_legacy"``, the same divided by the class size with the query in it, as much published code
            has it, whose best is below 1; ``"nmi"`` and ``"f1"``, the agreement of a k-means clustering of ``z`` with
            the classes, which takes minutes for thousands of classes.
        similarity: ``"cosine"``, ``"inner"`` or ``"l2"``.
        seed: Start of the clustering.
        backend: How to search, as in :func:`otdml.neighbors.nearest_neighbors`.

    Returns:
        ``"recall@K"`` for each K, ``"r_precision"``, ``"map@r"``, the extra metrics, and ``"left_out"``, the number
        of queries left out.

    Raises:
        ValueError: If an embedding is not finite (its row is named), shapes do not fit, or no query has an item to
            find.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0], [1.0], [3.0], [5.5]])
        >>> retrieval_metrics(z, torch.tensor([0, 0, 1, 1]), ks=(1, 2), similarity="l2")
        {'recall@1': 0.75, 'recall@2': 1.0, 'r_precision': 0.75, 'map@r': 0.75, 'left_out': 0.0}
    """
    ks = [check_integer("ks", k) for k in ks]
    for name in extra:
        check_choice("extra", name, EXTRA)
    task = _task(z, labels, gallery, gallery_labels, check_choice("similarity", similarity, ("cosine", "inner", "l2")))
    metric = "l2" if similarity == "l2" else "inner"
    total: dict[str, float] = {}
    for hits, relevant in _hits(task, max([*ks, 1000 * any("1000" in name for name in extra)]), metric, backend):
        for name, value in _values(hits, relevant, ks, extra).items():
            total[name] = total.get(name, 0.0) + value
    count = int((task.relevant > 0).sum())
    result = {name: value / count for name, value in total.items()}
    if {"nmi", "f1"} & set(extra):
        result |= _clustering(task, extra, seed, backend)
    return result | {"left_out": float(len(z) - count)}


def _task(z: Tensor, labels: Tensor, gallery: Tensor | None, gallery_labels: Tensor | None, similarity: str) -> _Task:
    if (gallery is None) != (gallery_labels is None):
        missing = "gallery" if gallery is None else "gallery_labels"
        raise argument_error(missing, "be given with the other of `gallery` and `gallery_labels`", None)
    for name, points in (("z", z), ("gallery", gallery)):
        if points is not None:
            check_matrix(name, points)
    check_labels("labels", labels, len(z))
    own = None
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels, own = z, labels, torch.arange(len(z), device=z.device)
    check_labels("gallery_labels", gallery_labels, len(gallery))
    # Classes become 0, 1, ... : 32 bits are enough, and the labels of both sides agree.
    classes, ids = torch.cat([labels.to(z.device), gallery_labels.to(z.device)]).unique(return_inverse=True)
    ids, gallery_ids = ids.int().split([len(z), len(gallery)])
    relevant = gallery_ids.bincount(minlength=len(classes))[ids] - int(own is not None)
    if not relevant.any():
        raise argument_error("labels", "hold some class with another item to find", f"{len(classes)} classes")
    if similarity == "cosine":
        # One normalised copy is searched in itself.
        gallery = F.normalize(gallery, dim=1)
        z = gallery if own is not None else F.normalize(z, dim=1)
    return _Task(z, ids, gallery, gallery_ids, relevant, own)


def _hits(task: _Task, least: int, metric: str, backend: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of queries: whether each neighbour is of the query's class, shape (b, k), and their R, shape (b, 1).

    Queries are taken in order of R, so that a block needs few more neighbours than its own classes have members.
    """
    most = len(task.gallery) - (task.own is not None)
    order = task.relevant.argsort(stable=True)
    order = order[int((task.relevant == 0).sum()) :]
    while len(order):
        # The last query of a block has the largest R, and decides how many neighbours all of them need.
        sizes = task.relevant[order[:_ROWS]].clamp(min(least, most), most)
        fits = (sizes * torch.arange(1, len(sizes) + 1, device=sizes.device) <= _BLOCK).sum()
        rows, order = order.tensor_split([max(1, int(fits))])
        k = min(most, max(least, int(task.relevant[rows[-1]])))
        own = None if task.own is None else task.own[rows]
        _, found = nearest_neighbors(task.z[rows], task.gallery, k, metric=metric, exclude=own, backend=backend)
        yield task.gallery_labels[found] == task.labels[rows, None], task.relevant[rows, None]


def _values(hits: Tensor, relevant: Tensor, ks: Sequence[int], extra: Collection[str]) -> dict[str, float]:
    """Sums over a block of queries."""
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    first = torch.where(hits.any(1), hits.int().argmax(1) + 1, hits.shape[1] + 1)
    values = {f"recall@{k}": float((first <= k).sum()) for k in ks}
    precision = hits.cumsum(1, dtype=torch.float32).div_(ranks).mul_(hits)
    inside = ranks <= relevant
    for name, rows in (("r_precision", hits & inside), ("map@r", precision * inside)):
        values[name] = float((rows.sum(1, dtype=torch.float64) / relevant[:, 0]).sum())
    found = precision[:, :1000].sum(1, dtype=torch.float64)
    if "map@1000" in extra:
        values["map@1000"] = float((found / relevant[:, 0].clamp_max(1000)).sum())
    if "map@1000_legacy" in extra:
        values["map@1000_legacy"] = float((found / (relevant[:, 0] + 1)).sum())
    return values


def _clustering(task: _Task, extra: Collection[str], seed: int, backend: str) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    _, cells = kmeans(task.z, len(task.labels.unique()), generator=generator, backend=backend)
    nmi, f1 = cluster_agreement(cells, task.labels)
    return {name: value for name, value in (("nmi", nmi), ("f1", f1)) if name in extra}
