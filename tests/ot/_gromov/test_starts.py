"""Starts are plans with the weights as marginals, and those of relaxed and of constrained problems are the same."""

import pytest
import torch

from otdml.ot import gromov, sinkhorn_matrix
from otdml.ot._gromov.centred_cost import centred
from otdml.ot._gromov.objective import GromovObjective
from otdml.ot._gromov.starts import perturbed_product, starts


def objective(n=5, m=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, 2, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.2 for k in (n, m))
    a, b = a / a.sum(), b / b.sum()
    return GromovObjective(centred("x", x, a, "sqeuclidean"), centred("y", y, b, "cosine"), a, b)


@pytest.mark.parametrize("size", [0.5, -0.5, 0.0])
def test_perturbed_products_are_plans_with_the_weights_as_marginals(size):
    problem = objective(5, 4)
    plan = perturbed_product(problem, size).plan
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(1), problem.a)
    torch.testing.assert_close(plan.sum(0), problem.b)
    # Points on one side of the extreme points exchange mass if the size is positive, those on two sides if negative.
    change = plan - problem.a[:, None] * problem.b
    extreme = problem.left.energies(problem.a).argmax(), problem.right.energies(problem.b).argmax()
    assert change[extreme] * size >= 0
    assert (size == 0) == bool((change.abs() < 1e-15).all())


@pytest.mark.parametrize(
    ("init", "paired", "fixed"),
    [
        ("best", True, [True, False, False]),
        ("best", False, [False, False]),
        ("product", True, [False, False]),
        ("identity", True, [True]),
        ("identity", False, [False, False]),
    ],
)
def test_starts_by_name(init, paired, fixed):
    problem = objective()
    found = starts(problem, init, paired=paired)
    assert [start.fixed_cost for start in found] == fixed
    if fixed[0]:
        torch.testing.assert_close(found[0].plan.plan, problem.a.diag())


def test_given_matrix_has_to_fit():
    problem = objective(5, 4)
    (start,) = starts(problem, torch.ones(5, 4, dtype=torch.float64), paired=False)
    assert start.fixed_cost
    with pytest.raises(ValueError, match=r"`init` must be a plan of shape \(\.\.\., 5, 4\)"):
        starts(problem, torch.ones(4, 5), paired=False)


def test_what_is_no_plan_is_named():
    problem = objective(5, 4)
    plan = torch.ones(5, 4, dtype=torch.float64)
    for init in (plan.numpy(), (plan[:, 0], plan[0]), None):
        with pytest.raises(TypeError, match="`init` must be one of 'best', 'identity', 'product', a result, or a plan"):
            starts(problem, init, paired=False)
    for init in (-plan, torch.nan * plan, torch.inf * plan):
        with pytest.raises(ValueError, match="`init` must be a plan, got a negative entry, NaN or infinity"):
            starts(problem, init, paired=False)
    with pytest.raises(ValueError, match=r"`init` must be a plan of shape \(\.\.\., 5, 4\), got \(3, 5, 4\)"):
        starts(problem, plan.expand(3, 5, 4), paired=False)
    with pytest.raises(ValueError, match=r"`init` must be a plan of shape \(\.\.\., 5, 4\), got \(5, 5\)"):
        starts(problem, sinkhorn_matrix(plan.new_ones(5, 5)), paired=False)


def test_a_result_is_shared_by_a_batch():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 2, generator=generator, dtype=torch.float64) for k in (6, 5))
    alone = gromov(x, y, eps=0.5)
    both = gromov(torch.stack([x, x]), y, eps=0.5, init=alone)
    torch.testing.assert_close(both.value, alone.value.expand(2), rtol=1e-3, atol=0)
