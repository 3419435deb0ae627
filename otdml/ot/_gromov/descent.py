"""Descent of the Gromov objective: linearise it at a plan, transport roughly under that cost, and again.

Each linearisation is an entropic transport problem whose plan majorises the objective for the next
:cite:p:`peyre:16`. A step is cheap: a few scalings bring the plan near its marginals, which it need not meet before
the cost has converged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from otdml.ot._gromov.convergence import cooling_steps, is_small
from otdml.ot._gromov.objective import GromovObjective, picked
from otdml.ot._gromov.options import GromovOptions
from otdml.ot._gromov.plans import ReadablePlan
from otdml.ot._gromov.starts import Start
from otdml.ot._iteration import iterate
from otdml.ot._marginal import Marginal
from otdml.ot._updates import Alternating
from otdml.ot.engines import Engine, engine
from otdml.ot.engines.small import Array

__all__ = ["DescentState", "descend", "settled"]

# Factor of the temperature in each step. A plan that is determined early is worse, so it falls slowly; where the cost
# stays that of the start, only the potentials have to follow, and it falls quickly.
COOLING, QUICK_COOLING = 0.8, 0.3

# Scalings per linearisation: while it cools down, at first at the last temperature, and at most.
COOLING_SWEEPS, SWEEPS, MOST_SWEEPS = 3, 6, 16
# Those of the best start where NumPy makes them, at next to no cost.
QUICK_SWEEPS = 40
# Linearisations per check of convergence, which forces a device synchronisation.
CHECK = 2

# The share of itself by which a step is lengthened, so that saddle points, of which unrelated clouds have many, are
# left sooner.
EXTRAPOLATION = 0.5

# Entries of all plans up to which a kernel is made for each linearisation, and all starts are solved at once; larger
# problems are left to the engines, one start after another in the same memory.
SMALL = 2**20

# Entries of a kernel up to which NumPy scales it in less time than calls into torch take, on a CPU.
QUICK = 2**14

# Starts are compared where their steps, over the temperature, are below LOOSE, or after that many steps at the last
# temperature: a start that has not converged by then is seldom the best.
LOOSE, COMPARE = 1.0, 24

# The best start is followed until its steps, over the temperature, are below CLOSE, or for this share of the steps that
# are left. Plans that meet their marginals do the rest, of which little remains below QUICKLY_CLOSE.
CLOSE, QUICKLY_CLOSE, SHARE = 0.01, 1e-3, 0.5

# Smaller logarithms of a kernel's entries are raised to this, so that a column far from all rows keeps its mass, and no
# entry is denormal.
NEGLIGIBLE = -57.0


@dataclass(frozen=True)
class DescentState:
    """Where a descent is.

    Attributes:
        objective: The entropic objective, up to a constant, shape (...).
        slope: Left factor of the linearised cost, see :meth:`GromovObjective.slope`.
        g: Column potential over the temperature, shape (..., m).
        n_iter: The steps taken.
    """

    objective: Tensor
    slope: Tensor
    g: Tensor
    n_iter: int

    def each(self) -> list["DescentState"]:
        """The entries of the first dimension."""
        return [DescentState(*parts, self.n_iter) for parts in zip(self.objective, self.slope, self.g, strict=True)]


def descend(
    problem: GromovObjective, starts: Sequence[Start], eps: Tensor, start_temperature: Tensor, options: GromovOptions
) -> DescentState:
    """The best of the starts, cooled down to ``eps``, and followed until its steps are small.

    Args:
        problem: The objective, detached.
        starts: The plans to start from.
        eps: Temperature, shape (...) or ().
        start_temperature: The temperature to begin at, if it is above ``eps``.
        options: When to stop, and how to compute.

    Returns:
        Where the best start of each batch element is.
    """
    ratio, max_iter, backend = (start_temperature / eps).clamp(min=1), options.max_iter, options.backend
    ratio = ratio.expand(problem.mass.shape)
    small = len(starts) * problem.a.numel() * problem.b.shape[-1] <= SMALL
    groups = [starts] if small else [[start] for start in starts]
    cooled = [_cooled(problem, group, eps, ratio, max_iter, backend) for group in groups]
    state = _best(cooled[0].each() if small and len(starts) > 1 else cooled)
    quick = backend != "streamed" and _numpy_is_quicker(problem.a, problem.a.numel() * problem.b.shape[-1])
    close, sweeps = (QUICKLY_CLOSE, (QUICK_SWEEPS, QUICK_SWEEPS)) if quick else (CLOSE, (SWEEPS, MOST_SWEEPS))
    pace = _Pace(max(options.tol, close), int(SHARE * (max_iter - state.n_iter)), sweeps)
    return _followed(problem, state, eps, pace, backend)


@dataclass(frozen=True)
class _Pace:
    """How starts are followed at one temperature.

    Attributes:
        tol: The step of a cost, over the temperature, at which they end.
        most: Most steps.
        sweeps: Scalings per step, at first and at most.
    """

    tol: float
    most: int
    sweeps: tuple[int, int]


def settled(problem: GromovObjective, slope: Tensor, new: Tensor, eps: Tensor, tol: float) -> Tensor:
    """Whether the step of the cost from ``slope`` to ``new`` is small, shape (...)."""
    step, size = problem.size(torch.stack([new - slope, slope])).unbind()
    return is_small(step, tol * eps, size)


def _cooled(
    problem: GromovObjective, starts: Sequence[Start], eps: Tensor, ratio: Tensor, max_iter: int, backend: str
) -> DescentState:
    """Some starts at the temperature ``eps``; where they are several they have a first dimension of their own."""
    slope = problem.slope(_stacked([problem.read(start.plan)[0] for start in starts]))
    fixed_cost = slope.new_tensor([start.fixed_cost for start in starts], dtype=torch.bool)
    fixed_cost = fixed_cost.reshape(-1, *(1,) * (slope.ndim - 1))
    g = torch.zeros_like(problem.b).expand(*slope.shape[:-2], -1)
    cooling = QUICK_COOLING if all(start.fixed_cost for start in starts) else COOLING
    steps = cooling_steps(ratio, cooling, max_iter - 1)
    for _ in range(steps):
        step = _step(problem, slope, g, ratio * eps, COOLING_SWEEPS, backend)
        cooler = (cooling * ratio).clamp(min=1)
        # Elements at their last temperature wait for the others. Potentials over the temperature grow as it falls.
        cooling_on = ratio > 1
        g = torch.where(cooling_on[..., None], (ratio / cooler)[..., None] * step.g, g)
        slope, ratio = torch.where(cooling_on[..., None, None] & ~fixed_cost, step.slope, slope), cooler
        del step
    state = DescentState(slope.new_zeros(slope.shape[:-2]), slope, g, steps)
    pace = _Pace(LOOSE, min(COMPARE, max_iter - steps), (SWEEPS, MOST_SWEEPS))
    return _followed(problem, state, eps, pace, backend)


def _followed(problem: GromovObjective, state: DescentState, eps: Tensor, pace: _Pace, backend: str) -> DescentState:
    """Steps until no start's cost moves by more than the tolerance times the temperature."""
    slope, g, most, (least, many) = state.slope, state.g, pace.most, pace.sweeps
    for iteration in range(1, most + 1):
        step = _step(problem, slope, g, eps, min(least + iteration // CHECK, many), backend)
        new = step.slope + EXTRAPOLATION * (step.slope - slope), step.g
        if iteration == most or iteration % CHECK == 0:
            done = settled(problem, slope, step.slope, eps, pace.tol)
            # The starts of one problem are compared together, and each problem of a batch on its own.
            done = done.all(0) if done.ndim > problem.mass.ndim else done
            if iteration == most or bool(done.all()):
                return DescentState(step.objective(problem, eps), step.slope, step.g, state.n_iter + iteration)
            new = torch.where(done[..., None, None], slope, new[0]), torch.where(done[..., None], g, new[1])
        slope, g = new
        # The kernel is freed before the next one is made.
        del step
    return state


def _stacked(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0]


def _best(states: Sequence[DescentState]) -> DescentState:
    """The best state of each batch element."""
    if len(states) == 1:
        return states[0]
    index = torch.stack([state.objective for state in states]).argmin(0)
    objective, slope, g = (
        picked(torch.stack([getattr(state, name) for state in states]), index) for name in ("objective", "slope", "g")
    )
    return DescentState(objective, slope, g, max(state.n_iter for state in states))


@dataclass(frozen=True)
class _Step:
    """A solved linearisation.

    Attributes:
        plan: Its plan.
        last: Left factor of its cost.
        projection: The projection of the plan.
        slope: Left factor of the cost that the objective linearised at the plan has.
        g: Column potential over the temperature.
    """

    plan: "_RoughPlan"
    last: Tensor
    projection: Tensor
    slope: Tensor
    g: Tensor

    def objective(self, problem: GromovObjective, eps: Tensor) -> Tensor:
        """The entropic objective, shape (...), up to a constant: the dual one of the linearised problem."""
        dual = (problem.a * self.plan.f).sum(-1) + (problem.b * self.plan.g).sum(-1)
        return eps * dual + ((self.last - 0.5 * self.slope) * self.projection).sum((-2, -1))


def _step(problem: GromovObjective, slope: Tensor, g: Tensor, eps: Tensor, sweeps: int, backend: str) -> _Step:
    small = backend in ("auto", "dense") and slope.shape[:-1].numel() * problem.b.shape[-1] <= SMALL
    plan = (_ScaledKernel if small else partial(_FewIterations, backend=backend))(problem, slope, g, eps, sweeps)
    projection = plan.projection(problem)
    # Only f + g is determined, and single precision is lost on constants that add up.
    g = plan.g - (problem.b_shares * plan.g).sum(-1, keepdim=True)
    return _Step(plan, slope, projection, problem.slope(projection), g)


class _RoughPlan(ReadablePlan, Protocol):
    """A plan near its marginals, with potentials over the temperature, one of them optimal given the other."""

    @property
    def f(self) -> Tensor: ...
    @property
    def g(self) -> Tensor: ...
    def projection(self, problem: GromovObjective) -> Tensor: ...


class _ScaledKernel:
    """The kernel at the potentials so far, with one as the largest entry of each row, scaled a few times.

    A loop of its own beside that of :class:`_FewIterations`, because it reads no error and extrapolates no iterate: in
    small problems most of the time goes to these and not to the products. On the core's loop with a
    dense engine, whole problems of 64 points took 1.4 times as long, of 128 points 1.3 times, of 512 points 1.2 times,
    and a batch of 16 problems of 64 points 1.1 times (one core, the cosine cost, ten features).
    """

    def __init__(self, problem: GromovObjective, slope: Tensor, g: Tensor, eps: Tensor, sweeps: int) -> None:
        # Scalings are rows: a batch of these times matrices takes half of the time of matrices times columns, or less.
        a, b = problem.a[..., None, :], problem.b[..., None, :]
        scores = problem.cost(slope).scaled(eps.reciprocal()).scores(slice(None), g + problem.log_b)
        self.top = scores.amax(-1)
        self.kernel = scores.sub_(self.top[..., None]).clamp_(min=NEGLIGIBLE).exp_()
        self.u, self.v = _scalings(self.kernel, a, b, sweeps)
        self.g = (g + self.v[..., 0, :].log()).masked_fill_(problem.absent, 0.0)

    @property
    def f(self) -> Tensor:
        return -(self.top + (self.v @ self.kernel.mT)[..., 0, :].log_())

    @property
    def plan(self) -> Tensor:
        return self.u.mT * self.kernel * self.v

    def projection(self, problem: GromovObjective) -> Tensor:
        # Rows have their mass already.
        return self.plan if problem.right.z is None else self.apply(problem.right.z)

    def apply(self, v: Tensor) -> Tensor:
        return self.u.mT * (self.kernel @ (self.v.mT * v))

    def apply_transpose(self, v: Tensor) -> Tensor:
        return self.v.mT * (self.kernel.mT @ (self.u.mT * v))


def _numpy_is_quicker(like: Tensor, entries: int) -> bool:
    """Whether NumPy scales kernels of so many entries in less time."""
    return like.device.type == "cpu" and entries <= QUICK and not torch.compiler.is_compiling()


def _scalings(kernel: Tensor, a: Tensor, b: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """What the rows, whose masses are exact, and the columns of the kernel are multiplied by."""
    if not _numpy_is_quicker(kernel, kernel.numel()):
        return _scaled_in_turns(kernel, kernel.mT, a, b, sweeps)
    with np.errstate(all="ignore"):
        u, v = _scaled_in_turns(kernel.numpy(), kernel.mT.numpy(), a.numpy(), b.numpy(), sweeps)
    return torch.from_numpy(u), torch.from_numpy(v)


def _scaled_in_turns(kernel: Array, transposed: Array, a: Array, b: Array, sweeps: int) -> tuple[Array, Array]:
    u = a / kernel.sum(-1)[..., None, :]
    for _ in range(sweeps):
        v = b / (u @ kernel)
        u = a / (v @ transposed)
    return u, v


class _FewIterations:
    """The plan of an engine after a few iterations of the Sinkhorn loop."""

    def __init__(
        self, problem: GromovObjective, slope: Tensor, g: Tensor, eps: Tensor, sweeps: int, *, backend: str
    ) -> None:
        self.engine: Engine = engine(problem.cost(slope), eps, backend)
        rows, columns = (Marginal(w.expand(*slope.shape[:-2], -1)) for w in (problem.a, problem.b))
        solution = iterate(Alternating(self.engine, rows, columns), g, tol=1e-2, max_iter=sweeps)
        self.f, self.g = solution.f, solution.g
        self.hf, self.hg = solution.f + rows.log, solution.g + columns.log

    @property
    def plan(self) -> Tensor:
        return torch.cat([block for _, block in self.engine.plan_blocks(self.hf, self.hg)], -2)

    def projection(self, problem: GromovObjective) -> Tensor:
        return problem.read(self)[0]

    def apply(self, v: Tensor) -> Tensor:
        return self.engine.plan_product(self.hf, self.hg, v)

    def apply_transpose(self, v: Tensor) -> Tensor:
        return self.engine.mT.plan_product(self.hg, self.hf, v)
