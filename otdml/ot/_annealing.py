r"""The way to the solution: a start, temperatures that are gone through, and the precision that the problem needs.

Most problems are solved by a few iterations from the first start. One that is not is approached from higher
temperatures. One whose costs are so many temperatures that its dtype cannot resolve the tolerance is solved in double
precision: potentials of r temperatures are rounded to r times 1e-7 in single precision, and a plan to as much of
itself.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml.ot._anderson import PERIOD
from otdml.ot._high_temperature import FEW, Excess, refined
from otdml.ot._iteration import at_once, iterate
from otdml.ot._marginal import Marginal
from otdml.ot._mass_update import MassKeeping
from otdml.ot._problem import Posed, Problem, SolverOptions
from otdml.ot._updates import Alternating, NotFinite, Potentials, Symmetric

__all__ = ["Init", "Solved", "check_init", "resolution", "solve"]

Init = tuple[Tensor | None, Tensor | None]

# Iterations after which a problem is hard enough for its temperature to be approached from above, or extrapolations if
# these are fewer; and multiples of the tolerance within which the error gives hope that as many once more will do.
PATIENCE, EXTRAPOLATIONS, HOPE = 50, 12, 30.0
# The factor between temperatures, the marginal error at which to go on to the next, and the iterations after which that
# is done anyway; without so many for each, none is a help.
COOLING, ROUGH, LONGEST, SHORTEST = 2.0, 0.002, 200, 20


def check_init(init: Init) -> Init:
    """Potentials to start from, if they are a pair of tensors, one of which may be None."""
    must, remedy = "be a pair of potentials (f, g), of which one may be None", "Pass `(result.f, result.g)`."
    if not isinstance(init, (tuple, list)):
        raise argument_error("init", must, type(init).__name__, remedy, TypeError)
    if len(init) != 2:
        raise argument_error("init", must, f"{len(init)} entries", remedy)
    for potential in init:
        if not (potential is None or isinstance(potential, Tensor)):
            raise argument_error("init", must, type(potential).__name__, remedy, TypeError)
    f, g = init
    return f, g


@dataclass(frozen=True)
class Solved:
    """A problem's solution.

    Attributes:
        posed: The problem, in the precision in which it was solved, and its engine.
        potentials: Its potentials; their error is that of the plan they define, rounding included.
        excess: The plan's excess over the independent coupling, where it is known to more digits than the plan.
    """

    posed: Posed
    potentials: Potentials
    excess: Excess | None = None

    @property
    def done(self) -> bool:
        """Whether all of the batch have converged."""
        return self.potentials.done


def solve(posed: Posed, options: SolverOptions, init: Init | None = None, *, symmetric: bool = False) -> Solved:
    """The solution of a problem.

    Args:
        posed: The problem, with its engine.
        options: When and how.
        init: Potentials to start from, in units of the cost; one of them may be None.
        symmetric: Whether both marginals are the same and the cost is symmetric.

    Raises:
        ValueError: If the costs are not finite.
    """
    problem, single = posed.problem, posed.problem.resolves_more
    if problem.a.shape[:-1].numel() == 0:
        return _empty(posed)
    spent = 0
    with torch.no_grad():
        try:
            found, spent = _first_attempt(posed, options, init, symmetric=symmetric)
            rounding = _rounding(posed, found)
            if not (found.done or spent >= options.max_iter or (single and rounding > options.resolved)):
                found, spent = _persistent(posed, options, found, spent)
                rounding = _rounding(posed, found)
            # What stopped for want of digits goes on with more of them.
            if not single or rounding <= options.resolved:
                return _finished(posed, found, spent, options, rounding)
            start: Init | None = _restored(problem, (None, found.g))
        except NotFinite as error:
            if not single:
                _check_numbers(init, problem)
                got, cost = "an iteration that is not finite", problem.cost
                remedy = f"Look for {cost.look_for}; or raise `eps`."
                raise argument_error(cost.argument, "give finite costs over `eps`", got, remedy) from error
            start = init
    finer = solve(Posed.of(problem.double(), options.backend), options, start, symmetric=symmetric)
    n_iter = spent + finer.potentials.n_iter
    return dataclasses.replace(finer, potentials=dataclasses.replace(finer.potentials, n_iter=n_iter))


def _empty(posed: Posed) -> Solved:
    """The solution of a batch of no problems."""
    f, g = torch.zeros_like(posed.problem.rows.weights), torch.zeros_like(posed.problem.columns.weights)
    error = f.new_zeros(f.shape[:-1])
    return Solved(posed, Potentials(f, g, error, 0, error == 0))


def resolution(posed: Posed, found: Potentials) -> Tensor:
    """The L1 error of the marginals that rounding of the potentials and of the costs leaves, shape (...).

    It is infinite where an unbalanced plan has a mass beyond all numbers.
    """
    sizes = [torch.nan_to_num(h.abs(), posinf=0.0).amax(-1) for h in (found.f, found.g)]
    rounding = 2 * torch.finfo(found.g.dtype).eps * torch.maximum(*sizes)
    problem = posed.problem
    if problem.balanced:
        return rounding
    rounding = rounding + torch.finfo(found.g.dtype).eps * (problem.rows.steepness + problem.columns.steepness)
    return rounding.where(problem.mass_at(found.g) < torch.inf, torch.inf)


def _rounding(posed: Posed, found: Potentials) -> float:
    """The largest :func:`resolution` of the batch."""
    largest = max(float(found.f.abs().max()), float(found.g.abs().max()))
    if math.isfinite(largest) and posed.problem.balanced:
        return 2 * torch.finfo(found.g.dtype).eps * largest
    return float(resolution(posed, found).max())


def _finished(posed: Posed, found: Potentials, spent: int, options: SolverOptions, rounding: float) -> Solved:
    error, converged = found.error.clamp(min=rounding), found.converged
    if rounding > 2 * options.resolved:
        each = resolution(posed, found)
        error, converged = torch.maximum(found.error, each), converged & (each <= 2 * options.resolved)
    found = Potentials(found.f, found.g, error, spent, converged)
    # A batch may hold problems that are easy and hard.
    if spent > FEW and found.f.ndim == 1:
        return Solved(posed, found)
    return Solved(*refined(posed, found))


def _first_attempt(
    posed: Posed, options: SolverOptions, init: Init | None, *, symmetric: bool
) -> tuple[Potentials, int]:
    """A few iterations from the start, and how many there were."""
    problem, spent, prepared = posed.problem, 0, False
    # Given potentials may be those of another problem: where they do not help soon, they are left as well.
    g = _near(posed, options) if init is None else _given(posed, init)
    if symmetric:
        update = Symmetric(posed.engine, problem.rows, problem.symmetric_shift())
        found = iterate(update, g, tol=options.tol, max_iter=options.max_iter)
        g, spent, prepared = found.g, found.n_iter, True
    limit = max(1, min(options.max_iter - spent, _patience(posed)))
    found = iterate(_alternating(posed), g, tol=options.tol, max_iter=limit, prepared=prepared)
    return found, min(spent + found.n_iter, options.max_iter)


def _persistent(posed: Posed, options: SolverOptions, found: Potentials, spent: int) -> tuple[Potentials, int]:
    """The solution of a problem that a few iterations have not solved, and the number of iterations in all."""
    tol, max_iter = options.tol, options.max_iter
    if float(found.error.max()) <= HOPE * tol:
        limit = min(max_iter - spent, _patience(posed))
        found = iterate(_alternating(posed), found.g, tol=tol, max_iter=limit)
        spent += found.n_iter
        if found.done or spent >= max_iter:
            return found, spent
    g, spent = _cooled(posed, options, found.g, spent)
    found = iterate(_alternating(posed), g, tol=tol, max_iter=max(1, max_iter - spent))
    return found, spent + found.n_iter


def _patience(posed: Posed) -> int:
    return max(PATIENCE, EXTRAPOLATIONS * at_once(posed.engine.shape.numel())[1])


def _cooled(posed: Posed, options: SolverOptions, g: Tensor, spent: int) -> tuple[Tensor, int]:
    """The column potential that rough solutions at falling temperatures lead to, or ``g`` where there is no time."""
    factors, start = _temperatures(posed), None
    if options.max_iter - spent < SHORTEST * len(factors):
        return g, spent
    for i, factor in enumerate(factors):
        # What is left is for all that follow, and the last.
        limit = max(1, min(LONGEST, (options.max_iter - spent) // (len(factors) - i + 1)))
        warm = Posed.of(posed.problem.at(factor), options.backend)
        start = _initial(warm) if start is None else start / factor
        found = iterate(_alternating(warm), start, tol=ROUGH, max_iter=limit, together=PERIOD)
        start, spent = found.g * factor, spent + found.n_iter
    return g if start is None else start, spent


def _temperatures(posed: Posed) -> list[float]:
    """Multiples of the temperature down from a twentieth of the largest reduced cost, one left out."""
    ratio = float(0.05 * posed.engine.cost.largest())
    steps = math.ceil(math.log(ratio, COOLING)) if 1 < ratio < math.inf else 0
    return [COOLING**k for k in range(steps, 0, -1)]


def _alternating(posed: Posed) -> Alternating:
    kind = MassKeeping if posed.problem.extended else Alternating
    return kind(posed.engine, posed.problem.rows, posed.problem.columns)


def _initial(posed: Posed) -> Tensor:
    problem = posed.problem
    return posed.engine.initial_potential(problem.rows.weights, problem.columns.weights, balanced=problem.balanced)


def _near(posed: Posed, options: SolverOptions) -> Tensor:
    """The start, or what iterations over few of the pairs make of it."""
    g, problem = _initial(posed), posed.problem
    few = posed.engine.restricted(problem.columns.weights, g)
    if few is None:
        return g
    update = Alternating(few, problem.rows, problem.columns)
    return iterate(update, g, tol=options.tol / 2, max_iter=options.max_iter).g


def _given(posed: Posed, init: Init) -> Tensor:
    """The reduced column potential of given potentials."""
    problem, (f, g) = posed.problem, check_init(init)
    f, g = _reduced(posed, f, problem.rows, problem.cost.u), _reduced(posed, g, problem.columns, problem.cost.v)
    if g is not None:
        return g
    if f is None:
        return torch.zeros_like(problem.columns.weights)
    # A point without weight may have an infinite potential.
    h = torch.where(problem.rows.weights > 0, f + problem.rows.log, -torch.inf)
    return problem.columns.update(posed.engine.column_softmin(h))


def _check_numbers(init: Init | None, problem: Problem) -> None:
    """Raise if the potential of a point with weight is no number, where costs are numbers."""
    if init is None or not all(bool(leaf.isfinite().all()) for leaf in problem.cost.leaves):
        return
    for h, w in zip(init, (problem.a, problem.b), strict=True):
        if h is not None and not bool((h.isfinite() | (w == 0)).all()):
            raise argument_error("init", "hold finite potentials", "NaN or infinity", "Leave it out.")


def _reduced(posed: Posed, potential: Tensor | None, marginal: Marginal, offset: Tensor | None) -> Tensor | None:
    problem, shape = posed.problem, marginal.weights.shape
    if potential is None:
        return None
    if potential.shape != shape:
        must = f"hold potentials of the shapes of the weights, here {tuple(shape)}"
        raise argument_error("init", must, tuple(potential.shape))
    potential = potential.detach().to(marginal.weights)
    reduced = problem.scale(1) * (potential if offset is None else potential - offset.detach())
    if not problem.balanced:
        return reduced
    # A constant says nothing there, and one beyond all costs, of which a row tells the size, would cost digits.
    mean = reduced.mean(-1, keepdim=True)
    most = 4 * posed.engine.cost.block(slice(0, 1)).abs().amax(-1)
    return reduced - torch.where(mean.abs() > most, mean, 0.0)


def _restored(problem: Problem, reduced: Init) -> Init:
    """Potentials in units of the cost, from reduced dimensionless ones."""
    eps = problem.eps[..., None] if isinstance(problem.eps, Tensor) else problem.eps
    pairs = zip(reduced, (problem.cost.u, problem.cost.v), strict=True)
    f, g = (None if h is None else h.double() * eps + (0.0 if u is None else u.detach()) for h, u in pairs)
    return f, g
