import itertools

import pytest
import torch

from otdml.costs import Matrix
from otdml.ot import _annealing
from otdml.ot._anderson import PERIOD
from otdml.ot._annealing import resolution
from otdml.ot._iteration import iterate
from otdml.ot._problem import Posed, Problem, SolverOptions
from otdml.ot._updates import Alternating


def problem(eps, *, scale=1.0, dtype=torch.float32, n=40):
    generator = torch.Generator().manual_seed(0)
    x, y = (scale * torch.rand(n, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return Problem.between(x.to(dtype), y.to(dtype), None, None, eps=eps)


def solve(p, options, init=None):
    return _annealing.solve(Posed.of(p, options.backend), options, init)


def calls(monkeypatch):
    """The tolerances that the iterations of a solve are given."""
    found = []

    def counted(update, g, **options):
        found.append(options["tol"])
        return iterate(update, g, **options)

    monkeypatch.setattr(_annealing, "iterate", counted)
    return found


def test_an_easy_problem_is_solved_at_its_own_temperature(monkeypatch):
    tolerances = calls(monkeypatch)
    assert solve(problem(0.5), SolverOptions()).done
    assert tolerances == [1e-3]


def test_iterations_in_single_precision_count_where_double_precision_ends_the_problem(monkeypatch):
    each = []

    def noted(*arguments, **options):
        found = iterate(*arguments, **options)
        each.append((found.g.dtype, found.n_iter))
        return found

    monkeypatch.setattr(_annealing, "iterate", noted)
    found = solve(problem(0.1), SolverOptions(tol=1e-6))
    assert found.done
    assert [dtype for dtype, _ in each] == [torch.float32, torch.float64]
    assert each[0][1] > each[1][1]
    assert found.potentials.n_iter == sum(count for _, count in each)


def test_a_hard_one_is_approached_from_a_twentieth_of_its_largest_cost(monkeypatch):
    tolerances = calls(monkeypatch)
    posed = Posed.of(problem(2e-4, dtype=torch.float64), "auto")
    largest = float(posed.engine.cost.largest())
    factors = _annealing._temperatures(posed)
    assert factors[0] < 0.1 * largest <= 2 * factors[0]
    assert factors[-1] == 2.0
    assert all(high == 2 * low for high, low in itertools.pairwise(factors))
    assert solve(posed.problem, SolverOptions()).done
    assert tolerances.count(_annealing.ROUGH) == len(factors)


def test_rough_solutions_extrapolate_as_often_as_it_helps(monkeypatch):
    # At most 200 iterations are for each, of which a small kernel makes eight at once where time is what counts.
    steps = []

    def counted(alternating, g, times, tol):
        steps[-1][1].append(times)
        return step(alternating, g, times, tol)

    def noted(update, g, **options):
        steps.append((options["tol"], []))
        return iterate(update, g, **options)

    step = Alternating.step
    monkeypatch.setattr(Alternating, "step", counted)
    monkeypatch.setattr(_annealing, "iterate", noted)
    assert solve(problem(2e-4, dtype=torch.float64), SolverOptions()).done
    rough = [times for tol, made in steps if tol == _annealing.ROUGH for times in made]
    assert rough
    assert max(rough) == PERIOD
    assert max(max(made) for tol, made in steps if tol != _annealing.ROUGH) > PERIOD


def test_what_single_precision_does_not_resolve_is_solved_in_double():
    # Costs of 1e6 at a temperature of 5 are 2e5 temperatures, which single precision rounds by 0.02.
    rough = solve(problem(5.0, scale=1e3), SolverOptions())
    assert rough.posed.problem.cost.dtype == torch.float64
    assert rough.done
    assert solve(problem(1e5, scale=1e3), SolverOptions()).posed.problem.cost.dtype == torch.float32


def test_the_resolution_is_the_rounding_of_the_largest_potential():
    posed = Posed.of(problem(0.01), "auto")
    found = solve(posed.problem, SolverOptions()).potentials
    largest = max(float(found.f.abs().max()), float(found.g.abs().max()))
    assert float(resolution(posed, found)) == pytest.approx(2 * 2.0**-23 * largest)


def test_the_reported_error_holds_rounding():
    # A tolerance below what double precision resolves is not said to be reached.
    solved = solve(problem(1e-6, dtype=torch.float64), SolverOptions(tol=1e-12, max_iter=300))
    assert not solved.done
    assert float(solved.potentials.error) >= float(resolution(solved.posed, solved.potentials))


def test_potentials_of_the_solution_start_a_solve_that_is_done_at_once():
    posed = problem(0.02, dtype=torch.float64)
    found = solve(posed, SolverOptions(tol=1e-9))
    start = _annealing._restored(posed, (found.potentials.f, found.potentials.g))
    assert found.potentials.n_iter > 5
    assert solve(posed, SolverOptions(), start).potentials.n_iter == 1


def test_a_batch_of_no_problems_is_solved():
    empty = Problem(Matrix(torch.zeros(0, 3, 2)), torch.ones(0, 3) / 3, torch.ones(0, 2) / 2, 1.0)
    assert solve(empty, SolverOptions()).potentials.f.shape == (0, 3)
