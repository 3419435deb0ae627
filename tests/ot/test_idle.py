import math

import pytest
import torch

from otdml.losses import sinkhorn_divergence, sinkhorn_divergence_matrix, sinkhorn_self_term
from otdml.ot import exact_matrix, sinkhorn, sinkhorn_matrix

# A row and a column of the three by three have no admissible pair; of the two by two a row alone.
BOTH = torch.tensor([[0.0, 1.0, math.inf], [2.0, 0.5, math.inf], [math.inf, math.inf, math.inf]], dtype=torch.float64)
A, B = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
ROW = torch.tensor([[0.0, 1.0], [math.inf, math.inf]], dtype=torch.float64)


def costly(C):
    """Costs at which nothing moves either, and nothing is infinite."""
    return C.nan_to_num(posinf=1e4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [0.7, (0.3, 2.0)])
def test_what_no_pair_may_move_gives_up_all_its_mass(dtype, rho):
    C, a, b = (t.to(dtype, copy=True) for t in (BOTH, A, B))
    given = a.requires_grad_(), b.requires_grad_()
    result = sinkhorn_matrix(C, *given, eps=0.1, rho=rho, tol=1e-5)
    others = sinkhorn_matrix(C[:2, :2], a[:2], b[:2], eps=0.1, rho=rho, tol=1e-5)
    penalties = rho if isinstance(rho, tuple) else (rho, rho)
    # Its penalties, and the products of its weights with all others, which hold no plan.
    expected = others.value + penalties[0] * 0.5 + penalties[1] * 0.3 + 0.1 * (1 - 0.5 * 0.7)
    torch.testing.assert_close(result.value, expected)
    torch.testing.assert_close(result.plan[:2, :2], others.plan, rtol=1e-4, atol=0)
    plan, f, g = result.plan.detach(), result.f.detach(), result.g.detach()
    assert float(plan[2].sum() + plan[:, 2].sum()) == 0
    assert float(f[2]) == float(g[2]) == math.inf
    da, db = torch.autograd.grad(result.value, given)
    torch.testing.assert_close(da[2], torch.tensor(penalties[0] + 0.1, dtype=dtype))
    torch.testing.assert_close(db[2], torch.tensor(penalties[1] + 0.1, dtype=dtype))
    assert bool(result.converged)


@pytest.mark.parametrize("eps", [None, 1e-3, 1.0])
@pytest.mark.parametrize("C", [BOTH, ROW, ROW.mT], ids=["both", "row", "column"])
def test_infinite_costs_are_the_limit_of_large_ones(C, eps):
    a = torch.full_like(C[:, 0], 1 / len(C))
    b = torch.full_like(C[0], 1 / len(C))
    found = sinkhorn_matrix(C, a, b, eps=eps or 0.05, rho=1.0, tol=1e-8)
    limit = sinkhorn_matrix(costly(C), a, b, eps=eps or 0.05, rho=1.0, tol=1e-8)
    torch.testing.assert_close(found.value, limit.value, rtol=1e-7, atol=0)
    torch.testing.assert_close(found.plan, limit.plan)
    assert sinkhorn_matrix(C, a, b, eps=eps, rho=1.0).value.isfinite()


def test_where_all_pairs_are_forbidden_all_mass_is_given_up():
    result = sinkhorn_matrix(torch.full((2, 3), math.inf), eps=0.1, rho=2.0)
    assert float(result.value) == pytest.approx(2 + 2 + 0.1)
    assert float(result.plan.sum()) < 1e-20


def test_a_batch_is_a_loop():
    C = torch.stack([BOTH, torch.ones_like(BOTH), BOTH.mT])
    found = sinkhorn_matrix(C, A, B, eps=0.1, rho=1.0)
    one = [sinkhorn_matrix(c, A, B, eps=0.1, rho=1.0) for c in C]
    torch.testing.assert_close(found.value, torch.stack([r.value for r in one]))
    torch.testing.assert_close(found.f, torch.stack([r.f for r in one]))


def test_a_column_that_only_rows_without_weight_may_reach_is_idle_too():
    C = torch.tensor([[0.0, math.inf], [1.0, 1.0]])
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    found = sinkhorn_matrix(C, a, b, eps=0.1, rho=1.0).value
    torch.testing.assert_close(found, sinkhorn_matrix(C.clamp(max=1e4), a, b, eps=0.1, rho=1.0).value)


@pytest.mark.parametrize("rho", [0.7, (0.7, None), (0.7, 2.0)])
def test_a_column_without_weight_that_only_idle_rows_may_reach_is_absent(rho):
    # The second row may go to the second column only, which has no weight: it moves nothing, and nothing moves there.
    C = torch.tensor([[0.0, math.inf], [math.inf, 0.5]], dtype=torch.float64)
    a, b = torch.tensor([0.4, 0.6]).double().requires_grad_(), torch.tensor([0.5, 0.0]).double()
    turned = rho[::-1] if isinstance(rho, tuple) else rho
    for costs, weights, penalties in ((C, (a, b), rho), (C.mT, (b, a), turned)):
        found = sinkhorn_matrix(costs, *weights, eps=0.1, rho=penalties, tol=1e-8)
        alone = sinkhorn_matrix(costs[:1, :1], *(w[:1] for w in weights), eps=0.1, rho=penalties, tol=1e-8)
        torch.testing.assert_close(found.value, alone.value + 0.7 * a[1] + 0.1 * a[1] * b[0])
        torch.testing.assert_close(found.plan, torch.nn.functional.pad(alone.plan, (0, 1, 0, 1)))
        (slope,) = torch.autograd.grad(found.value, a)
        torch.testing.assert_close(slope[1], torch.tensor(0.7 + 0.1 * 0.5).double())


def test_derivatives_are_right_up_to_the_second():
    a, top = torch.tensor([0.5, 0.5], dtype=torch.float64), ROW[:1].clone()

    def value(a, top):
        return sinkhorn_matrix(torch.cat([top, ROW[1:]]), a, eps=0.1, rho=1.0, tol=1e-12).value

    inputs = a.requires_grad_(), top.requires_grad_()
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)
    gradient = torch.func.grad(value)(a.detach(), top.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(value(*inputs), a)[0])


def test_the_divergence_has_it():
    within = 1 - torch.eye(3, dtype=torch.float64)
    a = A.clone().requires_grad_()
    found, limit = (
        sinkhorn_divergence_matrix(C, within, within, a, 2 * B, eps=0.3, rho=1.0) for C in (BOTH, costly(BOTH))
    )
    torch.testing.assert_close(found, limit, rtol=1e-5, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(v, a)[0] for v in (found, limit)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mass", [0.2, 0.45])
def test_a_partial_plan_leaves_it_behind(mass):
    for solver, options in ((sinkhorn_matrix, {"eps": 0.5}), (exact_matrix, {})):
        found, limit = (solver(C, A, B, mass=mass, **options) for C in (BOTH, costly(BOTH)))
        torch.testing.assert_close(found.value, limit.value)
        torch.testing.assert_close(found.plan, limit.plan)
        assert float(found.plan[2].sum()) == 0


@pytest.mark.parametrize("rho", [None, (None, 1.0)])
def test_what_has_to_move_and_may_not_is_an_error(rho):
    with pytest.raises(ValueError, match="a row or a column with weight of nothing but infinity"):
        sinkhorn_matrix(ROW, eps=0.1, rho=rho)


# Costs that are functions

POINTS, PLACES = torch.tensor([[0.0], [1.0], [50.0], [2.0]]), torch.tensor([[0.2], [1.3], [-60.0]])


def near(x, y):
    """Squared distances, and no way beyond ten."""
    squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return squares.masked_fill(squares > 100, math.inf)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("options", [{"rho": 1.0}, {"rho": (1.0, 2.0)}, {"rho": 0.1, "eps": None}, {"mass": 0.3}])
@pytest.mark.parametrize("weighted", [True, False])
def test_functions_have_the_values_of_their_matrices(backend, options, weighted):
    x, y = POINTS.double().requires_grad_(), PLACES.double()
    a, b = torch.tensor([0.2, 0.3, 0.4, 0.1]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    given = (a.requires_grad_(), b) if weighted else (None, None)
    options = {"eps": 0.3, "tol": 1e-8, **options}
    found = sinkhorn(x, y, *given, cost=near, backend=backend, **options)
    right = sinkhorn_matrix(near(x, y), *given, **options)
    torch.testing.assert_close(found.value, right.value)
    torch.testing.assert_close(found.plan, right.plan, rtol=1e-5, atol=1e-8)
    leaves = (x, a) if weighted else (x,)
    for slope, expected in zip(*(torch.autograd.grad(r.value, leaves) for r in (found, right)), strict=True):
        torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-7)
    assert bool(found.converged)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_a_point_without_weight_that_may_go_nowhere_is_absent(backend):
    a = torch.tensor([0.3, 0.3, 0.0, 0.4])
    found = sinkhorn(POINTS, PLACES[:2], a, cost=near, eps=0.3, backend=backend)
    right = sinkhorn(POINTS[a > 0], PLACES[:2], a[a > 0], cost=near, eps=0.3, backend=backend)
    torch.testing.assert_close(found.value, right.value)
    torch.testing.assert_close(found.plan[a > 0], right.plan, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_a_point_without_weight_that_only_idle_points_may_reach_is_absent(backend):
    # The point at 50 may go to 51 only, which has no weight.
    y, b = torch.cat([PLACES[:2], torch.tensor([[51.0]])]), torch.tensor([0.5, 0.5, 0.0])
    options = {"cost": near, "eps": 0.3, "rho": 1.0, "tol": 1e-6, "backend": backend}
    found, right = (sinkhorn(POINTS, y[:k], None, b[:k], **options) for k in (3, 2))
    torch.testing.assert_close(found.value, right.value)
    torch.testing.assert_close(found.plan[:, :2], right.plan, rtol=1e-4, atol=1e-6)


def test_the_divergence_of_a_function():
    x, y = POINTS.double(), PLACES.double()
    found = sinkhorn_divergence(x, y, cost=near, eps=0.3, rho=1.0, tol=1e-8)
    between, first, last = (
        sinkhorn_matrix(C, eps=0.3, rho=1.0, tol=1e-8).value for C in (near(x, y), near(x, x), near(y, y))
    )
    right = between - 0.5 * first - 0.5 * last
    torch.testing.assert_close(found, right)
    own = sinkhorn_self_term(y, cost=near, eps=0.3, rho=1.0, tol=1e-8)
    torch.testing.assert_close(sinkhorn_divergence(x, y, cost=near, eps=0.3, rho=1.0, tol=1e-8, second=own), right)


def test_a_batch_of_functions_is_a_loop():
    x = torch.stack([POINTS, POINTS.flip(0), 0.1 * POINTS])
    found = sinkhorn(x, PLACES, cost=near, eps=0.3, rho=1.0)
    torch.testing.assert_close(
        found.value, torch.stack([sinkhorn(s, PLACES, cost=near, eps=0.3, rho=1.0).value for s in x])
    )
