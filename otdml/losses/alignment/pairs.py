"""What is aligned: labels and targets, which candidate belongs to which anchor, and the pairs that are forbidden."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otdml._checks import argument_error, check_fields, check_integers, check_labels, check_nonnegative
from otdml._cost_forms import Mask
from otdml._fused.barred import Barred
from otdml.distributed import gather

__all__ = [
    "DomainTarget",
    "Forbidden",
    "Labels",
    "Pairing",
    "Samples",
    "Target",
    "as_target",
    "matches",
]

Labels = Tensor | tuple[Tensor, Tensor]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class DomainTarget:
    r"""Positive pairs, and a share of mass for the pairs inside a domain and between domains.

    .. math:: T = I + \alpha \, 1[\text{same domain}, i \ne j] + \beta \, 1[\text{other domain}]

    with rows divided by their sums. With :math:`\alpha > \beta` embeddings keep what tells domains apart, with
    :math:`\alpha < \beta` they lose it :cite:p:`chen:24`; a single domain and a small :math:`\alpha` smooth the
    labels of InfoNCE and pull towards a uniform plan, as the uniformity penalty of :cite:t:`shi:23` does.

    Args:
        domains: Domain of each sample, integers, shape (n,).
        alpha: Mass of a pair of one domain, relative to a positive pair's.
        beta: Mass of a pair of two domains.

    Raises:
        ValueError: If a mass is negative.
        TypeError: If domains are no integers.
    """

    domains: Tensor
    alpha: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", check_labels("domains", self.domains, len(self.domains)))
        check_fields(self, alpha=check_nonnegative, beta=check_nonnegative)


Target = Tensor | tuple[Tensor, Tensor] | DomainTarget | None


@dataclass(frozen=True, eq=False)
class Samples:
    """The target and the instances of two sets of samples.

    Attributes:
        target: None, labels of the first and of the second set, a domain target, or a matrix.
        ids: Instances of the first and of the second set, or None.
    """

    target: Pair | DomainTarget | Tensor | None
    ids: Pair | None

    @classmethod
    def checked(cls, target: Target, ids: Labels | None, n: int, m: int) -> "Samples":
        """The target and the instances as given, with labels as pairs, if they fit ``n`` and ``m`` samples."""
        if isinstance(target, DomainTarget):
            check_labels("target.domains", target.domains, n)
            return cls(target, _pair("ids", ids, n, m))
        if target is None or isinstance(target, tuple) or (isinstance(target, Tensor) and target.ndim == 1):
            return cls(_pair("target", target, n, m), _pair("ids", ids, n, m))
        if isinstance(target, Tensor) and target.ndim == 2:
            if target.requires_grad and torch.is_grad_enabled():
                remedy = "The loss has no derivative in it: pass `target.detach()`."
                raise argument_error("target", "be a constant", "a tensor that requires a gradient", remedy)
            return cls(target, _pair("ids", ids, n, m))
        must = "be None, one label per row, a pair of those, a matrix, or a DomainTarget"
        got = f"shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise argument_error("target", must, got, kind=ValueError if isinstance(target, Tensor) else TypeError)

    def aligned(self, anchors: Tensor | None, shape: tuple[int, int], *, joint: bool) -> "Samples":
        """The samples of all processes if ``anchors`` is not None, and both sets as one if ``joint``.

        Args:
            anchors: Numbers of this process's anchors among those of all processes, or None.
            shape: Number of all anchors, and of all candidates.
            joint: Whether all samples are anchors and candidates.
        """
        found = self
        if isinstance(self.target, Tensor):
            expected = (shape[0] if anchors is None else len(anchors), shape[1])
            if self.target.shape != expected:
                raise argument_error("target", f"have shape {expected}", tuple(self.target.shape))
            if anchors is not None:
                found = Samples(_gathered_matrix(self.target, anchors, shape[0]), self.ids)
        if anchors is not None:
            found = found._mapped(lambda a, b: (gather(a), gather(b)), gather)
        return found._mapped(lambda a, b: (torch.cat([a, b]),) * 2, lambda d: d.repeat(2)) if joint else found

    @property
    def reversible(self) -> bool:
        """Whether the target plan of the swapped sets is the transposed one.

        For labels and booleans it is not: their rows have equal masses in either direction.
        """
        matrix = isinstance(self.target, Tensor) and self.target.dtype != torch.bool
        return self.target is None or matrix

    def swapped(self) -> "Samples":
        """The samples with the second set first."""
        swapped = self._mapped(lambda a, b: (b, a), lambda d: d)
        return Samples(self.target.t(), swapped.ids) if isinstance(self.target, Tensor) else swapped

    def _mapped(self, of_pair: Callable[[Tensor, Tensor], Pair], of_domains: Callable[[Tensor], Tensor]) -> "Samples":
        """The samples with these functions of their pairs of labels, and of their domains."""
        target = self.target
        if isinstance(target, DomainTarget):
            target = dataclasses.replace(target, domains=of_domains(target.domains))
        elif isinstance(target, tuple):
            target = of_pair(*target)
        return Samples(target, self.ids and of_pair(*self.ids))


@dataclass(frozen=True, eq=False)
class Pairing:
    """Which candidate belongs to which anchor, by their numbers.

    Attributes:
        n: Number of anchors.
        m: Number of candidates.
        own: The candidate that is the other view of each anchor, shape (n,).
        itself: The candidate that is the anchor itself, shape (n,), or None where anchors are not among the candidates.
        shift: The difference of ``own`` and the anchor's number, modulo m, where it is the same for all; else None.
    """

    n: int
    m: int
    own: Tensor
    itself: Tensor | None = None
    shift: int | None = None

    @classmethod
    def one_way(cls, n: int, m: int, device: torch.device) -> "Pairing":
        """First views as anchors, second ones as candidates."""
        # Where their numbers differ, no target gives weight to the other view.
        own = torch.arange(n, device=device)
        return cls(n, m, own, shift=0) if n == m else cls(n, m, own.clamp_(max=m - 1))

    @classmethod
    def joint(cls, n: int, device: torch.device) -> "Pairing":
        """Both views of n samples as anchors and as candidates: the n first views, then the n second ones."""
        itself = torch.arange(2 * n, device=device)
        return cls(2 * n, 2 * n, itself.roll(n), itself, shift=n)

    @classmethod
    def within(cls, n: int, device: torch.device) -> "Pairing":
        """One set of n samples, as anchors and as candidates."""
        itself = torch.arange(n, device=device)
        return cls(n, n, itself, itself)

    def take(self, anchors: Tensor) -> "Pairing":
        """The same candidates for some anchors."""
        itself = self.itself if self.itself is None else self.itself[anchors]
        return Pairing(len(anchors), self.m, self.own[anchors], itself)


def matches(column: Tensor, rows: slice, columns: slice) -> Tensor:
    """True where a column is the one that ``column``, shape (n,), names for the row, for some rows and columns."""
    return column[rows, None] == torch.arange(columns.start, columns.stop, device=column.device)


@dataclass(frozen=True, eq=False)
class Forbidden:
    """Pairs without mass: of an anchor with itself, and of two views of one instance unless they are positives.

    Attributes:
        pairing: Anchors and candidates.
        ids: Instance of each anchor and of each candidate, or None.
        target: Blocks of the target plan, which is positive at positives.
        positives: One integer per anchor and per candidate, which agree for positives; None where no integers do.
    """

    pairing: Pairing
    ids: Pair | None
    target: Callable[[slice, slice], Tensor]
    positives: Pair | None = None

    @property
    def mask(self) -> Mask:
        """The mask for an engine: by integers, as fused kernels need it, where these describe it; else this."""
        if self.ids is not None and self.positives is None:
            return self
        itself, own = self.pairing.itself, None
        if itself is not None:
            own = itself.int(), torch.arange(self.pairing.m, dtype=torch.int32, device=itself.device)
        return Barred(own, self.ids, self.positives)

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """True where no mass may go."""
        found = [] if self.pairing.itself is None else [matches(self.pairing.itself, rows, columns)]
        if self.ids is not None:
            found.append(self._repeated(self.ids, rows, columns))
        return functools.reduce(torch.logical_or, found)

    def fill(self, scores: Tensor, rows: slice, columns: slice) -> None:
        """Put minus infinity in place of the logits of forbidden pairs; the columns include the anchors themselves."""
        if self.pairing.itself is not None:
            scores.scatter_(1, self.pairing.itself[rows, None] - columns.start, -torch.inf)
        if self.ids is not None:
            scores.masked_fill_(self._repeated(self.ids, rows, columns), -torch.inf)

    def _repeated(self, ids: Pair, rows: slice, columns: slice) -> Tensor:
        same = ids[0][rows, None] == ids[1][None, columns]
        return same.logical_and_(self.target(rows, columns) == 0)


def as_target(target: object) -> Any:
    """``target``, as a tensor if it is an array or a list: of labels, or of the entries of a matrix."""
    if not isinstance(target, (list, np.ndarray)):
        return target
    array = np.asarray(target)
    return (
        torch.from_numpy(array) if array.ndim == 2 and array.dtype.kind in "biuf" else check_integers("target", array)
    )


def _gathered_matrix(T: Tensor, anchors: Tensor, n: int) -> Tensor:
    if T.layout == torch.strided:
        rows = gather(T)
        return torch.empty_like(rows).index_copy_(0, gather(anchors), rows)
    T = T.to_sparse_coo().coalesce()
    i, j = T.indices()
    indices, shape = torch.stack([gather(anchors[i]), gather(j)]), (n, T.shape[1])
    return torch.sparse_coo_tensor(indices, gather(T.values()), shape, check_invariants=True)


def _pair(name: str, labels: Labels | None, n: int, m: int) -> Pair | None:
    if labels is None:
        return None
    pair = labels if isinstance(labels, tuple) else (labels, labels)
    if len(pair) != 2:
        raise argument_error(name, "be one tensor of labels or a pair of them", f"{len(pair)} of them")
    return check_labels(name, pair[0], n), check_labels(name, pair[1], m)
