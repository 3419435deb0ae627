"""Log-sum-exp of the rows and of the columns of one matrix of logits that is never held as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otdml.losses.alignment.first_order import first_order
from otdml.losses.alignment.logsumexp import Edit, row_slices

__all__ = ["mutual_logsumexp", "symmetric_logsumexp"]

Pair = tuple[Tensor, Tensor]


def mutual_logsumexp(x: Tensor, y: Tensor, h: Pair, w: Pair, edit: Edit | None = None, *, bound: float = 0.0) -> Tensor:
    r"""Weighted log-sum-exp of the rows, and of the columns, of one matrix of logits.

    .. math::
        \sum_i w_i \log \sum_j \exp(\langle x_i, y_j \rangle + h'_j)
        + \sum_j w'_j \log \sum_i \exp(\langle x_i, y_j \rangle + h_i)

    The exponentials are made once where they fit into one block, and twice beyond; done one after the other, both
    sums would take half as many products again. There is no second derivative, and none in h and w.

    Args:
        x: Shape (n, d).
        y: Shape (m, d).
        h: Terms h of the rows and h' of the columns, shapes (n,) and (m,).
        w: Weights w and w', shapes (n,) and (m,).
        edit: Changes blocks of logits in place, by constants.
        bound: A bound of the scalar products for which :func:`~otdml.losses.alignment.logsumexp.safe_shift` with h
            is a number.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> ones = torch.ones(1), torch.ones(3)
        >>> zeros = torch.zeros(1), torch.zeros(3)
        >>> mutual_logsumexp(torch.zeros(1, 2), torch.ones(3, 2), zeros, ones)  # log 3 + 3 log 1
        tensor(1.0986)
    """
    return _Mutual.apply(x, y, h, w, edit, bound)


def symmetric_logsumexp(x: Tensor, h: Tensor, w: Tensor, edit: Edit | None = None, *, bound: float = 0.0) -> Tensor:
    r"""Weighted log-sum-exp of the rows of the logits of points with themselves, from one half of the matrix.

    .. math:: \sum_i w_i \log \sum_j \exp(\langle x_i, x_j \rangle + h_j)

    Args:
        x: Shape (n, d).
        h: Column terms, shape (n,).
        w: Weights, shape (n,).
        edit: Changes blocks of logits in place, by constants that are symmetric.
        bound: As in :func:`mutual_logsumexp`.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> symmetric_logsumexp(torch.zeros(3, 2), torch.zeros(3), torch.ones(3))  # 3 log 3
        tensor(3.2958)
    """
    return _Symmetric.apply(x, h, w, edit, bound)


@dataclass(frozen=True, eq=False)
class _Kernel:
    """Blocks of the exponentials of scalar products less ``bound``: whole rows, or their part from the diagonal on."""

    x: Tensor
    y: Tensor
    edit: Edit | None
    bound: float
    half: bool = False

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        n, m = len(self.x), len(self.y)
        shift, space = self.x.new_tensor([-self.bound]), None
        for rows in row_slices(n, m, self.x.device):
            columns = slice(rows.start if self.half else 0, m)
            shape = rows.stop - rows.start, m - columns.start
            space = self.x.new_empty(shape[0] * shape[1]) if space is None else space
            out = space[: shape[0] * shape[1]].view(shape)
            scores = torch.addmm(shift, self.x[rows], self.y[columns].mT, out=out)
            if self.edit is not None:
                self.edit(scores, rows, columns)
            yield rows, columns, scores.exp_()

    def kept(self) -> "_Kernel | _Kept":
        """The same, made once if there is a single block."""
        if len(list(row_slices(len(self.x), len(self.y), self.x.device))) > 1:
            return self
        return _Kept(next(self.blocks()))


@dataclass(frozen=True, eq=False)
class _Kept:
    block: tuple[slice, slice, Tensor]

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        yield self.block


def _mixed(powers: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The block times the matrix ``left @ right``, in place."""
    return powers.mul_(left @ right)


class _Mutual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, h: Pair, w: Pair, edit: Edit | None, bound: float) -> Tensor:
        tops = [t.amax() for t in h]
        u, v = ((t - top).exp() for t, top in zip(h, tops, strict=True))
        kernel = _Kernel(x, y, edit, bound).kept()
        r, c = x.new_empty(len(x)), x.new_zeros(len(y))
        for rows, _, powers in kernel.blocks():
            torch.mv(powers, v, out=r[rows])
            c.addmv_(powers.mT, u[rows])
        value, (f, g) = _logs(w, (r, c), (tops[1] + bound, tops[0] + bound))
        if any(ctx.needs_input_grad):
            left, right = torch.stack([f, u], 1), torch.stack([v, g])
            dx, dy = torch.empty_like(x), torch.zeros_like(y)
            for rows, _, powers in kernel.blocks():
                share = _mixed(powers, left[rows], right)
                torch.mm(share, y, out=dx[rows])
                dy.addmm_(share.mT, x[rows])
            ctx.save_for_backward(dx, dy)
        return value

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * g for g in ctx.saved_tensors), None, None, None, None


class _Symmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, w: Tensor, edit: Edit | None, bound: float) -> Tensor:
        top = h.amax()
        v = (h - top).exp()
        kernel = _Kernel(x, x, edit, bound, half=True).kept()
        r = x.new_zeros(len(x))
        for rows, columns, powers in kernel.blocks():
            r[rows] += powers @ v[columns]
            r[rows.stop :].addmv_(_beyond(powers).mT, v[rows])
        value, (f,) = _logs((w,), (r,), (top + bound,))
        if any(ctx.needs_input_grad):
            left, right = torch.stack([f, v], 1), torch.stack([v, f])
            dx = torch.zeros_like(x)
            for rows, columns, powers in kernel.blocks():
                share = _mixed(powers, left[rows], right[:, columns])
                dx[rows].addmm_(share, x[columns])
                dx[rows.stop :].addmm_(_beyond(share).mT, x[rows])
            ctx.save_for_backward(dx)
        return value

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.saved_tensors[0], None, None, None, None


def _beyond(block: Tensor) -> Tensor:
    """The columns of a block of the upper triangle that come after its rows."""
    return block[:, len(block) :]


def _logs(w: tuple[Tensor, ...], sums: tuple[Tensor, ...], shifts: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """The weighted logarithms of the sums, shifted, and the weights over the sums."""
    value, factors = w[0].new_zeros(()), []
    for weights, s, shift in zip(w, sums, shifts, strict=True):
        s.clamp_(min=torch.finfo(s.dtype).tiny)
        value += torch.dot(weights, s.log().add_(shift))
        factors.append(weights / s)
    return value, factors
