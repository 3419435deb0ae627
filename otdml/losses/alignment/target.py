"""Target plans: which pairs should match, and how much."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from otdml._checks import argument_error
from otdml._precision import widest
from otdml.losses.alignment.logits import row_slices
from otdml.losses.alignment.pairs import DomainTarget, Pairing, Target, matches

__all__ = ["DensePlan", "GroupedPlan", "MatchedPlan", "SparsePlan", "TargetPlan", "target_plan"]

Pair = tuple[Tensor, Tensor]


class TargetPlan(ABC):
    """A target plan of mass one on the pairs (anchor, candidate).

    Attributes:
        symmetric: Whether pairs have mass in both directions, where the anchors are the candidates.
    """

    symmetric: ClassVar[bool] = False

    @property
    @abstractmethod
    def rows(self) -> Tensor:
        """Row sums, shape (n,)."""

    @property
    @abstractmethod
    def columns(self) -> Tensor:
        """Column sums, shape (m,)."""

    @property
    def match(self) -> Tensor | None:
        """The candidate of each anchor, shape (n,), where each has one and all have the same mass; else None."""
        return None

    @property
    def groups_of_positives(self) -> Pair | None:
        """One integer per anchor and per candidate, which agree where the plan has mass; None where no integers do."""
        return None

    @abstractmethod
    def attraction(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum over pairs of the plan times the scalar products of ``x``, shape (n, d), and ``y``, (m, d)."""

    @abstractmethod
    def block(self, rows: slice, columns: slice) -> Tensor:
        """Some rows and columns of the plan."""

    @abstractmethod
    def take(self, anchors: Tensor) -> "TargetPlan":
        """The rows of these anchors."""

    def expectation(self, f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, h: Tensor | None = None) -> Tensor:
        """The sum over pairs of the plan times a function of the scalar products plus the candidate's ``h``."""
        h, everything = y.new_zeros(len(y)) if h is None else h, slice(0, len(y))

        def part(x: Tensor, y: Tensor, h: Tensor, rows: slice) -> Tensor:
            return (self.block(rows, everything) * f(torch.addmm(h, x, y.mT))).sum()

        slices = list(row_slices(len(x), len(y), x.device))
        if len(slices) == 1:
            return part(x, y, h, slices[0])
        # For the gradient blocks are computed again, so that memory stays linear.
        parts = [checkpoint(part, x[rows], y, h, rows, use_reentrant=False) for rows in slices]
        return torch.stack(parts).sum()


@dataclass(frozen=True, eq=False)
class MatchedPlan(TargetPlan):
    """The plan that pairs each anchor with its other view, all pairs of one mass.

    Attributes:
        pairing: A pairing with a ``shift``.
        like: Any tensor of the dtype and on the device of the plan.
    """

    symmetric: ClassVar[bool] = True
    pairing: Pairing
    like: Tensor

    @property
    def match(self) -> Tensor:
        return self.pairing.own

    @property
    def rows(self) -> Tensor:
        return self.like.new_full((self.pairing.n,), 1 / self.pairing.n)

    @property
    def columns(self) -> Tensor:
        return self.rows

    @property
    def groups_of_positives(self) -> Pair:
        return self.pairing.own.int(), torch.arange(self.pairing.m, dtype=torch.int32, device=self.like.device)

    def attraction(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * self._matched(y)).sum(-1).mean()

    def expectation(self, f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, h: Tensor | None = None) -> Tensor:
        found = (x * self._matched(y)).sum(-1)
        return f(found if h is None else found + self._matched(h)).mean()

    def _matched(self, v: Tensor) -> Tensor:
        """The rows of ``v`` at the anchors' other views."""
        assert self.pairing.shift is not None
        return v.roll(-self.pairing.shift, 0) if self.pairing.shift else v

    def block(self, rows: slice, columns: slice) -> Tensor:
        return matches(self.pairing.own, rows, columns) * self.like.new_tensor(1 / self.pairing.n)

    def take(self, anchors: Tensor) -> "SparsePlan":
        i, j = torch.arange(len(anchors), device=anchors.device), self.pairing.own[anchors]
        return SparsePlan(len(i), self.pairing.m, i, j, self.rows[: len(i)])


@dataclass(frozen=True, eq=False)
class SparsePlan(TargetPlan):
    """A plan given by its pairs, in the order of their anchors.

    Attributes:
        n: Number of anchors.
        m: Number of candidates.
        i: Anchor of each pair.
        j: Candidate of each pair.
        mass: Mass of each pair.
    """

    n: int
    m: int
    i: Tensor
    j: Tensor
    mass: Tensor

    @property
    def rows(self) -> Tensor:
        return _totals(self.mass, self.i, self.n)

    @property
    def columns(self) -> Tensor:
        return _totals(self.mass, self.j, self.m)

    def attraction(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.dot(self.mass, self._products(x, y))

    def expectation(self, f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, h: Tensor | None = None) -> Tensor:
        found = self._products(x, y)
        return torch.dot(self.mass, f(found if h is None else found + h[self.j]))

    def _products(self, x: Tensor, y: Tensor) -> Tensor:
        """The scalar product of each pair."""
        return (x.index_select(0, self.i) * y.index_select(0, self.j)).sum(-1)

    def block(self, rows: slice, columns: slice) -> Tensor:
        start, stop = torch.searchsorted(self.i, torch.tensor([rows.start, rows.stop], device=self.i.device)).tolist()
        i, j, mass = self.i[start:stop] - rows.start, self.j[start:stop], self.mass[start:stop]
        found = mass.new_zeros(rows.stop - rows.start, self.m)
        return found.index_put_((i, j), mass, accumulate=True)[:, columns]

    def take(self, anchors: Tensor) -> "SparsePlan":
        position = torch.full((self.n,), -1, device=self.i.device)
        position[anchors] = torch.arange(len(anchors), device=self.i.device)
        kept = position[self.i] >= 0
        i, order = position[self.i[kept]].sort(stable=True)
        return SparsePlan(len(anchors), self.m, i, self.j[kept][order], self.mass[kept][order])


@dataclass(frozen=True, eq=False)
class DensePlan(TargetPlan):
    """A plan given as a matrix."""

    T: Tensor

    @property
    def rows(self) -> Tensor:
        return self.T.sum(1)

    @property
    def columns(self) -> Tensor:
        return self.T.sum(0)

    def attraction(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * (self.T @ y)).sum()

    def block(self, rows: slice, columns: slice) -> Tensor:
        return self.T[rows, columns]

    def take(self, anchors: Tensor) -> "DensePlan":
        return DensePlan(self.T[anchors])


@dataclass(frozen=True)
class GroupWeights:
    """Weights of an anchor's other view, of a candidate of the same group, and of any candidate; they add up."""

    own: float = 0.0
    group: float = 0.0
    any: float = 0.0


@dataclass(frozen=True, eq=False)
class GroupedPlan(TargetPlan):
    r"""The plan :math:`T_{ij} = s_i (w_o 1[j = o_i] + w_g 1[\text{same group}] + w_a)`, zero at self pairs.

    Attributes:
        pairing: Which candidates are the anchor's other view o, and itself.
        groups: Group of each anchor, and of each candidate, in [0, count).
        count: Number of groups.
        weights: The weights w.
        scale: Factor s of each row, with which rows have one mass or none, shape (n,).
        sums: Row sums, shape (n,).
    """

    symmetric: ClassVar[bool] = True
    pairing: Pairing
    groups: Pair
    count: int
    weights: GroupWeights
    scale: Tensor
    sums: Tensor

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, weights: GroupWeights, pairing: Pairing, like: Tensor) -> "GroupedPlan":
        """The plan for labels of the anchors and of the candidates."""
        known, index = torch.cat([rows, columns]).to(like.device).unique(return_inverse=True)
        groups, w = (index[: len(rows)], index[len(rows) :]), weights
        sizes = torch.bincount(groups[1], minlength=len(known)).to(like.dtype)
        sums = w.group * sizes[groups[0]] + (w.any * pairing.m + w.own)
        sums = sums if pairing.itself is None else sums - (w.group + w.any)
        scale = _shares(sums)
        return cls(pairing, groups, len(known), weights, scale, scale * sums)

    @property
    def rows(self) -> Tensor:
        return self.sums

    @property
    def columns(self) -> Tensor:
        w = self.weights
        sums = _totals(self.scale, self.groups[0], self.count)
        found = w.group * sums[self.groups[1]] + w.any * self.scale.sum()
        found.index_add_(0, self.pairing.own, self.scale, alpha=w.own)
        if self.pairing.itself is not None:
            found.index_add_(0, self.pairing.itself, self.scale, alpha=-(w.group + w.any))
        return found

    @property
    def groups_of_positives(self) -> Pair | None:
        w = self.weights
        return self.groups if w.group and not w.own and not w.any else None

    def attraction(self, x: Tensor, y: Tensor) -> Tensor:
        w, x = self.weights, self.scale[:, None] * x
        found = w.group * (self._sums(x, 0) * self._sums(y, 1)).sum()
        if w.any:
            found = found + w.any * (x.sum(0) * y.sum(0)).sum()
        if w.own:
            found = found + w.own * (x * y.index_select(0, self.pairing.own)).sum()
        if self.pairing.itself is not None:
            found = found - (w.group + w.any) * (x * y.index_select(0, self.pairing.itself)).sum()
        return found

    def _sums(self, z: Tensor, side: int) -> Tensor:
        """Sums over the groups, shape (count, d)."""
        return z.new_zeros(self.count, z.shape[-1]).index_add(0, self.groups[side], z)

    def block(self, rows: slice, columns: slice) -> Tensor:
        own, group, any_ = self.scale.new_tensor(dataclasses.astuple(self.weights))
        found = any_ + group * (self.groups[0][rows, None] == self.groups[1][None, columns])
        found += own * matches(self.pairing.own, rows, columns)
        if self.pairing.itself is not None:
            found.masked_fill_(matches(self.pairing.itself, rows, columns), 0.0)
        return found.mul_(self.scale[rows, None])

    def take(self, anchors: Tensor) -> "GroupedPlan":
        return dataclasses.replace(
            self,
            pairing=self.pairing.take(anchors),
            groups=(self.groups[0][anchors], self.groups[1]),
            scale=self.scale[anchors],
            sums=self.sums[anchors],
        )


def target_plan(target: Target, pairing: Pairing, like: Tensor) -> TargetPlan:
    """The plan that ``target`` describes, in the dtype and on the device of ``like``.

    Args:
        target: As in :func:`~otdml.losses.contrastive_alignment`, one label per anchor and candidate.
        pairing: Anchors and candidates.
        like: Any tensor.

    Returns:
        The plan, of mass one.

    Raises:
        TypeError: If the target is none of the forms.
        ValueError: If its shape does not fit, an entry is negative or not finite, or there is no positive pair.
    """
    if target is None:
        return MatchedPlan(pairing, like)
    if isinstance(target, DomainTarget):
        weights = GroupWeights(1 - target.alpha, target.alpha - target.beta, target.beta)
        return GroupedPlan.of(target.domains, target.domains, weights, pairing, like)
    if isinstance(target, tuple):
        return GroupedPlan.of(*target, GroupWeights(group=1.0), pairing, like)
    if target.layout != torch.strided:
        return _sparse_plan(target, pairing, like)
    T = target.detach().to(like.device)
    T = T if pairing.itself is None else T.clone().fill_diagonal_(0)
    values = T.to(like.dtype)
    if T.dtype == torch.bool:
        return DensePlan(values * _shares(values.sum(1))[:, None])
    return DensePlan(_masses(values))


def _sparse_plan(target: Tensor, pairing: Pairing, like: Tensor) -> SparsePlan:
    T = target.detach().to(like.device).to_sparse_coo().coalesce()
    (i, j), mass = T.indices(), T.values()
    kept = (mass != 0) & ((i != j) | (pairing.itself is None))
    i, j, mass = i[kept], j[kept], mass[kept]
    plan = SparsePlan(pairing.n, pairing.m, i, j, mass.to(like.dtype))
    mass = _shares(plan.rows)[i] if mass.dtype == torch.bool else _masses(plan.mass)
    return dataclasses.replace(plan, mass=mass)


def _totals(masses: Tensor, index: Tensor, count: int) -> Tensor:
    """The sums of the masses of each index, shape (count,).

    Running sums of many small masses in single precision lose one part in a thousand.
    """
    precise = masses.to(widest(masses.device))
    return precise.new_zeros(count).index_add_(0, index, precise).to(masses.dtype)


def _shares(sums: Tensor) -> Tensor:
    """The factors with which all rows of positive sum have equal masses, of sum one."""
    some = sums > 0
    if not bool(some.any()):
        raise argument_error("target", "hold at least one positive pair", "none")
    return torch.where(some, 1 / torch.where(some, sums, 1.0), 0.0) / some.sum()


def _masses(values: Tensor) -> Tensor:
    """``values`` over their sum."""
    total = values.sum()
    if not bool(total.isfinite() & (total > 0) & (values >= 0).all()):
        least = float(values.min()) if values.numel() else 0.0
        got = f"a sum of {float(total):g} and a least entry of {least:g}"
        raise argument_error("target", "be finite, not negative, and not all zero", got)
    return values / total
