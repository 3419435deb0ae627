"""The streamed engine: one pass for both half-steps of an iteration gives what two passes give."""

import pytest
import torch

from otdml.costs import Bilinear
from otdml.ot import sinkhorn
from otdml.ot._marginal import Marginal
from otdml.ot.engines import Streamed, base


def both_ways(engine, h, side):
    f = side.update(engine.row_softmin(h))
    return engine.sweep(h, side.log, side.update), (f, engine.column_softmin(f + side.log))


def assert_one_pass_is_two(engine, h, side):
    for found, expected in zip(*both_ways(engine, h, side), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def problem(n=7, m=9, batch=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(*batch, size, 3, generator=generator, dtype=torch.float64).to(dtype) for size in (n, m))
    h, a = (torch.rand(*batch, size, generator=generator, dtype=torch.float64).to(dtype) for size in (m, n))
    return Bilinear(q, k), h, a + 0.1


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("rho", [None, 0.7])
def test_both_half_steps(batch, rho, monkeypatch):
    monkeypatch.setitem(base.BLOCK, "cpu", 40)
    cost, h, a = problem(batch=batch)
    side = Marginal(a, None if rho is None else a.square(), rho)
    assert_one_pass_is_two(Streamed(cost), h, side)


def test_points_without_weight_or_admissible_partner():
    cost, h, a = problem()
    h[3], a[2] = -torch.inf, 0.0
    assert_one_pass_is_two(Streamed(cost), h, Marginal(a))
    h[3] = 0.0
    assert_one_pass_is_two(Streamed(cost, lambda i, j: torch.ones(7, 9, dtype=torch.bool).tril(-1)), h, Marginal(a))
    # Row 1 has no partner at all: infinite either way.
    alone = Streamed(cost, lambda i, j: (torch.arange(7) == 1)[:, None].expand(7, 9))
    (f, _), (expected, _) = both_ways(alone, h, Marginal(a))
    assert f[1] == expected[1] == torch.inf


def test_columns_lost_to_underflow_are_found():
    """Beside the first column's entries those of the second, e^-200 times as large, are zero in single precision."""
    engine = Streamed(Bilinear(torch.ones(2, 1), torch.tensor([[0.0], [-200.0]])))
    f, g = engine.sweep(torch.zeros(2), torch.zeros(2), Marginal(torch.ones(2)).update)
    torch.testing.assert_close(f, torch.zeros(2))
    torch.testing.assert_close(g, torch.tensor([0.0, 200.0]) - torch.tensor(2.0).log())


def test_costs_are_evaluated_once_in_an_iteration(monkeypatch):
    evaluated = []
    original = Streamed.score_blocks
    monkeypatch.setattr(Streamed, "score_blocks", lambda self, *args: evaluated.append(1) or original(self, *args))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 30, 3, generator=generator)
    result = sinkhorn(x, y, eps=1.0, backend="streamed")
    assert result.converged
    assert len(evaluated) == result.n_iter
