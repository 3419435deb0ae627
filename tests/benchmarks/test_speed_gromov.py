"""What the Gromov table holds its contenders to."""

import time

import pytest
import torch

from otdml.benchmarks.speed.gromov import _excess, _fastest, attained
from otdml.costs import cost_matrix
from otdml.ot import gromov


def run_of(quality, seconds=0.0):
    def run():
        time.sleep(seconds)
        return lambda: torch.tensor(quality)

    return run


def test_quickest_good_setting_is_measured():
    slow, quick, wrong = run_of(1e-4, 0.05), run_of(5e-4), run_of(0.1)
    assert _fastest([wrong, slow, quick], lambda plan: float(plan())) is quick


def test_closest_setting_is_measured_where_none_is_good():
    far, close = run_of(0.2), run_of(0.1, 0.05)
    assert _fastest([far, close], lambda plan: float(plan())) is close


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_attained_objective_is_that_of_the_plan_with_its_marginals_met(share):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)
    A, B = cost_matrix(x, x, "cosine"), cost_matrix(y, y, "cosine")
    plan = share * torch.eye(8) / 8 + (1 - share) / 64
    square = (A[:, None, :, None] - B[None, :, None, :]).square().double()
    expected = 0.5 * torch.einsum("ijkl,ij,kl", square, plan.double(), plan.double())
    assert attained(A, B, plan) == pytest.approx(float(expected), rel=1e-5)
    # Half of a plan is completed independently, and has the objective of what it becomes.
    half = 0.5 * (plan + 1 / 64)
    assert attained(A, B, 0.5 * plan) == pytest.approx(attained(A, B, half), rel=1e-5)


def test_excess_of_our_plan_agrees_with_the_value_of_the_result():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = x + 0.3 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    A, B = cost_matrix(x, x, "cosine"), cost_matrix(y, y, "cosine")
    result = gromov(x, y, cost_x="cosine", cost_y="cosine", tol=1e-9)
    scale = float(A.mean() * B.mean())
    assert _excess(A, B, float(result.value), lambda: result.plan) * scale == pytest.approx(0, abs=1e-8)
