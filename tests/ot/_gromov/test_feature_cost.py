"""Fused problems: costs between features beside those within each cloud."""

import itertools

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.ot import gromov, gromov_matrix, sinkhorn
from otdml.ot._gromov.feature_cost import between_features, given_between

COSTS = ["sqeuclidean", "cosine", "inner", "euclidean"]


def problem(n=6, m=5, dx=3, dy=2, k=2, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, dx), (m, dy), (n, k), (m, k)
    points = [torch.randn(*batch, *s, generator=generator, dtype=torch.float64) for s in shapes]
    a, b = (torch.rand(*batch, w, generator=generator, dtype=torch.float64) + 0.5 for w in (n, m))
    return *points, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def definition(A, B, M, P, alpha):
    square = (A[:, None, :, None] - B[None, :, None, :]).square()
    return (1 - alpha) * (M * P).sum() + alpha * 0.5 * torch.einsum("ijkl,ij,kl->", square, P, P)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("cost_x", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("d", [2, 9])
def test_value_and_divergence_are_those_of_the_plan(cost, cost_x, d):
    x, y, u, v, a, b = problem(dx=d, dy=d)
    u, v = u + 3, v + 4
    options = {"cost_features": cost, "alpha": 0.3, "eps": 0.8, "tol": 1e-8}
    result = gromov(x, y, a, b, cost_x=cost_x, cost_y=cost_x, features=(u, v), **options)
    A, B, M, P = cost_matrix(x, x, cost_x), cost_matrix(y, y, cost_x), cost_matrix(u, v, cost), result.plan
    assert result.converged
    torch.testing.assert_close(result.marginals, (a, b), rtol=0, atol=1e-7)
    torch.testing.assert_close(result.value, definition(A, B, M, P, 0.3))
    torch.testing.assert_close(result.divergence, (P * (P / (a[:, None] * b)).log()).sum())
    # Of the same problem by its matrices, the same solution.
    matrix = gromov_matrix(A, B, a, b, features=M, alpha=0.3, eps=0.8, tol=1e-8)
    torch.testing.assert_close(matrix.value, result.value)
    torch.testing.assert_close(matrix.plan, P, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_values_are_those_of_the_best_of_all_permutations(alpha):
    gaps = []
    for seed in range(8):
        x, y, u, v, _, _ = problem(6, 6, seed=seed)
        A, B, M = cost_matrix(x, x), cost_matrix(y, y), cost_matrix(u, v)
        orders = torch.tensor(list(itertools.permutations(range(6))))
        quadratic = (A - B[orders[:, :, None], orders[:, None, :]]).square().mean((-2, -1))
        values = (1 - alpha) * M[torch.arange(6), orders].mean(-1) + alpha * 0.5 * quadratic
        eps = 0.01 * float(alpha * A.std() * B.std() + M.std())
        found = gromov(x, y, features=(u, v), alpha=alpha, eps=eps, tol=1e-4).value
        assert found > values.min() - 1e-3 * values.std()
        gaps.append(float((found - values.min()) / values.std()))
    # Found but for blur in nearly all of them; the problem is NP-hard.
    assert sorted(gaps)[-2] < 0.05
    assert max(gaps) < 0.3


def test_noisy_features_tell_which_permutation_of_a_symmetric_cloud():
    """The square has eight symmetries, and the features say which is meant."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    for order in ([0, 1, 2, 3], [1, 2, 3, 0], [3, 2, 1, 0]):
        u = torch.arange(4.0)[:, None]
        result = gromov(x, x, features=(u, u[order] + 0.1), eps=0.02)
        assert result.plan.argmax(-1).tolist() == torch.tensor(order).argsort().tolist()


def test_plan_is_pot_s():
    import ot

    x, y, u, v, a, b = problem()
    A, B, M = cost_matrix(x, x), cost_matrix(y, y), cost_matrix(u, v)
    eps, share = 2.0, 0.4
    arrays, options = (t.numpy() for t in (M, A, B, a, b)), {"max_iter": 5000, "tol": 1e-12, "log": True}
    plan, log = ot.gromov.entropic_fused_gromov_wasserstein(*arrays, epsilon=eps, alpha=share, **options)
    plan = torch.from_numpy(plan)
    # POT's quadratic part has no half: shares of 2 s / (1 + s), and all of it over 1 + s.
    result = gromov(
        x, y, a, b, features=(u, v), alpha=2 * share / (1 + share), eps=eps / (1 + share), init=plan, tol=1e-9
    )
    torch.testing.assert_close(result.plan, plan, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        (1 + share) * result.value, torch.tensor(log["fgw_dist"], dtype=x.dtype), rtol=1e-5, atol=0
    )


def test_a_small_share_is_transport_of_the_features():
    x, y, u, v, a, b = problem()
    fused = gromov(x, y, a, b, features=(u, v), alpha=1e-7, eps=0.3, tol=1e-6)
    torch.testing.assert_close(fused.plan, sinkhorn(u, v, a, b, eps=0.3, tol=1e-6).plan, rtol=0, atol=1e-4)


def test_all_of_the_share_is_the_problem_without_features():
    x, y, u, v, a, b = problem()
    torch.testing.assert_close(
        gromov(x, y, a, b, features=(u, v), alpha=1.0, eps=8.0).value,
        gromov(x, y, a, b, eps=8.0).value,
        rtol=1e-3,
        atol=0,
    )


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("d", [2, 9])
def test_gradient_is_that_of_the_entropic_objective(cost, d):
    inputs = [t.requires_grad_() for t in problem(dx=d, dy=d)]

    def solved(x, y, u, v, a, b):
        options = {"cost_features": cost, "alpha": 0.3, "eps": 4.0, "tol": 1e-11, "max_iter": 2000}
        result = gromov(x, y, a, b, features=(u, v), **options)
        return result, result.value.detach() + result.eps * result.divergence

    gradients = torch.autograd.grad(solved(*inputs)[0].value, inputs)
    generator, step = torch.Generator().manual_seed(3), 1e-4
    for i, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        direction = direction if i < 4 else 0.1 * (direction - direction.mean())
        values = []
        for sign in (1, -1):
            moved = [t.detach() + sign * step * direction if j == i else t.detach() for j, t in enumerate(inputs)]
            values.append(solved(*moved)[1])
        expected = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_gap_is_the_difference_of_objectives_and_so_is_its_gradient(cost):
    x, y, u, v, a, _ = problem(6, 6)
    a = a.requires_grad_()

    def solved(a):
        options = {"cost_features": cost, "alpha": 0.3, "eps": 4.0, "tol": 1e-11, "max_iter": 2000}
        return gromov(x, y, a, a, features=(u, v), **options)

    result = solved(a)
    A, B, M = cost_matrix(x, x), cost_matrix(y, y), cost_matrix(u, v, cost)
    expected = definition(A, B, M, a.diag(), 0.3) - definition(A, B, M, result.plan, 0.3)
    torch.testing.assert_close(result.gap, expected)
    (gradient,) = torch.autograd.grad(result.gap, a)
    direction = torch.tensor([1.0, -1.0, 0.5, 0.5, -0.5, -0.5], dtype=a.dtype) / 10
    ends = [solved(a.detach() + s * 1e-4 * direction) for s in (1, -1)]
    first, second = (r.gap - r.eps * r.divergence for r in ends)
    torch.testing.assert_close((gradient * direction).sum(), (first - second) / 2e-4, rtol=1e-5, atol=1e-7)


def test_batch_is_loop():
    x, y, u, v, a, b = problem(batch=(3,))
    together = gromov(x, y, a, b, features=(u, v[0]), eps=0.5, tol=1e-9)
    for i in range(3):
        alone = gromov(x[i], y[i], a[i], b[i], features=(u[i], v[0]), eps=0.5, tol=1e-9)
        torch.testing.assert_close(together.value[i], alone.value)
        torch.testing.assert_close(together.plan[i], alone.plan, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_single_precision_agrees(backend):
    x, y, u, v, a, b = problem(40, 30)
    expected = gromov(x, y, a, b, features=(u, v), eps=4.0)
    x, y, u, v, a, b = (t.float() for t in (x, y, u, v, a, b))
    # Far from the origin, where squares have few digits.
    result = gromov(x, y, a, b, features=(u + 300, v + 300), eps=4.0, backend=backend)
    torch.testing.assert_close(result.value.double(), expected.value, rtol=2e-3, atol=0)


def test_sizes_are_of_the_centred_matrix():
    _, _, u, v, a, b = problem()
    for factored, cost in ((True, "sqeuclidean"), (False, "euclidean")):
        M = 3 * cost_matrix(u, v, cost)
        found = between_features(u, v, cost, 3, u.dtype)
        assert (found.factors is not None) == factored
        M = M - (M @ b)[:, None] - (a @ M) + a @ M @ b
        expected = (a @ M.square() @ b).sqrt()
        torch.testing.assert_close(found.size(a, b), expected)
        torch.testing.assert_close(given_between(cost_matrix(u, v, cost), 3).size(a, b), expected)


def test_errors_name_the_argument():
    x, y, u, v, _, _ = problem()
    for features, match in [
        (u, r"`features` must be a pair of tensors .*, got Tensor"),
        ((u[:3], v), r"`features\[0\]` must have shape \(..., 6, 2\), one row per point, got \(3, 2\)"),
        ((u, v[:, :1]), r"`features\[1\]` must have shape \(..., 5, 2\), one row per point, got \(5, 1\)"),
        ((u.expand(2, 6, 2), v), r"`features\[0\]` must have the batch dimensions of the points"),
    ]:
        with pytest.raises(ValueError, match=match):
            gromov(x, y, features=features)
    with pytest.raises(ValueError, match=r"`alpha` must be None without `features`, got 0.5"):
        gromov(x, y, alpha=0.5)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \(0, 1\], got 1.5"):
        gromov(x, y, features=(u, v), alpha=1.5)
    with pytest.raises(ValueError, match="`cost_features` must be one of"):
        gromov(x, y, features=(u, v), cost_features="manhattan")
    A, B = cost_matrix(x, x), cost_matrix(y, y)
    with pytest.raises(ValueError, match="`C_x` must be symmetric and finite"):
        gromov_matrix(A + torch.arange(6.0), B)
    with pytest.raises(ValueError, match=r"`C_y` must have shape \(..., n, n\), got \(5, 4\)"):
        gromov_matrix(A, B[:, :4])
    with pytest.raises(
        ValueError, match=r"`features` must be a floating-point tensor of shape \(..., 6, 5\), got \(5, 6\)"
    ):
        gromov_matrix(A, B, features=torch.ones(5, 6))
    with pytest.raises(ValueError, match="finite costs"):
        gromov_matrix(A, B, features=torch.full((6, 5), torch.inf))
