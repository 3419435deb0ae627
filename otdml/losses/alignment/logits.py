"""A matrix of logits that is never held as a whole, and the log-sum-exp of its rows and of its columns.

An engine computes the log-sum-exp of each row: a soft minimum in the forward pass, two products with its plan in the
backward pass. On a GPU the fused engine computes the weighted sums of these as well, where it takes the problem. On a
CPU a weighted sum is computed by a loop over blocks instead. Its weights are constants, so value and gradient come from
one evaluation of each block. On one core and 128 features the streamed engine takes longer by these factors:

====================  =====  =====  =====  =====
rows                  128    512    2,048  4,096
====================  =====  =====  =====  =====
rows alone            1.3    1.5    1.5    1.4
rows and columns      1.9    2.5    2.0    2.1
a symmetric matrix    1.4    1.9    2.2    2.4
====================  =====  =====  =====  =====
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otdml._cost_forms import Mask
from otdml.costs import Bilinear
from otdml.losses.alignment.pairs import Forbidden
from otdml.ot.engines import engine
from otdml.ot.engines.base import block_entries
from otdml.ot.engines.triton import pays

__all__ = ["KERNEL_BYTES", "NO_SECOND", "SMALL", "Logits", "row_slices", "safe_shift"]

Terms = tuple[Tensor | None, Tensor | None]
# Rows, columns and entries of a part of a matrix.
Block = tuple[slice, slice, Tensor]

# Up to this many bytes a kernel is kept during Sinkhorn's iterations, each of which is then a product with a vector.
KERNEL_BYTES = 2**28
# Up to this many entries a matrix costs less than the overhead of streaming.
SMALL = 2**16
# The range of logits within which exponentials are summed after one shift of all, and not of each row by its largest.
_ROOM = {torch.float32: 80.0, torch.float64: 600.0}


NO_SECOND = (
    "This loss has second derivatives for `marginals`='rows' and `backend`='dense' alone. "
    "Pass these, or differentiate without `create_graph`."
)


def _first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that raises an error where it is to be differentiated.

    ``once_differentiable`` of torch does so only where the incoming gradient requires one, which is a constant for a
    loss.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(NO_SECOND)
        return backward(ctx, *grads)

    return wrapper


@dataclass(frozen=True, eq=False)
class Logits:
    r"""The scalar products :math:`\langle x_i, y_j \rangle` of anchors and candidates.

    A small matrix is kept between calls, so results of one object share a graph, and are differentiated together.

    Attributes:
        x: Anchors, shape (n, d).
        y: Candidates, shape (m, d).
        eps: Temperature; the lengths of x and y are those of unit vectors over its root.
        forbidden: Pairs whose logit is minus infinity, or None.
        symmetric: Whether x is y, and pairs are forbidden in both directions.
        backend: ``"dense"``, which has second derivatives; ``"streamed"``; ``"auto"``, which holds small matrices only;
            or the fused engine by name.

    Example:
        >>> import torch
        >>> logits = Logits(torch.zeros(1, 2), torch.ones(3, 2), eps=1.0)
        >>> logits.logsumexp()  # log 3
        tensor([1.0986])
        >>> logits.weighted_logsumexp(torch.tensor([2.0]))  # 2 log 3
        tensor(2.1972)
        >>> logits.mutual_logsumexp((torch.ones(1), torch.ones(3)))  # log 3 + 3 log 1
        tensor(1.0986)
    """

    x: Tensor
    y: Tensor
    eps: Tensor | float
    forbidden: Forbidden | None = None
    symmetric: bool = False
    backend: str = "auto"

    @functools.cached_property
    def bound(self) -> float:
        """The largest absolute value that a logit can have."""
        # Rounding lets the cosine of a vector with itself exceed one.
        return (1 + 1e-5) / float(self.eps.detach() if isinstance(self.eps, Tensor) else self.eps)

    @property
    def small(self) -> bool:
        """Whether the matrix may be held, and is so small that this is the quickest way."""
        return self.backend in ("auto", "dense") and len(self.x) * len(self.y) <= SMALL

    @functools.cached_property
    def fused(self) -> bool:
        """Whether sums are those of the fused engine, by name or because it is expected to pay."""
        if self.x.dtype == torch.float64 or self.backend != "auto":
            return self.x.dtype != torch.float64 and self.backend.startswith("triton")
        fits = len(self.x) * len(self.y) * self.x.element_size() <= KERNEL_BYTES
        return self.x.device.type != "cpu" and pays(Bilinear(self.x, self.y), self._mask, fits)

    @property
    def _mask(self) -> Mask | None:
        return None if self.forbidden is None else self.forbidden.mask

    @functools.cached_property
    def _scores(self) -> Tensor:
        return self._filled(self.x @ self.y.mT)

    def _filled(self, scores: Tensor) -> Tensor:
        if self.forbidden is not None:
            # Unseen by autograd: the softmax has no mass at minus infinity, so no gradient comes from there.
            self.forbidden.fill(scores.detach(), slice(0, len(self.x)), slice(0, len(self.y)))
        return scores

    def matrix(self, h: Tensor | None = None) -> Tensor:
        """All logits plus a column term, shape (n, m)."""
        # A compiler does not trace the lock of a cached property.
        if self.small and not torch.compiler.is_compiling():
            return self._scores if h is None else self._scores + h
        return self._filled(self.x @ self.y.mT if h is None else torch.addmm(h, self.x, self.y.mT))

    def log_mass(self) -> Tensor:
        """The logarithm of the sum of all exponentials, a scalar without graph."""
        if self.small:
            return self.matrix().detach().logsumexp((0, 1))
        with torch.no_grad():
            return self.logsumexp().logsumexp(0)

    def logsumexp(self, h: Tensor | None = None) -> Tensor:
        r"""Of each row, with column terms: :math:`\ell_i = \log \sum_j \exp(\langle x_i, y_j \rangle + h_j)`.

        Where the matrix is not held, memory is linear in n + m, and there is no second derivative. A row without any
        pair comes out as the least finite number.

        Args:
            h: Shape (m,), None for zeros.

        Returns:
            Shape (n,).
        """
        if self.backend == "dense" or self.small:
            return self._dense(h)
        name = self.backend if self.backend.startswith("triton") else "triton" if self.fused else "streamed"
        return _LogSumExp.apply(self.x, self.y, self._terms(h), self._mask, name)

    def weighted_logsumexp(self, w: Tensor, h: Tensor | None = None) -> Tensor:
        r"""The sum :math:`\sum_i w_i \ell_i` of the rows' log-sum-exp with constant weights.

        Its gradient is made together with the value, from the same blocks. Of a symmetric matrix one half is made.

        Args:
            w: Shape (n,), zero in rows without any pair.
            h: Shape (m,), None for zeros.

        Returns:
            A scalar.
        """
        if self.backend == "dense":
            return (w * self._dense(h)).sum()
        if self.fused:
            return torch.dot(w, self.logsumexp(h))
        shift = safe_shift(self.bound, self.x.dtype, h)
        if self.symmetric and shift is not None and (h is None or not h.requires_grad):
            return _MutualLogSumExp.apply(self.x, None, (h,), (w,), self._fill, self.bound)
        return _WeightedLogSumExp.apply(self.x, self.y, self._terms(h), w, self._fill, shift)

    def mutual_logsumexp(self, w: tuple[Tensor, Tensor], h: Terms = (None, None)) -> Tensor | None:
        r"""Weighted log-sum-exp of the rows, and of the columns.

        .. math::
            \sum_i w_i \log \sum_j \exp(\langle x_i, y_j \rangle + h'_j)
            + \sum_j w'_j \log \sum_i \exp(\langle x_i, y_j \rangle + h_i)

        The exponentials are made once where they fit into one block, and twice beyond; done one after the other, both
        sums would take half as many products again. There is no second derivative, and none in h and w.

        Args:
            w: Weights w and w', shapes (n,) and (m,).
            h: Terms h of the rows and h' of the columns, shapes (n,) and (m,), None for zeros.

        Returns:
            A scalar; None where a common shift of all logits is not safe, or the engine is the fused one.
        """
        if self.fused or safe_shift(self.bound, self.x.dtype, *h) is None:
            return None
        return _MutualLogSumExp.apply(self.x, self.y, h, w, self._fill, self.bound)

    def _terms(self, h: Tensor | None) -> Tensor:
        return self.y.new_zeros(len(self.y)) if h is None else h

    @property
    def _fill(self) -> "Fill | None":
        return None if self.forbidden is None else self.forbidden.fill

    def _dense(self, h: Tensor | None) -> Tensor:
        scores = self.matrix(h)
        if self.forbidden is None:
            return scores.logsumexp(-1)
        # A row without any pair has no softmax, so it must not get a gradient either.
        nothing = scores.detach().amax(-1, keepdim=True) == -torch.inf
        return scores.masked_fill(nothing, torch.finfo(scores.dtype).min).logsumexp(-1)


def safe_shift(bound: float, dtype: torch.dtype, *terms: Tensor | None) -> float | None:
    """A number that can be taken from all logits so that their exponentials neither overflow nor vanish, or None.

    Args:
        bound: Largest absolute value of a logit.
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


def row_slices(n: int, m: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover ``n`` rows of ``m`` entries in blocks of the engines' size."""
    size = max(1, block_entries(device) // m)
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


# Writes minus infinity over the forbidden pairs of a block, given its rows and columns.
Fill = Callable[[Tensor, slice, slice], object]


def _blocks(x: Tensor, y: Tensor, h: Tensor, fill: Fill | None, *, upper: bool = False) -> Iterator[Block]:
    """Blocks of rows of the logits plus ``h``, if ``upper`` those from the diagonal on; they may be overwritten."""
    h, buffer = h.expand(len(y)), None
    for rows in row_slices(len(x), len(y), x.device):
        columns = slice(rows.start if upper else 0, len(y))
        shape = rows.stop - rows.start, columns.stop - columns.start
        # One buffer for all blocks: fresh memory costs more than the product that fills it.
        buffer = x.new_empty(shape[0] * shape[1]) if buffer is None else buffer
        scores = torch.addmm(h[columns], x[rows], y[columns].mT, out=buffer[: shape[0] * shape[1]].view(shape))
        if fill is not None:
            fill(scores, rows, columns)
        yield rows, columns, scores


class _LogSumExp(torch.autograd.Function):
    """The soft minima of an engine, and products of their plan as the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, h: Tensor, mask: Mask | None, backend: str) -> Tensor:
        ctx.engine = engine(Bilinear(x, y), 1.0, backend, mask)
        f = ctx.engine.row_softmin(h)
        ctx.save_for_backward(x, y, h, f)
        return f.neg().clamp_(min=torch.finfo(x.dtype).min)

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, h, f = ctx.saved_tensors
        # A row without any pair has no plan.
        hf = f.where(f < torch.inf, -torch.inf)
        parts = [x * grad[:, None], grad[:, None]] if ctx.needs_input_grad[2] else [x * grad[:, None]]
        dx, found = ctx.engine.plan_products(hf, h, y, torch.cat(parts, 1))
        dh = found[:, -1] if ctx.needs_input_grad[2] else None
        return dx.mul_(grad[:, None]), found[:, : x.shape[1]], dh, None, None


class _WeightedLogSumExp(torch.autograd.Function):
    """Value and gradient from one evaluation of each block, as the weights of its rows are known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, h: Tensor, w: Tensor, fill: Fill | None, shift: float | None) -> Tensor:
        to_points, to_terms = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        dx, dy, dh = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(h)
        value = x.new_zeros(())
        for rows, _, scores in _blocks(x, y, h if shift is None else h - shift, fill):
            powers, sums, logs = _powers(scores, shift)
            value += torch.dot(w[rows], logs)
            factors = sums.reciprocal_().mul_(w[rows])
            if to_points:
                torch.mm(powers, y, out=dx[rows]).mul_(factors[:, None])
                dy.addmm_(powers.mT, x[rows] * factors[:, None])
            if to_terms:
                dh.addmv_(powers.mT, factors)
        ctx.save_for_backward(dx, dy, dh)
        return value

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * g for g in ctx.saved_tensors), None, None, None


def _powers(scores: Tensor, shift: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Exponentials of logits less the shift they have had, or else the row's largest; sums; logarithms of the sums."""
    top: Tensor | float | None = shift
    if top is None:
        peaks = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
        scores, top = scores.sub_(peaks), peaks[:, 0]
    powers = scores.exp_()
    sums = powers.sum(-1).clamp_(min=torch.finfo(scores.dtype).tiny)
    return powers, sums, sums.log().add_(top)


class _MutualLogSumExp(torch.autograd.Function):
    """Each exponential is used for its row and its column; of a symmetric matrix, with y None, one half is computed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        h: Sequence[Tensor | None],
        w: Sequence[Tensor],
        fill: Fill | None,
        bound: float,
    ) -> Tensor:
        tops = [0.0 if t is None else t.amax() for t in h]
        factors = [torch.ones_like(r) if t is None else (t - top).exp() for t, top, r in zip(h, tops, w, strict=True)]
        u, v = factors[0], factors[-1]
        first, second = _passes(x, y, fill, bound)
        sums = [torch.zeros_like(r) for r in w]
        for rows, columns, powers in first:
            sums[0][rows].addmv_(powers, v[columns])
            for summed, places in _transposed(rows, columns, symmetric=y is None):
                sums[-1][summed].addmv_(powers[:, places].mT, u[rows])
        value, scales = _logs(w, sums, [top + bound for top in reversed(tops)])
        if any(ctx.needs_input_grad):
            left, right = torch.stack([scales[0], u], 1), torch.stack([v, scales[-1]])
            gradients = [torch.zeros_like(z) for z in (x, y) if z is not None]
            for rows, columns, powers in second:
                share = powers.mul_(left[rows] @ right[:, columns])
                gradients[0][rows].addmm_(share, (x if y is None else y)[columns])
                for summed, places in _transposed(rows, columns, symmetric=y is None):
                    gradients[-1][summed].addmm_(share[:, places].mT, x[rows])
            ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = [grad * g for g in ctx.saved_tensors]
        return (*found, *[None] * (6 - len(found)))


def _passes(x: Tensor, y: Tensor | None, fill: Fill | None, bound: float) -> tuple[Iterable[Block], Iterable[Block]]:
    """Blocks of the exponentials of logits less ``bound``, twice: a single block is kept, several are made anew."""
    shift, other = x.new_tensor([-bound]), x if y is None else y

    def made() -> Iterator[Block]:
        for rows, columns, scores in _blocks(x, other, shift, fill, upper=y is None):
            yield rows, columns, scores.exp_()

    if len(x) * len(other) > block_entries(x.device):
        return made(), made()
    kept = list(made())
    return kept, kept


def _transposed(rows: slice, columns: slice, *, symmetric: bool) -> list[tuple[slice, slice]]:
    """The columns that are summed over a block's rows, and their places in the block.

    They are all columns, or of a symmetric matrix those after the diagonal block, of which there may be none.
    """
    start = rows.stop if symmetric else 0
    return [(slice(start, None), slice(start - columns.start, None))] if start < columns.stop else []


def _logs(w: Sequence[Tensor], sums: Sequence[Tensor], shifts: Sequence[Tensor | float]) -> tuple[Tensor, list[Tensor]]:
    """The weighted logarithms of the sums, shifted, and the weights over the sums."""
    for s in sums:
        s.clamp_(min=torch.finfo(s.dtype).tiny)
    values = [torch.dot(weights, s.log().add_(shift)) for weights, s, shift in zip(w, sums, shifts, strict=True)]
    return functools.reduce(torch.add, values), [weights / s for weights, s in zip(w, sums, strict=True)]
