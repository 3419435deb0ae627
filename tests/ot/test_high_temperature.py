import math

import pytest
import torch

from otdml.costs import Matrix
from otdml.losses import sinkhorn_divergence
from otdml.ot import sinkhorn
from otdml.ot._annealing import solve
from otdml.ot._problem import Posed, Problem, SolverOptions


def solved(eps, rho=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    C, a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((6, 5), 6, 5))
    parts = [t.to(dtype) for t in (C, a / a.sum(), b / b.sum())]
    problem = Problem(Matrix(parts[0]), *parts[1:], eps, (rho, rho))
    return solve(Posed.of(problem, "auto"), SolverOptions(1e-6))


@pytest.mark.parametrize("eps", [1e2, 1e5, 1e8])
def test_the_plan_s_excess_over_the_independent_coupling_keeps_its_digits(eps):
    # To first order P - a b' is -a b' (C - row means - column means + mean) / eps, of which float32 has no digit.
    excess = solved(eps).excess
    # Beyond 1 / roundoff the plan is that of a lower temperature to all digits.
    eps = float(solved(eps).posed.problem.eps)
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


DTYPES = {torch.float32: 2e-5, torch.float64: 1e-9}


def clouds(dtype, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    x, y, a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((7, 3), (5, 3), (7,), (5,)))
    parts = (x * scale, (y + 1) * scale, a / a.sum(), b / b.sum())
    return [part.to(dtype) for part in parts]


def kl(p, q):
    return (p * (p / q).log() - p + q).sum()


def limit(C, a, b, rho=None):
    """The value at an infinite temperature, where the plan is the independent coupling."""
    value = (a[:, None] * C * b).sum()
    return value if rho is None else value + rho * kl(a * b.sum(), a) + rho * kl(b * a.sum(), b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("eps", [1e20, 1e30, 3.3e38, 1e200, 1.7e308])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_as_the_temperature_rises_the_plan_is_the_independent_coupling(dtype, scale, eps, backend):
    if eps > torch.finfo(dtype).max:
        with pytest.raises(ValueError, match=r"`eps` must be a number of torch.float32"):
            sinkhorn(*clouds(dtype), eps=eps)
        return
    x, y, a, b = clouds(dtype, scale)
    result = sinkhorn(x.requires_grad_(), y, a, b, eps=eps, backend=backend)
    points = x.detach().double(), y.double()
    close = {"rtol": DTYPES[dtype], "atol": 0.0}
    expected = limit((points[0][:, None] - points[1]).square().sum(-1), a.double(), b.double())
    torch.testing.assert_close(result.value.double(), expected, **close)
    torch.testing.assert_close(result.plan.double(), (a[:, None] * b).double(), **close)
    (gradient,) = torch.autograd.grad(result.value, x)
    mean = (b.double()[:, None] * points[1]).sum(0)
    torch.testing.assert_close(gradient.double(), 2 * a.double()[:, None] * (points[0] - mean), **close)
    assert bool(result.converged)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e20, 1e30, 3.3e38])
@pytest.mark.parametrize("masses", [(1.0, 1.0), (1.0, 0.7), (2.0, 2.0), (3.0, 0.2)])
@pytest.mark.parametrize("rho", [1e-6, 1.0, 1e6])
def test_with_penalties_too(dtype, eps, masses, rho):
    x, y, a, b = clouds(dtype)
    a, b = a * masses[0], b * masses[1]
    result = sinkhorn(x, y, a, b, eps=eps, rho=rho)
    C, a, b = (x.double()[:, None] - y.double()).square().sum(-1), a.double(), b.double()
    torch.testing.assert_close(result.value.double(), limit(C, a, b, rho), rtol=DTYPES[dtype], atol=0)
    assert bool(result.converged)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e20, 1e30, 3.3e38])
def test_the_divergence_tends_to_the_squared_distance_of_the_means(dtype, eps):
    x, y, a, b = clouds(dtype)
    means = [(w.double()[:, None] * t.double()).sum(0) for w, t in ((a, x), (b, y))]
    expected = (means[0] - means[1]).square().sum()
    for rho in (None, 1.0):
        found = sinkhorn_divergence(x, y, a, b, eps=eps, rho=rho)
        torch.testing.assert_close(found.double(), expected, rtol=DTYPES[dtype], atol=0)


def test_other_masses_than_one_have_the_entropy_of_their_plan():
    # Without penalties the plan is a b' / m, whose divergence from a b' is m^2 - m - m log m.
    x, y, a, b = clouds(torch.float32)
    result = sinkhorn(x, y, 2 * a, 2 * b, eps=1e30)
    assert float(result.value) == pytest.approx(1e30 * (4 - 2 - 2 * math.log(2)), rel=1e-5)


@pytest.mark.parametrize("rho", [None, 1.0])
def test_a_problem_above_all_costs_does_not_suffer_from_others_in_its_batch(rho):
    x, y, _, _ = clouds(torch.float32)
    scales = torch.tensor([1e3, 1.0, 1e-3])[:, None, None]
    found = sinkhorn(scales * x, scales * y, eps=100.0, rho=rho).value
    one = torch.stack([sinkhorn(s * x, s * y, eps=100.0, rho=rho).value for s in scales[:, 0, 0]])
    torch.testing.assert_close(found, one, rtol=2e-5, atol=0)
