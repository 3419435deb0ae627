"""Barycentres whose answer is known: translations, Gaussians, the line; and POT."""

import ot as pot
import pytest
import torch
from draws import drawn

from otdml.losses import sinkhorn_divergence
from otdml.ot import pad_clouds, sinkhorn_barycenter

DOUBLE = torch.float64
SIGMA, MEANS = torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE), torch.tensor([0.0, 1.0, 5.0], dtype=DOUBLE)
SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE)
GRID = torch.linspace(-14, 18, 321, dtype=DOUBLE)[:, None]


@pytest.mark.parametrize("eps", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_translations_of_a_cloud_average_whatever_the_temperature(eps, dtype):
    cloud, shifts = drawn(12, 3).to(dtype), 100 * drawn(4, 3, seed=1).to(dtype)
    w = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)
    found = sinkhorn_barycenter(cloud + shifts[:, None], w, eps=eps)
    assert found.converged
    assert found.points.dtype == dtype
    torch.testing.assert_close(found.points, cloud + (w @ shifts) / 10, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.weights, torch.full((12,), 1 / 12, dtype=dtype))


@pytest.mark.parametrize("eps", [0.5, 4.0])
def test_points_return_to_translations_from_elsewhere(eps):
    # Here the steps have work to do: the start is another cloud, and the divergence is zero at the answer alone.
    cloud = 3 * drawn(6, 2)
    start = cloud + 0.5 * drawn(6, 2, seed=2)
    found = sinkhorn_barycenter(torch.stack([cloud, cloud + 4]), init=start, eps=eps, tol=1e-6)
    assert found.n_iter > 5
    torch.testing.assert_close(found.points, cloud + 2, rtol=0, atol=2e-4)


def gaussians(n: int) -> torch.Tensor:
    """Weighted grids of the three densities, shape (3, n, 1), and the weights."""
    z = torch.linspace(-6, 6, n, dtype=DOUBLE)
    a = torch.softmax(-(z**2) / 2, 0)
    return (MEANS[:, None] + SIGMA[:, None] * z)[..., None], a.expand(3, n)


def sides(s2: float, eps: float) -> tuple[float, float]:
    delta = eps / 4
    return float((SHARES * (delta**2 + s2 * SIGMA**2).sqrt()).sum()), delta


@pytest.mark.parametrize("eps", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("debias", [True, False])
def test_gaussians_on_a_support_have_the_closed_form(eps, debias):
    x, a = gaussians(201)
    options = {"tol": 1e-4} if debias else {"tol": 1e-10}
    found = sinkhorn_barycenter(x, SHARES, a, support=GRID, eps=eps, debias=debias, **options)
    mean = float(found.weights @ GRID[:, 0])
    s2 = float(found.weights @ (GRID[:, 0] - mean) ** 2)
    left, delta = sides(s2, eps)
    assert mean == pytest.approx(float(SHARES @ MEANS), abs=1e-5)
    assert left == pytest.approx((delta**2 + s2**2) ** 0.5 if debias else s2 - delta, rel=5e-4 if debias else 1e-6)
    density = torch.softmax(-((GRID[:, 0] - mean) ** 2) / (2 * s2), 0)
    assert (found.weights - density).abs().sum() < (0.02 if debias else 1e-6)


@pytest.mark.parametrize("eps", [0.5, 2.0])
@pytest.mark.parametrize("debias", [True, False])
def test_free_points_of_gaussians_have_the_closed_form(eps, debias):
    z = torch.distributions.Normal(0, 1).icdf((torch.arange(100, dtype=DOUBLE) + 0.5) / 100)
    x = (MEANS[:, None] + SIGMA[:, None] * z / z.std(correction=0))[..., None]
    found = sinkhorn_barycenter(x, SHARES, eps=eps, debias=debias, tol=1e-4)
    s2 = float(found.points.var(correction=0))
    left, delta = sides(s2, eps)
    assert float(found.points.mean()) == pytest.approx(float(SHARES @ MEANS), abs=1e-4)
    # A hundred points are no Gaussian, to a few in ten thousand.
    assert left == pytest.approx((delta**2 + s2**2) ** 0.5 if debias else s2 + delta, rel=1e-3)


def test_on_the_line_quantiles_average_as_the_temperature_falls():
    x = 3 * drawn(3, 9, 1)
    expected = (SHARES[:, None] * x[..., 0].sort(-1).values).sum(0)
    found = sinkhorn_barycenter(x, SHARES, eps=1e-3, tol=1e-6)
    torch.testing.assert_close(found.points[:, 0].sort().values, expected, rtol=0, atol=1e-4)


def histograms() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grid = torch.linspace(0, 1, 30, dtype=DOUBLE)
    a = torch.stack([torch.softmax(-((grid - m) ** 2) / s, 0) for m, s in ((0.25, 0.01), (0.7, 0.03))])
    a = 0.9 * a + 0.1 * a.flip(1)
    return grid[:, None], a, torch.tensor([0.3, 0.7], dtype=DOUBLE)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("debias", [True, False])
def test_weights_on_a_grid_are_those_of_pot(debias, backend):
    grid, a, w = histograms()
    eps, C = 0.002, pot.dist(grid.numpy())
    # With unequal weights POT 0.9.7 starts its plain iteration at scalings whose weighted product is not one, which it
    # stays for ever: see the next test.
    w = w if debias else torch.full((2,), 0.5, dtype=DOUBLE)
    solver = pot.bregman.barycenter_debiased if debias else pot.bregman.barycenter
    theirs = solver(a.T.numpy(), C, eps, weights=w.numpy(), numItermax=20_000, stopThr=1e-9, warn=False)
    options = {"tol": 1e-6, "max_iter": 2000, "backend": backend}
    found = sinkhorn_barycenter(grid.expand(2, -1, -1), w, a, support=grid, eps=eps, debias=debias, **options)
    assert (found.weights - torch.from_numpy(theirs)).abs().sum() < 2e-5


def test_weights_on_a_grid_are_those_of_the_iteration_on_kernels():
    grid, a, w = histograms()
    K = torch.exp(-(grid - grid.T).square() / 0.01)
    v = torch.ones(2, 30, dtype=DOUBLE)
    for _ in range(500):
        sums = (a / (v @ K.T)) @ K
        b = (w @ sums.log()).exp()
        v = b / sums
    found = sinkhorn_barycenter(grid.expand(2, -1, -1), w, a, support=grid, eps=0.01, debias=False, tol=1e-10)
    torch.testing.assert_close(found.weights, b)


def test_free_points_without_debiasing_are_those_of_pot():
    x, init = drawn(2, 8, 2), drawn(5, 2, seed=3)
    w, a = torch.tensor([0.4, 0.6], dtype=DOUBLE), torch.full((8,), 1 / 8, dtype=DOUBLE)
    theirs = pot.bregman.free_support_sinkhorn_barycenter(
        [c.numpy() for c in x], [a.numpy()] * 2, init.numpy(), 0.5, weights=w.numpy(), numItermax=2000, stopThr=1e-20
    )
    found = sinkhorn_barycenter(x, w, init=init, eps=0.5, debias=False, tol=1e-8)
    torch.testing.assert_close(found.points, torch.from_numpy(theirs), rtol=0, atol=1e-5)


def objective(points, x, w, eps, b=None):
    return sum(share * sinkhorn_divergence(points, c, b, eps=eps, tol=1e-8) for share, c in zip(w, x, strict=True))


def test_the_objective_is_stationary_at_free_points():
    x, w, eps = drawn(2, 7, 2), torch.tensor([0.5, 0.5], dtype=DOUBLE), 0.5
    found = sinkhorn_barycenter(x, w, n_points=4, eps=eps, tol=1e-7, max_iter=3000, generator=torch.Generator())
    points = found.points.clone().requires_grad_()
    value = objective(points, x, w, eps)
    (gradient,) = torch.autograd.grad(value, points)
    assert gradient.abs().max() < 1e-6
    for seed in range(3):
        assert objective(found.points + 0.1 * drawn(4, 2, seed=seed), x, w, eps) > value


def test_the_objective_is_least_at_the_weights_of_a_support():
    x, w, eps, support = drawn(2, 7, 2), torch.tensor([0.5, 0.5], dtype=DOUBLE), 0.5, drawn(6, 2, seed=4)
    found = sinkhorn_barycenter(x, w, support=support, eps=eps, tol=1e-9, max_iter=5000)
    value = objective(support, x, w, eps, found.weights)
    for seed in range(5):
        other = (1 - 0.05) * found.weights + 0.05 * drawn(6, seed=seed).softmax(0)
        assert objective(support, x, w, eps, other) > value


def problem(batch: tuple[int, ...] = ()):
    x, a, w = drawn(*batch, 2, 5, 2), drawn(*batch, 2, 5, seed=1).exp(), drawn(*batch, 2, seed=2).exp()
    return x, a, w, drawn(3, 2, seed=3), 1.5 * drawn(6, 2, seed=4)


@pytest.mark.parametrize("free", [True, False], ids=["free", "support"])
@pytest.mark.parametrize("debias", [True, False])
def test_a_batch_is_a_loop(free, debias):
    x, a, w, init, support = problem((2, 2))
    where = {"init": init} if free else {"support": support}
    options = {"eps": 1.0, "tol": 1e-8, "max_iter": 3000, "debias": debias, **where}
    found = sinkhorn_barycenter(x, w, a, **options)
    assert found.converged.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            one = sinkhorn_barycenter(x[i, j], w[i, j], a[i, j], **options)
            torch.testing.assert_close(found.points[i, j], one.points, rtol=0, atol=1e-6)
            torch.testing.assert_close(found.weights[i, j], one.weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("free", [True, False], ids=["free", "support"])
@pytest.mark.parametrize("debias", [True, False])
def test_gradients_are_finite_differences(free, debias, backend):
    x, a, w, init, support = problem()
    options = {"eps": 1.0, "tol": 1e-11, "max_iter": 5000, "debias": debias, "backend": backend}

    def barycentre(x, a, w, support):
        where = {"init": init} if free else {"support": support}
        found = sinkhorn_barycenter(x, w.exp(), a.exp(), **where, **options)
        return found.points if free else found.weights

    tensors = [t.requires_grad_() for t in (x, a.log(), w.log(), support)][: 3 if free else 4]
    call = (lambda *t: barycentre(*t, support)) if free else barycentre
    assert torch.autograd.gradcheck(call, tensors, eps=1e-5, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_the_gradient_at_the_default_tolerance_is_near_the_exact_one():
    grid, a, w = histograms()

    def gradient(**options):
        leaves = [t.clone().requires_grad_() for t in (a, w)]
        clouds = grid.expand(2, -1, -1)
        found = sinkhorn_barycenter(clouds, leaves[1], leaves[0], support=grid, eps=0.002, **options)
        return torch.autograd.grad(found.weights @ grid.square().sum(-1), leaves)

    for rough, fine in zip(gradient(), gradient(tol=1e-7), strict=True):
        assert (rough - fine).norm() < 0.04 * fine.norm()


def test_weights_of_a_few_points_on_a_fine_grid_gather_and_converge():
    # Most of the grid is to have no weight: its logarithms must not lead the acceleration astray.
    x, a, w, _, _ = problem()
    grid = torch.cartesian_prod(*(torch.linspace(-2, 2, 12, dtype=DOUBLE),) * 2)
    w = w.requires_grad_()

    def value(w, tol):
        found = sinkhorn_barycenter(x, w, a, support=grid, eps=0.3, tol=tol, max_iter=10_000)
        assert found.n_iter < (600 if tol == 1e-3 else 10_000)
        assert (found.weights > 1e-4).sum() < 60
        return found.weights @ grid.square().sum(-1)

    rough, fine = value(w, 1e-3), value(w, 1e-5)
    assert rough.item() == pytest.approx(fine.item(), rel=5e-3)
    (slope,) = torch.autograd.grad(fine, w)
    step = torch.tensor([0.05, 0.0], dtype=DOUBLE)
    numeric = (value(w.detach() + step, 1e-5) - value(w.detach() - step, 1e-5)) / 0.1
    assert float(slope[0]) == pytest.approx(float(numeric), abs=0.02)


def test_clouds_of_different_sizes_are_padded_without_a_trace():
    parts = [drawn(4, 2), drawn(7, 2, seed=1)]
    x, a = pad_clouds(parts)
    more = torch.cat([x, x[:, :3] + 50], 1), torch.cat([a, torch.zeros(2, 3, dtype=DOUBLE)], 1)
    options = {"init": drawn(5, 2, seed=2), "eps": 0.5, "tol": 1e-7, "max_iter": 2000}
    first, second = sinkhorn_barycenter(x, None, a, **options), sinkhorn_barycenter(more[0], None, more[1], **options)
    torch.testing.assert_close(first.points, second.points, rtol=0, atol=1e-5)


def test_another_ground_cost_on_a_support():
    # The median, and not the mean: two of three clouds are one point.
    clouds = torch.tensor([[[0.0]], [[0.0]], [[9.0]]], dtype=DOUBLE)
    support = torch.arange(0.0, 10.0, dtype=DOUBLE)[:, None]
    by_length = sinkhorn_barycenter(clouds, support=support, cost="euclidean", eps=0.05, tol=1e-6, max_iter=5000)
    assert by_length.weights[0] > 0.999
    squared = sinkhorn_barycenter(clouds, support=support, eps=0.05, tol=1e-6, max_iter=5000)
    assert squared.weights[3] > 0.999


def test_single_precision_that_does_not_resolve_the_problem_is_left():
    grid, a, w = histograms()
    options = {"support": grid, "eps": 1e-3, "debias": False, "max_iter": 5000}
    single = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    double = sinkhorn_barycenter(grid.expand(2, -1, -1), w, a, tol=1e-5, **options)
    found = sinkhorn_barycenter(grid.float().expand(2, -1, -1), w.float(), a.float(), tol=1e-5, **single)
    assert found.weights.dtype == torch.float32
    torch.testing.assert_close(found.weights.double(), double.weights, rtol=0, atol=1e-5)


def test_double_precision_inside_keeps_the_gradient():
    grid, a, w = (t.requires_grad_() for t in histograms())
    slopes = torch.linspace(0, 1, len(grid), dtype=DOUBLE).square()

    def gradients(*tensors):
        support, clouds, masses, shares = tensors
        options = {"support": support, "eps": 1e-3, "debias": False, "tol": 1e-5, "max_iter": 5000}
        found = sinkhorn_barycenter(clouds.expand(2, -1, -1), shares, masses, **options)
        return torch.autograd.grad(found.weights @ slopes.to(found.weights), tensors)

    double = (grid, grid.detach().clone().requires_grad_(), a, w)
    single = tuple(t.detach().float().requires_grad_() for t in double)
    for found, expected in zip(gradients(*single), gradients(*double), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_batch_of_no_problems_on_a_support_has_gradients():
    clouds = torch.zeros(0, 2, 5, 3, requires_grad=True)
    found = sinkhorn_barycenter(clouds, support=torch.zeros(4, 3))
    assert found.weights.shape == (0, 4)
    assert torch.autograd.grad(found.weights.sum(), clouds)[0].shape == clouds.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_single(dtype):
    x = drawn(2, 5, 2).to(dtype)
    found = sinkhorn_barycenter(x, eps=1.0)
    assert found.points.dtype == torch.float32
    torch.testing.assert_close(found.points, sinkhorn_barycenter(x.float(), eps=1.0).points)


def test_points_that_coincide():
    found = sinkhorn_barycenter(torch.full((3, 4, 2), 7.0))
    assert found.converged
    torch.testing.assert_close(found.points, torch.full((4, 2), 7.0))
    diracs = torch.tensor([[[0.0, 0.0]], [[4.0, 8.0]]])
    torch.testing.assert_close(sinkhorn_barycenter(diracs, torch.tensor([3.0, 1.0])).points, torch.tensor([[1.0, 2.0]]))


def test_single_points_draw_together_what_starts_apart():
    diracs = torch.tensor([[[0.0, 0.0]], [[4.0, 8.0]]], dtype=DOUBLE)
    found = sinkhorn_barycenter(diracs, torch.tensor([3.0, 1.0], dtype=DOUBLE), init=20 * drawn(3, 2), eps=0.1)
    assert found.converged
    torch.testing.assert_close(found.points, torch.tensor([[1.0, 2.0]], dtype=DOUBLE).expand(3, 2), rtol=0, atol=0.1)


def test_a_start_for_each_of_a_batch_shares_the_clouds():
    x, a, w, _, _ = problem()
    init = drawn(2, 3, 2, seed=5)
    found = sinkhorn_barycenter(x, w, a, init=init, eps=1.0, tol=1e-8, max_iter=3000)
    for i in range(2):
        one = sinkhorn_barycenter(x, w, a, init=init[i], eps=1.0, tol=1e-8, max_iter=3000)
        torch.testing.assert_close(found.points[i], one.points, rtol=0, atol=1e-6)


def test_weights_of_any_size():
    x, a, w, init, _ = (t.float() for t in problem())
    expected = sinkhorn_barycenter(x, w, a, init=init, eps=1.0).points
    for size in (1e-30, 1e37):
        found = sinkhorn_barycenter(x, size * w, size * a, init=init, eps=1.0)
        torch.testing.assert_close(found.points, expected)


def test_what_does_not_converge_says_so():
    with pytest.warns(RuntimeWarning, match="barycentre stopped at `max_iter`=2 .* Raise `max_iter`"):
        found = sinkhorn_barycenter(drawn(3, 10, 2), tol=1e-8, max_iter=2)
    assert not found.converged


def test_transforms_and_second_derivatives_are_refused():
    x, _, w, init, _ = problem()
    with pytest.raises(RuntimeError, match="sinkhorn_barycenter has no transforms"):
        torch.func.grad(lambda w: sinkhorn_barycenter(x, w, init=init).points.sum())(w)
    w = w.requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn_barycenter(x, w, init=init).points.sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="have no second derivatives"):
        torch.autograd.grad(gradient.sum(), w)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clouds": [torch.zeros(3, 2)]},
            "`clouds` must be a torch.Tensor, got list. Make one .* `otdml.ot.pad_clouds`",
        ),
        ({"clouds": torch.zeros(3, 2)}, r"`clouds` must have shape \(..., K, n, d\)"),
        ({"weights": torch.ones(3)}, r"`weights` must hold one weight per point, shape \(2,\)"),
        ({"weights": torch.tensor([1.0, -1.0])}, "`weights` must hold no negative weight"),
        ({"weights": torch.zeros(2)}, "`weights` must have mass"),
        ({"a": torch.ones(5)}, "`a` must hold one weight per point of each cloud"),
        ({"a": torch.zeros(2, 5)}, "`a` must have mass"),
        ({"cost": "euclidean"}, "`cost` must be 'sqeuclidean' where points are free"),
        ({"support": torch.zeros(4, 3)}, "`support` must have the features of `clouds`, 2"),
        ({"init": torch.zeros(4, 3)}, "`init` must have the features of `clouds`, 2"),
        ({"support": torch.zeros(4, 2), "n_points": 3}, "`n_points` must be None where `support` is given"),
        ({"init": torch.zeros(4, 2), "n_points": 3}, "`n_points` must be None where `init` is given"),
        ({"eps": -1.0}, "`eps` must be a positive number"),
        ({"tol": 0.0}, "`tol` must be a positive number"),
        ({"clouds": torch.full((2, 5, 2), torch.nan)}, "`clouds` must give finite costs"),
        ({"clouds": torch.full((2, 5, 2), torch.nan), "eps": 1.0}, "`clouds` must give finite costs"),
        ({"support": torch.full((4, 2), torch.inf), "eps": 1.0}, "`support` must give finite costs"),
        ({"init": torch.full((4, 2), torch.nan), "eps": 1.0}, "`init` must give finite costs"),
        ({"debias": "False"}, "`debias` must be True or False, got 'False'"),
    ],
)
def test_errors(change, message):
    arguments = {"clouds": torch.zeros(2, 5, 2), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        sinkhorn_barycenter(**arguments)


def test_parameters_of_a_cost_have_no_derivative_and_are_refused():
    def stretched(x, y):
        return scale * (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)

    support = torch.tensor([[0.0], [1.0], [2.0]])
    clouds, scale = torch.stack([support[:2], support[1:]]), torch.tensor(2.0, requires_grad=True)
    with pytest.raises(ValueError, match="`cost` must depend on nothing but the points, got parameters with gradients"):
        sinkhorn_barycenter(clouds, support=support, cost=stretched, eps=0.5)
    with torch.no_grad():
        found = sinkhorn_barycenter(clouds, support=support, cost=stretched, eps=0.5, tol=1e-5).weights
    torch.testing.assert_close(
        found, sinkhorn_barycenter(clouds, support=support, eps=0.25, tol=1e-5).weights, rtol=0, atol=1e-3
    )


def test_costs_near_the_least_number_of_single_precision_are_solved_in_double():
    clouds = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    support = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    expected = sinkhorn_barycenter(clouds, support=support).weights
    found = sinkhorn_barycenter(1e-18 * clouds, support=1e-18 * support).weights
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
