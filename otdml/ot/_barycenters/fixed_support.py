r"""Barycentres on a given support: the debiased Sinkhorn iteration of :cite:p:`janati:20`, on the logarithms.

The optimality condition of :math:`\min_b \sum_k w_k S_\varepsilon(b, \alpha_k)` over weights b of the support is
:math:`\sum_k w_k g_k = h`, where :math:`g_k` are the potentials at the support of its plans to the clouds, and h that
of its plan to itself. With dimensionless potentials, and d the scaling with :math:`b = d \odot K d`, that is

.. math:: \log b = \log d - \sum_k w_k g_k

which one iteration restores after new potentials :math:`f_k, g_k` for the present b, before d is averaged with
:math:`b / K d`. With d constant it is the iteration of :cite:p:`benamou:15`, whose barycentre is blurred.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml._cost_forms import Gradients, Ground
from otdml._derivatives import refuse_several
from otdml._precision import full_arithmetic
from otdml.costs import ground
from otdml.ot._barycenters.adjoint import implicit
from otdml.ot._barycenters.measures import Measures
from otdml.ot._implicit import ConstantPlan, first_order
from otdml.ot._iteration import iterate
from otdml.ot._problem import Posed, Problem, SolverOptions
from otdml.ot._updates import NotFinite, Potentials, Step, Update
from otdml.ot.engines import SoftMin

__all__ = ["Fixed", "fixed_weights"]

# The logarithm of the weight of a point that is to have none falls for ever. It is told from the others by a change per
# iteration above the first number, and above the second in units of the tolerance. The mean change, by the weights, is
# within the tolerance at the end, so that points told so have a hundredth of the mass at most.
LEAST_DRIFT, DRIFT_TOLERANCES = 0.01, 100.0
# The growth of the logarithms of the weights is part of the error as if this mass were spread evenly: points without
# weight that are to have some do not show in errors of marginals.
EVEN_MASS = 0.1
# The least logarithm of a weight. Logarithms that fall for ever would lead the acceleration astray.
LEAST_LOG_WEIGHT = -35.0


@dataclass(frozen=True)
class Fixed:
    """A barycentre's weights, shape (..., m), the marginal error, shape (...), and the number of iterations."""

    weights: Tensor
    error: Tensor
    n_iter: int


@dataclass(frozen=True)
class _State:
    """Dimensionless potentials at the support.

    Attributes:
        g: Reduced potentials of the plans to the clouds, shape (..., K, m).
        d: Logarithm of the scaling of the plan to itself, shape (..., m), or None where nothing is debiased.
    """

    g: Tensor
    d: Tensor | None

    @property
    def flat(self) -> Tensor:
        """One vector for each problem."""
        g = self.g.flatten(-2)
        return g if self.d is None else torch.cat((g, self.d), -1)


@dataclass(frozen=True)
class _PosedCost:
    """The cost between two clouds with its engine, and soft minima that are differentiable in the cost.

    Attributes:
        posed: The cost, with weights of one, and its engine.
        leaves: The tensors of the cost, with their graph.
        offset: Offset of the columns over the temperature, shape (..., m).
        row_offset: The same of the rows, shape (..., n).
    """

    posed: Posed
    leaves: tuple[Tensor, ...]
    offset: Tensor
    row_offset: Tensor

    def unresolved(self, tol: float) -> bool:
        """Whether single precision does not resolve the tolerance at this temperature."""
        largest = float(self.posed.engine.cost.largest())
        rounding = 2 * torch.finfo(self.offset.dtype).eps * largest
        return self.posed.problem.resolves_more and not rounding <= tol / 2

    def row_softmin(self, g: Tensor, b: Tensor) -> Tensor:
        """Soft minimum over the columns of weights ``b``, differentiable."""
        return _Softmin.apply(self.posed, g, b, *self.leaves)

    def column_softmin(self, f: Tensor, a: Tensor) -> Tensor:
        """Soft minimum over the rows of weights ``a``, differentiable."""
        transposed = self.posed.mT
        return _Softmin.apply(transposed, f, a, *transposed.problem.cost.leaves)


class _Softmin(torch.autograd.Function):
    r""":math:`f_i = -\log \sum_j b_j \exp(g_j - R_{ij})`."""

    @staticmethod
    def forward(ctx: Any, posed: Posed, g: Tensor, b: Tensor, *leaves: Tensor) -> Tensor:
        f = posed.engine.row_softmin(g + b.log())
        ctx.posed = posed
        ctx.save_for_backward(f, g, b)
        return f

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        refuse_several(grad)
        f, g, b = ctx.saved_tensors
        with torch.no_grad(), full_arithmetic(grad.device.type):
            db = -ctx.posed.mT.engine.plan_product(g, f, grad[..., None])[..., 0]
            plan, problem = ConstantPlan(ctx.posed, f, g + b.log()), ctx.posed.problem
            left, right = (grad * problem.scale(1))[..., None], torch.ones_like(g)[..., None]
            leaves = problem.cost.pullback(plan, left, right, ctx.needs_input_grad[3:], offsets=False)
        return first_order((None, b * db, db, *leaves), (grad, f, g, b, *problem.cost.leaves))


class _Engines(SoftMin):
    """The engines of all plans as one, which the loop prepares and refreshes."""

    def __init__(self, iteration: "_Iteration") -> None:
        self.iteration, self.between = iteration, iteration.between.posed.engine

    @property
    def shape(self) -> torch.Size:
        return self.between.shape

    @property
    def has_kernel(self) -> bool:
        return self.between.has_kernel

    def row_softmin(self, h: Tensor) -> Tensor:
        return self.between.row_softmin(h)

    def column_softmin(self, h: Tensor) -> Tensor:
        return self.between.column_softmin(h)

    def prepare(self, g: Tensor) -> None:
        state = self.iteration.state(g)
        self.between.prepare(state.g)
        if (own := self.iteration.own) is not None:
            own.posed.engine.prepare(self.iteration.average(state.g) - own.offset)

    def refresh(self, f: Tensor, g: Tensor, *, lost: bool = False) -> bool:
        state, own = self.iteration.state(g), self.iteration.own
        refreshed = self.between.refresh(f, state.g, lost=lost)
        if own is None:
            return refreshed
        h = self.iteration.average(state.g)
        return own.posed.engine.refresh(h - own.row_offset, h - own.offset, lost=lost) or refreshed


class _Iteration(Update):
    """One iteration of the potentials, differentiable in the measures and in the support."""

    def __init__(self, measures: Measures, support: Tensor, *, debias: bool, backend: str) -> None:
        x, m = measures.x, support.shape[-2]
        each = support[..., None, :, :].expand(*x.shape[:-2], *support.shape[-2:])
        self.measures, self.m = measures, m
        self.between = _posed_cost(x, each, measures, measures.temperatures, backend)
        self.own = _posed_cost(support, support, measures, measures.eps, backend) if debias else None
        self.softmin = _Engines(self)

    def state(self, s: Tensor) -> _State:
        """The potentials that one vector holds."""
        count = self.measures.x.shape[-3] * self.m
        g = s[..., :count].unflatten(-1, (-1, self.m))
        return _State(g, None if self.own is None else s[..., count:])

    def start(self) -> _State:
        """Potentials to start from."""
        g = self.between.posed.engine.cost.gaussian_potential()
        return _State(g, None if self.own is None else torch.zeros_like(g[..., 0, :]))

    def average(self, g: Tensor) -> Tensor:
        """The mean of the full potentials over the clouds, shape (..., m)."""
        return self.measures.average(g + self.between.offset)

    def log_weights(self, state: _State) -> Tensor:
        """The logarithms of the barycentre's weights."""
        mean = self.average(state.g)
        return (-mean if state.d is None else state.d - mean).log_softmax(-1)

    def next(self, state: _State) -> tuple[_State, Tensor, Tensor]:
        """The next state, the row potentials on the way, and the error of the marginals."""
        b = self.log_weights(state).exp()
        every = b[..., None, :].expand_as(state.g)
        f = self.between.row_softmin(state.g, every)
        g = self.between.column_softmin(f, self.measures.a)
        error = torch.where(every > 0, every * torch.expm1((state.g - g).detach()).abs(), 0.0).sum(-1).amax(-1)
        # Adding a constant to the potentials of a plan changes no marginal.
        new = _State(g - g.mean(-1, keepdim=True), state.d)
        if self.own is None or state.d is None:
            return new, f, error
        log_b = self.log_weights(new)
        over = self.own.row_softmin(state.d - self.own.offset, torch.ones_like(b)) + self.own.row_offset
        change = torch.maximum(0.5 * (log_b + over - state.d), (LEAST_LOG_WEIGHT - log_b).clamp(max=0))
        shares = log_b.exp()
        own = torch.where(shares > 0, shares * torch.expm1(-2 * change.detach()).abs(), 0.0).sum(-1)
        growth = EVEN_MASS * change.detach().clamp(min=0).mean(-1)
        return _State(new.g, state.d + change), f, torch.stack((error, own, growth)).amax(0)

    def step(self, g: Tensor, times: int, tol: float = 0.0) -> Step:
        new, f, error = self.next(self.state(g))
        return Step(g, f, new.flat[None], error[None])


def _posed_cost(x: Tensor, y: Tensor, measures: Measures, eps: Tensor, backend: str) -> _PosedCost:
    cost: Ground = ground(x, y, measures.cost)
    weights = (cost.leaves[0].new_ones(cost.shape[:-1]), cost.leaves[0].new_ones((*cost.shape[:-2], cost.shape[-1])))
    posed = Posed.of(Problem(cost, *weights, eps), backend)
    if posed.engine.keeps_matrix:
        cost = cost.evaluated()
        posed = Posed(Problem(cost, *weights, eps), posed.engine)
    over = 1 / eps[..., None]
    u, v = (torch.zeros_like(w) if t is None else t * over for t, w in zip((cost.u, cost.v), weights, strict=True))
    return _PosedCost(posed, cost.leaves, v, u)


def fixed_weights(measures: Measures, support: Tensor, *, debias: bool, options: SolverOptions) -> Fixed:
    """The barycentre's weights of the points of ``support``, differentiable in the measures and in these."""
    if not support.shape[:-2].numel():
        # No problems, and so no iteration.
        none = (0 * support).sum(-1) + sum(t.sum() for t in measures.tensors)
        return Fixed(none, none.detach().sum(-1), 0)

    def iteration(x: Tensor, a: Tensor, shares: Tensor, y: Tensor) -> _Iteration:
        return _Iteration(measures.of(x, a, shares), y, debias=debias, backend=options.backend)

    inputs = (*measures.tensors, support)
    with torch.no_grad():
        solver = iteration(*(t.detach() for t in inputs))
        found = None if solver.between.unresolved(options.tol) else _solved(solver, options)
    if found is None:
        finer = fixed_weights(measures.double(), support.double(), debias=debias, options=options)
        return Fixed(finer.weights.to(support.dtype), finer.error.to(support.dtype), finer.n_iter)
    final = iteration(*inputs)
    state = _differentiable(found.g, iteration, inputs, _scaling(solver, found.g, options.tol), options.tol)
    return Fixed(final.log_weights(final.state(state)).exp(), found.error, found.n_iter)


def _solved(solver: _Iteration, options: SolverOptions) -> Potentials | None:
    """The solution, or None where the numbers of single precision end."""
    try:
        return iterate(solver, solver.start().flat, tol=options.tol, max_iter=options.max_iter)
    except NotFinite as error:
        if solver.between.posed.problem.resolves_more:
            return None
        got, remedy = "an iteration that is not finite", "Look for NaN or infinity in `clouds` and `support`."
        raise argument_error("clouds", "give finite costs over `eps`", got, remedy) from error


def _differentiable(
    g: Tensor, iteration: Callable[..., _Iteration], inputs: Sequence[Tensor], scaling: "_Scaling", tol: float
) -> Tensor:
    """The fixed point ``g`` as a function of what the iteration is made of."""
    size, moving = scaling.size, scaling.moving

    def potentials(scaled: Tensor) -> Tensor:
        return torch.where(moving, scaled / size, g)

    def residual(scaled: Tensor, *tensors: Tensor) -> Tensor:
        update, s = iteration(*tensors), potentials(scaled)
        return torch.where(moving, size * (update.next(update.state(s))[0].flat - s), 0.0)

    return potentials(implicit(size * g, residual, *inputs, tol=tol))


@dataclass(frozen=True)
class _Scaling:
    """Units of the potentials, for the linear system of their derivatives.

    Attributes:
        size: The unit of each potential, in which the iteration is nearly symmetric.
        moving: Which of them have a fixed point.
    """

    size: Tensor
    moving: Tensor


@torch.no_grad()
def _scaling(update: _Iteration, s: Tensor, tol: float) -> _Scaling:
    """The scaling at the fixed point ``s``.

    The logarithm of the weight of a point that is to have none has no fixed point.
    """
    state = update.state(s)
    size = update.log_weights(state).exp().sqrt().clamp(min=torch.finfo(s.dtype).eps)
    count = s.shape[-1] // size.shape[-1]
    moving = torch.ones_like(s, dtype=torch.bool)
    if state.d is not None:
        drift = (update.next(state)[0].flat - s)[..., -size.shape[-1] :].abs()
        moving[..., -size.shape[-1] :] = drift <= max(LEAST_DRIFT, DRIFT_TOLERANCES * tol)
    return _Scaling(size.repeat(*(1,) * (size.ndim - 1), count), moving)
