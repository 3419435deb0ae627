"""Rough plans by the definition of a plan, and what becomes of several starts."""

import pytest
import torch

from otdml.ot._gromov.centred_cost import centred
from otdml.ot._gromov.descent import DescentState, _best, _FewIterations, _ScaledKernel, descend
from otdml.ot._gromov.objective import GromovObjective
from otdml.ot._gromov.options import GromovOptions
from otdml.ot._gromov.starts import perturbed_product, starts


def problem(n=7, m=6, e=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, e, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.2 for k in (n, m))
    a, b = a / a.sum(), b / b.sum()
    return GromovObjective(centred("x", x, a, "sqeuclidean"), centred("y", y, b, "sqeuclidean"), a, b)


def start_slope(quadratic):
    return quadratic.slope(quadratic.read(perturbed_product(quadratic, 0.5))[0])


def rough_plans(quadratic, slope, g, eps, sweeps):
    yield _ScaledKernel(quadratic, slope, g, eps, sweeps)
    yield _FewIterations(quadratic, slope, g, eps, sweeps, backend="streamed")


@pytest.mark.parametrize("e", [3, 8])
@pytest.mark.parametrize("sweeps", [1, 200])
def test_plan_is_that_of_its_potentials(e, sweeps):
    quadratic = problem(e=e)
    slope = start_slope(quadratic)
    eps, g = torch.tensor(20.0, dtype=torch.float64), torch.linspace(-1, 1, 6, dtype=torch.float64)
    cost = quadratic.cost(slope)
    for rough in rough_plans(quadratic, slope, g, eps, sweeps):
        potentials = rough.f[:, None] + rough.g - cost.block(slice(None)) / eps
        plan = quadratic.a[:, None] * quadratic.b * potentials.exp()
        torch.testing.assert_close(rough.plan, plan)
        errors = (plan.sum(1) - quadratic.a).abs().sum(), (plan.sum(0) - quadratic.b).abs().sum()
        # The potential that was found last is optimal given the other.
        assert min(errors) < 1e-12
        assert max(errors) < (1e-2 if sweeps > 1 else 1)
        torch.testing.assert_close(rough.apply(torch.eye(6, dtype=plan.dtype)), rough.plan)
        torch.testing.assert_close(rough.apply_transpose(torch.eye(7, dtype=plan.dtype)), rough.plan.mT)
        torch.testing.assert_close(rough.projection(quadratic), quadratic.read(rough)[0])


def test_point_without_weight_has_no_part():
    quadratic = problem()
    b = torch.tensor([0.2, 0.3, 0.1, 0.3, 0.1, 0.0], dtype=torch.float64)
    quadratic = GromovObjective(quadratic.left, quadratic.right, quadratic.a, b)
    slope, eps = start_slope(quadratic), torch.tensor(0.01, dtype=torch.float64)
    rough = _ScaledKernel(quadratic, slope, torch.zeros_like(b), eps, 6)
    assert (rough.plan[:, 5] == 0).all()
    assert rough.g.isfinite().all()


def test_best_start_of_each_batch_element():
    objectives = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    states = [
        DescentState(o, o[:, None, None].expand(2, 4, 3), o[:, None].expand(2, 6), k) for k, o in enumerate(objectives)
    ]
    best = _best(states)
    for part in (best.objective, best.slope[:, 0, 0], best.g[:, 0]):
        assert part.tolist() == [2.0, 1.0]
    assert (best.slope.shape, best.g.shape, best.n_iter) == ((2, 4, 3), (2, 6), 1)


def test_starts_are_solved_alike_together_and_one_by_one(monkeypatch):
    quadratic = problem(6, 6)
    eps = torch.tensor(5.0, dtype=torch.float64)
    given = starts(quadratic, "product", paired=False)
    assert len(given) == 2
    together = descend(quadratic, given, eps, eps * 10, GromovOptions(None, 1e-6, 300, "product", "auto"))
    monkeypatch.setattr("otdml.ot._gromov.descent.SMALL", 1)
    apart = descend(quadratic, given, eps, eps * 10, GromovOptions(None, 1e-6, 300, "product", "streamed"))
    torch.testing.assert_close(apart.objective, together.objective, rtol=1e-3, atol=0)
