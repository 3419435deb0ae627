"""Rough plans by the definition of a plan, and what becomes of several starts."""

import pytest
import torch

from otdml.ot.descent import Rest, Start, _best, _Iterated, _Scaled, descend
from otdml.ot.intrinsic import intrinsic
from otdml.ot.quadratic import Quadratic


def problem(n=7, m=6, e=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, e, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.2 for k in (n, m))
    a, b = a / a.sum(), b / b.sum()
    return Quadratic(intrinsic("x", x, a, "sqeuclidean"), intrinsic("y", y, b, "sqeuclidean"), a, b)


def rough_plans(quadratic, pull, g, eps, sweeps):
    yield _Scaled(quadratic, pull, g, eps, sweeps)
    yield _Iterated(quadratic, pull, g, eps, sweeps, backend="streamed")


@pytest.mark.parametrize("e", [3, 8])
@pytest.mark.parametrize("sweeps", [1, 200])
def test_plan_is_that_of_its_potentials(e, sweeps):
    quadratic = problem(e=e)
    pull = quadratic.pull(quadratic.independents()[0])
    eps, g = torch.tensor(20.0, dtype=torch.float64), torch.linspace(-1, 1, 6, dtype=torch.float64)
    cost = quadratic.cost(pull)
    for rough in rough_plans(quadratic, pull, g, eps, sweeps):
        potentials = rough.f[:, None] + rough.g - cost.block(slice(None)) / eps
        plan = quadratic.a[:, None] * quadratic.b * potentials.exp()
        torch.testing.assert_close(rough.plan, plan)
        errors = (plan.sum(1) - quadratic.a).abs().sum(), (plan.sum(0) - quadratic.b).abs().sum()
        # The potential that was found last is optimal given the other.
        assert min(errors) < 1e-12
        assert max(errors) < (1e-2 if sweeps > 1 else 1)
        torch.testing.assert_close(rough.apply(torch.eye(6, dtype=plan.dtype)), rough.plan)
        torch.testing.assert_close(rough.apply_transpose(torch.eye(7, dtype=plan.dtype)), rough.plan.mT)
        torch.testing.assert_close(rough.moment(quadratic), quadratic.read(rough)[0])


def test_point_without_weight_has_no_part():
    quadratic = problem()
    b = torch.tensor([0.2, 0.3, 0.1, 0.3, 0.1, 0.0], dtype=torch.float64)
    quadratic = Quadratic(quadratic.left, quadratic.right, quadratic.a, b)
    pull, eps = quadratic.pull(quadratic.independents()[0]), torch.tensor(0.01, dtype=torch.float64)
    rough = _Scaled(quadratic, pull, torch.zeros_like(b), eps, 6)
    assert (rough.plan[:, 5] == 0).all()
    assert rough.g.isfinite().all()


def test_best_start_of_each_batch_element():
    objectives = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    rests = [Rest(o, o[:, None, None].expand(2, 4, 3), o[:, None].expand(2, 6), k) for k, o in enumerate(objectives)]
    best = _best(rests)
    for part in (best.objective, best.pull[:, 0, 0], best.g[:, 0]):
        assert part.tolist() == [2.0, 1.0]
    assert (best.pull.shape, best.g.shape, best.n_iter) == ((2, 4, 3), (2, 6), 1)


def test_starts_are_solved_alike_together_and_one_by_one(monkeypatch):
    quadratic = problem(6, 6)
    eps = torch.tensor(5.0, dtype=torch.float64)
    starts = [Start(moment, held=False) for moment in quadratic.independents()]
    together = descend(quadratic, starts, eps, eps * 10, 1e-6, 300, "auto")
    monkeypatch.setattr("otdml.ot.descent.SMALL", 1)
    apart = descend(quadratic, starts, eps, eps * 10, 1e-6, 300, "streamed")
    torch.testing.assert_close(apart.objective, together.objective, rtol=1e-3, atol=0)
