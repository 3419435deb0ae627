"""Plans of low rank: against exact transport, other plans of low rank, OTT, and closed forms."""

import pickle
import warnings

import numpy as np
import pytest
import torch

from otdml.costs import cost_matrix
from otdml.ot import exact, low_rank_sinkhorn

COSTS = ["sqeuclidean", "cosine", "inner"]


def clouds(n=40, m=30, d=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.5 for k in (n, m))
    y = y * torch.linspace(1.5, 0.5, d, dtype=y.dtype) + 1
    return tuple(t.to(dtype) for t in (x, y, a / a.sum(), b / b.sum()))


def objective(x, y, s, t, **options):
    result = low_rank_sinkhorn(x, y, s.softmax(-1), t.softmax(-1), tol=1e-9, max_iter=3000, **options)
    return result.value + (result.eps * result.divergence).detach()


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plan_is_one_and_the_value_is_its_cost(cost, dtype):
    x, y, a, b = clouds(dtype=dtype)
    result = low_rank_sinkhorn(x, y, a, b, rank=5, cost=cost)
    rounding = 100 * torch.finfo(dtype).eps
    assert result.converged
    assert result.error <= 1e-3
    assert result.plan.dtype == result.value.dtype == dtype
    assert (result.plan >= 0).all()
    torch.testing.assert_close(result.plan.sum(-1), a)
    torch.testing.assert_close(result.plan.sum(-2), b)
    off = (result.plan.sum(-1) - a).abs().sum() + (result.plan.sum(-2) - b).abs().sum()
    assert off < rounding
    assert result.marginal_error < rounding
    torch.testing.assert_close(
        result.value, (result.plan * cost_matrix(x, y, cost)).sum(), rtol=rounding, atol=rounding
    )
    assert torch.linalg.matrix_rank(result.plan, rtol=rounding) <= 5
    Q, R, g = result.factors
    torch.testing.assert_close(Q.sum(-2), g)
    torch.testing.assert_close(R.sum(-2), g)
    torch.testing.assert_close((Q / g) @ R.mT, result.plan)


def test_products_are_those_of_the_matrix():
    x, y, a, b = clouds()
    a = a.index_fill(0, torch.tensor([3, 7]), 0.0)
    a = a / a.sum()
    result = low_rank_sinkhorn(x, y, a, b, rank=6)
    P = result.plan
    v, w = torch.randn(30, 3, dtype=P.dtype), torch.randn(40, dtype=P.dtype)
    torch.testing.assert_close(result.apply(v), P @ v)
    torch.testing.assert_close(result.apply_transpose(w), P.mT @ w)
    torch.testing.assert_close(result.marginals[0], a)
    image = result.barycentric_map()
    torch.testing.assert_close(image[a > 0], ((P @ y) / a[:, None])[a > 0])
    # A point without weight goes where a point at the same place would.
    assert image.isfinite().all()
    assert P[a == 0].abs().max() == 0


@pytest.mark.parametrize("cost", COSTS)
def test_never_below_exact_transport_and_less_the_more_hubs(cost):
    x, y, a, b = clouds()
    least = exact(x, y, a, b, cost=cost).value
    independent = (cost_matrix(x, y, cost) * a[:, None] * b).sum()
    values = torch.stack([low_rank_sinkhorn(x, y, a, b, rank=r, cost=cost).value for r in (1, 2, 4, 8, 16)])
    torch.testing.assert_close(values[0], independent)
    assert (values >= least).all()
    assert (values.diff() < 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_full_rank_reaches_exact_transport(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(n, 2, generator=generator, dtype=torch.float64) for n in (12, 8))
    best = exact(x, y).value
    value = low_rank_sinkhorn(x, y, rank=8, eps=1e-3).value
    assert best * (1 - 1e-9) <= value <= 1.01 * best


def test_separate_groups_go_through_a_hub_each():
    # Three pairs of clusters far from each other: the best plan of rank three is known, and so is its cost.
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]], dtype=torch.float64)
    x, y = (
        (centres[:, None] + shift + torch.randn(3, 10, 2, generator=generator, dtype=torch.float64)).flatten(0, 1)
        for shift in (0.0, 4.0)
    )
    within = cost_matrix(x, y).view(3, 10, 3, 10).diagonal(dim1=0, dim2=2).mean()
    result = low_rank_sinkhorn(x, y, rank=3)
    torch.testing.assert_close(result.value, within)
    torch.testing.assert_close(result.factors[2].sort().values, torch.full((3,), 1 / 3, dtype=x.dtype))


def test_no_other_plan_of_that_rank_that_ott_finds_costs_less():
    x, y, a, b = clouds(dtype=torch.float32)
    result = low_rank_sinkhorn(x, y, a, b, rank=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("ott")
        import jax.numpy as jnp
        from ott.geometry import pointcloud
        from ott.initializers.linear import initializers_lr
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn_lr

        p, q, v, w = (jnp.asarray(t.numpy()) for t in (x, y, a, b))
        problem = linear_problem.LinearProblem(pointcloud.PointCloud(p, q), a=v, b=w)
        # Our factors cost with OTT what they cost here.
        theirs = sinkhorn_lr.LRSinkhornOutput(
            *(jnp.asarray(t.numpy()) for t in result.factors),
            None,
            None,
            problem,
            epsilon=0.0,
            inner_iterations=1,
            converged=True,
        )
        assert float(theirs.primal_cost) == pytest.approx(float(result.value), rel=1e-5)
        for initializer in (initializers_lr.RandomInitializer(5), initializers_lr.KMeansInitializer(5)):
            solver = sinkhorn_lr.LRSinkhorn(5, initializer=initializer, max_iterations=300, gamma=100.0)
            found = solver(problem)
            assert float(result.value) <= 1.005 * float(found.primal_cost)


def test_batch_is_a_loop_and_weights_of_zero_are_absent_points():
    x, y, a, b = clouds()
    xs, ys = torch.stack([x, 3 * x + 1, x.flip(0)]), torch.stack([y, y - 2, y])
    a = a.index_fill(0, torch.tensor([0, 5]), 0.0)
    options = {"rank": 4, "tol": 1e-6, "max_iter": 2000}
    together = low_rank_sinkhorn(xs, ys, a / a.sum(), b, **options)
    for i in range(3):
        alone = low_rank_sinkhorn(xs[i], ys[i], a / a.sum(), b, **options)
        torch.testing.assert_close(together.value[i], alone.value, rtol=1e-6, atol=0)
        torch.testing.assert_close(together.eps[i], alone.eps)
    present = a > 0
    without = low_rank_sinkhorn(x[present], y, a[present] / a.sum(), b, **options)
    torch.testing.assert_close(together.value[0], without.value, rtol=1e-6, atol=0)


def test_order_and_doubling_of_points_change_nothing():
    x, y, a, b = clouds()
    options = {"rank": 4, "tol": 1e-6, "max_iter": 2000}
    value = low_rank_sinkhorn(x, y, a, b, **options).value
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(low_rank_sinkhorn(x.flip(0), y[order], a.flip(0), b[order], **options).value, value)
    doubled = low_rank_sinkhorn(x.repeat(2, 1), y, a.repeat(2) / 2, b, **options)
    torch.testing.assert_close(doubled.value, value)


def test_scales_masses_and_places():
    x, y, a, b = clouds()
    value = low_rank_sinkhorn(x, y, a, b, rank=4).value
    torch.testing.assert_close(low_rank_sinkhorn(1e3 * x, 1e3 * y, a, b, rank=4).value, 1e6 * value)
    torch.testing.assert_close(low_rank_sinkhorn(x + 1e4, y + 1e4, a, b, rank=4).value, value, rtol=1e-6, atol=0)
    result = low_rank_sinkhorn(x, y, 3 * a, 3 * b, rank=4)
    torch.testing.assert_close(result.value, 3 * value)
    torch.testing.assert_close(result.plan.sum(-1), 3 * a)


def test_single_precision_finds_the_same():
    values = [
        low_rank_sinkhorn(*clouds(dtype=dtype), rank=6).value.double() for dtype in (torch.float32, torch.float64)
    ]
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)
    x, y, *_ = clouds()
    assert low_rank_sinkhorn(x.half(), y.half(), rank=3).value.dtype == torch.float32


@pytest.mark.parametrize("cost", COSTS)
def test_gradients_are_finite_differences_of_the_objective(cost):
    x, y, a, b = clouds(9, 8)
    tensors = tuple(t.requires_grad_() for t in (x + 2, y + 2, a.log(), b.log()))
    options = {"rank": 3, "cost": cost, "eps": 0.2 if cost == "cosine" else 0.5}
    slopes = torch.autograd.grad(objective(*tensors, **options), tensors)
    generator, step = torch.Generator().manual_seed(2), 1e-4
    for i, (t, slope) in enumerate(zip(tensors, slopes, strict=True)):
        way = torch.randn(t.shape, generator=generator, dtype=t.dtype)
        ends = [
            objective(*(p.detach() + (sign * step * way if j == i else 0) for j, p in enumerate(tensors)), **options)
            for sign in (1, -1)
        ]
        torch.testing.assert_close((slope * way).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-6)


def test_gradient_in_the_mass():
    x, y, a, b = clouds(9, 8)
    scale = torch.ones((), dtype=x.dtype, requires_grad=True)
    result = low_rank_sinkhorn(x, y, scale * a, scale * b, rank=3, eps=0.3, tol=1e-8, max_iter=3000)
    (slope,) = torch.autograd.grad(result.value, scale)
    torch.testing.assert_close(slope, (result.value + result.eps * result.divergence).detach())


def test_second_derivatives_are_refused():
    x, y, *_ = clouds(9, 8)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(low_rank_sinkhorn(x, y, rank=2).value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="low_rank_sinkhorn has no second derivatives"):
        slope.sum().backward()


def test_not_converged_is_said_and_the_plan_is_still_one():
    x, y, a, b = clouds()
    with pytest.warns(RuntimeWarning, match=r"`max_iter`=2 with an error of .* Raise `max_iter` or `eps`"):
        result = low_rank_sinkhorn(x, y, a, b, rank=8, max_iter=2)
    assert not result.converged
    assert result.error > 1e-3
    assert result.marginal_error < 1e-12


def test_points_that_coincide_and_single_points():
    x = torch.zeros(5, 2, dtype=torch.float64)
    assert low_rank_sinkhorn(x, x, rank=3).value == 0
    y = torch.tensor([[3.0, 4.0]], dtype=x.dtype)
    torch.testing.assert_close(low_rank_sinkhorn(x, y, rank=1).value, torch.tensor(25.0, dtype=x.dtype))
    torch.testing.assert_close(low_rank_sinkhorn(x, y.repeat(5, 1), rank=4).value, torch.tensor(25.0, dtype=x.dtype))
    assert low_rank_sinkhorn(torch.zeros(0, 5, 2), torch.zeros(0, 4, 2), rank=2).value.shape == (0,)


def test_result_is_pickled_and_does_not_depend_on_chance():
    x, y, a, b = clouds()
    first, second = (low_rank_sinkhorn(x, y, a, b, rank=4) for _ in range(2))
    assert torch.equal(first.plan, second.plan)
    assert torch.equal(pickle.loads(pickle.dumps(first)).plan, first.plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 31}, r"`rank` must be at most the number of points of each cloud, 30, got 31"),
        ({"rank": 0}, "`rank` must"),
        ({"cost": "euclidean"}, r"`cost` must be 'sqeuclidean', 'cosine' or 'inner'.*Take `sinkhorn`"),
        ({"cost": cost_matrix}, r"`cost` must be .* got a function"),
        ({"eps": 0.0}, "`eps` must"),
        ({"tol": -1.0}, "`tol` must"),
        ({"max_iter": 0}, "`max_iter` must"),
        ({"b": torch.full((30,), 1.0)}, "`b` must have the mass of `a`"),
        ({"a": torch.zeros(40), "b": torch.zeros(30)}, "`a` must have mass"),
        ({"x": torch.full((40, 2), np.nan)}, "`x` must give finite costs"),
    ],
)
def test_errors_name_the_remedy(change, message):
    x, y, a, b = clouds()
    with pytest.raises(ValueError, match=message):
        low_rank_sinkhorn(**{"x": x, "y": y, "a": a, "b": b, "rank": 3, **change})


@pytest.mark.parametrize("mass", [1e-30, 1e25])
def test_masses_whose_squares_are_no_numbers(mass):
    x, y, a, b = clouds(dtype=torch.float32)
    found = low_rank_sinkhorn(x, y, mass * a, mass * b, rank=4).value
    torch.testing.assert_close(found / mass, low_rank_sinkhorn(x, y, a, b, rank=4).value, rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore:The descent stopped")
@pytest.mark.parametrize("eps", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("rank", [2, 5])
def test_temperatures_that_are_tiny_beside_the_cost(eps, rank):
    x, y, *_ = clouds(8, 7)
    found = low_rank_sinkhorn(x, y, rank=rank, eps=eps, max_iter=60)
    least = exact(x, y).value
    assert least <= found.value <= 2 * least
    assert found.marginal_error < 1e-12


@pytest.mark.parametrize("rank", [4, 10])
@pytest.mark.parametrize("seed", range(5))
def test_clouds_that_fall_into_groups_take_few_steps(seed, rank):
    """Long steps leave the hubs' masses orders of magnitude from one, where Newton's method would begin badly."""
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(5, 2, generator=generator)
    x, y = (
        centres[torch.randint(5, (n,), generator=generator)] + 0.3 * torch.randn(n, 2, generator=generator)
        for n in (60, 50)
    )
    result = low_rank_sinkhorn(x, y, rank=rank, eps=1e-2)
    assert bool(result.converged)
    assert result.n_iter <= 100
    assert float(result.value) >= float(exact(x, y).value)
