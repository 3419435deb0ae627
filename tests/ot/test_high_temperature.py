import pytest
import torch

from otdml.costs import Matrix
from otdml.ot._annealing import solve
from otdml.ot._problem import Problem, SolverOptions


def solved(eps, rho=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    C, a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((6, 5), 6, 5))
    parts = [t.to(dtype) for t in (C, a / a.sum(), b / b.sum())]
    return solve(Problem(Matrix(parts[0]), *parts[1:], eps, (rho, rho)), SolverOptions(1e-6))


@pytest.mark.parametrize("eps", [1e2, 1e5, 1e8])
def test_the_plan_s_excess_over_the_independent_coupling_keeps_its_digits(eps):
    # To first order P - a b' is -a b' (C - row means - column means + mean) / eps, of which float32 has no digit.
    excess = solved(eps).excess
    p = solved(eps, dtype=torch.float64).posed.problem
    C, a, b = p.cost.C, p.a, p.b
    assert excess is not None
    torch.testing.assert_close(excess.rows.double(), torch.zeros(6).double(), rtol=0, atol=2e-6 / eps)
    potentials = solved(eps).potentials
    delta = potentials.f.double()[:, None] + potentials.g.double() - C / eps
    centred = -(C - (C @ b)[:, None] - a @ C + a @ C @ b) / eps
    torch.testing.assert_close(delta, centred, rtol=0, atol=2e-6 / eps + 2 / eps**2)


def test_a_penalised_plan_has_the_excess_that_its_penalty_allows():
    # Far above the costs the mass exceeds one by -<a b', C> / (eps + 2 rho) to first order; here by less than rounding.
    excess = solved(1e9, rho=1e9).excess
    p = solved(1e9, rho=1e9, dtype=torch.float64).posed.problem
    assert excess is not None
    assert float(excess.mass) == pytest.approx(-float(p.a @ p.cost.C @ p.b) / 3e9, rel=1e-5)


def test_nothing_is_refined_where_a_cost_exceeds_the_temperature():
    assert solved(0.5).excess is None
