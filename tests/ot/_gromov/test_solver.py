"""Entropic Gromov-Wasserstein against sums over all quadruples, all permutations, and finite differences."""

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from otdml.losses import ScaledCost
from otdml.ot import gromov, gromov_matrix, sinkhorn
from otdml.ot._gromov.centred_cost import cost_block

NAMED = ["sqeuclidean", "cosine", "inner"]


def euclidean(x, y):
    return torch.cdist(x, y)


def clouds(n=6, m=6, dx=3, dy=2, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*batch, *s, generator=generator, dtype=torch.float64) for s in ((n, dx), (m, dy)))
    a, b = (torch.rand(*batch, k, generator=generator, dtype=torch.float64) + 0.5 for k in (n, m))
    return x + 1, y - 2, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def quadruples(A, B, P):
    """The objective as its definition has it: a sum over all pairs of pairs."""
    square = (A[..., :, None, :, None] - B[..., None, :, None, :]).square()
    return 0.5 * torch.einsum("...ijkl,...ij,...kl->...", square, P, P)


def inner_costs(x, y, cost_x, cost_y):
    return cost_block("cost_x", x, x, cost_x), cost_block("cost_y", y, y, cost_y)


def brute_force(A, B):
    """The largest gap of all permutations, <P, A P B> - <A, B> / n^2, and the permutation."""
    n = len(A)
    orders = torch.tensor(list(itertools.permutations(range(n))))
    matched = (A * B[orders[:, :, None], orders[:, None, :]]).sum((-2, -1))
    best = matched.argmax()
    return (matched[best] - (A * B).sum()) / n**2, orders[best]


def frank_wolfe(A, B):
    """The gap of the local optimum that Frank-Wolfe with unit steps reaches from the identity."""
    n = len(A)
    order = torch.arange(n)
    while True:
        _, columns = linear_sum_assignment((A @ torch.eye(n, dtype=A.dtype)[order] @ B).numpy(), maximize=True)
        if (torch.as_tensor(columns) == order).all():
            return ((A * B[order][:, order]).sum() - (A * B).sum()) / n**2
        order = torch.as_tensor(columns)


@pytest.mark.parametrize("cost_y", [*NAMED, euclidean, ScaledCost("sqeuclidean", 0.7)])
@pytest.mark.parametrize("cost_x", [*NAMED, euclidean])
@pytest.mark.parametrize(("dx", "dy"), [(3, 2), (9, 2), (3, 9), (9, 9)])
def test_value_and_divergence_are_those_of_the_plan(cost_x, cost_y, dx, dy):
    x, y, a, b = clouds(6, 5, dx, dy)
    A, B = inner_costs(x, y, cost_x, cost_y)
    result = gromov(x, y, a, b, cost_x=cost_x, cost_y=cost_y, eps=0.5 * float(A.std() * B.std().detach()), tol=1e-7)
    P = result.plan
    assert result.converged
    torch.testing.assert_close(result.marginals, (a, b), rtol=0, atol=1e-7)
    torch.testing.assert_close(result.value, quadruples(A, B, P).detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.divergence, (P * (P / (a[:, None] * b)).log()).sum())


@pytest.mark.parametrize("cost", [*NAMED, euclidean])
@pytest.mark.parametrize("d", [3, 9])
def test_gap_is_the_difference_of_objectives(cost, d):
    x, y, a, _ = clouds(6, 6, d, d)
    result = gromov(x, y, a, a, cost_x=cost, cost_y=cost, eps=10.0, tol=1e-9)
    A, B = inner_costs(x, y, cost, cost)
    torch.testing.assert_close(result.gap, quadruples(A, B, a.diag()) - quadruples(A, B, result.plan))


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("n", [5, 7])
@pytest.mark.parametrize("seed", range(1, 4))
def test_gap_of_noisy_maps_is_the_best_of_all_permutations(cost, n, seed):
    x, _, _, _ = clouds(n, dx=4, seed=seed)
    noise, _, _, _ = clouds(n, dx=4, seed=seed + 100)
    y = x + 0.5 * noise
    A, B = inner_costs(x, y, cost, cost)
    scale = float(A.mean() * B.mean())
    result = gromov(x, y, cost_x=cost, cost_y=cost, eps=0.002 * scale)
    expected, _ = brute_force(A, B)
    # A plan at temperature eps has an objective within eps log n of the best one's.
    assert abs(float(result.gap - expected)) < 0.002 * scale * torch.tensor(float(n)).log()


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
def test_gaps_of_a_hundred_noisy_maps_are_those_of_the_best_permutations(cost):
    x, _, _, _ = clouds(6, dx=4, batch=(100,))
    noise, _, _, _ = clouds(6, dx=4, batch=(100,), seed=1)
    y = x + 0.2 * noise
    A, B = inner_costs(x, y, cost, cost)
    result = gromov(x, y, cost_x=cost, cost_y=cost, tol=1e-4)
    best = torch.stack([brute_force(*pair)[0] for pair in zip(A, B, strict=True)])
    scale = A.mean((-2, -1)) * B.mean((-2, -1))
    assert (result.gap < best + 1e-6 * scale).all()
    assert (result.gap > best - result.eps * math.log(6) - 1e-6 * scale).all()
    assert not result.suboptimal.any()


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
def test_most_unrelated_clouds_reach_the_best_permutation(cost):
    # The problem is NP-hard in general; what the starts are worth is how often they end in the global optimum.
    x, y, _, _ = clouds(6, dx=3, dy=3, batch=(24,))
    A, B = inner_costs(x, y, cost, cost)
    scale = A.mean((-2, -1)) * B.mean((-2, -1))
    # No plan beats the best permutation, but one that misses its marginals by the tolerance may, by as much.
    found = gromov(x, y, cost_x=cost, cost_y=cost, eps=0.005 * scale, tol=1e-4).gap
    best = torch.stack([brute_force(*pair)[0] for pair in zip(A, B, strict=True)])
    assert (found < best + 1e-6 * scale).all()
    assert (found > best - 0.01 * scale).double().mean() >= 0.75


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
def test_unrelated_clouds_reach_the_best_permutation_from_it(cost):
    x, y, _, _ = clouds(6, dy=3)
    A, B = inner_costs(x, y, cost, cost)
    expected, order = brute_force(A, B)
    start = torch.eye(6, dtype=x.dtype)[:, order].mT / 6
    found = gromov(x, y, cost_x=cost, cost_y=cost, eps=1e-3 * float(A.mean() * B.mean()), init=start)
    torch.testing.assert_close(found.gap, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("seed", range(3))
def test_gap_at_the_paper_s_batch_is_that_of_frank_wolfe(cost, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 10, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(10, 10, generator=generator, dtype=torch.float64)
    y = y + 0.1 * torch.randn(64, 10, generator=generator, dtype=torch.float64)
    A, B = inner_costs(x, y, cost, cost)
    scale = float(A.mean() * B.mean())
    reference = frank_wolfe(A, B)
    result = gromov(x, y, cost_x=cost, cost_y=cost, eps=2e-3 * scale)
    assert reference >= 0
    assert result.gap > reference - 0.01 * scale
    assert not result.suboptimal


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
def test_gap_of_an_isometry_is_zero(cost):
    x, _, _, _ = clouds(32, dx=5)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=x.dtype, generator=torch.Generator().manual_seed(1)))[0]
    scale = cost_block("x", x, x, cost).mean().square()
    result = gromov(x, x @ rotation, cost_x=cost, cost_y=cost, eps=1e-3 * float(scale))
    assert result.value < 1e-4 * scale
    assert result.gap.abs() < 1e-4 * scale


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("paired", [True, False])
def test_permuted_isometry_is_found(cost, paired):
    x, _, _, _ = clouds(24, dx=3)
    x = x - x.mean(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=x.dtype, generator=torch.Generator().manual_seed(1)))[0]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    y = (x @ rotation)[order]
    result = gromov(x, y, cost_x=cost, cost_y=cost, init="best" if paired else "product")
    assert (result.plan.argmax(-1) == order.argsort()).all()
    A, B = inner_costs(x, y, cost, cost)
    identity = torch.eye(24, dtype=x.dtype) / 24
    torch.testing.assert_close(result.gap, quadruples(A, B, identity), rtol=1e-2, atol=0)


def test_scaling_a_cost_rescales_a_permuted_isometry():
    x, _, _, _ = clouds(12, dx=3)
    value = gromov(x, x.flip(0), cost_y=ScaledCost("sqeuclidean", 3.0, learnable=False), eps=0.05).value
    A = cost_block("x", x, x, "sqeuclidean")
    # The plan stays the permutation, and what remains is half of the mean of (A - 3 A)^2.
    torch.testing.assert_close(value, 2 * A.square().mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("cost", NAMED)
@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_factored_equals_matrix(cost, backend):
    x, y, a, b = (t.float() for t in clouds(40, 30, 5, 4))

    def matrix(x, y):
        return cost_block("x", x, y, cost)

    # Well above the rounding of the costs, which moves a plan by its share of the temperature.
    eps = 8.0 if cost == "sqeuclidean" else 2.0
    factored = gromov(x, y, a, b, cost_x=cost, cost_y=cost, eps=eps, tol=1e-6, backend=backend)
    full = gromov(x, y, a, b, cost_x=matrix, cost_y=matrix, eps=eps, tol=1e-6)
    torch.testing.assert_close(factored.value, full.value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(factored.plan, full.plan, rtol=0, atol=1e-5)


def test_centred_codes_do_not_stick_at_independence():
    x, y, _, _ = clouds(20, 16, dx=4, dy=4)
    # Point-symmetric clouds on the sphere: every linearisation at independence is constant.
    x, y = torch.cat([x, -x]), torch.cat([y, -y])
    result = gromov(x, y, cost_x="cosine", cost_y="cosine")
    assert result.divergence > 1
    independent = quadruples(*inner_costs(x, y, "cosine", "cosine"), torch.full((40, 32), 1 / 1280, dtype=x.dtype))
    assert result.value < 0.7 * independent


def test_better_start_is_kept_for_each_batch_element():
    x, y, _, _ = clouds(16, 16, dx=3, dy=3, batch=(3,))
    y[0] = x[0] + 0.1 * y[0]
    results = {start: gromov(x, y, eps=0.3, init=start) for start in ("identity", "product", "best")}
    objective = {k: r.value + r.eps * r.divergence for k, r in results.items()}
    least = torch.minimum(objective["identity"], objective["product"])
    torch.testing.assert_close(objective["best"], least, rtol=1e-3, atol=1e-3)


def test_start_may_be_a_result():
    x, y, _, _ = clouds(12, 12, dx=2, dy=2)
    warm = gromov(x, y, init=sinkhorn(x, x + 0.1 * y), eps=0.5)
    again = gromov(x, y, init=warm, eps=0.5)
    torch.testing.assert_close(again.value, warm.value, rtol=1e-3, atol=1e-3)


def test_start_at_the_solution_takes_fewer_steps_than_cooling_down_to_it():
    x, y, _, _ = clouds(12, 12, dx=2, dy=2)
    cold = gromov(x, y, init="product", eps=0.5)
    warm = gromov(x, y, init=cold, eps=0.5)
    torch.testing.assert_close(warm.value, cold.value, rtol=1e-3, atol=1e-3)
    assert warm.n_iter < cold.n_iter


def test_negative_gap_is_flagged():
    x, noise, _, _ = clouds(7, 7, dx=3, dy=3, seed=5)
    y = x + 0.1 * noise
    A, B = inner_costs(x, y, "sqeuclidean", "sqeuclidean")
    options = {"eps": 1e-3 * float(A.mean() * B.mean())}
    generator = torch.Generator().manual_seed(1)
    starts = (torch.eye(7, dtype=x.dtype)[torch.randperm(7, generator=generator)] / 7 for _ in range(20))
    poor = min((gromov(x, y, init=start, **options) for start in starts), key=lambda result: float(result.gap))
    assert poor.gap < 0
    assert poor.negative_gap
    assert poor.suboptimal
    good = gromov(x, y, **options)
    assert good.gap > poor.gap
    assert not good.suboptimal


def test_blur_alone_is_not_suboptimal():
    x, _, _, _ = clouds(16, 16, dx=3)
    result = gromov(x, x.clone(), eps=2.0)
    assert result.negative_gap
    assert not result.suboptimal


def objective(x, y, a, b, cost_x="sqeuclidean", cost_y="sqeuclidean", eps=8.0):
    result = gromov(x, y, a, b, cost_x=cost_x, cost_y=cost_y, eps=eps, tol=1e-11, max_iter=2000)
    return result, result.value.detach() + result.eps * result.divergence


def finite_difference(function, tensor, direction, step=1e-4):
    return (function(tensor + step * direction) - function(tensor - step * direction)) / (2 * step)


@pytest.mark.parametrize("cost_y", ["sqeuclidean", "cosine", "inner", euclidean])
@pytest.mark.parametrize("d", [3, 9])
def test_gradient_is_that_of_the_entropic_objective(cost_y, d):
    x, y, a, b = clouds(6, 5, 3, d)
    leaves = [t.requires_grad_() for t in (x, y, a, b)]
    result, _ = objective(*leaves, cost_y=cost_y)
    gradients = torch.autograd.grad(result.value, leaves)
    generator = torch.Generator().manual_seed(3)
    for i, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        direction = direction if i < 2 else 0.1 * (direction - direction.mean())

        def along(t, i=i):
            return objective(*(t if j == i else leaf.detach() for j, leaf in enumerate(leaves)), cost_y=cost_y)[1]

        expected = finite_difference(along, leaves[i].detach(), direction)
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", euclidean])
@pytest.mark.parametrize("d", [3, 9])
def test_gap_s_gradient_in_shared_weights(cost, d):
    x, y, a, _ = clouds(6, 6, 3, d)

    def gap(a):
        result = gromov(x, y, a, a, cost_x=cost, cost_y=cost, eps=5.0, tol=1e-11, max_iter=2000)
        return result, result.gap.detach() - result.eps * result.divergence

    a = a.requires_grad_()
    gradient = torch.autograd.grad(gap(a)[0].gap, a)[0]
    direction = torch.tensor([1.0, -1.0, 0.5, 0.5, -0.5, -0.5], dtype=a.dtype) / 10
    expected = finite_difference(lambda t: gap(t)[1], a.detach(), direction)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-7)


def test_learnt_scale_has_the_gradient_of_the_objective():
    x, y, a, b = clouds(6, 5)
    cost = ScaledCost("sqeuclidean", 0.5).double()
    result, _ = objective(x, y, a, b, cost_y=cost)
    (gradient,) = torch.autograd.grad(result.value, cost.log_scale)

    def along(log_scale):
        return objective(x, y, a, b, cost_y=ScaledCost("sqeuclidean", float(log_scale.exp())).double())[1].detach()

    # The scale is stored in single precision, so the step is large.
    expected = finite_difference(along, cost.log_scale.detach(), torch.tensor(1.0), step=1e-2)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_there_are_no_second_derivatives():
    x, y, _, _ = clouds()
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(gromov(x, y, eps=20.0).value, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="Gromov problems have no second derivatives"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("cost", ["cosine", euclidean])
def test_batch_is_loop(cost):
    x, y, a, b = clouds(6, 5, batch=(2, 2))
    together = gromov(x, y, a, b, cost_x=cost, cost_y=cost, eps=0.5, tol=1e-9)
    for i, j in itertools.product(range(2), range(2)):
        alone = gromov(x[i, j], y[i, j], a[i, j], b[i, j], cost_x=cost, cost_y=cost, eps=0.5, tol=1e-9)
        torch.testing.assert_close(together.value[i, j], alone.value)
        torch.testing.assert_close(together.plan[i, j], alone.plan, rtol=0, atol=1e-6)


def test_mass_other_than_one():
    x, y, a, b = clouds(6, 5)
    one = gromov(x, y, a, b, eps=5.0, tol=1e-9)
    two = gromov(x, y, 2 * a, 2 * b, eps=10.0, tol=1e-9)
    # At twice the mass the quadratic part is four times as large, and so is the entropic one at twice the temperature.
    torch.testing.assert_close(two.value, 4 * one.value)
    torch.testing.assert_close(two.plan, 2 * one.plan)


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", "inner", euclidean])
def test_coincident_points(cost):
    x = torch.ones(4, 2, requires_grad=True)
    result = gromov(x, torch.zeros(3, 2), cost_x=cost, cost_y=cost)
    result.value.backward()
    assert result.value.isfinite()
    assert x.grad.isfinite().all()


def test_one_point():
    assert gromov(torch.ones(1, 3), torch.ones(1, 2)).value == 0


def test_points_without_weight_are_absent():
    x, y, a, b = clouds(6, 5)
    a = torch.cat([a[:5] / a[:5].sum(), a.new_zeros(1)])
    with_it = gromov(x, y, a, b, eps=5.0, tol=1e-9)
    without = gromov(x[:5], y, a[:5], b, eps=5.0, tol=1e-9)
    torch.testing.assert_close(with_it.value, without.value)


def test_unfinished_iteration_says_so():
    x, y, _, _ = clouds(20, 20)
    with pytest.warns(RuntimeWarning, match=r"stopped at `max_iter`=1 before .* Raise `max_iter`"):
        result = gromov(x, y, eps=1.0, max_iter=1)
    assert not result.converged


def test_a_batch_of_no_problems_has_no_values():
    result = gromov(torch.zeros(0, 4, 2), torch.zeros(0, 5, 2, requires_grad=True))
    assert result.value.shape == (0,)
    assert result.plan.shape == (0, 4, 5)
    result.value.sum().backward()


def test_errors_name_the_argument():
    x, y, a, b = clouds(6, 5)
    with pytest.raises(ValueError, match=r"`cost_y` must be one of .*'sqeuclidean'"):
        gromov(x, y, cost_y="none-of-them")
    with pytest.raises(ValueError, match=r"`cost_x` must return a matrix of shape \(6, 6\), got \(6,\)"):
        gromov(x, y, cost_x=lambda x, y: x[:, 0])
    with pytest.raises(ValueError, match="`init` must be one of 'best', 'identity', 'product'"):
        gromov(x, y, init="random")
    with pytest.raises(ValueError, match=r"`init` must be a plan of shape \(..., 6, 5\), got \(5, 6\)"):
        gromov(x, y, init=torch.ones(5, 6))
    with pytest.raises(ValueError, match="`b` must have the mass of `a`"):
        gromov(x, y, a, 2 * b)
    with pytest.raises(ValueError, match="`y` must pair with `x`"):
        _ = gromov(x, y, a, b, eps=5.0).gap
    with pytest.raises(ValueError, match="`y` must have the batch dimensions of `x`"):
        gromov(x.expand(2, 6, -1), y.expand(3, 5, -1))


def test_a_cloud_is_shared_by_a_batch():
    x, y, a, b = clouds(6, 5)
    both = torch.stack([y, 2 * y])
    found = gromov(x, both, a, b).value
    torch.testing.assert_close(found, torch.stack([gromov(x, one, a, b).value for one in both]), rtol=1e-3, atol=0)


def test_not_a_number_is_not_hidden():
    x, y, _, _ = clouds(6, 5)
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        gromov(x, y)


@pytest.mark.parametrize("solve", [gromov, gromov_matrix])
def test_masses_that_differ_by_rounding_are_solved_as_equal_ones(solve):
    x, y, a, b = clouds(12, 10, dx=2, dy=3)
    x, y = (x, y) if solve is gromov else (x @ x.mT, y @ y.mT)
    b = b / b.sum() * a.sum()
    a, more, b = (w.requires_grad_() for w in (a, (1 + 4e-4) * b, b))
    options = {"eps": 1.0, "tol": 1e-6, "init": "product"}
    found, expected = solve(x, y, a, more, **options), solve(x, y, a, b, **options)
    assert found.converged
    torch.testing.assert_close(found.value, expected.value)
    slopes, wanted = torch.autograd.grad(found.value, (a, more)), torch.autograd.grad(expected.value, (a, b))
    for slope, true in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope, true, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"rho": 1.0}])
def test_weights_that_are_all_zero_are_named(options):
    x, y, a, none = clouds(6, 5, dx=2, dy=3, batch=(2,))
    none[1] = 0
    with pytest.raises(ValueError, match="`b` must have mass, got weights that are all zero in batch element 1"):
        gromov(x, y, a, none, **options)


def test_temperatures_of_a_batch_are_constants():
    x, y, *_ = clouds(6, 5)
    eps = torch.tensor([0.5, 1.0], dtype=x.dtype, requires_grad=True)
    with pytest.raises(ValueError, match="`eps` must be a constant, got a tensor that requires a gradient"):
        gromov(x.expand(2, 6, -1), y, eps=eps)
    with torch.no_grad():
        assert torch.equal(gromov(x.expand(2, 6, -1), y, eps=eps).eps, eps)
