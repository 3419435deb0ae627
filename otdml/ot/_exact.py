"""Exact optimal transport."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otdml._checks import argument_error, check_equal_mass, has_values
from otdml._cost_forms.temperature import check_spread
from otdml._derivatives import fixed
from otdml._precision import full_arithmetic, full_precision
from otdml._transforms import batch_first, refuse_forward_twice
from otdml.costs import Cost, cost_matrix, ground
from otdml.measures import broadcast_matrix, broadcast_measures, weights
from otdml.ot._partial import Mass, check_mass
from otdml.ot._problem import extended_weights
from otdml.ot._result import Coupling, OTResult

__all__ = ["exact", "exact_matrix"]

# The network simplex needs more pivots than POT's default of 1e5 from some 5,000 points on.
MOST_PIVOTS = 10**8


@full_precision
def exact(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    cost: Cost = "sqeuclidean",
    mass: Mass | None = None,
) -> OTResult:
    r"""Optimal transport between two weighted point clouds, without regularisation.

    .. math:: \min_{P \ge 0} \langle P, C \rangle \quad \text{with} \quad P 1 = a, \; P^\top 1 = b

    Solved on the CPU in float64 by the network simplex of POT :cite:p:`flamary:21` :cite:p:`bonneel:11`, in some
    :math:`O(n^2 m)`: for thousands of points, not tens of thousands. The value is piecewise smooth in the points and
    the weights; where several plans are optimal, the gradient is one of its subgradients. Second derivatives in the
    points exist; those that involve the weights are refused.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m). Uniform of mass one if None.
        cost: Ground cost, see :func:`~otdml.costs.ground`.
        mass: Mass of the plan, a number or shape (...), where it is *partial*: the cheapest of those whose marginals
            are at most a and b, which may then have different masses. All of it if None.

    Returns:
        The result. Its potentials are optimal for the dual problem, shifted so that :math:`\langle a, f \rangle =
        \langle b, g \rangle`; that of a point without weight says what it costs to move mass there from or to points
        with weight, so those of two points without weight may add up to more than the cost between them. They and the
        plan carry no gradient.

    Raises:
        ValueError: If shapes do not fit, a weight is negative, the masses differ, or a cost is not finite.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [1.0]])
        >>> exact(x, y).value  # 0 goes to 1, and 1 goes to 3.
        tensor(2.5000)
    """
    x, y, a, b = broadcast_measures(x, y, a, b)
    return _transport(_finite_costs(x, y, cost), weights(x, a), weights(y, b), y, mass)


def uniform_plan(x: Tensor, y: Tensor, cost: Cost) -> Tensor:
    """The plan of :func:`exact` between points of equal weights, shape (n, m), without its potentials."""
    C = _finite_costs(x, y, cost).detach()
    a, b = (C.new_full((k,), 1 / k, dtype=torch.float64) for k in C.shape)
    return _emd(C.double(), a, b)[0].to(C)


def _finite_costs(x: Tensor, y: Tensor, cost: Cost) -> Tensor:
    """The matrix of costs, if its entries are finite and not too small to be told from zero."""
    C = cost_matrix(x, y, cost)
    if C.numel() and has_values(C):
        check_spread(ground(x, y, cost), C.detach().amax((-2, -1)) - C.detach().amin((-2, -1)))
    return C


@full_precision
def exact_matrix(C: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, mass: Mass | None = None) -> OTResult:
    r"""Optimal transport for a given matrix of costs, without regularisation; see :func:`exact`.

    Args:
        C: Costs, shape (..., n, m); plus infinity forbids a pair.
        a: Weights of the rows, shape (..., n). Uniform of mass one if None.
        b: Weights of the columns, shape (..., m). Uniform of mass one if None.
        mass: Mass of a partial plan, see :func:`exact`.

    Returns:
        The result; its value has shape (...) and is differentiable in C, a and b.

    Raises:
        ValueError: If shapes do not fit, a weight is negative, the masses differ, a cost is not a number, or every
            plan uses a forbidden pair.

    Example:
        >>> import torch
        >>> exact_matrix(torch.tensor([[0.0, 1.0], [torch.inf, 3.0]])).value  # the diagonal, 0 and 3
        tensor(1.5000)
    """
    C, a, b = broadcast_matrix(C, a, b)
    if has_values(C) and not bool((C.detach() > -torch.inf).all()):
        raise argument_error("C", "hold numbers, or plus infinity for a forbidden pair", "NaN or minus infinity")
    return _transport(C, a, b, None, mass)


def _transport(C: Tensor, a: Tensor, b: Tensor, y: Tensor | None, mass: Mass | None) -> OTResult:
    """The optimal plan, of all of the mass or of a part of it."""
    if mass is None:
        check_equal_mass(a, b)
        return _balanced(C, a, b, y)
    dtype, moved = C.dtype, check_mass(mass, a, b)
    # In single precision, rounding of the mass that stays may be a noticeable part of a small mass that moves.
    C, a, b, moved = (t.double() for t in (C, a, b, moved))
    a, b = extended_weights(a, b, moved)
    # No mass may go from one of the added points to the other.
    corner = torch.zeros(C.shape[-2] + 1, C.shape[-1] + 1, dtype=torch.bool, device=C.device)
    corner[-1, -1] = True
    whole = _balanced(torch.nn.functional.pad(C, (0, 1, 0, 1)).masked_fill(corner, torch.inf), a, b, y)
    solution = whole._coupling
    assert isinstance(solution, _Solution)
    error = whole.marginal_error * a.detach().sum(-1) / moved.detach()
    return dataclasses.replace(
        whole,
        value=whole.value.to(dtype),
        marginal_error=error.to(dtype),
        _coupling=solution.without_last().to(dtype),
    )


def _balanced(C: Tensor, a: Tensor, b: Tensor, y: Tensor | None) -> OTResult:
    """The optimal plan with the marginals a and b."""
    p, q = a.detach(), b.detach()
    plan, f, g = _Solve.apply(C.detach(), p, q)
    solution, mass = _Solution(C.detach(), q, plan, f, g), p.sum(-1)
    error = (plan.sum(-1) - p).abs().sum(-1) + (plan.sum(-2) - q).abs().sum(-1)
    return OTResult(
        value=_Value.apply(C, a, b, plan, f, g),
        converged=torch.ones_like(mass, dtype=torch.bool),
        n_iter=0,
        marginal_error=error / torch.where(mass > 0, mass, 1),
        _coupling=solution,
        _y=y,
    )


@dataclass(frozen=True)
class _Solution(Coupling):
    """A plan as a matrix, with its potentials, all without gradient."""

    C: Tensor
    b: Tensor
    matrix: Tensor
    f: Tensor
    g: Tensor

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        return self.f, self.g

    def without_last(self) -> "_Solution":
        """The solution without the last row and column."""
        rows, matrices = (self.b, self.f, self.g), (self.C, self.matrix)
        b, f, g = (t[..., :-1] for t in rows)
        C, matrix = (t[..., :-1, :-1] for t in matrices)
        return _Solution(C, b, matrix, f, g)

    def to(self, dtype: torch.dtype) -> "_Solution":
        """The solution in another dtype."""
        return _Solution(*(t.to(dtype) for t in (self.C, self.b, self.matrix, self.f, self.g)))

    def plan(self) -> Tensor:
        return self.matrix

    def product(self, v: Tensor) -> Tensor:
        return _product(self.matrix, v)

    def product_transposed(self, v: Tensor) -> Tensor:
        return _product(self.matrix.mT, v)

    def conditional_product(self, v: Tensor) -> Tensor:
        """The product with rows that sum to one; a little mass in an empty row would go to its cheapest column."""
        present = self.b[..., None, :] > 0
        reduced = torch.where(present | ~present.any(-1, keepdim=True), self.C - self.g[..., None, :], torch.inf)
        cheapest = torch.zeros_like(self.matrix).scatter(-1, reduced.argmin(-1, keepdim=True), 1)
        mass = self.matrix.sum(-1, keepdim=True)
        return _product(torch.where(mass > 0, self.matrix / torch.where(mass > 0, mass, 1), cheapest), v)


def _product(plan: Tensor, v: Tensor) -> Tensor:
    dtype = torch.promote_types(plan.dtype, v.dtype)
    with full_arithmetic(plan.device.type):
        return plan.to(dtype) @ v.to(dtype)


class _Solve(torch.autograd.Function):
    """The plan and the potentials of each problem of a batch, as constants."""

    @staticmethod
    def forward(C: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = C.shape[:-2]
        plan, f, g = torch.empty_like(C), torch.empty_like(a), torch.empty_like(b)
        for at in np.ndindex(*batch):
            plan[at], f[at], g[at] = _network_simplex(C[at], a[at], b[at])
        return plan, f, g

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        return None, None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *problem: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _Solve.apply(*batch_first(info, dims, problem)), (0, 0, 0)


class _Value(torch.autograd.Function):
    """The plan's cost, whose gradients are the plan and the potentials."""

    generate_vmap_rule = True

    @staticmethod
    def forward(C: Tensor, a: Tensor, b: Tensor, plan: Tensor, f: Tensor, g: Tensor) -> Tensor:
        return (plan * torch.where(plan > 0, C, 0)).sum((-2, -1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slopes = _slopes(ctx.saved_tensors, ctx.needs_input_grad[:3])
        found = [None if s is None else grad[(...,) + (None,) * (s.ndim - grad.ndim)] * s for s in slopes]
        return *found, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        refuse_forward_twice()
        slopes = _slopes(ctx.saved_tensors, [t is not None for t in tangents[:3]])
        parts = [s * t for s, t in zip(slopes, tangents, strict=False) if s is not None and t is not None]
        return torch.stack([part.flatten(ctx.saved_tensors[1].ndim - 1).sum(-1) for part in parts]).sum(0)


def _slopes(problem: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The derivatives of the value in the costs and the weights: those that are wanted."""
    C, a, b, plan, f, g = problem
    # The value is piecewise linear: the plan is constant in the costs, and the potentials are constant in the weights.
    found = (plan, (a, b)), (f, (C,)), (g, (C,))
    return [
        fixed(t, _NO_SECOND, *sources) if needed else None for needed, (t, sources) in zip(wanted, found, strict=True)
    ]


_NO_SECOND = (
    "exact transport has no second derivatives that involve the weights. Take entropic transport, `sinkhorn`, or "
    "detach the weights."
)


def _network_simplex(C: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The plan and the potentials of one problem, of any scale."""
    rows, columns = a > 0, b > 0
    plan, f, g = torch.zeros_like(C, dtype=torch.float64), *(torch.zeros_like(w, dtype=torch.float64) for w in (a, b))
    if not bool(rows.any()):
        return plan.to(C), f.to(C), g.to(C)
    C = C.double()
    part, p, q = C[rows][:, columns], a[rows].double(), b[columns].double()
    p, q, mass = p / p.sum(), q / q.sum(), p.sum()
    found, u = _emd(part, p, q)
    plan[rows.nonzero(), columns.nonzero().T] = mass * found
    # The c-transform: what it costs to move mass to a point, whether it has any or not.
    g[columns] = (part - u[:, None]).amin(0)
    f = (C[:, columns] - g[columns]).amin(1)
    g = (C[rows] - f[rows, None]).amin(0)
    shift = (f[rows] @ p - g[columns] @ q) / 2
    return plan, f - shift, g + shift


def _emd(C: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A plan, and a potential of the rows, for weights of mass one."""
    # POT imports GeomLoss, which imports KeOps, which prints that it found no GPU.
    with contextlib.redirect_stdout(io.StringIO()):
        import ot

    allowed = C.isfinite()
    # To select the allowed pairs copies them, and nearly always all pairs are allowed.
    some = C if (every := bool(allowed.all())) else C[allowed]
    low, high = (float(end) for end in some.aminmax()) if some.numel() else (0.0, 0.0)
    span = high - low if high > low else 1.0
    # A forbidden pair costs more than any detour through all of the points.
    scaled = (C - low) / span if every else torch.where(allowed, (C - low) / span, 1.0 + sum(C.shape))
    plan, log = ot.emd(*(t.cpu().numpy() for t in (a, b, scaled)), numItermax=MOST_PIVOTS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"The network simplex failed: {log['warning']}")
    found, u = (torch.from_numpy(part).to(C) for part in (plan, log["u"]))
    if not every and bool((found[~allowed] > 0).any()):
        raise argument_error("C", "allow some plan", "forbidden pairs that every plan uses", "Allow more of them.")
    return found, low + span * u
