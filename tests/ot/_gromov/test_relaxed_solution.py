"""Unbalanced and partial Gromov problems: against POT, all partial permutations, and finite differences."""

import itertools

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.ot import gromov, gromov_matrix


def problem(n=8, m=6, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, 3), (m, 2), (n, 2), (m, 2)
    x, y, u, v = (torch.randn(*batch, *s, generator=generator, dtype=torch.float64) for s in shapes)
    a, b = (torch.rand(*batch, w, generator=generator, dtype=torch.float64) + 0.3 for w in (n, m))
    return x + 1, y + 2, u, v, a / a.sum(-1, keepdim=True), 1.2 * b / b.sum(-1, keepdim=True)


def divergence(P, W):
    r"""KL(P x P | W x W)."""
    return 2 * P.sum() * torch.special.xlogy(P, P / W).sum() - P.sum() ** 2 + W.sum() ** 2


def definition(A, B, M, a, b, P, alpha, rho, eps):
    """Value and entropic part of an unbalanced fused problem."""
    quadratic = torch.einsum("ijkl,ij,kl->", (A[:, None, :, None] - B[None, :, None, :]).square(), P, P)
    marginals = rho[0] * divergence(P.sum(1), a) + rho[1] * divergence(P.sum(0), b)
    value = 0.5 * (alpha * quadratic + marginals) + (1 - alpha) * (M * P).sum()
    return value, 0.5 * eps * divergence(P, a[:, None] * b)


CASES = [
    ("sqeuclidean", (5.0, 5.0), 1.0, None),
    ("sqeuclidean", (3.0, 8.0), 2.0, 0.7),
    ("euclidean", (20.0, 20.0), 0.5, 0.5),
]


@pytest.mark.parametrize(("cost", "rho", "eps", "alpha"), CASES)
def test_unbalanced_plan_is_pot_s_and_its_value_is_the_definition_s(cost, rho, eps, alpha):
    import ot

    x, y, u, v, a, b = problem()
    A, B, M, share = cost_matrix(x, x, cost), cost_matrix(y, y, cost), cost_matrix(u, v), alpha or 1.0
    options = {"rho": rho, "eps": eps, "tol": 1e-7, "max_iter": 1000, "alpha": alpha}
    features = None if alpha is None else (u, v)
    result = gromov(x, y, a, b, cost_x=cost, cost_y=cost, features=features, **options)
    assert result.converged
    value, entropy = definition(A, B, M, a, b, result.plan, share, rho, eps)
    torch.testing.assert_close(result.value, value)
    torch.testing.assert_close(eps * result.divergence, entropy)
    root = share**0.5
    plan, _ = ot.gromov.fused_unbalanced_gromov_wasserstein(
        root * A, root * B, a, b, reg_marginals=list(rho), epsilon=eps, unbalanced_solver="sinkhorn_log",
        alpha=2 * (1 - share), M=M, init_pi=result.plan, max_iter=1000, tol=1e-10, max_iter_ot=3000, tol_ot=1e-10,
    )  # fmt: skip
    torch.testing.assert_close(result.plan, plan, rtol=0, atol=1e-5)
    matrix = gromov_matrix(A, B, a, b, features=None if alpha is None else M, **options)
    torch.testing.assert_close(matrix.value, value, rtol=1e-5, atol=0)


def test_large_penalties_are_constraints():
    x, y, _, _, a, b = problem()
    b = b / b.sum()
    expected = gromov(x, y, a, b, eps=2.0, tol=1e-6)
    result = gromov(x, y, a, b, eps=2.0, rho=1e4, tol=1e-6, init=expected)
    torch.testing.assert_close(result.plan, expected.plan, rtol=0, atol=1e-3)
    torch.testing.assert_close(result.value, expected.value, rtol=1e-2, atol=0)


def test_unbalanced_plans_leave_outliers_out():
    x = torch.cat([torch.eye(3), torch.full((1, 3), 30.0)])
    result = gromov(x, torch.eye(3), eps=0.1, rho=0.5, cost_x="euclidean", cost_y="euclidean")
    assert result.marginals[0][3] < 1e-6
    assert (result.marginals[0][:3] > 0.1).all()


@pytest.mark.parametrize("moved", [2, 3, 5])
@pytest.mark.parametrize("alpha", [None, 0.3])
def test_partial_values_are_those_of_the_best_partial_permutations(moved, alpha):
    gaps = []
    for seed in range(6):
        x, y, u, v, _, _ = problem(5, 5, seed=seed)
        A, B, M, share = cost_matrix(x, x), cost_matrix(y, y), cost_matrix(u, v), alpha or 1.0
        values = []
        for rows in itertools.combinations(range(5), moved):
            for columns in itertools.permutations(range(5), moved):
                i, j = torch.tensor(rows), torch.tensor(columns)
                quadratic = (A[i][:, i] - B[j][:, j]).square().sum() / 25
                values.append(0.5 * share * quadratic + (1 - share) * M[i, j].sum() / 5)
        values = torch.stack(values)
        features, eps = None if alpha is None else (u, v), 0.003 * float(A.std() * B.std())
        result = gromov(x, y, mass=moved / 5, features=features, alpha=alpha, eps=eps, tol=1e-3)
        assert abs(float(result.plan.sum()) - moved / 5) < 1e-2
        gaps.append(float((result.value - values.min()) / values.std()))
    # NP-hard: most are found.
    assert sorted(gaps)[3] < 0.12
    assert max(gaps) < 1.0


def test_partial_plan_is_pot_s_or_better():
    import ot

    x, y, _, _, a, b = problem()
    A, B = cost_matrix(x, x), cost_matrix(y, y)
    for mass in (0.5, 0.7, 0.95):
        plan = torch.from_numpy(ot.gromov.partial_gromov_wasserstein(*(t.numpy() for t in (A, B, a, b)), m=mass))
        expected = 0.5 * torch.einsum("ijkl,ij,kl->", (A[:, None, :, None] - B[None, :, None, :]).square(), plan, plan)
        result = gromov(x, y, a, b, mass=mass, eps=0.1, tol=1e-4)
        assert result.value < expected + 0.1
        rows, columns = result.marginals
        assert (rows <= a + 1e-4).all()
        assert (columns <= b + 1e-4).all()


@pytest.mark.parametrize("init", ["best", "product"])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 1), (2, 2)])
def test_half_of_the_mass_between_two_points_is_one_pair(n, m, init):
    """Which distorts nothing. Costs between two points are the same for both, so their weights lead to neither."""
    x, y = (torch.tensor([[0.0, 0.0], [0.0, length]]) for length in (3.0, 2.0))
    result = gromov(x[:n], y[:m], mass=0.5, cost_x="sqeuclidean", cost_y="sqeuclidean", eps=0.05, init=init)
    assert float(result.value) < 1e-3
    assert float(result.plan.max()) > 0.499


def test_partial_problems_of_few_points_are_solved_as_well_as_from_random_plans():
    """The best of twelve; a 3 x 5 problem among these once ended at 13.7 for 0.6."""
    for n, m, mass in itertools.product([3, 5], [3, 5, 8], [0.3, 0.8]):
        generator = torch.Generator().manual_seed(10 * n + m)
        x, y = (2 * torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((n, 2), (m, 3)))
        found, objectives = gromov(x, y, mass=mass), []
        for _ in range(12):
            plan = torch.rand(n, m, generator=generator, dtype=torch.float64) ** 3
            other = gromov(x, y, mass=mass, init=mass * plan / plan.sum(), eps=float(found.eps))
            objectives.append(float(other.value + other.eps * other.divergence))
        assert float(found.value + found.eps * found.divergence) < 1.01 * min(objectives) + 1e-3, (n, m, mass)


def test_two_points_beside_many_start_from_other_marginals_too():
    """From plans whose marginals are those of the weights alone it ends at 2.83."""
    generator = torch.Generator().manual_seed(240)
    x, y = (2 * torch.randn(n, d, generator=generator, dtype=torch.float64) for n, d in ((2, 2), (40, 2)))
    result = gromov(x, y, mass=0.5)
    assert float(result.value + result.eps * result.divergence) < 2.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [0.01, 1.0])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 1), (1, 5)])
def test_one_point_far_cheaper_than_any_two_gets_one_partner(n, m, rho, dtype):
    """With a mass that is the best under the penalties: s of log s = -KL(q | b) / 2, and a value of rho (1 - s^2)."""
    x, y = (torch.randn(k, 2, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (n, m))
    result = gromov((3 * x).to(dtype), (3 * y).to(dtype), rho=rho, eps=1e-3 * rho)
    assert result.converged
    expected, mass = rho * (1 - 1 / (n * m)), (n * m) ** -0.5
    assert abs(float(result.value) / expected - 1) < 2e-2
    assert abs(float(result.plan.max()) / mass - 1) < 2e-2
    assert abs(float(result.plan.sum()) / mass - 1) < 2e-2


@pytest.mark.parametrize("M", [0.0, 0.5, 2.0, 3.0, 3.3, 3.5, 10.0, 1000.0])
def test_the_mass_between_two_points_is_the_best_for_the_cost_of_their_features(M):
    """Which for a large one is none at all, where some is a local optimum too (3.3, 3.5)."""
    x = torch.zeros(1, 2, dtype=torch.float64)
    v = torch.tensor([[M**0.5, 0.0]], dtype=torch.float64)
    result = gromov(x, x, features=(x, v), rho=1.0, eps=0.5, tol=1e-5)
    s = torch.linspace(0, 1.2, 12001, dtype=torch.float64)
    objective = 0.5 * M * s + 1.25 * (2 * torch.special.xlogy(s * s, s) - s * s + 1)
    assert result.converged
    assert abs(float(result.plan) - float(s[objective.argmin()])) < 1e-3
    torch.testing.assert_close(result.value + result.eps * result.divergence, objective.min(), rtol=1e-4, atol=1e-6)


def test_each_problem_of_a_batch_has_the_best_mass_for_its_weights_and_costs():
    """Some mass, a local optimum that is above no mass, and none."""
    M = torch.tensor([0.5, 2.9, 40.0], dtype=torch.float64)
    a, b = torch.tensor([[[1.5], [1.2], [0.8]], [[0.7], [0.9], [1.1]]], dtype=torch.float64)
    x, v = torch.zeros(3, 1, 2, dtype=torch.float64), torch.stack([M.sqrt(), 0 * M], -1)[:, None]
    (first, second), eps = (0.5, 1.5), 0.4
    result = gromov(x, x, a, b, features=(x, v), rho=(first, second), eps=eps, tol=1e-5)
    s = torch.linspace(0, 1.5, 15001, dtype=torch.float64)
    for k, (cost, p, q) in enumerate(zip(M, a[:, 0], b[:, 0], strict=True)):
        terms = ((rho, 2 * torch.special.xlogy(s * s, s / w) - s * s + w * w) for rho, w in ((first, p), (second, q)))
        entropy = 2 * torch.special.xlogy(s * s, s / (p * q)) - s * s + (p * q) ** 2
        objective = 0.5 * cost * s + 0.5 * (sum(rho * term for rho, term in terms) + eps * entropy)
        assert abs(float(result.plan[k]) - float(s[objective.argmin()])) < 1e-3
        found = result.value[k] + result.eps[k] * result.divergence[k]
        torch.testing.assert_close(found, objective.min(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(3, 4), (20, 30)])
def test_nothing_is_transported_between_features_that_are_far_apart(n, m, dtype):
    """The value is then that of the penalties. A batch element is not moved by what another one gives up."""
    x, y, u, v, _, _ = (t.to(dtype) for t in problem(n, m, batch=(2,)))
    far = torch.tensor([0.3, 1000.0], dtype=dtype)[:, None, None]
    options = {"rho": 1.0, "eps": 0.5, "max_iter": 1000}
    found = gromov(0.3 * x, 0.3 * y, features=(0.3 * u, 0.3 * v + far), **options)
    alone = gromov(0.3 * x[0], 0.3 * y[0], features=(0.3 * u[0], 0.3 * v[0] + far[0]), **options)
    assert found.converged.all()
    assert float(found.plan[1].sum()) < 1e-5
    assert abs(float(found.value[1]) - 1) < 1e-4
    assert float(found.plan[0].sum()) > 0.1
    torch.testing.assert_close(found.value[0], alone.value, rtol=1e-3, atol=0)


def test_where_nothing_is_transported_the_gradient_in_the_weights_is_that_of_penalties_and_entropy():
    """Of rho m^2 / 2 for each side, of mass m, and of eps (m m')^2 / 2."""
    x, y, u, v, a, b = problem(3, 4)
    a, b = a.requires_grad_(), b.requires_grad_()
    result = gromov(x, y, a, b, features=(u, v + 30), rho=(0.5, 2.0), eps=0.3)
    assert float(result.plan.sum()) < 1e-6
    da, db = torch.autograd.grad(result.value, (a, b))
    torch.testing.assert_close(da, torch.full_like(a, 0.5 * 1.0 + 0.3 * 1.2**2))
    torch.testing.assert_close(db, torch.full_like(b, 2.0 * 1.2 + 0.3 * 1.2))


def test_all_of_the_mass_is_the_constrained_problem():
    x, y, u, v, a, b = problem()
    b = b / b.sum()
    expected = gromov(x, y, a, b, features=(u, v), eps=1.0, tol=1e-6)
    result = gromov(x, y, a, b, features=(u, v), eps=1.0, mass=1.0, tol=1e-6, init=expected)
    torch.testing.assert_close(result.plan, expected.plan, rtol=0, atol=1e-4)
    torch.testing.assert_close(result.value, expected.value, rtol=1e-4, atol=0)
    torch.testing.assert_close(result.divergence, expected.divergence, rtol=1e-3, atol=0)


def test_part_of_a_cloud_is_found_in_another():
    """Both hold the same points in other positions, and other ones that nothing of the other cloud is like."""
    found = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x, rest, other = (torch.randn(8, 2, generator=generator, dtype=torch.float64) for _ in range(3))
        rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        clouds = torch.cat([x, 5 * rest[:3]]), torch.cat([x @ rotation, 9 * other[:3]])
        result = gromov(*clouds, mass=8 / 11, eps=0.05)
        found.append(bool((result.plan[:8].argmax(-1) == torch.arange(8)).all() and result.value < 0.01))
    # The problem has local optima: it is found in about two of three such pairs of clouds.
    assert sum(found) >= 2


@pytest.mark.parametrize("relaxed", [{"rho": 4.0}, {"rho": (3.0, 6.0)}, {"mass": 0.6}])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_gradient_is_that_of_the_entropic_objective(relaxed, cost):
    inputs = [t.requires_grad_() for t in problem(6, 5)]

    def solved(x, y, u, v, a, b):
        options = {"cost_x": cost, "cost_y": cost, "alpha": 0.4, "eps": 3.0, "tol": 1e-10, "max_iter": 2000}
        result = gromov(x, y, a, b, features=(u, v), **options, **relaxed)
        return result, result.value.detach() + result.eps * result.divergence

    gradients = torch.autograd.grad(solved(*inputs)[0].value, inputs)
    generator, step = torch.Generator().manual_seed(3), 1e-4
    for i, gradient in enumerate(gradients):
        direction = (0.1 if i > 3 else 1.0) * torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            moved = [t.detach() + sign * step * direction if j == i else t.detach() for j, t in enumerate(inputs)]
            values.append(solved(*moved)[1])
        expected = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_the_gradient_in_the_mass_is_that_of_the_entropic_objective(fused):
    x, y, u, v, a, b = problem(6, 5, batch=(2,))
    masses, step = torch.tensor([0.4, 0.7], dtype=torch.float64), 1e-4

    def solved(mass):
        features = {"features": (u, v), "alpha": 0.4} if fused else {}
        return gromov(x, y, a, b, mass=mass, eps=3.0, tol=1e-10, max_iter=2000, **features)

    def objective(result):
        return result.value + result.eps * result.divergence

    mass = masses.clone().requires_grad_()
    (found,) = torch.autograd.grad(solved(mass).value.sum(), mass)
    expected = (objective(solved(masses + step)) - objective(solved(masses - step))) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    (slope,) = torch.autograd.grad(solved(mass).value.sum(), mass, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(slope.sum(), mass)


@pytest.mark.parametrize("relaxed", [{"rho": 4.0}, {"mass": 0.6}])
def test_batch_is_loop_and_engines_agree(relaxed):
    x, y, u, v, a, b = problem(batch=(3,))
    together = gromov(x, y, a, b, features=(u, v), eps=2.0, tol=1e-7, **relaxed)
    for i in range(3):
        for backend in ("dense", "streamed"):
            options = {"eps": 2.0, "tol": 1e-7, "backend": backend}
            alone = gromov(x[i], y[i], a[i], b[i], features=(u[i], v[i]), **options, **relaxed)
            torch.testing.assert_close(together.value[i], alone.value, rtol=1e-4, atol=0)
            torch.testing.assert_close(together.plan[i], alone.plan, rtol=0, atol=1e-4)
    assert gromov(x[:0], y[:0], a[:0], b[:0], **relaxed).value.shape == (0,)


@pytest.mark.parametrize("relaxed", [{"rho": 4.0}, {"mass": 0.6}])
def test_single_precision_agrees_and_the_default_temperature_follows_units(relaxed):
    x, y, _, _, a, b = problem()
    expected = gromov(x, y, a, b, eps=1.0, tol=1e-4, **relaxed)
    found = gromov(*(t.float() for t in (x, y, a, b)), eps=1.0, tol=1e-4, **relaxed)
    torch.testing.assert_close(found.value.double(), expected.value, rtol=1e-3, atol=0)
    # In other units of length, all costs are multiplied by four, and products of them by sixteen.
    scaled = {k: 16 * w if k == "rho" else w for k, w in relaxed.items()}
    one, two = gromov(x, y, a, b, **relaxed), gromov(2 * x, 2 * y, a, b, **scaled)
    torch.testing.assert_close(two.eps, 16 * one.eps)
    torch.testing.assert_close(two.value, 16 * one.value, rtol=1e-3, atol=0)


def test_errors_name_the_argument():
    x, y, _, _, a, b = problem()
    with pytest.raises(ValueError, match="`mass` must be None where `rho` is given"):
        gromov(x, y, a, b, rho=1.0, mass=0.5)
    with pytest.raises(ValueError, match="`mass` must be positive, and at most the mass of either side, 1, got 1"):
        gromov(x, y, a, b, mass=1.1)
    with pytest.raises(ValueError, match="`rho` must be a positive number or a pair of them"):
        gromov(x, y, a, b, rho=(1.0, None))
    with pytest.raises(ValueError, match="`init` must be a plan with mass, got none"):
        gromov(x, y, a, b, rho=1.0, init=torch.zeros(8, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="`rho` must be None, and `mass` too, for a gap"):
        _ = gromov(x[:6], y, b, b, rho=1.0).gap
    with pytest.raises(ValueError, match="`b` must have the mass of `a`"):
        gromov(x, y, a, b)
    with pytest.raises(ValueError, match=r"`init` must be a plan of shape \(..., 8, 6\), got \(6, 8\)"):
        gromov(x, y, a, b, rho=1.0, init=torch.ones(6, 8))
    with pytest.warns(RuntimeWarning, match=r"stopped at `max_iter`=2 before .* Raise `max_iter`"):
        gromov(x, y, a, b, rho=1.0, max_iter=2)
