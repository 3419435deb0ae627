"""The speed table of entropic transport: that contenders are judged by what they return, and on equal terms."""

import math

import pytest
import torch

from otdml.benchmarks.speed import sinkhorn as table
from otdml.ot import sinkhorn


def test_marginal_error_is_that_of_the_plan():
    x, y, eps = table.problem(30, 3, 0.05)
    result = sinkhorn(x, y, eps=eps, tol=1e-2)
    rows, columns = (float((m - 1 / 30).abs().sum()) for m in result.marginals)
    assert table.marginal_error(x, y, (result.f, result.g), eps) == pytest.approx(max(rows, columns), rel=1e-2)
    assert table.marginal_error(x, y, (result.f, result.g + 0.1 * eps), eps) == pytest.approx(0.105, abs=1e-2)
    assert table.marginal_error(x, y, (result.f, result.g * math.nan), eps) == math.inf


@pytest.mark.parametrize("name", ["otdml", "pot sinkhorn", "pot sinkhorn_log", "pot solve_sample", "ott"])
@pytest.mark.filterwarnings("ignore")
def test_contenders_return_potentials_of_one_convention(name):
    contenders = {"otdml": ("otdml", table._otdml)} | table.PEERS
    module, contender = contenders[name]
    pytest.importorskip(module)
    x, y, eps = table.problem(40, 3, 0.2)
    for gradient in (False, True):
        found = next(contender(x, y, eps, gradient))()
        assert table.marginal_error(x, y, tuple(torch.as_tensor(h) for h in found), eps) < 1e-2


def test_a_contender_that_misses_the_tolerance_does_not_count():
    x, y, eps = table.problem(20, 2, 0.2)
    good = sinkhorn(x, y, eps=eps, tol=1e-4)
    wrong = (good.f + eps, good.g)
    settings = iter([lambda: wrong, lambda: (good.f, good.g)])
    assert table._best({"n": 20}, "peer", settings, (x, y, eps)).correct
    result = table._best({"n": 20}, "peer", iter([lambda: wrong]), (x, y, eps))
    assert not result.correct
    assert result.quality > 0.1
