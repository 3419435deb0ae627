"""Costs that are a function of two blocks of points."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml._cost_forms.base import Gradients, Ground, LinkedPlan, Plan, Scale, Symbolic, per_batch
from otdml._cost_forms.matrix import Matrix
from otdml._transforms import arguments_only
from otdml.sphere import length

__all__ = ["GivenCost", "Pointwise"]


@dataclass(frozen=True)
class GivenCost:
    """A caller's function of two blocks of points, as solvers call it: costs in the dtype of the points.

    Where solvers need double precision, the function is still called with points of the dtype in which the caller has
    them: it may hold parameters, which are of that dtype.

    Attributes:
        function: Blocks of points, shapes (..., n, d) and (..., m, d), to a matrix.
        dtype: The dtype of the caller's points.
        name: The argument that the function is.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype
    name: str = "cost"

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        with arguments_only():
            values = self.function(x.to(self.dtype), y.to(self.dtype))
        if not isinstance(values, Tensor):
            remedy = "Compute it by operations of torch."
            raise argument_error(self.name, "return a tensor", type(values).__name__, remedy, TypeError)
        expected = (*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2])
        if values.shape != expected:
            raise argument_error(self.name, f"return a matrix of shape {expected}", tuple(values.shape))
        if torch.is_grad_enabled() and not values.requires_grad and (x.requires_grad or y.requires_grad):
            # A cost that does not depend on the points has the gradient zero: that of a sum of none of them.
            values = values + (x[..., :0, :].sum() + y[..., :0, :].sum())
        return values.to(x.dtype)


@dataclass(frozen=True)
class Pointwise(Ground):
    """A reduced cost given by a function of two blocks of points, and offsets that are constants.

    Attributes:
        function: Blocks of points, shapes (..., n, d) and (..., m, d), to a matrix.
        x: Points, shape (..., n, d).
        y: Points, shape (..., m, d).
        u: Row offsets, shape (..., n), or None for zero.
        v: Column offsets, shape (..., m), or None for zero.
        symbol: The function of two symbolic points, where it can be compiled.
        factor: The factor, a number or shape (...), where the function is one of the distance, up to a constant, or
            where it is that of the metric.
        metric: ``"distance"`` or ``"angle"`` where the function is the factor times that, or None.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    u: Tensor | None = None
    v: Tensor | None = None
    symbol: Symbolic | None = None
    factor: Scale | None = None
    source: Callable[[torch.dtype], "Pointwise"] | None = dataclasses.field(default=None, repr=False)
    metric: str | None = None

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.x.shape[:-1], self.y.shape[-2]))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.x, self.y

    @property
    def mT(self) -> "Pointwise":
        def transposed(x: Tensor, y: Tensor) -> Tensor:
            return self.function(y, x).mT

        symbol, source = self.symbol, self.source
        return Pointwise(
            transposed,
            self.y,
            self.x,
            self.v,
            self.u,
            symbol and (lambda y, x: symbol(x, y)),
            self.factor,
            source and (lambda dtype: source(dtype).mT),
            self.metric,
        )

    def block(self, rows: slice) -> Tensor:
        return self.function(self.x[..., rows, :], self.y)

    def rows(self, index: Tensor) -> "Pointwise":
        u = self.u if self.u is None else self.u[index]
        return dataclasses.replace(self, x=self.x[index], u=u, source=None)

    def scaled(self, scale: Scale) -> "Pointwise":
        def function(x: Tensor, y: Tensor) -> Tensor:
            return self.function(x, y) * per_batch(scale)

        symbol = self.symbol
        symbolic_scale = scale[..., None, None, None] if isinstance(scale, Tensor) else scale
        factor = None if self.factor is None else self.factor * scale
        scaled = symbol and (lambda x, y: symbol(x, y) * symbolic_scale)
        return Pointwise(function, self.x, self.y, symbol=scaled, factor=factor, metric=self.metric)

    def detach(self) -> "Pointwise":
        return dataclasses.replace(self, x=self.x.detach(), y=self.y.detach())

    def double(self) -> "Pointwise":
        if self.source is not None:
            return self.source(torch.float64)
        u, v = (t if t is None else t.double() for t in (self.u, self.v))
        return dataclasses.replace(self, x=self.x.double(), y=self.y.double(), u=u, v=v)

    def extended(self) -> "Pointwise":
        return Pointwise(_Extended(self.function), _marked(self.x, self.u), _marked(self.y, self.v))

    def without(self, rows: Tensor, columns: Tensor) -> "Pointwise":
        x, y = (torch.cat([z, out[..., None].to(z)], -1) for z, out in ((self.x, rows), (self.y, columns)))
        return Pointwise(_Without(self.function), x, y, self.u, self.v)

    def evaluated(self) -> "Matrix":
        return Matrix(self.block(slice(0, self.shape[-2])), self.u, self.v)

    def symbolic(self) -> Symbolic | None:
        return self.symbol

    def tile(self) -> tuple[str, Tensor, Tensor, Scale | None] | None:
        if self.metric == "angle":
            return "angle", self.x / length(self.x), self.y / length(self.y), self.factor
        return None if self.metric is None else (self.metric, self.x, self.y, self.factor)

    def norm(self) -> tuple[int, tuple[Tensor, Tensor]] | None:
        if self.factor is None or self.metric == "angle":
            return None
        factor = self.factor[..., None, None] if isinstance(self.factor, Tensor) else self.factor
        return 1, (self.x * factor, self.y * factor)

    def between(self, x: Tensor, y: Tensor) -> "Pointwise":
        return dataclasses.replace(self, x=x, y=y, u=None, v=None)

    @property
    def depends_on_parameters(self) -> bool:
        # Costs with a formula are those of the library, which have no parameters.
        if self.symbol is not None or not torch.is_grad_enabled():
            return False
        return self.function(self.x[..., :1, :].detach(), self.y[..., :1, :].detach()).requires_grad

    def pullback(
        self, plan: Plan, left: Tensor, right: Tensor, needs: Sequence[bool], *, offsets: bool = True
    ) -> Gradients:
        if self.metric is not None and (slopes := plan.slopes(left, right)) is not None:
            return self._through_points(slopes)
        y = self.y.detach().requires_grad_()
        dx, dy = torch.empty_like(self.x), torch.zeros_like(self.y)
        for rows, block in plan.blocks(left, right):
            x = self.x[..., rows, :].detach().requires_grad_()
            with torch.enable_grad():
                values = self.function(x, y)
            # A function may not depend on both.
            part, rest = torch.autograd.grad(values, (x, y), block, materialize_grads=True)
            dx[..., rows, :] = part
            dy += rest
        return dx, dy

    def _through_points(self, slopes: Gradients) -> Gradients:
        """The gradient in the leaves from that in the points of the tile: unit vectors where the metric is an angle."""
        if self.metric != "angle":
            return slopes
        return tuple(_through_length(point, slope) for point, slope in zip(self.leaves, slopes, strict=True))

    def linked_pullback(self, plan: LinkedPlan, leaves: Sequence[Tensor], grad: Tensor) -> Gradients:
        left, right = grad[..., None, None].expand(*self.x.shape[:-1], 1), torch.ones_like(self.y[..., :1])
        with torch.no_grad():
            found = self.pullback(plan, left, right, (True, True))  # type: ignore[arg-type]
        return plan.first_order(found, (grad, *leaves))


def _marked(x: Tensor, offset: Tensor | None) -> Tensor:
    """Points with their offsets and a mark, which is one at an added point."""
    offset = torch.zeros_like(x[..., 0]) if offset is None else offset
    x = torch.cat([x, offset[..., None], torch.zeros_like(x[..., :1])], -1)
    # A copy of the last point, as a function may not be defined at zero.
    added = x[..., -1:, :].detach().clone()
    added[..., -1] = 1.0
    return torch.cat([x, added], -2)


@dataclass(frozen=True)
class _Extended:
    """A function of marked points with their offsets, zero where one of them is added."""

    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        values = self.function(x[..., :-2], y[..., :-2]) + x[..., -2, None] + y[..., None, :, -2]
        return values.masked_fill((x[..., -1, None] + y[..., None, :, -1]) > 0, 0.0)


@dataclass(frozen=True)
class _Without:
    """A function of points with a mark, zero where one of them is marked."""

    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        marked = (x[..., -1, None] + y[..., None, :, -1]) > 0
        return self.function(x[..., :-1], y[..., :-1]).masked_fill(marked, 0.0)


def _through_length(x: Tensor, slope: Tensor | None) -> Tensor | None:
    """The gradient in x from that in its direction."""
    if slope is None:
        return None
    size = length(x.detach())
    direction = x.detach() / size
    return (slope - direction * (direction * slope).sum(-1, keepdim=True)) / size
