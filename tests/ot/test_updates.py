import pytest
import torch
from problems import alternating

from otdml.costs import Matrix
from otdml.ot._iteration import iterate
from otdml.ot._problem import Posed, Problem
from otdml.ot._updates import Symmetric


def posed(n=5, m=4, eps=0.3, backend="streamed", symmetric=False):
    generator = torch.Generator().manual_seed(0)
    C, a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((n, m), n, m))
    if symmetric:
        C, b = C + C.T, a
    return Posed.of(Problem(Matrix(C), a / a.sum(), b / b.sum(), eps), backend)


def by_hand(p, g, times):
    """Sinkhorn's iteration as it is written in a book, and the column errors before each."""
    C, a, b = p.problem.cost.C / p.problem.eps, p.problem.a, p.problem.b
    errors = []
    for _ in range(times):
        f = -torch.logsumexp(g + b.log() - C, 1)
        plan = (a.log()[:, None] + b.log() + f[:, None] + g - C).exp()
        errors.append((plan.sum(0) - b).abs().sum())
        g = -torch.logsumexp((f + a.log())[:, None] - C, 0)
    return f, g, torch.stack(errors)


@pytest.mark.parametrize("times", [1, 3, 8])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_a_step_makes_sinkhorn_s_iterations(backend, times):
    p = posed(backend=backend)
    p.engine.prepare(torch.zeros(4, dtype=torch.float64))
    step = alternating(p).step(torch.zeros(4, dtype=torch.float64), times)
    f, g, errors = by_hand(p, torch.zeros(4, dtype=torch.float64), times)
    torch.testing.assert_close(step.f, f)
    torch.testing.assert_close(step.new[-1], g)
    torch.testing.assert_close(step.errors, errors)
    assert step.worst == pytest.approx(errors.tolist())


def test_the_symmetric_iteration_has_the_alternating_one_s_fixed_point():
    p = posed(n=6, m=6, symmetric=True)
    symmetric = iterate(Symmetric(p.engine, p.problem.rows, 0.0), torch.zeros(6, dtype=torch.float64), tol=1e-12)
    plain = iterate(alternating(p), torch.zeros(6, dtype=torch.float64), tol=1e-12)
    torch.testing.assert_close(symmetric.f[:, None] + symmetric.g, plain.f[:, None] + plain.g)
    torch.testing.assert_close(symmetric.f, symmetric.g)
