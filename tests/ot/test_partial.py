"""Partial transport: against POT, against full transport at its ends, and by derivatives."""

import pickle

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.ot import exact, exact_matrix, sinkhorn, sinkhorn_matrix


def problem(n=12, m=9, dtype=torch.float64):
    """Two clouds apart from each other, of masses 1 and 1.3."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.1 for k in (n, m))
    return tuple(t.to(dtype) for t in (x + 5, y + 6, a / a.sum(), 1.3 * b / b.sum()))


def pot_plan(x, y, a, b, mass):
    import ot

    arrays = (t.numpy() for t in (a, b, cost_matrix(x, y)))
    return torch.from_numpy(ot.partial.partial_wasserstein(*arrays, m=mass))


@pytest.mark.parametrize("mass", [0.3, 0.7, 1.0])
def test_exact_plan_is_pot_s(mass):
    x, y, a, b = problem()
    result, expected = exact(x, y, a, b, mass=mass), pot_plan(x, y, a, b, mass)
    torch.testing.assert_close(result.plan, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.value, (expected * cost_matrix(x, y)).sum())
    torch.testing.assert_close(result.plan.sum(), torch.tensor(mass, dtype=x.dtype))
    assert result.marginal_error < 1e-12


@pytest.mark.parametrize("mass", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("cost", ["sqeuclidean", lambda x, y: cost_matrix(x, y)])
def test_entropic_plan_tends_to_the_exact_one(mass, backend, cost):
    x, y, a, b = problem()
    result = sinkhorn(x, y, a, b, cost=cost, eps=0.01, mass=mass, tol=1e-6, backend=backend, max_iter=20_000)
    torch.testing.assert_close(result.plan, pot_plan(x, y, a, b, mass), rtol=0, atol=1e-2)
    rows, columns = result.marginals
    assert (rows <= a + 1e-6).all()
    assert (columns <= b + 1e-6).all()
    assert abs(float(rows.sum()) - mass) < 1e-6
    torch.testing.assert_close(result.plan.sum(1), rows)


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", "euclidean", "inner"])
def test_entropic_plan_is_optimal_for_its_definition(cost):
    """The definition: costs, and entropy of what moves and of what stays, solved on the extended matrix by hand."""
    x, y, a, b = problem()
    eps, mass = 0.5, 0.7
    C = torch.nn.functional.pad(cost_matrix(x, y, cost), (0, 1, 0, 1))
    C[-1, -1] = torch.inf
    p, q = torch.cat([a, b.sum()[None] - mass]), torch.cat([b, a.sum()[None] - mass])
    K, v = p[:, None] * q * (-C / eps).exp(), torch.ones(10, dtype=x.dtype)
    for _ in range(3000):
        u = p / (K @ v)
        v = q / (K.mT @ u)
    P = u[:, None] * K * v
    result = sinkhorn(x, y, a, b, cost=cost, eps=eps, mass=mass, tol=1e-10, max_iter=20_000)
    torch.testing.assert_close(result.plan, P[:-1, :-1], rtol=0, atol=1e-8)
    divergence = torch.special.xlogy(P, P / (p[:, None] * q)).sum() - P.sum() + p.sum() * q.sum()
    value = (P[:-1, :-1] * C[:-1, :-1]).sum() + eps * divergence
    torch.testing.assert_close(result.value, value)
    matrix = sinkhorn_matrix(cost_matrix(x, y, cost), a, b, eps=eps, mass=mass, tol=1e-10, max_iter=20_000)
    torch.testing.assert_close(matrix.value, value)
    torch.testing.assert_close(matrix.plan, result.plan, rtol=0, atol=1e-8)


def test_all_of_the_mass_is_full_transport():
    x, y, a, b = problem()
    b = b / b.sum()
    torch.testing.assert_close(exact(x, y, a, b, mass=1.0).plan, exact(x, y, a, b).plan)
    full, part = sinkhorn(x, y, a, b, tol=1e-8), sinkhorn(x, y, a, b, mass=1.0, tol=1e-8)
    torch.testing.assert_close(part.plan, full.plan, rtol=0, atol=1e-8)
    torch.testing.assert_close(part.value, full.value)


def test_the_cheapest_pairs_move_first():
    x, y = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.1], [1.2], [9.0]])
    plan = exact(x, y, mass=2 / 3).plan
    torch.testing.assert_close(3 * plan, torch.tensor([1.0, 1.0, 0.0]).diag())
    assert exact(x, y, mass=2 / 3).value == pytest.approx((0.01 + 0.04) / 3, rel=1e-4)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_derivatives(backend):
    inputs = [t.requires_grad_() for t in (*problem(5, 4), torch.tensor(0.5, dtype=torch.float64))]

    def solved(*inputs):
        return sinkhorn(*inputs[:4], eps=1.0, mass=inputs[4], tol=1e-12, backend=backend)

    for read in ("value", "plan"):
        assert torch.autograd.gradcheck(lambda *t, read=read: getattr(solved(*t), read), inputs)
    assert torch.autograd.gradcheck(lambda *t: solved(*t).barycentric_map(), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: solved(*t).value, inputs)


def test_derivatives_of_the_exact_value():
    inputs = [t.requires_grad_() for t in (*problem(5, 4), torch.tensor(0.5, dtype=torch.float64))]
    assert torch.autograd.gradcheck(lambda *t: exact(*t[:4], mass=t[4]).value, inputs)


def test_a_small_mass_in_single_precision():
    x, y, a, b = (t.float() for t in problem())
    for mass in (1e-3, 1e-6):
        result = exact(x, y, a, b, mass=mass)
        torch.testing.assert_close(result.plan.sum(), torch.tensor(mass))
        torch.testing.assert_close(result.value, mass * cost_matrix(x, y).min())
        assert result.value.dtype == result.plan.dtype == result.f.dtype == torch.float32
        assert result.marginal_error < 1e-6


@pytest.mark.parametrize("solver", [exact, sinkhorn])
def test_the_derivative_in_the_mass_at_all_of_it_is_that_of_taking_some_away(solver):
    x, y, a, b = problem(6, 5)
    options = {} if solver is exact else {"eps": 0.5, "tol": 1e-11}
    mass = torch.tensor(1.0, dtype=x.dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(solver(x, y, a, b, mass=mass, **options).value, mass)
    step = 1e-5
    less, most = (solver(x, y, a, b, mass=m, **options).value for m in (1 - step, 1.0))
    # The entropy of what stays has an infinite slope at nothing.
    torch.testing.assert_close(slope, (most - less) / step, rtol=1e-6 if solver is exact else 0.2, atol=0)


@pytest.mark.parametrize("solver", [exact, sinkhorn])
def test_a_point_that_stays_is_mapped_to_where_a_little_of_it_would_go(solver):
    x, y = torch.tensor([[0.0], [1.0], [500.0]]), torch.tensor([[0.1], [1.2], [900.0]])
    options = {} if solver is exact else {"eps": 0.01, "max_iter": 20_000}
    result, expected = solver(x, y, mass=2 / 3, **options), torch.tensor([[0.1], [1.2], [900.0]])
    torch.testing.assert_close(result.barycentric_map(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", [exact, sinkhorn])
def test_batch_is_loop(solver):
    x, y, a, b = problem()
    points, masses = torch.stack([x, x + 1]), torch.tensor([0.4, 0.9], dtype=x.dtype)
    together = solver(points, y, a, b, mass=masses)
    for i in range(2):
        alone = solver(points[i], y, a, b, mass=float(masses[i]))
        torch.testing.assert_close(together.value[i], alone.value, rtol=1e-3, atol=0)
        torch.testing.assert_close(together.plan[i], alone.plan, rtol=0, atol=1e-3)
    assert solver(x.expand(0, -1, -1), y, mass=0.5).value.shape == (0,)


@pytest.mark.parametrize("solver", [exact, sinkhorn])
def test_masses_of_a_batch_go_through_transforms(solver):
    x, y, a, b = problem()
    points, masses = torch.stack([x, x + 1]), torch.tensor([0.4, 0.9], dtype=x.dtype, requires_grad=True)

    def value(x, mass):
        return solver(x, y, a, b, mass=mass).value

    torch.testing.assert_close(torch.func.vmap(value)(points, masses), value(points, masses), rtol=1e-3, atol=0)
    (expected,) = torch.autograd.grad(value(points, masses).sum(), masses)
    found = torch.func.vmap(torch.func.grad(value, argnums=1))(points, masses.detach())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_single_precision_far_from_the_origin():
    x, y, a, b = problem()
    expected = sinkhorn(x, y, a, b, eps=0.5, mass=0.7)
    x, y, a, b = (t.float() for t in (x, y, a, b))
    result = sinkhorn(x + 1000, y + 1000, a, b, eps=0.5, mass=0.7)
    assert result.value.dtype == torch.float32
    torch.testing.assert_close(result.value.double(), expected.value, rtol=2e-3, atol=0)


def test_results_can_be_pickled():
    x, y, a, b = problem()
    for solver in (exact, sinkhorn):
        result = solver(x, y, a, b, mass=0.5)
        torch.testing.assert_close(pickle.loads(pickle.dumps(result)).plan, result.plan)


def test_errors_name_the_argument():
    x, y, a, b = problem()
    for solver in (exact, sinkhorn):
        with pytest.raises(ValueError, match="`mass` must be positive, and at most the mass of either side, 1, got 1"):
            solver(x, y, a, b, mass=1.1)
        with pytest.raises(ValueError, match="`mass` must be a positive number, got 0"):
            solver(x, y, a, b, mass=0)
        with pytest.raises(ValueError, match=r"`mass` must have the batch dimensions of the weights, \(\), or none"):
            solver(x, y, a, b, mass=torch.ones(3))
    with pytest.raises(ValueError, match="`rho` must be None where `mass` is given"):
        sinkhorn(x, y, a, b, mass=0.5, rho=1.0)
    with pytest.raises(ValueError, match="`init` must be None where `mass` is given"):
        sinkhorn(x, y, a, b, mass=0.5, init=(None, b))
    with pytest.raises(ValueError, match="`backend` must be 'dense' or 'streamed'"):
        sinkhorn(x, y, a, b, mass=0.5, backend="keops")
    with pytest.raises(ValueError, match="`b` must have the mass of `a`"):
        sinkhorn(x, y, a, b)
    C = cost_matrix(x, y)
    torch.testing.assert_close(exact_matrix(C, a, b, mass=0.5).plan, exact(x, y, a, b, mass=0.5).plan)


@pytest.mark.parametrize("share", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("form", ["points", "matrix", "batch"])
def test_a_small_share_in_single_precision_is_that_of_double(form, share):
    """What stays behind is rounded by more than what moves, so it must follow from what moves."""
    x, y, a, b = problem(dtype=torch.float32)
    if form == "batch":
        x, y, a, b = torch.stack([x, 1.5 * x]), torch.stack([y, y]), torch.stack([a, a]), torch.stack([b, b])
    mass = torch.tensor([share, 0.3] if form == "batch" else share, dtype=torch.float64)

    def solved(dtype):
        points = [t.to(dtype).requires_grad_() for t in (x, y, a, b, mass)]
        first, second, *weights = points[:4]
        if form == "matrix":
            result = sinkhorn_matrix(cost_matrix(first, second), *weights, eps=0.05, mass=points[4])
        else:
            result = sinkhorn(*points[:4], eps=0.05, mass=points[4])
        assert result.converged.all()
        value = result.value[0] if form == "batch" else result.value
        # Those of the weights are potentials of double precision up to a constant, read in single precision.
        return [result.plan.detach(), value.detach(), *torch.autograd.grad(value, points)]

    for single, double in zip(solved(torch.float32), solved(torch.float64), strict=True):
        assert single.dtype == torch.float32
        assert (single - double).abs().sum() <= 1e-3 * double.abs().sum()


def test_a_small_share_that_double_precision_does_not_resolve_says_what_helps():
    x, y, a, b = problem()
    with pytest.warns(RuntimeWarning, match=r"float64 resolves .* > `tol`=0\.001\. Raise `mass` or `eps`, or accept"):
        result = sinkhorn(x, y, a, b, eps=1e-3, mass=1e-11)
    assert not result.converged
