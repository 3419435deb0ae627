"""Exact nearest neighbours, on FAISS where it is installed and on torch where it is not."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice, check_integer, check_labels, check_matrix
from otdml._faiss import faiss_search, runs_on_faiss
from otdml._precision import full_precision, widest

__all__ = ["Gallery", "nearest_center", "nearest_neighbors"]

# Entries of a block of scores or of results, so that memory does not grow with the product of the numbers of points.
_BLOCK = 2**24
# FAISS itself multiplies 4096 queries at a time.
_FAISS_ROWS = 4096
# Coordinates whose squares and their sums are numbers of a precision.
_SAFE = {torch.float32: (1e-15, 1e15), torch.float64: (1e-150, 1e150)}

Search = Callable[[Tensor, Tensor, int, str], tuple[Tensor, Tensor]]


@full_precision
@torch.no_grad()
def nearest_neighbors(
    x: Tensor,
    y: Tensor,
    k: int,
    *,
    metric: str = "inner",
    exclude: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""The k nearest rows of y of each row of x, exact, nearest first.

    .. math:: \operatorname{arg\,top}_k \{ \langle x_i, y_j \rangle : j \ne e_i \} \quad \text{or} \quad
        \operatorname{arg\,min}_k \{ \lVert x_i - y_j \rVert^2 : j \ne e_i \}

    Equal scores are ordered by index, and copies of an item always have equal scores, so that the answer does not
    depend on how the work was split. It costs n m d multiplications and memory for the n k results and one block. FAISS
    computes in float32 on the CPU; float64 points and points on other devices are searched by torch, in their own
    precision. Squared distances that single precision would lose beside the squares of the points are found in double
    precision, where the device has it. They come from products there as well: of neighbours nearer than some 1e-8 of
    the points' distance from their mean, which is the nearest is left to rounding. No gradient passes: gather the
    points at the indices to differentiate a distance.

    Args:
        x: Queries, shape (n, d).
        y: Items, shape (m, d).
        k: Neighbours per query, at most m, or m - 1 with ``exclude``.
        metric: ``"inner"``, largest inner product first, or ``"l2"``, smallest squared distance first.
        exclude: For each query the index of one item that is not its neighbour, shape (n,): ``torch.arange(n)`` for
            a search of x in itself. By index, because a duplicate may be as near as the point itself.
        backend: ``"faiss"``, ``"torch"``, or ``"auto"``.

    Returns:
        The inner products or squared distances, shape (n, k), and the indices into y, shape (n, k).

    Raises:
        ValueError: If the shapes do not fit, k is too large, a point is not finite, or squares of the points are not,
            in single precision for FAISS.
        ImportError: If FAISS is asked for and is not installed.

    Example:
        >>> import torch
        >>> y = torch.tensor([[0.0], [1.0], [3.0]])
        >>> nearest_neighbors(y, y, 1, metric="l2", exclude=torch.arange(3))
        (tensor([[1.], [1.], [4.]]), tensor([[1], [0], [1]]))
    """
    return Gallery(y, metric=metric, backend=backend).search(x, k, exclude=exclude)


class Gallery:
    """Items that are searched again and again: what :func:`nearest_neighbors` finds out about them is found out once.

    To look at the items (are they finite, where do copies lie) takes as long as a few queries; so one query after the
    other is quicker in a gallery. Items on the CPU must not change meanwhile, as they are not copied.

    Args:
        y: The items, shape (m, d).
        metric: ``"inner"`` or ``"l2"``.
        backend: ``"faiss"``, ``"torch"``, or ``"auto"``.

    Raises:
        ValueError: If an item is not finite.

    Example:
        >>> import torch
        >>> gallery = Gallery(torch.tensor([[0.0], [1.0], [3.0]]), metric="l2")
        >>> gallery.search(torch.tensor([[2.5]]), 2)
        (tensor([[0.2500, 2.2500]]), tensor([[2, 1]]))
    """

    @full_precision
    @torch.no_grad()
    def __init__(self, y: Tensor, *, metric: str = "inner", backend: str = "auto") -> None:
        check_matrix("y", y)
        self.metric, self.backend = check_choice("metric", metric, ("inner", "l2")), backend
        y = y.detach()
        self._given, self._origin = y, _origin(y) if metric == "l2" else None
        self._y = self._moved(y, y.dtype)
        self._largest = _largest_coordinate(self._y)
        self._largest_norm = float(self._y.square().sum(1).max()) if metric == "l2" else 0.0
        self._prepared: dict[tuple[torch.dtype, bool], _Items] = {}

    def __len__(self) -> int:
        return len(self._y)

    @full_precision
    @torch.no_grad()
    def search(self, x: Tensor, k: int, *, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The result of :func:`nearest_neighbors` for these queries."""
        k, exclude = self._check(x, k, exclude)
        dtype = torch.promote_types(x.dtype, self._y.dtype)
        given, x = x.detach(), self._moved(x.detach(), dtype)
        wide, largest = widest(x.device), max(self._largest, _largest_coordinate(x))
        if not _has_squares(largest, dtype):
            if self.backend == "faiss" or not _has_squares(largest, wide):
                raise self._out_of_range(largest, dtype)
            x = self._moved(given, wide)
        values, indices = self._searched(x, k, exclude, faiss=runs_on_faiss(self.backend, x))
        if self.metric == "l2" and x.dtype != wide:
            rows = (-values[:, 0] < self._unsure(x)).nonzero()[:, 0]
            if len(rows):
                left_out = None if exclude is None else exclude[rows]
                finer, indices[rows] = self._searched(self._moved(given[rows], wide), k, left_out, faiss=False)
                values[rows] = finer.to(values.dtype)
        return (values if self.metric == "inner" else values.abs_()).to(dtype), indices

    def _searched(self, x: Tensor, k: int, exclude: Tensor | None, *, faiss: bool) -> tuple[Tensor, Tensor]:
        """Scores and indices, in the precision of the queries, block by block."""
        if (x.dtype, faiss) not in self._prepared:
            y = self._y if x.dtype == self._y.dtype else self._moved(self._given, x.dtype)
            self._prepared[x.dtype, faiss] = _items(y, self.metric, faiss)
        items, rows = self._prepared[x.dtype, faiss], _rows(faiss, len(self), k)
        values, indices = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.long, device=x.device)
        for start in range(0, len(x), rows):
            block = slice(start, start + rows)
            left_out = None if exclude is None else exclude[block]
            values[block], indices[block] = _nearest(items, x[block], k, left_out)
        return values, indices

    def _moved(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """Points in another precision, and relative to the origin of the items."""
        return z.to(dtype) if self._origin is None else z.to(dtype) - self._origin.to(dtype)

    def _unsure(self, x: Tensor) -> Tensor:
        """Squared distances below which those of single precision have no three digits, shape (n,).

        They are differences of squared norms and products, here and in FAISS, and rounded as these are.
        """
        norms = x.square().sum(1) + self._largest_norm
        return 1e3 * torch.finfo(x.dtype).eps * norms

    def _out_of_range(self, largest: float, dtype: torch.dtype) -> Exception:
        """The error for points whose squares are no numbers, in the finest precision that may be used."""
        faiss, wide = self.backend == "faiss", widest(self._y.device)
        low, high = _SAFE[dtype if faiss else wide]
        must = f"have a largest coordinate, with `y`, between {low:g} and {high:g}, as its squares are needed"
        remedy = "Rescale both, or pass backend='torch'." if faiss else "Rescale both."
        return argument_error("x", must, f"{largest:g}", remedy)

    def _check(self, x: Tensor, k: int, exclude: Tensor | None) -> tuple[int, Tensor | None]:
        check_matrix("x", x)
        if x.shape[1] != self._y.shape[1]:
            raise argument_error("y", f"have the features of `x`, {x.shape[1]}", self._y.shape[1])
        if x.device != self._y.device:
            raise argument_error("y", f"be on the device of `x`, {x.device}", self._y.device)
        if exclude is not None:
            exclude = check_labels("exclude", exclude, len(x), len(self)).to(x.device)
        most = len(self) - (exclude is not None)
        k = check_integer("k", k)
        if k > most:
            raise argument_error("k", f"be at most {most}, the items there are for a query", k)
        return k, exclude


def _largest_coordinate(x: Tensor) -> float:
    low, high = x.aminmax()
    return float(torch.maximum(-low, high))


def _has_squares(largest: float, dtype: torch.dtype) -> bool:
    """Whether sums of squares of coordinates up to this neither overflow nor vanish."""
    low, high = _SAFE[dtype]
    return largest == 0 or low < largest < high


def _rows(faiss: bool, m: int, k: int) -> int:
    """The number of queries per block."""
    return max(1, min(_FAISS_ROWS, _BLOCK // k) if faiss else _BLOCK // m)


def _origin(y: Tensor) -> Tensor:
    """A point near the mean of y, to keep digits that squared norms far from zero would cancel.

    It is a multiple of a power of two near the spread: small integers stay integers, and their distances exact.
    """
    mean, limits = y.mean(0), torch.finfo(y.dtype)
    spread = torch.maximum(y.std(0, correction=0).mean(), limits.eps * mean.abs().max()).clamp_min(limits.tiny)
    unit = spread.log2().ceil().exp2()
    return (mean / unit).round() * unit


def _scores(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Inner products, or negative squared distances: larger is nearer."""
    with _float32_products():
        if metric == "inner":
            return x @ y.T
        norms = x.square().sum(1, keepdim=True) + y.square().sum(1)
        return torch.addmm(norms, x, y.T, beta=-1, alpha=2).clamp_(max=0)


@contextlib.contextmanager
def _float32_products() -> Iterator[None]:
    """Full float32 products: TensorFloat-32, which training often asks for, would reorder near neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _search_torch(x: Tensor, y: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    found = _scores(x, y, metric).topk(k, dim=1)
    return found.values, found.indices


class _Items(NamedTuple):
    """The rows to search: the distinct rows of y, and the places of each.

    The scores of two copies of an item may differ in their last digit, according to where they fall in a block of a
    matrix product; so each distinct row is searched once. ``group`` holds the distinct row of each item, ``members``
    the items of each distinct row one after the other, ``counts`` how many they are, ``starts`` where they start.
    """

    points: Tensor
    metric: str
    search: Search
    group: Tensor
    members: Tensor
    counts: Tensor
    starts: Tensor

    def candidates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest scores and their items, copies in order of index."""
        values, found = self.search(x, self.points, min(k, len(self.points)), self.metric)
        if len(self.points) == len(self.group):
            return values, found
        ends = self.counts[found].cumsum(1)
        places = torch.arange(k, device=x.device).expand(len(x), k).contiguous()
        at = torch.searchsorted(ends, places, right=True)
        found = found.gather(1, at)
        offset = places - ends.gather(1, at) + self.counts[found]
        return values.gather(1, at), self.members[self.starts[found] + offset]

    def scores(self, x: Tensor) -> Tensor:
        """The score of every item."""
        return _scores(x, self.points, self.metric)[:, self.group]


def _items(y: Tensor, metric: str, faiss: bool) -> _Items:
    first = _first_copies(y)
    kept, group, counts = first.unique(return_inverse=True, return_counts=True)
    members, starts = group.argsort(stable=True), counts.cumsum(0) - counts
    points = y if len(kept) == len(y) else y[kept]
    return _Items(points, metric, faiss_search if faiss else _search_torch, group, members, counts, starts)


def _first_copies(y: Tensor) -> Tensor:
    """For each row the index of the first row that equals it."""
    rows = torch.arange(len(y), device=y.device)
    # Different rows have different keys but by chance; mostly a few coordinates suffice to show that none are copies.
    for width in sorted({min(8, y.shape[1]), y.shape[1]}):
        keys = torch.cat([_keys(part[:, :width]) for part in y.split(_FAISS_ROWS)])
        _, group = keys.unique(return_inverse=True)
        first = torch.full_like(rows, len(y)).scatter_reduce_(0, group, rows, "amin")[group]
        if torch.equal(first, rows):
            return rows
    return torch.where((y[first] == y).all(1), first, rows)


def _keys(y: Tensor) -> Tensor:
    """A hash of each row, equal for equal rows, in integers: not all devices have double precision."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (y.shape[1],), generator=generator, device="cpu").to(y.device)
    # Zero and minus zero are equal.
    bits = (y + 0.0).view(torch.int32 if y.dtype == torch.float32 else torch.int64)
    return (bits.long() * factors).sum(1)


def _nearest(items: _Items, x: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    # One result more than asked for shows whether equal scores were cut in two, where the choice was arbitrary.
    spare, m = 1 if exclude is None else 2, len(items.group)
    values, indices = items.candidates(x, min(k + spare, m))
    if exclude is not None:
        values, indices = _without(values, indices, exclude)
    cut = (values[:, k - 1 : k] == values[:, k:]).any(1).nonzero()[:, 0]
    values, indices = _break_ties(values[:, :k], indices[:, :k])
    for rows in cut.split(max(1, _BLOCK // m)):
        scores = items.scores(x[rows])
        if exclude is not None:
            scores.scatter_(1, exclude[rows, None], -torch.inf)
        values[rows], indices[rows] = _largest(scores, k)
    return values, indices


def _without(values: Tensor, indices: Tensor, exclude: Tensor) -> tuple[Tensor, Tensor]:
    """The results less the excluded item, or less the last where that item is not among them."""
    rest = values[:, 1:].clone(), indices[:, 1:].clone()
    rows = (indices[:, 0] != exclude).nonzero()[:, 0]
    keep = indices[rows] != exclude[rows, None]
    keep[:, -1] &= ~keep.all(1)
    for whole, part in zip((values, indices), rest, strict=True):
        part[rows] = whole[rows][keep].view_as(part[rows])
    return rest


def _break_ties(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Results in descending order of score put into ascending order of index where scores are equal."""
    wrong = (values[:, 1:] == values[:, :-1]) & (indices[:, 1:] < indices[:, :-1])
    rows = wrong.any(1).nonzero()[:, 0]
    values[rows], indices[rows] = _ordered(values[rows], indices[rows])
    return values, indices


def _ordered(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    indices, order = indices.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row; of equal ones those of lower index."""
    least = scores.topk(k, dim=1).values[:, -1:]
    above, equal = scores > least, scores == least
    wanted = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= wanted))
    indices = chosen.nonzero()[:, 1].view(len(scores), k)
    return _ordered(scores.gather(1, indices), indices)


def nearest_center(x: Tensor, centers: Tensor, *, metric: str = "l2", backend: str = "auto") -> tuple[Tensor, Tensor]:
    r"""The nearest centre of each point: its Voronoi cell.

    .. math:: c(x_i) = \operatorname{arg\,min}_j \lVert x_i - c_j \rVert^2

    :func:`nearest_neighbors` with one neighbour. A point as near to two centres goes to the one of lower index.

    Args:
        x: Points, shape (n, d).
        centers: Centres, shape (k, d).
        metric: ``"l2"``, or ``"inner"`` for the largest inner product, which is the same on a sphere.
        backend: ``"faiss"``, ``"torch"``, or ``"auto"``.

    Returns:
        The squared distances or inner products, shape (n,), and the indices of the centres, shape (n,).

    Raises:
        ValueError: If the shapes do not fit or a point is not finite.

    Example:
        >>> import torch
        >>> nearest_center(torch.tensor([[0.0], [0.9]]), torch.tensor([[1.0], [-0.5]]))[1]
        tensor([1, 0])
    """
    values, indices = nearest_neighbors(x, centers, 1, metric=metric, backend=backend)
    return values[:, 0], indices[:, 0]
