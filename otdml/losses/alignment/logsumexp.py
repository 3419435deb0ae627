"""Log-sum-exp of the rows, and of the columns, of a matrix of logits that is never held as a whole."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otdml.ot.engines.base import block_entries

__all__ = [
    "Edit",
    "first_order_only",
    "logsumexp",
    "mutual_logsumexp",
    "row_slices",
    "safe_shift",
    "symmetric_logsumexp",
    "weighted_logsumexp",
]

Pair = tuple[Tensor, Tensor]
# Rows, columns and entries of a part of a matrix.
Block = tuple[slice, slice, Tensor]

# Changes a block of logits in place, given its rows and columns: pairs that may not be, or weights in the log domain.
Edit = Callable[[Tensor, slice, slice], object]

# Up to this many entries a matrix costs less than the overhead of streaming.
_SMALL = 2**16
# Logarithm of the ratio of the largest to the least number of which sums are made without a look at the largest.
_ROOM = {torch.float32: 80.0, torch.float64: 600.0}


def _first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that may not itself be differentiated.

    ``once_differentiable`` of torch says nothing as long as the gradient that comes in is a constant, as it is for a
    loss, and the gradient that goes out is then a constant, too.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "This loss has second derivatives for `marginals`='rows' and `backend`='dense' alone. "
                "Pass these, or differentiate without `create_graph`."
            )
        return backward(ctx, *grads)

    return wrapper


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def first_order_only(value: Tensor) -> Tensor:
    """``value``, whose gradient may not be differentiated."""
    return _FirstOrder.apply(value)


def logsumexp(x: Tensor, y: Tensor, h: Tensor, edit: Edit | None = None, *, backend: str = "auto") -> Tensor:
    r"""Row-wise logarithm of the sum of exponentials of scalar products plus a column term.

    .. math:: \ell_i = \log \sum_j \exp(\langle x_i, y_j \rangle + h_j)

    Streamed, it makes blocks of rows once for the value and once more for the gradient; memory is linear in n + m,
    and there is no second derivative. A row without any pair comes out as the least finite number.

    Args:
        x: Shape (n, d).
        y: Shape (m, d).
        h: Column terms, shape (m,).
        edit: Changes the logits of some rows in place, by constants.
        backend: ``"dense"``, ``"streamed"``, or ``"auto"``, which holds small matrices only.

    Returns:
        Shape (n,).

    Example:
        >>> import torch
        >>> logsumexp(torch.zeros(1, 2), torch.ones(3, 2), torch.zeros(3))  # log 3
        tensor([1.0986])
    """
    if backend == "dense" or (backend == "auto" and len(x) * len(y) <= _SMALL):
        return _dense(x, y, h, edit)
    return _LogSumExp.apply(x, y, h, edit)


def _dense(x: Tensor, y: Tensor, h: Tensor, edit: Edit | None) -> Tensor:
    scores = torch.addmm(h, x, y.mT)
    if edit is not None:
        # Unseen by autograd: the softmax has no mass at minus infinity, and other changes are constant terms.
        edit(scores.detach(), slice(0, len(x)), slice(0, len(y)))
    # A row without any pair has no softmax, so it must not get a gradient either.
    least = torch.finfo(x.dtype).min
    return scores.masked_fill(scores.detach().amax(-1, keepdim=True) == -torch.inf, least).logsumexp(-1)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, h: Tensor, edit: Edit | None) -> Tensor:
        result = x.new_empty(len(x))
        for rows, scores in _blocks(x, y, h, edit):
            top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).min)
            torch.add(scores.sub_(top).exp_().sum(-1).log_(), top[:, 0], out=result[rows])
        result.clamp_(min=torch.finfo(x.dtype).min)
        ctx.edit = edit
        ctx.save_for_backward(x, y, h, result)
        return result

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, y, h, result = ctx.saved_tensors
        dx, dy, dh = (torch.zeros_like(t) for t in (x, y, h))
        for rows, scores in _blocks(x, y, h, ctx.edit):
            share = scores.sub_(result[rows, None]).exp_()
            torch.mm(share, y, out=dx[rows])
            dy.addmm_(share.mT, x[rows] * grad[rows, None])
            dh.addmv_(share.mT, grad[rows])
        return dx.mul_(grad[:, None]), dy, dh, None


def weighted_logsumexp(
    x: Tensor,
    y: Tensor,
    h: Tensor,
    w: Tensor,
    edit: Edit | None = None,
    *,
    shift: float | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""The sum :math:`\sum_i w_i \ell_i` of :func:`logsumexp` with constant weights, in half the time.

    A gradient that is known up to a factor can be made together with the value, from the same blocks.

    Args:
        x: Shape (n, d).
        y: Shape (m, d).
        h: Column terms, shape (m,).
        w: Weights, shape (n,), zero in rows without any pair.
        edit: Changes the logits of some rows in place, by constants.
        shift: Taken from all logits in place of the largest of each row, see :func:`safe_shift`.
        backend: ``"dense"``, which has second derivatives, or any other.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> weighted_logsumexp(torch.zeros(1, 2), torch.ones(3, 2), torch.zeros(3), torch.tensor([2.0]))  # 2 log 3
        tensor(2.1972)
    """
    if backend == "dense":
        return (w * _dense(x, y, h, edit)).sum()
    return _WeightedLogSumExp.apply(x, y, h, w, edit, shift)


def safe_shift(bound: float, dtype: torch.dtype, *terms: Tensor | None) -> float | None:
    """A number that can be taken from all logits so that their exponentials neither overflow nor vanish, or None.

    Args:
        bound: Largest absolute value of a scalar product.
        dtype: Of the logits.
        terms: What is added to them, by row or column, or None.

    Returns:
        The largest logit that can be, if the least one is not too far below.

    Example:
        >>> import torch
        >>> safe_shift(10.0, torch.float32), safe_shift(1000.0, torch.float32)
        (10.0, None)
    """
    lowest, highest = -bound, bound
    for h in terms:
        if h is not None:
            h = h.detach()
            top = float(h.amax())
            lowest, highest = lowest + float(h.where(h > -torch.inf, top).amin()), highest + top
    return highest if highest - lowest <= _ROOM[dtype] else None


class _WeightedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, h: Tensor, w: Tensor, edit: Edit | None, shift: float | None) -> Tensor:
        linked, linked_h = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        dx, dy, dh = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(h)
        value = x.new_zeros(())
        for rows, scores in _blocks(x, y, h if shift is None else h - shift, edit):
            powers, sums, logs = _powers(scores, shift)
            value += torch.dot(w[rows], logs)
            factors = sums.reciprocal_().mul_(w[rows])
            if linked:
                torch.mm(powers, y, out=dx[rows]).mul_(factors[:, None])
                dy.addmm_(powers.mT, x[rows] * factors[:, None])
            if linked_h:
                dh.addmv_(powers.mT, factors)
        ctx.save_for_backward(dx, dy, dh)
        return value

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(g if g is None else grad * g for g in ctx.saved_tensors), None, None, None


def _powers(scores: Tensor, shift: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Exponentials of logits less the shift they have had, or else the row's largest; sums; logarithms of the sums."""
    top: Tensor | float | None = shift
    if top is None:
        peaks = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
        scores, top = scores.sub_(peaks), peaks[:, 0]
    powers = scores.exp_()
    sums = powers.sum(-1).clamp_(min=torch.finfo(scores.dtype).tiny)
    return powers, sums, sums.log().add_(top)


def row_slices(n: int, m: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover ``n`` rows of ``m`` entries in blocks of the engines' size."""
    size = max(1, block_entries(device) // m)
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


def _blocks(x: Tensor, y: Tensor, h: Tensor, edit: Edit | None) -> Iterator[tuple[slice, Tensor]]:
    buffer = None
    for rows in row_slices(len(x), len(y), x.device):
        # One buffer for all blocks: fresh memory costs more than the product that fills it.
        out = buffer if buffer is None else buffer[: rows.stop - rows.start]
        scores = torch.addmm(h, x[rows], y.mT, out=out)
        buffer = scores if buffer is None else buffer
        if edit is not None:
            edit(scores, rows, slice(0, len(y)))
        yield rows, scores


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
    return _MutualLogSumExp.apply(x, y, h, w, edit, bound)


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
    return _MutualLogSumExp.apply(x, None, (h,), (w,), edit, bound)


@dataclass(frozen=True, eq=False)
class _Kernel:
    """The matrix of exponentials of scalar products less ``bound``, in blocks of rows.

    Attributes:
        x: Shape (n, d).
        y: Shape (m, d), or None for a symmetric matrix, of whose blocks only the part from the diagonal on is made.
        edit: Changes blocks of logits in place.
        bound: Taken from all logits.
    """

    x: Tensor
    y: Tensor | None
    edit: Edit | None
    bound: float

    def blocks(self) -> Iterator[Block]:
        y = self.x if self.y is None else self.y
        n, m = len(self.x), len(y)
        shift, buffer = self.x.new_tensor([-self.bound]), None
        for rows in row_slices(n, m, self.x.device):
            columns = slice(rows.start if self.y is None else 0, m)
            shape = rows.stop - rows.start, m - columns.start
            buffer = self.x.new_empty(shape[0] * shape[1]) if buffer is None else buffer
            out = buffer[: shape[0] * shape[1]].view(shape)
            scores = torch.addmm(shift, self.x[rows], y[columns].mT, out=out)
            if self.edit is not None:
                self.edit(scores, rows, columns)
            yield rows, columns, scores.exp_()

    def turned(self, rows: slice) -> slice:
        """The columns whose entries in these rows are those of the transpose: all, or those after the diagonal."""
        return slice(0 if self.y is not None else rows.stop, None)

    def passes(self) -> tuple[Iterable[Block], Iterable[Block]]:
        """The blocks twice: a single block is kept, several are made anew."""
        if len(self.x) * len(self.x if self.y is None else self.y) > block_entries(self.x.device):
            return self.blocks(), self.blocks()
        kept = list(self.blocks())
        return kept, kept


class _MutualLogSumExp(torch.autograd.Function):
    """Each exponential is used for its row and for its column; of a symmetric matrix one half is made."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, h: Sequence[Tensor], w: Sequence[Tensor], edit: Edit | None, bound: float
    ) -> Tensor:
        tops = [t.amax() for t in h]
        factors = [(t - top).exp() for t, top in zip(h, tops, strict=True)]
        u, v = factors[0], factors[-1]
        kernel = _Kernel(x, y, edit, bound)
        first, second = kernel.passes()
        sums = [t.new_zeros(len(t)) for t in h]
        for rows, columns, powers in first:
            turned = kernel.turned(rows)
            sums[0][rows].addmv_(powers, v[columns])
            sums[-1][turned].addmv_(powers[:, _within(turned, columns)].mT, u[rows])
        value, scales = _logs(w, sums, [top + bound for top in reversed(tops)])
        if any(ctx.needs_input_grad):
            left, right = torch.stack([scales[0], u], 1), torch.stack([v, scales[-1]])
            gradients = [torch.zeros_like(z) for z in (x, y) if z is not None]
            for rows, columns, powers in second:
                turned = kernel.turned(rows)
                share = powers.mul_(left[rows] @ right[:, columns])
                gradients[0][rows].addmm_(share, (x if y is None else y)[columns])
                gradients[-1][turned].addmm_(share[:, _within(turned, columns)].mT, x[rows])
            ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = [grad * g for g in ctx.saved_tensors]
        return (*found, *[None] * (6 - len(found)))


def _within(part: slice, columns: slice) -> slice:
    """The columns of ``part`` by their place in a block that begins with the first of ``columns``."""
    return slice(part.start - columns.start, None)


def _logs(w: Sequence[Tensor], sums: Sequence[Tensor], shifts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The weighted logarithms of the sums, shifted, and the weights over the sums."""
    value, scales = w[0].new_zeros(()), []
    for weights, s, shift in zip(w, sums, shifts, strict=True):
        s.clamp_(min=torch.finfo(s.dtype).tiny)
        value += torch.dot(weights, s.log().add_(shift))
        scales.append(weights / s)
    return value, scales
