"""Row-wise log-sum-exp of a matrix of logits that is never held as a whole."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from otdml.losses.alignment.first_order import first_order

__all__ = ["Edit", "logsumexp", "row_slices", "safe_shift", "weighted_logsumexp"]

# Changes a block of logits in place, given its rows and columns: pairs that may not be, or weights in the log domain.
Edit = Callable[[Tensor, slice, slice], object]

# Entries of a block: those of the CPU stay in its cache, those of a GPU keep it busy.
_BLOCK, _BLOCK_CUDA = 2**19, 2**24
# Up to this many entries a matrix costs less than the overhead of streaming.
_SMALL = 2**16
# Logarithm of the ratio of the largest to the least number of which sums are made without a look at the largest.
_ROOM = {torch.float32: 80.0, torch.float64: 600.0}


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
    @first_order
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
    @first_order
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
    """Slices that cover ``n`` rows of ``m`` entries in blocks."""
    size = max(1, (_BLOCK_CUDA if device.type == "cuda" else _BLOCK) // m)
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
