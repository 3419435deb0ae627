"""Entropic Gromov-Wasserstein: transport between clouds of different spaces, by the costs within each."""

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from otdml._checks import argument_error, check_choice, check_equal_mass, check_integer, check_positive
from otdml._derivatives import refuse_transforms
from otdml._precision import full_precision
from otdml._warnings import warn_caller
from otdml.measures import broadcast_clouds, weights
from otdml.ot._gromov.centred_cost import WithinCost, centred
from otdml.ot._gromov.descent import DescentState, Start, descend, settled
from otdml.ot._gromov.objective import GromovObjective, ReadablePlan
from otdml.ot._implicit import first_order
from otdml.ot._problem import Problem, SolverOptions
from otdml.ot._result import OTResult
from otdml.ot._sinkhorn import entropic

__all__ = ["GromovResult", "gromov"]

# Engines that take any number of features and batches of starts.
GROMOV_BACKENDS = ("auto", "dense", "streamed")
STARTS = ("best", "identity", "product")

# The temperature where none is given, over the product of the root mean squares of the two centred costs.
EPS = 0.02

# Over the same product, the temperature at which descents begin.
START_TEMPERATURE = 1.0

# Marginals are met no better than to this many rounding units.
ROUNDING = 64


@dataclass(frozen=True)
class GromovResult(OTResult):
    r"""A Gromov problem's solution.

    The potentials, the plan and its products are those of the transport problem that the objective becomes when it
    is linearised at the plan. They are constants; :attr:`value` and :attr:`gap` carry the gradients.

    Attributes:
        eps: The temperature, shape (...) or ().
        divergence: :math:`\mathrm{KL}(P \,|\, a \otimes b)`, shape (...). The entropic objective is
            ``value + eps * divergence``; the gradient of ``value`` is that of this sum.
    """

    eps: Tensor = field(kw_only=True)
    divergence: Tensor = field(kw_only=True)
    _problem: GromovObjective = field(kw_only=True, repr=False)
    _shared: Tensor | None = field(kw_only=True, repr=False)

    @cached_property
    def gap(self) -> Tensor:
        """The objective at the pairing of equal indices less that at the plan, shape (...).

        It is the Gromov-Monge gap where ``y`` holds the images of ``x``. The constants of the two values cancel
        before they are computed, so it has more correct digits than their difference.

        Raises:
            ValueError: If the clouds differ in size or in weights, so that the pairing is no plan.
        """
        if self._shared is None:
            raise argument_error("y", "pair with `x`, row by row and with equal weights", "another measure")
        gap = self._problem.gap(self)
        if not self._shared.requires_grad:
            return gap
        return gap + _along(self._shared, self._problem.detach().gap_dual(self, self.f, self.g))

    @property
    def negative_gap(self) -> Tensor:
        """Whether the pairing beats the plan, shape (...), boolean.

        A plan at a positive temperature is blurred, so slightly negative gaps are in the nature of the problem;
        :attr:`suboptimal` singles out those that blur does not explain.
        """
        return self.gap.detach() < 0

    @property
    def suboptimal(self) -> Tensor:
        """Whether the pairing beats the plan in the entropic objective too, shape (...), boolean.

        Then the iteration has ended in a worse local optimum, and the gradient of the gap has the wrong sign.
        """
        a = self._problem.a
        mass = a.sum(-1)
        pairing = torch.special.entr(a).sum(-1) - mass + mass.square()
        # The margin is what an objective solved to a tolerance may be off.
        return self.gap.detach() < self.eps * (self.divergence - pairing - 0.01)


@full_precision
def gromov(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    cost_x: WithinCost = "sqeuclidean",
    cost_y: WithinCost = "sqeuclidean",
    eps: float | Tensor | None = None,
    tol: float = 1e-3,
    max_iter: int = 300,
    init: str | ReadablePlan | Tensor = "best",
    backend: str = "auto",
) -> GromovResult:
    r"""Entropic Gromov-Wasserstein transport between two weighted point clouds, of spaces that may differ.

    .. math::
        \min_{P \ge 0,\; P 1 = a,\; P^\top 1 = b} \; \tfrac12 \sum_{ijkl}
        \bigl( c_X(x_i, x_k) - c_Y(y_j, y_l) \bigr)^2 P_{ij} P_{kl} + \varepsilon \mathrm{KL}(P \,|\, a \otimes b)

    Only costs within each cloud are compared, so the clouds may be rotated, reflected, or live in different
    dimensions :cite:p:`memoli:11`. The problem is not convex; each linearisation is an entropic transport problem
    whose plan gives the next :cite:p:`peyre:16`, which descends for the named bilinear costs, and ends in a local
    optimum that depends on ``init``. For these costs nothing of n × m or n² entries is needed, and a step takes
    O(n m (d + 1)); another cost, or more features than points, takes the matrix of costs within the cloud.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, e).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m). Uniform of mass one if None.
        cost_x: Cost between first points: a name (see :func:`otdml.costs.ground`), a positive multiple of one
            (an object with a name ``cost`` and a ``scale``, such as :class:`otdml.losses.ScaledCost`), or a
            symmetric function of two sets of points.
        cost_y: Cost between second points.
        eps: Temperature, in units of the product of the two costs, a number or one per batch element. 0.02 times
            the product of the root mean squares of the two costs, centred, if None.
        tol: When to stop: at a marginal error below ``tol``, and a step of the linearised cost below ``tol * eps``,
            in root mean square.
        max_iter: Most linearisations; beyond them the result has ``converged`` False, and a warning says so. Clouds
            that have nothing to do with each other need the more the larger they are.
        init: The plan to start from: "identity" (equal indices are paired; for clouds of equal size and weights),
            "product" (independence, cooled down to ``eps`` in steps, and tilted to pair points that look alike from
            the extreme point of their cloud, or that look least alike, whichever ends better: independence itself
            is a stationary point for centred clouds under ``cosine`` and ``inner``), "best" (all of these, and the
            best result for each batch element), an
            :class:`OTResult`, or a plan of shape (..., n, m). Clouds that cannot be paired start from the product.
        backend: "auto", "dense" or "streamed", as in :func:`sinkhorn`.

    Returns:
        The result. Its value is the quadratic part of the objective, shape (...); it carries the gradient of the
        whole objective in points, weights and scales, with the plan fixed_cost fixed. There are no second derivatives.

    Raises:
        ValueError: If shapes do not fit, masses differ, or the costs are not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> result = gromov(x, -x.flip(0), eps=1e-2)  # A reflection, in another order
        >>> result.plan.argmax(-1)
        tensor([2, 1, 0])
    """
    x, y, a, b = broadcast_clouds(x, y, a, b)
    refuse_transforms("gromov", x, y, a, b)
    check_positive("tol", tol)
    check_integer("max_iter", max_iter)
    check_choice("backend", backend, GROMOV_BACKENDS)
    shared = _shared_weights(x, y, a, b)
    a, b = weights(x, a), weights(y, b)
    x, y, a, b = (_FirstOrderOnly.apply(t) for t in (x, y, a, b))
    left, right = centred("cost_x", x, a.detach(), cost_x), centred("cost_y", y, b.detach(), cost_y)
    if shared is None:
        check_equal_mass(a, b)
    problem = GromovObjective(left, right, a.detach(), b.detach())
    frozen = problem.detach()
    eps, start_temperature = _temperatures(frozen, eps)
    near = descend(frozen, _starts(frozen, init, shared is not None), eps, start_temperature, tol, max_iter, backend)
    transport, state = _polished(frozen, near, eps, tol, max_iter, backend)
    if not bool(state.converged.all()):
        _warn(tol, max_iter)
    return _result(problem, transport, state, shared, (a, b), eps)


def _shared_weights(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The weights of both clouds, if pairing equal indices is a plan."""
    if x.shape[-2] != y.shape[-2]:
        return None
    if a is None and b is None:
        return weights(x, None)
    a, b = weights(x, a), weights(y, b)
    return a if a is b or torch.equal(a, b) else None


def _temperatures(problem: GromovObjective, eps: float | Tensor | None) -> tuple[Tensor, Tensor]:
    """The temperature to solve at, shape (...) or (), and the one to cool down from."""
    left, right, a, b = problem.left, problem.right, problem.a, problem.b
    scale, start_temperature = (left.size(a, k) * right.size(b, k) * problem.mass for k in (1, 2))
    shifts = (a * left.alpha.square()).sum(-1) * (b * right.alpha.square()).sum(-1)
    start_temperature = START_TEMPERATURE * (start_temperature + 2 * shifts.sqrt())
    # The floor is for clouds that are a single point, on which every temperature gives the same plan.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if isinstance(eps, Tensor):
        return eps.detach(), start_temperature
    return EPS * scale if eps is None else scale.new_full((), check_positive("eps", eps)), start_temperature


def _starts(problem: GromovObjective, init: str | ReadablePlan | Tensor, paired: bool) -> list[Start]:
    if isinstance(init, Tensor):
        shape = (problem.a.shape[-1], problem.b.shape[-1])
        if init.shape[-2:] != shape:
            raise argument_error("init", f"be a plan of shape (..., {shape[0]}, {shape[1]})", tuple(init.shape))
        return [Start(init if problem.right.z is None else init @ problem.right.z, fixed_cost=True)]
    if not isinstance(init, str):
        return [Start(problem.read(init)[0].detach(), fixed_cost=True)]
    check_choice("init", init, STARTS)
    pairing = [Start(problem.pairing(), fixed_cost=True)] if paired and init != "product" else []
    if init == "identity" and paired:
        return pairing
    return pairing + [Start(projection, fixed_cost=False) for projection in problem.independents()]


@dataclass(frozen=True)
class _Polished:
    """The cost of the last transport problem, whether its plan has the same cost, and the steps in all."""

    slope: Tensor
    converged: Tensor
    n_iter: int


def _polished(
    problem: GromovObjective, state: DescentState, eps: Tensor, tol: float, max_iter: int, backend: str
) -> tuple[OTResult, _Polished]:
    """Steps whose plans meet their marginals, until one moves the cost by less than the tolerance."""
    slope, g, last = state.slope, eps[..., None] * state.g, max(max_iter, state.n_iter + 1)
    resolved = _resolved(problem, state, eps)
    inner, least = max(tol, resolved), max(tol / 10, resolved)
    for iteration in range(state.n_iter + 1, last + 1):
        linear = Problem(problem.cost(slope), problem.a, problem.b, eps)
        options = SolverOptions(inner, backend=backend, rounding=tol / 2)
        transport = entropic(linear, options, init=(None, g), quiet=True)
        new = problem.slope(problem.read(transport)[0])
        converged = settled(problem, slope, new, eps, tol) & transport.converged
        if iteration == last or bool(converged.all()):
            return transport, _Polished(slope, converged, iteration)
        # Within their tolerance marginals go to and fro, and with them the cost.
        slope, g, inner = new, transport.g, max(inner / 2, least)
        del transport
    raise AssertionError


def _resolved(problem: GromovObjective, state: DescentState, eps: Tensor) -> float:
    """The error of marginals that rounding of the costs over the temperature leaves."""
    return torch.finfo(eps.dtype).eps * max(ROUNDING, 3 * float((problem.size(state.slope) / eps).max()))


def _result(
    problem: GromovObjective,
    transport: OTResult,
    state: _Polished,
    shared: Tensor | None,
    live: tuple[Tensor, Tensor],
    eps: Tensor,
) -> GromovResult:
    frozen = problem.detach()
    projection, transported = frozen.read(transport)
    cost = -frozen.linear(transported) - (state.slope * projection).sum((-2, -1))
    value = problem.value(transport)
    if any(w.requires_grad for w in live):
        duals = frozen.value_duals(transport, transport.f, transport.g)
        value = value + sum(_along(w, d) for w, d in zip(live, duals, strict=True))
    inherited = {f.name: getattr(transport, f.name) for f in fields(OTResult)}
    own = {"value": value, "converged": state.converged & transport.converged, "n_iter": state.n_iter}
    divergence = (transport.value - cost) / eps
    return GromovResult(**inherited | own, eps=eps, divergence=divergence, _problem=problem, _shared=shared)


class _FirstOrderOnly(torch.autograd.Function):
    """The identity, differentiable once: with the plan fixed_cost fixed, second derivatives would be wrong."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        return first_order((grad,), (grad, *ctx.saved_tensors))[0]


def _along(w: Tensor, gradient: Tensor) -> Tensor:
    """Zero, with this gradient in the weights ``w``."""
    return ((w - w.detach()) * gradient).sum(-1)


def _warn(tol: float, max_iter: int) -> None:
    warn_caller(
        f"Gromov-Wasserstein stopped at `max_iter`={max_iter} before its steps fell below `tol`={tol:g}. Raise "
        "`max_iter` or `eps`, or accept a larger `tol`."
    )
