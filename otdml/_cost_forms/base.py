r"""What a ground cost is to a solver: the operations that entropic transport needs of every algebraic form.

Every form is :math:`C_{ij} = u_i + v_j + R_{ij}` with row and column *offsets* u and v and a *reduced* cost R. Solvers
work on R, and on the potentials less u and v, so the distance between two clouds costs no digits.

A new form of cost implements :class:`Ground`; nothing outside of this file asks which form a cost has.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

__all__ = [
    "Gradients",
    "Ground",
    "LinkedPlan",
    "Mask",
    "Plan",
    "Scale",
    "Symbolic",
    "per_batch",
    "some_rows",
    "with_zero",
    "with_zero_row",
]

Gradients = tuple[Tensor | None, ...]
Scale = Tensor | float
# Forbidden pairs: from two slices to a boolean tensor, True where no mass may go.
Mask = Callable[[slice, slice], Tensor]
# A symbolic function of two symbolic points, for engines that compile it.
Symbolic = Callable[[Any, Any], Any]

# Entries of a block when a whole cost is read once.
_BLOCK = 2**20


class Plan(Protocol):
    """A plan without gradient, as the pull-back of a cost reads it."""

    @property
    def mT(self) -> "Plan": ...
    def blocks(self, left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]: ...
    def product(self, v: Tensor) -> Tensor: ...
    def products(self, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]: ...
    def slopes(self, left: Tensor, right: Tensor) -> "Gradients | None": ...


class LinkedPlan(Protocol):
    """A plan that is differentiable in its exponents and in the leaves of its cost."""

    @property
    def mT(self) -> "LinkedPlan": ...
    def product(self, v: Tensor) -> Tensor: ...
    def entries(self, C: Tensor) -> Tensor: ...
    def first_order(self, gradients: Gradients, leaves: Sequence[Tensor]) -> Gradients: ...


class Ground(ABC):
    """A ground cost between n row points and m column points, with optional leading batch dimensions.

    Attributes:
        u: Row offsets, shape (..., n), or None for zero.
        v: Column offsets, shape (..., m), or None for zero.
        noise: What equal costs may differ by, beside the rounding of what they are a sum of.
    """

    u: Tensor | None
    v: Tensor | None
    noise: float = 0.0
    # The argument of the caller that holds the costs, or makes them, and what to look for where they are not finite.
    argument: ClassVar[str] = "x"
    look_for: ClassVar[str] = "NaN or infinity in `x`, `y` and weights, or for a point without admissible partner"

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(..., n, m)."""

    @property
    @abstractmethod
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors in which the cost is differentiable."""

    @property
    @abstractmethod
    def mT(self) -> Self:
        """The cost with rows and columns exchanged."""

    @abstractmethod
    def block(self, rows: slice) -> Tensor:
        """The reduced cost of some rows, shape (..., rows, m)."""

    @abstractmethod
    def rows(self, index: Tensor) -> Self:
        """The cost of some rows, by their numbers; without batch dimensions."""

    @abstractmethod
    def scaled(self, scale: Scale) -> Self:
        """The reduced cost times ``scale``, a number or shape (...), without offsets."""

    @abstractmethod
    def detach(self) -> Self:
        """The same cost without its graph."""

    @abstractmethod
    def double(self) -> "Ground":
        """The same cost in double precision, computed anew from the points where it was made of points."""

    @abstractmethod
    def extended(self) -> Self:
        """The cost with a row and a column more, both of zeros, offsets included."""

    @abstractmethod
    def pullback(
        self, plan: Plan, left: Tensor, right: Tensor, needs: Sequence[bool], *, offsets: bool = True
    ) -> Gradients:
        r"""The gradient of :math:`\sum_{ij} P_{ij} \langle l_i, r_j \rangle C_{ij}` in the leaves, P held fixed.

        Args:
            plan: P.
            left: l, shape (..., n, e).
            right: r, shape (..., m, e).
            needs: Which leaves need it.
            offsets: Whether C or the reduced cost R is meant.
        """

    @abstractmethod
    def linked_pullback(self, plan: LinkedPlan, leaves: Sequence[Tensor], grad: Tensor) -> Gradients:
        r"""The gradient of :math:`\sum_{ij} P_{ij} C_{ij}` in the leaves, times ``grad``, differentiable through P."""

    def scores(self, rows: slice, h: Tensor, out: Tensor | None = None) -> Tensor:
        """:math:`h_j - R_{ij}` for some rows, in ``out`` or in a new tensor."""
        return torch.sub(h[..., None, :], self.block(rows), out=out)

    def sizes(self) -> Tensor:
        """The largest absolute reduced cost, or an upper bound of it, of each of the batch, shape (...)."""
        return torch.stack([self.block(rows).detach().abs().amax((-2, -1)) for rows in self._row_blocks()]).amax(0)

    def largest(self) -> Tensor:
        """The largest of the sizes over the whole batch."""
        return self.sizes().max()

    def evaluated(self) -> "Ground":
        """The form that an engine which keeps the matrix works with."""
        return self

    def vanishes(self) -> bool:
        """Whether costs that differ are zero, or next to it, as the squares of small numbers vanish."""
        return False

    def near_zero(self, scale: Scale) -> "Ground":
        """The same cost with an offset in place of a constant that would cost digits in units of ``scale``."""
        return self

    def symbolic(self) -> Symbolic | None:
        """The reduced cost between symbolic points, where it can be compiled."""
        return None

    def tile(self) -> tuple[str, Tensor, Tensor, Scale | None] | None:
        r"""How a fused kernel evaluates the reduced cost, or None: a form, points x and y, and a factor.

        ``"product"`` is :math:`-\langle x, y \rangle`, ``"distance"`` the factor times :math:`\lVert x - y \rVert`, and
        ``"angle"`` the factor times the angle between x and y.
        """
        return None

    def norm(self) -> tuple[int, tuple[Tensor, Tensor]] | None:
        r"""A power p and points with :math:`R_{ij} = \lVert x_i - y_j \rVert^p / p` up to offsets, or None."""
        return None

    def gaussian_potential(self) -> Tensor:
        """A column potential to start from, shape (..., m)."""
        return self.first.new_zeros(*self.shape[:-2], self.shape[-1])

    def between(self, x: Tensor, y: Tensor) -> "Ground":
        """The reduced cost between other points, or factors, in place of the first two leaves."""
        raise TypeError(f"{type(self).__name__} has no points")

    @property
    def depends_on_parameters(self) -> bool:
        """Whether the cost has a gradient in something that is not among its leaves."""
        return False

    @property
    def versions(self) -> tuple[int, ...]:
        """How often tensors that may be the caller's own have been changed in place."""
        return tuple(t._version for t in self.leaves if not t.is_inference())

    @property
    def first(self) -> Tensor:
        """The first leaf; all are of its dtype and on its device."""
        return self.leaves[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    @property
    def device(self) -> torch.device:
        return self.first.device

    def without(self, rows: Tensor, columns: Tensor) -> "Ground":
        """The cost with zeros for these rows, shape (..., n), and columns, shape (..., m)."""
        raise TypeError(f"{type(self).__name__} forbids no pair")

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their reduced cost, all of it once."""
        return ((rows, self.block(rows)) for rows in self._row_blocks())

    def _row_blocks(self) -> Iterator[slice]:
        n, m = self.shape[-2:]
        size = max(1, _BLOCK // max(1, m * self.shape[:-2].numel()))
        return (slice(start, min(n, start + size)) for start in range(0, n, size))


def with_zero_row(v: Tensor) -> Tensor:
    """Matrices, shape (..., n, e), with a row of zeros below the others."""
    return torch.nn.functional.pad(v, (0, 0, 0, 1))


def with_zero(u: Tensor) -> Tensor:
    """Vectors, shape (..., n), with a zero after the others."""
    return torch.nn.functional.pad(u, (0, 1))


def some_rows(t: Tensor, rows: slice) -> Tensor:
    """Some rows of matrices, shape (..., n, e)."""
    # Small problems are one block, and a view of all takes as long as a sum.
    return t if rows.start == 0 and rows.stop == t.shape[-2] else t[..., rows, :]


def per_batch(scale: Scale) -> Scale:
    """``scale``, a number or shape (...), as a factor of matrices."""
    return scale[..., None, None] if isinstance(scale, Tensor) else scale
