"""Forbidden pairs in a fused kernel: those of points with equal integers."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Barred"]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Barred:
    r"""Pairs that may carry no mass, by integers that their points share.

    A pair (i, j) is barred if ``own`` agrees, or if ``same`` agrees and ``kept`` does not. As a mask it is a function
    of two slices, as every engine takes it.

    Attributes:
        own: Two vectors of integers, shapes (n,) and (m,), or None.
        same: Likewise.
        kept: Likewise; without it, nothing is excepted from ``same``.
    """

    own: Pair | None = None
    same: Pair | None = None
    kept: Pair | None = None

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """True where no mass may go."""
        own, same, kept = (
            pair and pair[0][rows, None] == pair[1][columns] for pair in (self.own, self.same, self.kept)
        )
        if same is None:
            assert own is not None
            return own
        same = same if kept is None else same & ~kept
        return same if own is None else own | same

    @property
    def mT(self) -> "Barred":
        own, same, kept = (pair and pair[::-1] for pair in (self.own, self.same, self.kept))
        return Barred(own, same, kept)

    @property
    def level(self) -> int:
        """1 if one pair of vectors says it all, 2 if it takes three."""
        return 1 if self.same is None or (self.own is None and self.kept is None) else 2

    def vectors(self, side: int) -> Tensor:
        """The rows' (0) or the columns' (1) integers, of 32 bits, shape (1, n) or (3, n)."""
        return self._vectors[side]

    @cached_property
    def _vectors(self) -> Pair:
        pairs = [self.own or self.same]
        if self.level > 1:
            assert self.same is not None
            # Numbers that equal none of the other side.
            never = torch.full_like(self.same[0], -1), torch.full_like(self.same[1], -2)
            pairs = [self.own or never, self.same, self.kept or never]
        found = [_renumbered(pair) for pair in pairs if pair is not None]
        return torch.stack([rows for rows, _ in found]), torch.stack([columns for _, columns in found])


def _renumbered(pair: Pair) -> Pair:
    """The same equality in 32 bits, without truncation of larger numbers."""
    if all(t.dtype == torch.int32 for t in pair):
        return pair
    index = torch.cat(pair).unique(return_inverse=True)[1].to(torch.int32)
    return index[: len(pair[0])], index[len(pair[0]) :]
