"""Retrieval metrics: how well nearest neighbours share a class."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from otdml._checks import (
    argument_error,
    check_choice,
    check_integer,
    check_integers,
    check_labels,
    check_matrix,
    check_several,
)
from otdml._precision import full_precision
from otdml.dml.clustering import cluster_agreement
from otdml.kmeans import kmeans
from otdml.neighbors import nearest_neighbors
from otdml.sphere import unit

__all__ = ["check_asked", "retrieval_by_class", "retrieval_metrics"]

RANKED = ("precision", "mrr", "map@1000", "map@1000_legacy")
EXTRA = (*RANKED, "nmi", "f1")
SIMILARITIES = ("cosine", "inner", "l2")
# Neighbours in memory (some 200 MB with what is computed from them) and queries at a time, as many as FAISS processes
# at once.
_BLOCK, _ROWS = 2**22, 4096


class _Task(NamedTuple):
    """Queries and gallery. ``relevant`` counts the items a query should find, ``own`` is its row of the gallery."""

    z: Tensor
    labels: Tensor
    gallery: Tensor
    gallery_labels: Tensor
    relevant: Tensor
    own: Tensor | None
    metric: str
    backend: str

    @property
    def most(self) -> int:
        """Items that a query may find."""
        return len(self.gallery) - (self.own is not None)

    def hits(self, rows: Tensor, k: int) -> Tensor:
        """Whether each of the k nearest items of these queries is of the query's class."""
        own = None if self.own is None else self.own[rows]
        _, found = nearest_neighbors(
            self.z[rows], self.gallery, k, metric=self.metric, exclude=own, backend=self.backend
        )
        return self.gallery_labels[found] == self.labels[rows, None]

    def of(self, rows: Tensor, own: Tensor | None) -> "_Task":
        """The task of these queries alone."""
        return self._replace(z=self.z[rows], labels=self.labels[rows], relevant=self.relevant[rows], own=own)


@full_precision
@torch.no_grad()
def retrieval_metrics(
    z: Tensor,
    labels: Tensor | ArrayLike,
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | ArrayLike | None = None,
    own: Tensor | ArrayLike | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    extra: Collection[str] = (),
    average: str = "queries",
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

    In a gallery that contains the queries, each query finds itself first, and recall@1 is always 1. Pass
    ``own``, and each is left out; a gallery in which half of the queries have an identical row of their class is
    refused without it.

    Time is that of the search for max(K, R_i) neighbours; memory that of the embeddings and of one block of queries,
    whatever their number.

    Args:
        z: Embeddings, shape (n, d).
        labels: Their classes, integers, shape (n,).
        gallery: Items to be found, shape (m, d). None for the other rows of ``z``.
        gallery_labels: Their classes, shape (m,).
        own: Row of the gallery that each query is, shape (n,), which it is not searched for; -1 for one that is none.
        ks: The K of Recall@K. A K beyond the number of items asks whether any is found.
        extra: More metrics by name: ``"precision"``, the share of a query's class among its K nearest, for each K;
            ``"mrr"``, the mean reciprocal rank of the first item of its class; ``"map@1000"``, the mean average
            precision of the first 1000 neighbours, best 1;
            ``"map@1000_legacy"``, the same divided by the class size with the query in it, as much published code
            has it, whose best is below 1; ``"nmi"`` and ``"f1"``, the agreement of a k-means clustering of ``z`` with
            the classes, which takes minutes for thousands of classes.
        average: ``"queries"``, or ``"classes"`` for the mean over classes of the means over their queries, in which
            a class counts once, however many queries it has.
        similarity: ``"cosine"``, ``"inner"`` or ``"l2"``.
        seed: Start of the clustering.
        backend: How to search, as in :func:`otdml.neighbors.nearest_neighbors`.

    Returns:
        ``"recall@K"`` for each K, ``"r_precision"``, ``"map@r"``, the extra metrics (``"precision@K"`` for each K), and
        ``"left_out"``, the number
        of queries left out.

    Raises:
        ValueError: If an embedding is not finite (its row is named), shapes do not fit, no query has an item to
            find, or the gallery seems to hold the queries and ``own`` does not say so.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0], [1.0], [3.0], [5.5]])
        >>> retrieval_metrics(z, torch.tensor([0, 0, 1, 1]), ks=(1, 2), similarity="l2")
        {'recall@1': 0.75, 'recall@2': 1.0, 'r_precision': 0.75, 'map@r': 0.75, 'left_out': 0.0}
    """
    ks, seed = check_asked(ks, extra, average, similarity), check_integer("seed", seed, least=None)
    task = _task(z, labels, gallery, gallery_labels, own, similarity, backend)
    values, found = _measured(task, ks, extra), task.relevant > 0
    if average == "classes":
        _, values = _class_means(task, values)
        result = {name: float(value.mean()) for name, value in values.items()}
    else:
        result = {name: float(value[found].mean()) for name, value in values.items()}
    if {"nmi", "f1"} & set(extra):
        result |= _clustering(task, extra, seed, backend)
    return result | {"left_out": float(len(z) - int(found.sum()))}


@full_precision
@torch.no_grad()
def retrieval_by_class(
    z: Tensor,
    labels: Tensor | ArrayLike,
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | ArrayLike | None = None,
    own: Tensor | ArrayLike | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    extra: Collection[str] = (),
    similarity: str = "cosine",
    backend: str = "auto",
) -> dict[str, Tensor]:
    """The means of :func:`retrieval_metrics` over the queries of each class: which classes are found, and which not.

    Args:
        z: Embeddings, shape (n, d).
        labels: Their classes, integers, shape (n,).
        gallery: As for :func:`retrieval_metrics`.
        gallery_labels: Likewise.
        own: Likewise.
        ks: Likewise.
        extra: Likewise, but for the metrics of a clustering.
        similarity: Likewise.
        backend: Likewise.

    Returns:
        ``"label"``, the classes that have a query with an item to find, in order, shape (c,); ``"queries"``, the
        number of these; and the metrics, float64, shape (c,) each.

    Raises:
        ValueError: As :func:`retrieval_metrics` does.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0], [1.0], [3.0], [5.5]])
        >>> found = retrieval_by_class(z, torch.tensor([7, 7, 9, 9]), ks=(1,), similarity="l2")
        >>> found["label"].tolist(), found["recall@1"].tolist()
        ([7, 9], [1.0, 0.5])
    """
    ks = check_several("ks", ks, check_integer)
    for name in extra:
        check_choice("extra", name, RANKED)
    task = _task(z, labels, gallery, gallery_labels, own, similarity, backend)
    values = _measured(task, ks, extra)
    rows, means = _class_means(task, values)
    classes = check_labels("labels", labels, len(z)).to(z.device)[rows]
    counts = task.labels[task.relevant > 0].bincount()
    order = classes.argsort()
    found = {"label": classes[order], "queries": counts[counts > 0][order]}
    return found | {name: value[order] for name, value in means.items()}


def check_asked(ks: Sequence[int], extra: Collection[str], average: str, similarity: str) -> tuple[int, ...]:
    """The K of Recall@K, if :func:`retrieval_metrics` knows all that is asked for."""
    for name in extra:
        check_choice("extra", name, EXTRA)
    check_choice("average", average, ("queries", "classes"))
    check_choice("similarity", similarity, SIMILARITIES)
    return check_several("ks", ks, check_integer)


def _task(
    z: Tensor,
    labels: Tensor | ArrayLike,
    gallery: Tensor | None,
    gallery_labels: Tensor | ArrayLike | None,
    own: Tensor | ArrayLike | None,
    similarity: str,
    backend: str,
) -> _Task:
    check_choice("similarity", similarity, SIMILARITIES)
    if (gallery is None) != (gallery_labels is None):
        missing = "gallery" if gallery is None else "gallery_labels"
        raise argument_error(missing, "be given with the other of `gallery` and `gallery_labels`", None)
    for name, points in (("z", z), ("gallery", gallery)):
        if points is not None:
            check_matrix(name, points)
    labels = check_labels("labels", labels, len(z)).to(z.device)
    if gallery is None or gallery_labels is None:
        if own is not None:
            raise argument_error("own", "be None without a gallery", "indices", "Queries search each other then.")
        gallery, gallery_labels, place = z, labels, torch.arange(len(z), device=z.device)
    else:
        gallery_labels = check_labels("gallery_labels", gallery_labels, len(gallery)).to(z.device)
        place = _place(z, labels, gallery, gallery_labels, own)
    # Labels of queries and gallery become common class numbers 0, 1, ..., for which 32 bits are enough.
    classes, ids = torch.cat([labels, gallery_labels]).unique(return_inverse=True)
    ids, gallery_ids = ids.int().split([len(z), len(gallery)])
    relevant = gallery_ids.bincount(minlength=len(classes))[ids] - (place >= 0).int()
    if not relevant.any():
        raise argument_error("labels", "hold some class with another item to find", f"{len(classes)} classes")
    if similarity == "cosine":
        # One normalised copy serves as queries and gallery.
        alone = gallery is z
        gallery = unit(gallery)
        z = gallery if alone else unit(z)
    metric = "l2" if similarity == "l2" else "inner"
    return _Task(z, ids, gallery, gallery_ids, relevant, place, metric, backend)


def _place(
    z: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, own: Tensor | ArrayLike | None
) -> Tensor:
    """Row of the gallery that each query is, -1 where it is none."""
    if own is None:
        if z.shape[1] == gallery.shape[1] and 2 * _twins(z, labels, gallery, gallery_labels) >= len(z):
            must = "not hold the queries, which would find themselves"
            remedy = "Pass `own`, the row that each query is, or -1 for none."
            raise argument_error("gallery", must, "identical rows of half of them or more", remedy)
        return torch.full((len(z),), -1, device=z.device)
    place = check_integers("own", own).to(z.device)
    if place.shape != (len(z),) or int(place.min()) < -1 or int(place.max()) >= len(gallery):
        must = f"hold {len(z)} rows of the gallery, from 0 to {len(gallery) - 1}, or -1"
        raise argument_error(
            "own", must, f"shape {tuple(place.shape)}, values {int(place.min())} to {int(place.max())}"
        )
    inside = place >= 0
    if not torch.equal(gallery_labels[place[inside]], labels[inside]):
        raise argument_error("own", "name rows of the queries' classes", "rows of others")
    return place


def _twins(z: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> int:
    """Queries with an identical row of their class in the gallery, found by a sum of their bits that is exact."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (z.shape[1] + 1,), generator=generator, device="cpu").to(z.device)
    keys = []
    for points, classes in ((z, labels), (gallery, gallery_labels)):
        # In blocks: 64-bit integers would take twice the memory of the embeddings.
        bits = points.contiguous().view(torch.int32 if points.dtype == torch.float32 else torch.int64)
        sums = torch.cat([(block.long() * weights[1:]).sum(1) for block in bits.split(2**14)])
        keys.append(sums + weights[0] * classes)
    return int(torch.isin(*keys).sum())


def _measured(task: _Task, ks: Sequence[int], extra: Collection[str]) -> dict[str, Tensor]:
    """All metrics of all queries, float64, NaN for those left out."""
    found: dict[str, Tensor] = {}
    own = task.own if task.own is not None else torch.full_like(task.labels, -1)
    # Queries that are rows of the gallery are searched separately from those that are not.
    for inside in ((own >= 0).nonzero()[:, 0], (own < 0).nonzero()[:, 0]):
        if len(inside) and task.relevant[inside].any():
            part = task.of(inside, own[inside] if int(own[inside[0]]) >= 0 else None)
            for rows, values in _ranked(part, ks, extra):
                for name, value in values.items():
                    empty = torch.full((len(task.z),), torch.nan, dtype=torch.float64, device=task.z.device)
                    found.setdefault(name, empty)[inside[rows]] = value.double()
    return found


def _ranked(task: _Task, ks: Sequence[int], extra: Collection[str]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Blocks of queries and their metrics."""
    least = max([*ks, 1000 * any("1000" in name for name in extra)])
    for rows in _blocks(task, least):
        k = min(task.most, max(least, int(task.relevant[rows[-1]])))
        yield rows, _values(task.hits(rows, k), task.relevant[rows, None], ks, extra)
    if "mrr" in extra:
        yield from _reciprocal_ranks(task)


def _blocks(task: _Task, least: int) -> Iterator[Tensor]:
    """Queries in order of R, so that a block needs few more neighbours than its own classes have members."""
    order = task.relevant.argsort(stable=True)
    order = order[int((task.relevant == 0).sum()) :]
    while len(order):
        # The last query of a block has the largest R, and decides how many neighbours all of them need.
        sizes = task.relevant[order[:_ROWS]].clamp(min(least, task.most), task.most)
        fits = (sizes * torch.arange(1, len(sizes) + 1, device=sizes.device) <= _BLOCK).sum()
        rows, order = order.tensor_split([max(1, int(fits))])
        yield rows


def _reciprocal_ranks(task: _Task) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Queries by the rank of the first hit: most are among the nearest, and the others are searched further."""
    rows, k = (task.relevant > 0).nonzero()[:, 0], 16
    while len(rows):
        k, open_ = min(4 * k, task.most), []
        for block in rows.split(max(1, min(_ROWS, _BLOCK // k))):
            hits = task.hits(block, k)
            hit = hits.any(1)
            yield block[hit], {"mrr": 1 / (hits[hit].int().argmax(1) + 1).double()}
            open_.append(block[~hit])
        rows = torch.cat(open_)


def _values(hits: Tensor, relevant: Tensor, ks: Sequence[int], extra: Collection[str]) -> dict[str, Tensor]:
    """Metrics of a block of queries."""
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    first = torch.where(hits.any(1), hits.int().argmax(1) + 1, hits.shape[1] + 1)
    values = {f"recall@{k}": first <= k for k in ks}
    if "precision" in extra:
        values |= {f"precision@{k}": hits[:, :k].sum(1).double() / k for k in ks}
    precision = hits.cumsum(1, dtype=torch.float32).div_(ranks).mul_(hits)
    inside = ranks <= relevant
    for name, rows in (("r_precision", hits & inside), ("map@r", precision * inside)):
        values[name] = rows.sum(1, dtype=torch.float64) / relevant[:, 0]
    found = precision[:, :1000].sum(1, dtype=torch.float64)
    if "map@1000" in extra:
        values["map@1000"] = found / relevant[:, 0].clamp_max(1000)
    if "map@1000_legacy" in extra:
        values["map@1000_legacy"] = found / (relevant[:, 0] + 1)
    return values


def _class_means(task: _Task, values: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A query of each class that has a value, and the means over its queries."""
    rows = (task.relevant > 0).nonzero()[:, 0]
    ids, number = task.labels[rows].unique(return_inverse=True)
    first = torch.full_like(ids, len(task.z), dtype=torch.long).scatter_reduce_(0, number, rows, "amin")
    counts = number.bincount()
    sums = {name: value.new_zeros(len(ids)).index_add_(0, number, value[rows]) for name, value in values.items()}
    return first, {name: total / counts for name, total in sums.items()}


def _clustering(task: _Task, extra: Collection[str], seed: int, backend: str) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    _, cells = kmeans(task.z, len(task.labels.unique()), generator=generator, backend=backend)
    nmi, f1 = cluster_agreement(cells, task.labels)
    return {name: value for name, value in (("nmi", nmi), ("f1", f1)) if name in extra}
