r"""Small problems of squared distances between points of equal weights on a CPU, in one pass through NumPy.

They are solved in less time than a hundred calls into torch take. The mathematics is that of the dense engine: reduced
costs, a kernel centred at the potentials of Gaussians, a few iterations of Sinkhorn. What these do not solve to the
tolerance, or not to the digits of the dtype, is left to the ordinary way. So is all but the value, its first
derivatives and the potentials: it is read from the :class:`~otdml.ot._solution.EntropicSolution` of the same problem
at the same potentials, which is made when it is asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from otdml._derivatives import fixed, for_each_value
from otdml._precision import full_arithmetic
from otdml.costs import Bilinear, Ground, ground, temperature_of_spread
from otdml.ot._annealing import Solved
from otdml.ot._iteration import at_once, iterate
from otdml.ot._marginal import Marginal
from otdml.ot._problem import Posed, Problem, SolverOptions
from otdml.ot._result import Coupling, OTResult
from otdml.ot._solution import EntropicSolution
from otdml.ot._updates import Alternating, NotFinite, Potentials, Step
from otdml.ot.engines.base import DRIFT, NEGLIGIBLE, exponential
from otdml.ot.engines.dense import Dense
from otdml.ot.engines.small import SMALL, NumPyArray, small_iterations

__all__ = ["small_sinkhorn"]

# Iterations of a problem that is solved here, the number after which others are approached from higher temperatures.
MOST = 96

# Multiples of the tolerance within which derivatives gain nothing that is seen by more iterations.
ENOUGH = 1e-2

_CHANGED = "The points were changed in place after they had been transported, so there are no derivatives any more."

Pair = tuple[Tensor, Tensor]
ArrayPair = tuple[NumPyArray, NumPyArray]


def small_sinkhorn(x: Tensor, y: Tensor, eps: float | None, options: SolverOptions) -> OTResult | None:
    """The solution for squared distances and equal weights, or None where the problem is not of this kind.

    Args:
        x: First points, shape (n, d).
        y: Second points, shape (m, d).
        eps: Temperature, that of the costs' spread if None.
        options: When to stop.
    """
    if not (_fits(x, y) and options.backend == "auto" and options.max_iter >= MOST):
        return None
    with np.errstate(all="ignore"):
        cost = _Factors.of(x.detach().numpy(), y.detach().numpy())
        found = _solved(cost, eps, options)
    if found is None:
        return None
    f, g = _in_cost(cost, found)
    number = f.mean() + g.mean()
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        coupling = _SmallCoupling(x, y, (x._version, y._version), cost, found, None)
        value = _Value.apply(coupling, number, x, y)
    else:
        coupling = _SmallCoupling(x, y, (0, 0), cost, found, _halved(f, g))
        value = _tensor(number)
    return OTResult(value, _true(), found.n_iter, _tensor(found.error), coupling, y, value)


def _fits(x: Tensor, y: Tensor) -> bool:
    return (
        x.ndim == y.ndim == 2
        and x.shape[0] * y.shape[0] <= SMALL
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and _plain(x)
        and _plain(y)
    )


def _plain(x: Tensor) -> bool:
    """Whether the tensor is memory that NumPy can read."""
    return type(x) in (Tensor, torch.nn.Parameter) and not x.is_neg()


def _true() -> Tensor:
    return torch.ones((), dtype=torch.bool, device="cpu")


def _tensor(number: Any) -> Tensor:
    return torch.from_numpy(np.asarray(number))


class _Factors(NamedTuple):
    r"""The cost :math:`u_i + v_j - 2 \langle x_i, y_j \rangle` of points that are centred, each cloud on its own.

    Attributes:
        x: First points, shape (n, d).
        y: Second points, shape (m, d).
        shift: The first centre less the second, shape (d,).
        u: Shape (n,).
        v: Shape (m,).
    """

    x: NumPyArray
    y: NumPyArray
    shift: NumPyArray
    u: NumPyArray
    v: NumPyArray

    @classmethod
    def of(cls, x: NumPyArray, y: NumPyArray) -> "_Factors":
        p, q = _means(x), _means(y)
        x, z, y, shift = x - p, y - p, y - q, p - q
        u, v = np.einsum("ij,ij->i", x, x + 2 * shift), np.einsum("ij,ij->i", z, z)
        return cls(x, y, shift, u, v)

    def spread(self, products: NumPyArray) -> float:
        """The mean excess of the costs over the least one; see :func:`otdml._cost_forms.temperature.spread`."""
        C = (self.u - self.u.mean())[:, None] + (self.v - self.v.mean()) - 2 * products
        least, mean = C.min(), C.mean()
        noise = 64 * np.finfo(C.dtype).eps * max(abs(mean), abs(least))
        # Costs that are equal, or vanish, are for the ordinary way to judge.
        return float(mean - least) if mean - least > max(noise, np.finfo(C.dtype).tiny) else math.nan

    def bilinear(self) -> Bilinear:
        """The cost as solvers know it."""
        q, k, u, v = map(torch.from_numpy, (2 * self.x, self.y, self.u, self.v))
        return Bilinear(q, k, u, v)


def _means(values: NumPyArray) -> NumPyArray:
    """The means of columns, by a product with a vector, which takes a third of the time of a sum along them."""
    n = len(values)
    found: NumPyArray = np.full(n, 1 / n, values.dtype) @ values
    return found


class _Centred(NamedTuple):
    """A kernel that is centred.

    Attributes:
        entries: Shape (n, m).
        f: Row potential, reduced and dimensionless, shape (n,).
        g: Column potential, shape (m,).
    """

    entries: NumPyArray
    f: NumPyArray
    g: NumPyArray

    @property
    def weights(self) -> ArrayPair:
        """Those of the rows and of the columns."""
        return np.full_like(self.f, 1 / self.f.size), np.full_like(self.g, 1 / self.g.size)

    def engine(self, cost: Ground, eps: float) -> Dense:
        """The engine that has this kernel."""
        entries, f, g = map(torch.from_numpy, self)
        return Dense.centred(cost.detach().scaled(1 / eps), entries, f, g)


def _product(a: NumPyArray, b: NumPyArray) -> NumPyArray:
    """The product of two matrices, by torch: the threads of NumPy would wait for those of torch, and these for them."""
    found: NumPyArray = torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return found


class _Found(NamedTuple):
    """What NumPy has found.

    Attributes:
        eps: The temperature.
        kernel: The kernel, near whose centre the potentials are.
        f: Row potential, reduced and dimensionless, shape (n,).
        g: Column potential, shape (m,).
        error: L1 error of the marginals.
        n_iter: Number of iterations.
    """

    eps: float
    kernel: _Centred
    f: NumPyArray
    g: NumPyArray
    error: Any
    n_iter: int

    @property
    def scalings(self) -> ArrayPair:
        """What rows and columns of the kernel are multiplied by in the plan."""
        a, b = self.kernel.weights
        return a * np.exp(self.f - self.kernel.f), b * np.exp(self.g - self.kernel.g)


def _solved(cost: _Factors, eps: float | None, options: SolverOptions) -> _Found | None:
    """The solution, or None where it takes higher temperatures on the way, or another form."""
    products = _product(cost.x, cost.y.T)
    if eps is None:
        eps = float(temperature_of_spread(torch.tensor(cost.spread(products), dtype=torch.float64, device="cpu")))
    # Where no cost of a row exceeds the temperature there may be a form with more digits; NaN belongs there as well.
    if not np.abs(products[0]).max() * 2 > eps:
        return None
    found = _iterated(cost, eps, _kernel(cost, products, eps), options.tol)
    if found is None:
        return None
    rounding = 2 * np.finfo(products.dtype).eps * max(np.abs(found.f).max(), np.abs(found.g).max())
    return found._replace(error=np.maximum(found.error, rounding)) if rounding <= options.resolved else None


def _iterated(cost: _Factors, eps: float, kernel: _Centred, tol: float) -> _Found | None:
    """The solution by a few iterations with the kernel, or by more of them in the loop that other problems take."""
    times, _ = at_once(kernel.entries.size)
    a, b = kernel.weights
    made = small_iterations(kernel.entries, (a, None), (b, None), b, b, times=times, tol=tol, enough=ENOUGH * tol)
    assert made.errors is not None
    f, states = kernel.f - np.log(made.by_row), kernel.g - np.log(made.by_column)
    if made.settled:
        return _Found(eps, kernel, f, states[-1], made.errors[-1], 1 + int(np.argmax(made.errors <= tol)))
    start, last, new, errors = map(torch.from_numpy, (kernel.g, f, states, made.errors))
    return _continued(kernel.engine(cost.bilinear(), eps), Step(start, last, new, errors), eps, tol)


def _continued(engine: Dense, first: Step, eps: float, tol: float) -> _Found | None:
    a, b = (torch.full_like(potential, 1 / len(potential)) for potential in (first.f, first.start))
    try:
        update = Alternating(engine, Marginal(a), Marginal(b))
        found = iterate(update, first.start, tol=tol, max_iter=MOST, prepared=True, first=first)
    except NotFinite:
        return None
    if not found.done:
        return None
    drift = engine.drift(found.f, found.g)
    if drift is None or float(drift) > DRIFT:
        # Else the scalings could overflow.
        engine.prepare(found.g)
    assert engine.kernel is not None
    kernel = _Centred(*(t.numpy() for t in (engine.kernel, engine.f, engine.g)))
    return _Found(eps, kernel, found.f.numpy(), found.g.numpy(), found.error.numpy(), found.n_iter)


def _kernel(cost: _Factors, products: NumPyArray, eps: float) -> _Centred:
    """The kernel, which takes the place of the products in memory.

    The column potential is that of :meth:`~otdml._cost_forms.bilinear.Bilinear.gaussian_potential`.
    """
    squares = cost.y * cost.y
    s, t = _means(cost.x * cost.x), _means(squares)
    # Twice, as the square of a number of Python is an error where it overflows.
    s = s * (2 / eps) * (2 / eps)
    g = squares @ (s / (-1 - np.sqrt(1 + 4 * s * t)))
    products *= 2 / eps
    products += g
    scores = torch.from_numpy(products)
    top = scores.amax(1, keepdim=True)
    exponential(scores.sub_(top), NEGLIGIBLE)
    return _Centred(products, -top.numpy()[:, 0], g)


def _in_cost(cost: _Factors, found: _Found) -> ArrayPair:
    """The potentials in units of the cost, without a choice of the constant between them."""
    return found.eps * found.f + cost.u, found.eps * found.g + cost.v


def _halved(f: NumPyArray, g: NumPyArray) -> Pair:
    """Potentials between which the value is halved, as only their sum is determined."""
    shift = (f.mean() - g.mean()) / 2
    return torch.from_numpy(f - shift), torch.from_numpy(g + shift)


@dataclass(frozen=True)
class _SmallCoupling(Coupling):
    """The plan of a small problem.

    Attributes:
        x: First points.
        y: Second points.
        versions: How often these had been changed in place; the arrays stay as they are.
        cost: The cost as arrays.
        found: The solution as arrays.
        constants: The potentials in units of the cost; None where derivatives may be asked for.
    """

    x: Tensor
    y: Tensor
    versions: tuple[int, int]
    cost: _Factors
    found: _Found
    constants: Pair | None

    @cached_property
    def solution(self) -> EntropicSolution:
        """The solution as others are, from which everything can be read."""
        if self.constants is not None:
            with torch.inference_mode(self.constants[0].is_inference()), torch.no_grad():
                return self._between(self.cost.bilinear())
        with torch.enable_grad():
            if self.versions == (self.x._version, self.y._version):
                return self.solution_at(self.x, self.y)
            live = [t for t in (self.x, self.y) if t.requires_grad]
            q, k, u, v = (fixed(t, _CHANGED, *live) for t in self.cost.bilinear().leaves)
            return self._between(Bilinear(q, k, u, v))

    def solution_at(self, x: Tensor, y: Tensor) -> EntropicSolution:
        """The same, with its graph down to these tensors of the points."""
        with full_arithmetic("cpu"):
            return self._between(ground(x, y))

    def _between(self, cost: Ground) -> EntropicSolution:
        found = self.found._replace(**self._reduced(cost))
        f, g, a, b = map(torch.from_numpy, (found.f, found.g, *found.kernel.weights))
        posed = Posed(Problem(cost, a, b, found.eps), found.kernel.engine(cost, found.eps))
        potentials = Potentials(f, g, _tensor(found.error), found.n_iter, _true())
        return EntropicSolution(Solved(posed, potentials), self.constants is None, f.dtype, cost.versions)

    def _reduced(self, cost: Ground) -> dict[str, Any]:
        """The potentials without what this cost has in common, and the kernel at such ones.

        Centres of clouds far from the origin are rounded, in torch to others than here.
        """
        found, own = self.found, (self.cost.u, self.cost.v)
        assert cost.u is not None
        assert cost.v is not None
        changes = [(u - v.detach().numpy()) / found.eps for u, v in zip(own, (cost.u, cost.v), strict=True)]
        centre = found.kernel.f + changes[0], found.kernel.g + changes[1]
        kernel = _Centred(found.kernel.entries, *centre)
        return {"kernel": kernel, "f": found.f + changes[0], "g": found.g + changes[1]}

    @property
    def potentials(self) -> Pair:
        return self.solution.potentials if self.constants is None else self.constants

    def product(self, v: Tensor) -> Tensor:
        return self.solution.product(v)

    def product_transposed(self, v: Tensor) -> Tensor:
        return self.solution.product_transposed(v)

    def conditional_product(self, v: Tensor) -> Tensor:
        return self.solution.conditional_product(v)

    def plan(self) -> Tensor:
        return self.solution.plan()

    def slopes(self, grad: float, needs: Sequence[bool]) -> list[Tensor | None]:
        r"""The gradients in the points, :math:`2 \sum_j P_{ij} (x_i - y_j)` and its counterpart, times ``grad``."""
        cost, kernel, (left, right) = self.cost, self.found.kernel.entries, self.found.scalings
        plan = kernel * right
        plan *= left[:, None]
        dx = _slope(grad, plan, left * (kernel @ right), cost.x + cost.shift, cost.y) if needs[0] else None
        return [dx, _slope(grad, plan.T, right * (left @ kernel), cost.y - cost.shift, cost.x) if needs[1] else None]

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_it_is, (self.solution,)


def _slope(grad: float, plan: NumPyArray, mass: NumPyArray, points: NumPyArray, others: NumPyArray) -> Tensor:
    # One call for the difference of the two sums.
    points *= mass[:, None]
    sums, entries, factors = map(torch.from_numpy, (points, plan, others))
    return sums.addmm_(entries, factors, beta=2 * grad, alpha=-2 * grad)


def _as_it_is(solution: EntropicSolution) -> EntropicSolution:
    return solution


class _Value(torch.autograd.Function):
    """The value; its gradient in the points is that with the plan held fixed."""

    @staticmethod
    def forward(ctx: Any, coupling: _SmallCoupling, value: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.coupling = coupling
        ctx.save_for_backward(x, y)
        return _tensor(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Read in any case, for this is when torch looks whether they have been changed.
        points, coupling, needs = ctx.saved_tensors, ctx.coupling, ctx.needs_input_grad[2:]
        if not torch.is_grad_enabled():
            with full_arithmetic("cpu"):
                return None, None, *for_each_value(grad, lambda g: coupling.slopes(float(g), needs))
        # As two tensors where both are one, whose gradient would be counted twice.
        x, y = (t.view_as(t) for t in points)
        value = coupling.solution_at(x, y).value()
        found = iter(torch.autograd.grad(value, [t for t in (x, y) if t.requires_grad], grad, create_graph=True))
        return None, None, *(next(found) if needed else None for needed in needs)
