"""Which embeddings are anchors, which are candidates, and which pairs cannot be."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Forbidden", "Pairing", "chosen", "joint", "one_way", "within"]


@dataclass(frozen=True, eq=False)
class Pairing:
    """Anchors and candidates by their numbers.

    Attributes:
        n: Number of anchors.
        m: Number of candidates.
        own: The candidate that is the other view of each anchor, shape (n,).
        itself: The candidate that is the anchor itself, shape (n,), or None where anchors are no candidates.
        turn: The difference of the numbers of the other view and of the anchor, modulo m, if it is the same for all.
    """

    n: int
    m: int
    own: Tensor
    itself: Tensor | None = None
    turn: int | None = None

    def take(self, anchors: Tensor) -> "Pairing":
        """The same candidates for some anchors."""
        itself = self.itself if self.itself is None else self.itself[anchors]
        return Pairing(len(anchors), self.m, self.own[anchors], itself)


def one_way(n: int, m: int, device: torch.device) -> Pairing:
    """First views as anchors, second ones as candidates."""
    # Where they are not as many, no target gives weight to the other view.
    own = torch.arange(n, device=device)
    return Pairing(n, m, own, turn=0) if n == m else Pairing(n, m, own.clamp_(max=m - 1))


def joint(n: int, device: torch.device) -> Pairing:
    """Both views of n samples as anchors and as candidates: the n first views, then the n second ones."""
    itself = torch.arange(2 * n, device=device)
    return Pairing(2 * n, 2 * n, itself.roll(n), itself, turn=n)


def within(n: int, device: torch.device) -> Pairing:
    """One set of n samples, as anchors and as candidates."""
    itself = torch.arange(n, device=device)
    return Pairing(n, n, itself, itself)


def chosen(column: Tensor, rows: slice, columns: slice) -> Tensor:
    """True where a row meets its ``column``, for some rows and columns."""
    return column[rows, None] == torch.arange(columns.start, columns.stop, device=column.device)


@dataclass(frozen=True, eq=False)
class Forbidden:
    """Pairs that carry no mass: of an anchor with itself, and of one instance with itself unless it is a positive.

    Attributes:
        itself: As in :class:`Pairing`.
        ids: Instance of each anchor and of each candidate, or None.
        target: Blocks of the target plan, for the positives.
    """

    itself: Tensor | None
    ids: tuple[Tensor, Tensor] | None
    target: Callable[[slice, slice], Tensor]

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """True where no mass may go."""
        found = [] if self.itself is None else [chosen(self.itself, rows, columns)]
        if self.ids is not None:
            found.append(self._repeated(self.ids, rows, columns))
        return functools.reduce(torch.logical_or, found)

    def edit(self, scores: Tensor, rows: slice, columns: slice) -> None:
        """Minus infinity in place of the logits of forbidden pairs; the columns hold the anchors themselves."""
        if self.itself is not None:
            scores.scatter_(1, self.itself[rows, None] - columns.start, -torch.inf)
        if self.ids is not None:
            scores.masked_fill_(self._repeated(self.ids, rows, columns), -torch.inf)

    def _repeated(self, ids: tuple[Tensor, Tensor], rows: slice, columns: slice) -> Tensor:
        same = ids[0][rows, None] == ids[1][None, columns]
        return same.logical_and_(self.target(rows, columns) == 0)
