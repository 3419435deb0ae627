"""Starts are plans with the weights as marginals, and those of relaxed and of constrained problems are the same."""

import pytest
import torch

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
