"""Entropic optimal transport between point clouds, or for a cost matrix."""

import dataclasses
import math

import torch
from torch import Tensor

from otdml._checks import argument_error, check_integer, check_measures, check_positive, check_weights
from otdml._precision import full_precision
from otdml._warnings import warn_caller
from otdml.costs import Cost, Ground, Matrix, Pointwise, ground, mean_cost
from otdml.measures import weights
from otdml.ot.engines import Engine, Mask, engine
from otdml.ot.hot import largest, reheated
from otdml.ot.implicit import Problem
from otdml.ot.optimum import Optimum
from otdml.ot.potentials import Side, Solution, potentials
from otdml.ot.result import OTResult

__all__ = ["Rho", "check_rho", "entropic", "sinkhorn", "sinkhorn_matrix"]

Rho = float | tuple[float | None, float | None] | None
Init = tuple[Tensor | None, Tensor | None] | None


@full_precision
def sinkhorn(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    cost: Cost = "sqeuclidean",
    eps: float | None = None,
    rho: Rho = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    init: Init = None,
    backend: str = "auto",
) -> OTResult:
    r"""Entropic optimal transport between two weighted point clouds.

    .. math::
        \min_{P \ge 0} \langle P, C \rangle + \varepsilon \mathrm{KL}(P \,|\, a \otimes b)
        + \rho_a \mathrm{KL}(P 1 \,|\, a) + \rho_b \mathrm{KL}(P^\top 1 \,|\, b)

    with :math:`C_{ij} = c(x_i, y_j)` and :math:`\mathrm{KL}(p | q) = \sum p \log (p / q) - p + q`; without
    :math:`\rho` the marginals are constraints. Solved by Sinkhorn's algorithm :cite:p:`cuturi:13` under Anderson
    acceleration :cite:p:`walker:11`, at low temperatures by way of higher ones; unbalanced as in
    :cite:p:`sejourne:19`. Gradients are those of the optimum, never of the iterations, and second derivatives exist on
    the dense and streamed backends.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m). Uniform of mass one if None.
        cost: Ground cost, see :func:`~otdml.costs.ground`.
        eps: Temperature in units of the cost: small is close to exact transport and slow, large is smooth and
            quick. 0.05 times the mean cost of each batch element if None.
        rho: Marginal penalty in units of the cost, a number, or a pair for ``a`` and ``b`` in which None is a hard
            constraint. None for both: ``a`` and ``b`` must have equal mass.
        tol: L1 error of the marginals, relative to the mass, at which to stop. In float32 costs of r temperatures
            define a plan to r times 1e-7 of itself: to 1e-3 at some thousand temperatures.
        max_iter: Most iterations; beyond them the result has ``converged`` False, and a warning says so.
        init: Potentials (f, g) to start from, in units of the cost; one of them may be None.
        backend: "dense" keeps the matrix; "streamed" needs memory linear in n and m; "keops" does too and is compiled
            at first use, for few features; "multiscale" is "streamed" from potentials of GeomLoss, for balanced
            problems without batch and three features at most. "auto" is dense where the matrix takes at most 1 GiB,
            and streamed beyond.

    Returns:
        The result; its value has shape (...).

    Raises:
        ValueError: If shapes do not fit, a weight is negative, masses differ without ``rho``, or costs are not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0]])
        >>> sinkhorn(x, x + torch.tensor([3.0, 4.0])).value  # One point goes to the other whatever eps is.
        tensor(25.)
    """
    check_measures(x, y, a, b)
    a, b = weights(x, a), weights(y, b)
    # What all costs have in common belongs to the side whose potential is free up to a constant.
    columns_only = isinstance(rho, (tuple, list)) and rho[0] is None and isinstance(cost, str)
    between = ground(y, x, cost).mT if columns_only else ground(x, y, cost)
    return entropic(between, a, b, eps=eps, rho=rho, tol=tol, max_iter=max_iter, init=init, backend=backend, points=y)


@full_precision
def sinkhorn_matrix(
    C: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float | None = None,
    rho: Rho = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    init: Init = None,
) -> OTResult:
    r"""Entropic optimal transport for a given matrix of costs; see :func:`sinkhorn`.

    Args:
        C: Costs, shape (..., n, m); plus infinity forbids a pair.
        a: Weights of the rows, shape (..., n). Uniform of mass one if None.
        b: Weights of the columns, shape (..., m). Uniform of mass one if None.
        eps: Temperature in units of the cost. 0.05 times the mean cost if None.
        rho: Marginal penalty, a number or a pair; None for a hard constraint.
        tol: L1 error of the marginals, relative to the mass, at which to stop.
        max_iter: Most iterations.
        init: Potentials (f, g) to start from, in units of the cost.

    Returns:
        The result; its value has shape (...) and is differentiable in C, a and b.

    Raises:
        ValueError: If shapes do not fit, a weight is negative, masses differ without ``rho``, or costs are not finite.

    Example:
        >>> import torch
        >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> sinkhorn_matrix(C, eps=0.01).value  # Each row goes to its own column: eps log 2.
        tensor(0.0069)
    """
    if not isinstance(C, Tensor) or not C.is_floating_point() or C.ndim < 2 or 0 in C.shape[-2:]:
        got = tuple(C.shape) if isinstance(C, Tensor) else type(C).__name__
        raise argument_error("C", "be a floating-point tensor of shape (..., n, m) with n, m >= 1", got)
    check_weights("a", a, C)
    check_weights("b", b, C.mT)
    a, b = weights(C, a), weights(C.mT, b)
    return entropic(Matrix(C), a, b, eps=eps, rho=rho, tol=tol, max_iter=max_iter, init=init, backend="dense")


def entropic(
    cost: Ground,
    a: Tensor,
    b: Tensor,
    *,
    eps: Tensor | float | None = None,
    rho: Rho = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    init: Init = None,
    backend: str = "auto",
    mask: Mask | None = None,
    quiet: bool = False,
    points: Tensor | None = None,
) -> OTResult:
    """Entropic transport for a cost in any form; what :func:`sinkhorn` and other solvers of the library call.

    Args:
        cost: The cost, e.g. :class:`~otdml.costs.Bilinear` from factors.
        a: Row weights, shape (..., n).
        b: Column weights, shape (..., m).
        eps: Temperature, a number or one per batch element, without gradient.
        rho: As in :func:`sinkhorn`.
        tol: As in :func:`sinkhorn`.
        max_iter: As in :func:`sinkhorn`.
        init: As in :func:`sinkhorn`.
        backend: As in :func:`sinkhorn`.
        mask: Forbidden pairs: ``mask(rows, columns)`` for two slices, True where no mass may go.
        quiet: Whether the caller looks at ``converged`` itself, so that no warning is due.
        points: The second points, shape (..., m, d), where they are known, for the barycentric map.

    Returns:
        The result, differentiable in the leaves of the cost and in the weights.
    """
    # Potentials and plans are read later, and the caller's weights may be others by then.
    a, b, penalties = a.clone(), b.clone(), check_rho(rho)
    check_positive("tol", tol)
    check_integer("max_iter", max_iter)
    eps = _temperature(cost, a, b) if eps is None else eps if isinstance(eps, Tensor) else check_positive("eps", eps)
    if isinstance(cost, Matrix):
        cost = cost.reduced(eps)
    soft = engine(cost, eps, backend, mask)
    if isinstance(cost, Pointwise):
        cost = _linked(cost, soft)
    with torch.no_grad():
        problem, solution = _solve(cost, soft, (a, b), eps, penalties, init, (tol, max_iter), (backend, mask))
        solution, over = reheated(soft, *problem.sides, solution)
    if not quiet and not solution.done:
        _warn(solution, tol, max_iter)
    linked = any(t.requires_grad for t in (a, b, *cost.leaves))
    if linked and not torch.is_grad_enabled():
        # Else what is read later, in another mode, would have a part of its derivative.
        linked, a, b, problem = False, a.detach(), b.detach(), dataclasses.replace(problem, cost=cost.detach())
    optimum = Optimum(problem, solution, a, b, penalties, over, linked)
    return OTResult(
        value=optimum.value,
        converged=solution.converged,
        n_iter=solution.n_iter,
        marginal_error=solution.error,
        _potentials=optimum.read_potentials,
        _product=optimum.image,
        _product_transpose=optimum.image_transposed,
        _plan=optimum.plan,
        _y=points,
        _product_per_mass=optimum.image_per_mass,
    )


# Iterations after which a problem is hard enough for its temperature to be approached from above, and multiples of the
# tolerance within which the error gives hope that as many once more will do.
PATIENCE, HOPE = 50, 30.0
# The factor between temperatures, the marginal error at which to go on to the next, and the iterations after which that
# is done anyway; without so many for each, none is a help.
COOLING, ROUGH, LONGEST, SHORTEST = 2.0, 0.002, 200, 20


def _solve(
    cost: Ground,
    soft: Engine,
    weights: tuple[Tensor, Tensor],
    eps: Tensor | float,
    penalties: tuple[float | None, float | None],
    init: Init,
    limits: tuple[float, int],
    choice: tuple[str, Mask | None],
) -> tuple[Problem, Solution]:
    tol, max_iter = limits
    problem = Problem(cost, soft, eps, *_sides(cost, weights, eps, penalties))
    _check_masses(*problem.sides)
    # Given potentials may be those of another problem: where they do not help soon, they are left as well.
    start = (None, _near(soft, problem.sides, *limits)) if init is None else _given(init, cost, problem)
    solution = potentials(soft, *problem.sides, tol=tol, max_iter=min(max_iter, PATIENCE), init=start)
    if solution.done or max_iter <= PATIENCE:
        return problem, solution
    spent = solution.n_iter
    if float(solution.error.max()) <= HOPE * tol:
        limit = min(max_iter - spent, PATIENCE)
        solution = potentials(soft, *problem.sides, tol=tol, max_iter=limit, init=(None, solution.g))
        spent += solution.n_iter
        if solution.done or spent == max_iter:
            return problem, dataclasses.replace(solution, n_iter=spent)
    g, factors = None, _temperatures(soft)
    if max_iter - spent < SHORTEST * len(factors):
        factors = []
    for i, factor in enumerate(factors):
        # What is left is for all that follow, and the last.
        limit = min(LONGEST, (max_iter - spent) // (len(factors) - i + 1))
        warm = engine(cost, eps * factor, *choice)
        sides = _sides(cost, weights, eps * factor, penalties)
        found = potentials(
            warm, *sides, tol=ROUGH, max_iter=limit, init=(None, _start(warm, sides) if g is None else g / factor)
        )
        g, spent = found.g * factor, spent + found.n_iter
    left = max(1, max_iter - spent)
    final = potentials(soft, *problem.sides, tol=tol, max_iter=left, init=(None, solution.g if g is None else g))
    return problem, dataclasses.replace(final, n_iter=spent + final.n_iter)


def _given(
    init: tuple[Tensor | None, Tensor | None], cost: Ground, problem: Problem
) -> tuple[Tensor | None, Tensor | None]:
    offsets = zip(init, problem.sides, (cost.u, cost.v), strict=True)
    f, g = (None if h is None else _reduced(h, side, u, problem.scale(1)) for h, side, u in offsets)
    if problem.balanced:
        # A constant says nothing there, and one beyond all costs, of which a row tells the size, would cost digits.
        most = 4 * problem.engine.cost.block(slice(0, 1)).abs().amax(-1)
        f, g = (None if h is None else _less_mean(h, most) for h in (f, g))
    return f, g


def _less_mean(h: Tensor, most: Tensor) -> Tensor:
    mean = h.mean(-1, keepdim=True)
    return h - torch.where(mean.abs() > most, mean, 0.0)


def _start(soft: Engine, sides: tuple[Side, Side]) -> Tensor:
    rows, columns = sides
    return soft.start(rows.weights, columns.weights, balanced=rows.rho is None and columns.rho is None)


def _near(soft: Engine, sides: tuple[Side, Side], tol: float, max_iter: int) -> Tensor:
    """The start, or what iterations over few of the pairs make of it."""
    g = _start(soft, sides)
    sparse = soft.sparse(sides[1].weights, g)
    return g if sparse is None else potentials(sparse, *sides, tol=tol / 2, max_iter=max_iter, init=(None, g)).g


def _temperatures(soft: Engine) -> list[float]:
    """Multiples of the temperature down from a twentieth of the largest reduced cost, one left out."""
    ratio = float(0.05 * largest(soft.cost))
    steps = math.ceil(math.log(ratio, COOLING)) if 1 < ratio < math.inf else 0
    return [COOLING**k for k in range(steps, 0, -1)]


def _sides(
    cost: Ground, weights: tuple[Tensor, Tensor], eps: Tensor | float, penalties: tuple[float | None, float | None]
) -> tuple[Side, Side]:
    scale = 1 / (eps[..., None] if isinstance(eps, Tensor) else eps)

    def side(w: Tensor, u: Tensor | None, rho: float | None) -> Side:
        if rho is None:
            return Side(w.detach())
        return Side(w.detach(), None if u is None else u.detach() * scale, rho * scale)

    a, b = map(side, weights, (cost.u, cost.v), penalties)
    return a, b


def check_rho(rho: Rho) -> tuple[float | None, float | None]:
    """The penalties of both marginals, if they are positive numbers or None."""
    pair = rho if isinstance(rho, (tuple, list)) else (rho, rho)
    if len(pair) != 2:
        raise argument_error("rho", "be a number, a pair of numbers, or None", rho)
    for value in pair:
        if value is not None:
            check_positive("rho", value)
    return pair[0], pair[1]


def _check_masses(rows: Side, columns: Side) -> None:
    least = torch.minimum(rows.weights.amin(), columns.weights.amin())
    # One tensor, because to look at it waits for the device.
    low, difference = torch.stack((least, ((columns.mass - rows.mass) / rows.mass).abs().max())).tolist()
    if low < 0:
        name = "a" if bool(rows.weights.amin() < 0) else "b"
        raise argument_error(name, "hold no negative weight", f"{low:.3g}")
    if rows.rho is None and columns.rho is None and not difference <= 1e-3:
        remedy = "Normalise the weights, or pass `rho` for unbalanced transport."
        raise argument_error("b", "have the mass of `a`", f"a relative difference of {difference:.3g}", remedy)


def _linked(cost: Pointwise, soft: Engine) -> Ground:
    """The cost in a form of which the engine can tell the gradient."""
    if soft.keeps_matrix:
        # Evaluated once more, with its graph, which reaches what the function depends on.
        return cost.matrix
    if (
        torch.is_grad_enabled()
        and cost.function(cost.x[..., :1, :].detach(), cost.y[..., :1, :].detach()).requires_grad
    ):
        remedy = "Pass backend='dense', which has them, or detach the parameters."
        raise argument_error(
            "cost", "depend on nothing but the points on this backend", "parameters with gradients", remedy
        )
    return cost


def _temperature(cost: Ground, a: Tensor, b: Tensor) -> Tensor:
    # The floor is for clouds that are a single point, on which every temperature gives the same plan.
    mean = mean_cost(cost, a, b).abs()
    return torch.where(mean > 0, 0.05 * mean, torch.ones_like(mean))


def _reduced(potential: Tensor, side: Side, offset: Tensor | None, scale: Tensor | float) -> Tensor:
    if potential.shape != side.weights.shape:
        must = f"hold potentials of the shapes of the weights, here {tuple(side.weights.shape)}"
        raise argument_error("init", must, tuple(potential.shape))
    potential = potential.detach().to(side.weights)
    return scale * (potential if offset is None else potential - offset.detach())


def _warn(solution: Solution, tol: float, max_iter: int) -> None:
    # Potentials of many temperatures are rounded to so much of one, and the plan to as much of itself.
    rounding = torch.finfo(solution.g.dtype).eps * float(solution.g.abs().max())
    remedy = "" if rounding < tol / 4 else f" {solution.g.dtype} resolves {rounding:.1g} here: pass float64."
    warn_caller(
        f"Sinkhorn stopped at `max_iter`={max_iter} with a marginal error of {float(solution.error.max()):.2g} > "
        f"`tol`={tol:g}. Raise `max_iter` or `eps`, or accept a larger `tol`.{remedy}"
    )
