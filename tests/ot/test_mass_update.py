"""The iteration of partial problems: it finds back from plans that move nothing, and small masses are solved."""

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.ot import sinkhorn
from otdml.ot._mass_update import MassKeeping
from otdml.ot._partial import extended
from otdml.ot._problem import Posed, Problem


def drawn(seed, n, m, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (scale * torch.randn(k, 2, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.1 for k in (n, m))
    return x, y, a / a.sum(), b / b.sum()


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("away", [-1000.0, -50.0])
def test_one_step_from_a_plan_that_moves_nothing_moves_the_mass(backend, away):
    x, y, a, b = (t.expand(2, *t.shape) for t in drawn(0, 6, 5))
    mass = torch.tensor([0.05, 0.5], dtype=torch.float64)
    problem = extended(Problem.between(x, y, a, b, eps=0.5), mass)
    posed = Posed.of(problem, backend)
    update = MassKeeping(posed.engine, problem.rows, problem.columns)
    g = torch.zeros(2, 6, dtype=torch.float64)
    # Of the first problem alone.
    g[0, :-1] = away
    update.softmin.prepare(g)
    for _ in range(2):
        step = update.step(g, 1)
        g = step.new[-1]
    C = (cost_matrix(x, y) - problem.cost.u[..., :-1, None] - problem.cost.v[..., None, :-1]) / 0.5
    P = a[..., None] * b[..., None, :] * (step.f[..., :-1, None] + g[..., None, :-1] - C).exp()
    assert ((P.sum((-2, -1)) / mass).log().abs() < 1.0).all()


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize(
    ("seed", "n", "m", "share"), [(1, 10, 3, 0.01), (2, 2, 9, 0.1), (3, 27, 7, 0.01), (4, 5, 31, 0.1)]
)
def test_small_masses_at_low_temperatures_are_solved(seed, n, m, share, backend):
    x, y, a, b = drawn(seed, n, m, scale=2.0)
    result = sinkhorn(x, y, a, b, eps=0.05, mass=share, tol=1e-8, backend=backend)
    assert result.converged
    # The definition, iterated to rest with logarithms on the extended matrix.
    p, q = torch.cat([a, 1 - a.new_tensor([share])]), torch.cat([b, 1 - b.new_tensor([share])])
    L = -torch.nn.functional.pad(cost_matrix(x, y), (0, 1, 0, 1)) / 0.05
    L[-1, -1] = -torch.inf
    g = torch.zeros_like(q)
    for _ in range(30_000):
        f = -(L + g + q.log()).logsumexp(1)
        g, last = -(L.mT + f + p.log()).logsumexp(1), g
        if (g - last).abs().max() < 1e-12:
            break
    P = (L + f[:, None] + g + p.log()[:, None] + q.log()).exp()
    torch.testing.assert_close(result.plan, P[:-1, :-1], rtol=0, atol=1e-8)
