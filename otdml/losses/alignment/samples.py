"""What is known of the samples of a batch: the target and the instances."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error, check_labels
from otdml.distributed import gather
from otdml.losses.alignment.target import DomainTarget, Target

__all__ = ["Labels", "Samples"]

Labels = Tensor | tuple[Tensor, Tensor]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Samples:
    """The target and the instances of two sets of samples, labels as pairs: of the first, and of the second set.

    Attributes:
        target: None, labels, a domain target, or a matrix.
        ids: Instances, or None.
    """

    target: Pair | DomainTarget | Tensor | None
    ids: Pair | None

    @classmethod
    def checked(cls, target: Target, ids: Labels | None, n: int, m: int) -> "Samples":
        """The same target with labels in pairs, if they fit ``n`` and ``m`` samples."""
        if isinstance(target, DomainTarget):
            check_labels("target.domains", target.domains, n)
            return cls(target, _pair("ids", ids, n, m))
        if target is None or isinstance(target, tuple) or (isinstance(target, Tensor) and target.ndim == 1):
            return cls(_pair("target", target, n, m), _pair("ids", ids, n, m))
        if isinstance(target, Tensor) and target.ndim == 2:
            return cls(target, _pair("ids", ids, n, m))
        must = "be None, one label per row, a pair of those, a matrix, or a DomainTarget"
        got = f"shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise argument_error("target", must, got, kind=ValueError if isinstance(target, Tensor) else TypeError)

    def aligned(self, anchors: Tensor | None, shape: tuple[int, int], *, joint: bool) -> "Samples":
        """Those of all processes if ``anchors`` are some, and of both sets as one if ``joint``.

        Args:
            anchors: Which anchors are those of this process, or None for all.
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
            found = found._map(lambda a, b: (gather(a), gather(b)), gather)
        return found._map(lambda a, b: (torch.cat([a, b]),) * 2, lambda d: d.repeat(2)) if joint else found

    @property
    def reversible(self) -> bool:
        """Whether the plan of the swapped sets is the transpose: rows of the other forms are made equal either way."""
        matrix = isinstance(self.target, Tensor) and self.target.dtype != torch.bool
        return self.target is None or matrix

    def swapped(self) -> "Samples":
        """Those with the second set first."""
        turned = self._map(lambda a, b: (b, a), lambda d: d)
        return Samples(self.target.t(), turned.ids) if isinstance(self.target, Tensor) else turned

    def _map(self, f: Callable[[Tensor, Tensor], Pair], g: Callable[[Tensor], Tensor]) -> "Samples":
        """Those with ``f`` of the pairs of labels, and ``g`` of the domains."""
        target = self.target
        if isinstance(target, DomainTarget):
            target = dataclasses.replace(target, domains=g(target.domains))
        elif isinstance(target, tuple):
            target = f(*target)
        return Samples(target, self.ids and f(*self.ids))


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
