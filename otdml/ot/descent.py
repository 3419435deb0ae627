"""Descent of the Gromov objective: linearise it at a plan, transport roughly under that cost, and again.

Each linearisation is an entropic transport problem whose plan majorises the objective for the next
:cite:p:`peyre:16`. A step is cheap: a few scalings bring the plan near its marginals, which it need not meet before
the cost has come to rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml.ot.engines import Engine, engine
from otdml.ot.potentials import Side, potentials
from otdml.ot.quadratic import Quadratic

__all__ = ["Rest", "Start", "descend", "settled"]

# By what the temperature falls in each step. Plans that are forced early are worse; where the cost stays that of the
# start meanwhile, only its potentials have to follow.
COOLING, QUICK = 0.8, 0.3

# Scalings per linearisation, and linearisations per check of convergence.
SWEEPS, CHECK = 6, 4

# Entries of all plans up to which a kernel is made for each linearisation, and all starts are solved at once; larger
# problems are left to the engines, one start after another in the same memory.
SMALL = 2**20

# The steps, over the temperature, below which starts are compared, and below which the best is left to plans that
# meet their marginals; and after how many steps it is left to them in any case.
LOOSE, CLOSE, MOST = 1.0, 0.01, 60

# A step of the cost that is smaller than this share of it, in units of the precision, is rounding.
ROUNDING = 10


@dataclass(frozen=True)
class Start:
    """A plan to start from: its moment, and whether the cost stays the one at this plan while it cools down."""

    moment: Tensor
    held: bool


@dataclass(frozen=True)
class Rest:
    """Where descents are: their objectives, costs and column potentials over the temperature, and steps taken.

    Several starts have a first dimension of their own.
    """

    objective: Tensor
    pull: Tensor
    g: Tensor
    n_iter: int

    def best(self) -> "Rest":
        """The best start of each batch element, in a first dimension of one."""
        index = self.objective.argmin(0)
        objective, pull, g = (_pick(t, index) for t in (self.objective, self.pull, self.g))
        return Rest(objective, pull, g, self.n_iter)


def descend(
    problem: Quadratic, starts: Sequence[Start], eps: Tensor, hot: Tensor, tol: float, max_iter: int, backend: str
) -> Rest:
    """The best of the starts, cooled down from the temperature ``hot`` to ``eps``, and followed until nearly settled.

    Args:
        problem: The objective, detached.
        starts: The plans to start from.
        eps: Temperature, shape (...) or ().
        hot: The temperature to begin at, if it is above ``eps``.
        tol: Step of the cost over the temperature that will do.
        max_iter: Most steps of each start.
        backend: As in :func:`otdml.ot.gromov`.

    Returns:
        Where the best start of each batch element is, without the dimension of the starts.
    """
    heat = (hot / eps).clamp(min=1).expand(problem.mass.shape)
    entries = problem.a.numel() * problem.b.shape[-1]
    together = len(starts) * entries <= SMALL
    groups = [starts] if together else [[start] for start in starts]
    rests = [_follow(problem, _begin(problem, group), eps, heat, LOOSE, max_iter, backend, group) for group in groups]
    rest = rests[0] if together else _joined(rests)
    found, left = rest.best(), min(MOST, max_iter - rest.n_iter)
    if left > 0:
        found = _follow(problem, found, eps, torch.ones_like(heat), max(tol, CLOSE), left, backend)
    return Rest(found.objective[0], found.pull[0], found.g[0], found.n_iter)


def settled(problem: Quadratic, pull: Tensor, new: Tensor, eps: Tensor, tol: float) -> Tensor:
    """Whether the step of the cost from ``pull`` to ``new`` is small, shape (...); NaN does not change any more."""
    step = problem.size(new - pull)
    rounding = ROUNDING * torch.finfo(step.dtype).eps
    return ~(step > tol * eps + rounding * problem.size(pull))


def _begin(problem: Quadratic, starts: Sequence[Start]) -> Rest:
    moment = torch.stack([start.moment for start in starts])
    pull = problem.pull(moment)
    g = torch.zeros_like(problem.b).expand(*pull.shape[:-2], -1)
    return Rest(pull.new_zeros(pull.shape[:-2]), pull, g, 0)


def _joined(rests: list[Rest]) -> Rest:
    objective, pull, g = (torch.cat([getattr(rest, name) for rest in rests]) for name in ("objective", "pull", "g"))
    return Rest(objective, pull, g, max(rest.n_iter for rest in rests))


def _follow(
    problem: Quadratic,
    rest: Rest,
    eps: Tensor,
    heat: Tensor,
    tol: float,
    max_iter: int,
    backend: str,
    starts: Sequence[Start] = (),
) -> Rest:
    """Steps until the temperature is ``eps`` and no start's cost moves by more than ``tol`` of it."""
    pull, g = rest.pull, rest.g
    held = torch.tensor([s.held for s in starts], device=g.device)[(..., *(None,) * (pull.ndim - 1))]
    cooling = QUICK if starts and all(s.held for s in starts) else COOLING
    hottest = float(heat.max())
    for iteration in range(1, max_iter + 1):
        plan = _rough(problem, pull, g, heat * eps, backend)
        # Only f + g is determined, and single precision is lost on constants that add up.
        g = plan.g - (problem.b * plan.g).sum(-1, keepdim=True) / problem.mass[..., None]
        moment, _ = problem.read(plan)
        new = problem.pull(moment)
        cold = hottest <= 1
        look = cold and iteration % CHECK == 0
        if iteration == max_iter or (look and bool(settled(problem, pull, new, eps, tol).all())):
            return Rest(_objective(problem, plan, pull, new, moment, eps), new, g, rest.n_iter + iteration)
        pull = new if cold or not starts else torch.where(held, pull, new)
        cooler = (cooling * heat).clamp(min=1)
        # Potentials over the temperature grow as it falls.
        g, heat, hottest = (heat / cooler)[..., None] * g, cooler, hottest * cooling
    raise AssertionError


def _objective(problem: Quadratic, plan: "_Rough", pull: Tensor, new: Tensor, moment: Tensor, eps: Tensor) -> Tensor:
    """The entropic objective, shape (...), up to a constant: the dual value of the linearised one, made quadratic."""
    dual = (problem.a * plan.f).sum(-1) + (problem.b * plan.g).sum(-1)
    return eps * dual + ((pull - 0.5 * new) * moment).sum((-2, -1))


class _Rough:
    """A plan near its marginals, with potentials over the temperature: f is optimal given g."""

    g: Tensor

    @property
    def f(self) -> Tensor:
        raise NotImplementedError

    @property
    def plan(self) -> Tensor:
        raise NotImplementedError

    def apply(self, v: Tensor) -> Tensor:
        raise NotImplementedError

    def apply_transpose(self, v: Tensor) -> Tensor:
        raise NotImplementedError


class _Scaled(_Rough):
    """The kernel at the potentials so far, with rows of mass one, scaled a few times."""

    def __init__(self, problem: Quadratic, pull: Tensor, g: Tensor, eps: Tensor) -> None:
        cost, a, b = problem.cost(pull).scaled(1 / eps), problem.a, problem.b
        self.scores = cost.scores(slice(None), g + b.log())
        self.kernel = self.scores.softmax(-1)
        columns, tiny = self.kernel.mT, torch.finfo(g.dtype).tiny
        self.u = a.expand(self.kernel.shape[:-1])
        for sweep in range(SWEEPS):
            scale = _times(columns, self.u).clamp_(min=tiny).reciprocal_()
            self.v = b * scale
            if sweep < SWEEPS - 1:
                self.u = a / _times(self.kernel, self.v)
        self.g = g + scale.log_()

    @property
    def f(self) -> Tensor:
        return -(self.scores.logsumexp(-1) + _times(self.kernel, self.v).log_())

    @property
    def plan(self) -> Tensor:
        return self.u[..., None] * self.kernel * self.v[..., None, :]

    def apply(self, v: Tensor) -> Tensor:
        return self.u[..., None] * (self.kernel @ (self.v[..., None] * v))

    def apply_transpose(self, v: Tensor) -> Tensor:
        return self.v[..., None] * (self.kernel.mT @ (self.u[..., None] * v))


class _Iterated(_Rough):
    """The plan of an engine after a few iterations of the Sinkhorn loop."""

    def __init__(self, problem: Quadratic, pull: Tensor, g: Tensor, eps: Tensor, backend: str) -> None:
        self.engine: Engine = engine(problem.cost(pull), eps, backend)
        rows, columns = (Side(w.expand(*pull.shape[:-2], -1)) for w in (problem.a, problem.b))
        solution = potentials(self.engine, rows, columns, tol=1e-2, max_iter=SWEEPS, init=(None, g))
        self._f, self.g = solution.f, solution.g
        self.hf, self.hg = solution.f + rows.log, solution.g + columns.log

    @property
    def f(self) -> Tensor:
        return self._f

    @property
    def plan(self) -> Tensor:
        return torch.cat([block for _, block in self.engine.plan(self.hf, self.hg)], -2)

    def apply(self, v: Tensor) -> Tensor:
        return self.engine.product(self.hf, self.hg, v)

    def apply_transpose(self, v: Tensor) -> Tensor:
        return self.engine.mT.product(self.hg, self.hf, v)


def _rough(problem: Quadratic, pull: Tensor, g: Tensor, eps: Tensor, backend: str) -> _Rough:
    small = backend in ("auto", "dense") and pull.shape[:-1].numel() * problem.b.shape[-1] <= SMALL
    return _Scaled(problem, pull, g, eps) if small else _Iterated(problem, pull, g, eps, backend)


def _times(kernel: Tensor, v: Tensor) -> Tensor:
    return (kernel @ v[..., None])[..., 0]


def _pick(stack: Tensor, index: Tensor) -> Tensor:
    """The entry ``index`` of the first dimension, for each batch element; the dimension stays."""
    index = index[(None, ..., *(None,) * (stack.ndim - 1 - index.ndim))]
    return torch.take_along_dim(stack, index, 0)
