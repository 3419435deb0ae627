"""The Monge gap against linear assignment and gradients of convex functions."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from otdml.costs import cost_matrix
from otdml.losses import MongeGap, monge_gap
from otdml.ot import sinkhorn


def cloud(n=12, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine", "geodesic"])
def test_small_eps_is_the_excess_over_linear_assignment(cost):
    x, tx = cloud(), cloud(seed=1)
    C = cost_matrix(x, tx, cost)
    rows, columns = linear_sum_assignment(C.numpy())
    expected = C.diag().mean() - C[rows, columns].mean()
    eps = 0.005 * float(C.mean())
    found = monge_gap(x, tx, cost=cost, eps=eps, tol=1e-4, max_iter=20000)
    assert abs(float(found - expected)) < eps * math.log(12)


def test_gradient_of_a_convex_function_has_no_gap_but_the_entropy():
    x = cloud(n=30)
    tx = x @ torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.3]], dtype=x.dtype)
    for eps in (0.001, 0.01):
        gap = monge_gap(x, tx, eps=eps, max_iter=20000)
        assert -eps * math.log(30) * 1.001 < gap < 0.01


def test_rotation_has_a_gap():
    x = cloud(n=60, d=2)
    assert monge_gap(x, -x) > 1


def test_reflection_by_hand():
    x = torch.tensor([[0.0], [1.0]])
    # Crossing costs 1 for each of the two points, staying nothing; the entropic plan stays, at eps log 2.
    found = monge_gap(x, x.flip(0), eps=0.05)
    torch.testing.assert_close(found, torch.tensor(1 - 0.05 * math.log(2)), rtol=1e-4, atol=1e-4)


def test_entropy_convention_differs_by_a_constant():
    x, tx = cloud(), cloud(seed=1)
    result = sinkhorn(x, tx, eps=1.0, tol=1e-10)
    P = result.plan
    with_entropy = (P * cost_matrix(x, tx)).sum() + (P * P.log()).sum()
    paper = (x - tx).square().sum(-1).mean() - with_entropy
    torch.testing.assert_close(paper, monge_gap(x, tx, eps=1.0, tol=1e-10) + 2 * math.log(12))


def test_gradient_lowers_the_gap():
    x, tx = cloud(), cloud(seed=1).requires_grad_()
    before = monge_gap(x, tx, eps=0.5)
    (gradient,) = torch.autograd.grad(before, tx)
    assert monge_gap(x, tx - 0.5 * gradient, eps=0.5) < before


def test_paired_cost_keeps_its_gradient():
    x, tx = cloud(n=1).requires_grad_(), cloud(n=1, seed=1).requires_grad_()
    # The map of a single point is optimal, so value and gradient vanish.
    value = monge_gap(x, tx, eps=1.0)
    gradients = torch.autograd.grad(value, (x, tx))
    assert value.abs() < 1e-12
    assert all(g.abs().max() < 1e-12 for g in gradients)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine", "geodesic"])
def test_points_that_stay(cost):
    # The first point moves to the place of the second and back, the others stay: two moves too many.
    x = cloud(n=5).requires_grad_()
    tx = x.detach()[[1, 0, 2, 3, 4]].requires_grad_()
    value = monge_gap(x, tx, cost=cost, eps=1e-3)
    moved = cost_matrix(x.detach(), x.detach(), cost)[0, 1]
    torch.testing.assert_close(value.detach(), 2 * moved / 5, rtol=0, atol=1e-3 * math.log(5) * 1.001)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, (x, tx)))


def test_callable_cost():
    x, tx = cloud(), cloud(seed=1)
    named = monge_gap(x, tx, cost="euclidean", eps=0.5, tol=1e-8)
    torch.testing.assert_close(monge_gap(x, tx, cost=torch.cdist, eps=0.5, tol=1e-8), named)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`y` must have the features of `x`, 3, got 2"):
        monge_gap(cloud(), cloud(d=2))
    with pytest.raises(ValueError, match="`y` must hold one row per row of `x`, 12, got 5"):
        monge_gap(cloud(), cloud(n=5))
    with pytest.raises(ValueError, match="`cost` must be one of 'sqeuclidean'"):
        MongeGap(cost="squared")
