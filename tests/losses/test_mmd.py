"""Maximum mean discrepancy: by hand, in closed form, and against the dense matrix."""

import math
import pickle

import numpy as np
import pytest
import torch

from otdml.benchmarks.speed.harness import peak_memory
from otdml.losses._mmd import MMD, median_distance, mmd, mmd_self_term

PROFILES = {
    "gaussian": lambda r: math.exp(-r * r / 2),
    "laplacian": lambda r: math.exp(-r),
    "imq": lambda r: 1 / math.sqrt(1 + r * r),
    "energy": lambda r: -r,
}


@pytest.mark.parametrize("bandwidth", [1.0, 2.5])
@pytest.mark.parametrize("kernel", PROFILES)
def test_two_diracs(kernel, bandwidth):
    k = PROFILES[kernel]
    value = mmd(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), kernel=kernel, bandwidth=bandwidth)
    assert float(value) == pytest.approx(2 * k(0) - 2 * k(5 / bandwidth), rel=1e-5)


@pytest.mark.parametrize("kernel", PROFILES)
def test_several_bandwidths_give_the_mean(kernel):
    x, y = torch.zeros(1, 1), torch.ones(1, 1)
    several = mmd(x, y, kernel=kernel, bandwidth=[0.5, 1.0, 2.0])
    each = [mmd(x, y, kernel=kernel, bandwidth=s) for s in (0.5, 1.0, 2.0)]
    torch.testing.assert_close(several, torch.stack(each).mean())


def cramer(x, y):
    """2 ∫ (F - G)² of two samples on the line."""
    grid = torch.cat([x, y]).sort().values
    gap = grid.diff()
    F, G = ((z.sort().values[:, None] <= grid[:-1]).double().mean(0) for z in (x, y))
    return 2 * ((F - G).square() * gap).sum()


def test_energy_distance_on_the_line_is_cramers(generator):
    x = torch.randn(40, generator=generator, dtype=torch.float64)
    y = torch.randn(31, generator=generator, dtype=torch.float64) * 2 + 1
    torch.testing.assert_close(mmd(x[:, None], y[:, None], kernel="energy"), cramer(x, y))


def dense_mmd(x, y, a, b, k):
    def matrix(p, q):
        return k(torch.linalg.vector_norm(p[:, None] - q, dim=-1))

    return a @ matrix(x, x) @ a + b @ matrix(y, y) @ b - 2 * a @ matrix(x, y) @ b


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "imq", "energy"])
def test_equals_the_matrix_form_with_weights(kernel, backend, generator):
    x, y = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (30, 20))
    a, b = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (30, 20))
    a, b = a / a.sum(), b / b.sum()
    functions = {
        "gaussian": lambda r: (-r.square() / 2).exp(),
        "laplacian": lambda r: (-r).exp(),
        "imq": lambda r: (1 + r.square()).rsqrt(),
        "energy": torch.neg,
    }
    expected = dense_mmd(x, y, a, b, functions[kernel])
    torch.testing.assert_close(mmd(x, y, a, b, kernel=kernel, backend=backend), expected)


def test_unbiased_is_the_u_statistic(generator):
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (6, 5))
    K = {key: (-torch.cdist(p, q).square() / 2).exp() for key, p, q in (("xx", x, x), ("yy", y, y), ("xy", x, y))}
    expected = (K["xx"].sum() - 6) / 30 + (K["yy"].sum() - 5) / 20 - 2 * K["xy"].mean()
    torch.testing.assert_close(mmd(x, y, unbiased=True), expected)


def test_unbiased_has_mean_zero_on_samples_of_one_measure(generator):
    x, y = torch.randn(2, 4000, 8, 1, generator=generator, dtype=torch.float64)
    biased, unbiased = mmd(x, y), mmd(x, y, unbiased=True)
    assert biased.mean() > 0.1
    assert unbiased.mean().abs() < 4 * unbiased.std() / 4000**0.5


def test_unbiased_gradients_of_minibatches_average_to_that_of_all(generator):
    import itertools

    x = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    (whole,) = torch.autograd.grad(mmd(x, y, unbiased=True), x)
    parts = [mmd(x[list(rows)], y, unbiased=True) for rows in itertools.combinations(range(5), 3)]
    (mean,) = torch.autograd.grad(sum(parts) / len(parts), x)
    torch.testing.assert_close(mean, whole)


@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_on_equal_measures_in_both_forms(kernel, dtype, generator):
    x = torch.randn(40, 16, generator=generator, dtype=dtype, requires_grad=True)
    for backend in ("dense", "streamed"):
        value = mmd(x, x.detach(), kernel=kernel, backend=backend)
        (grad,) = torch.autograd.grad(value, x)
        assert value.abs() < 100 * torch.finfo(dtype).eps
        assert grad.abs().max() < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kernel", PROFILES)
def test_gradients_in_points_and_weights(kernel, generator):
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64, requires_grad=True) for n in (4, 3))
    a, b = (torch.rand(n, generator=generator, dtype=torch.float64, requires_grad=True) for n in (4, 3))
    for unbiased in (False, True):
        assert torch.autograd.gradcheck(lambda *t, u=unbiased: mmd(*t, kernel=kernel, unbiased=u), (x, y, a, b))


def test_median_distance_by_hand():
    x, y = torch.tensor([[[0.0], [1.0]], [[2.0], [2.0]]]), torch.tensor([[[4.0]], [[2.0]]])
    # Distances 1, 3, 4 in the first batch element; all points equal in the second.
    assert median_distance(x, y).tolist() == [3.0, 1.0]


def test_median_bandwidth_does_not_depend_on_the_unit_of_length(generator):
    x, y = torch.randn(2, 3, 20, 4, generator=generator, dtype=torch.float64)
    value = mmd(x, y, bandwidth="median")
    torch.testing.assert_close(mmd(100 * x, 100 * y, bandwidth="median"), value)
    one = mmd(x[0], y[0], bandwidth=float(median_distance(x[0], y[0])))
    torch.testing.assert_close(value[0], one)


def test_median_distance_samples_large_clouds(generator):
    x = torch.randn(20_000, 50, generator=generator)
    # Distances of Gaussian points in 50 dimensions are near sqrt(2 * 50).
    assert float(median_distance(x, x)) == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("unbiased", [False, True])
def test_known_second_term(unbiased, generator):
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64, requires_grad=True) for n in (6, 5))
    b = torch.rand(5, generator=generator, dtype=torch.float64)
    options = {"kernel": "laplacian", "bandwidth": [0.5, 2.0], "unbiased": unbiased}
    second = mmd_self_term(y, b, **options)
    whole, saved = (mmd(x, y, None, b, **options, second=known) for known in (None, second))
    torch.testing.assert_close(saved, whole)
    torch.testing.assert_close(torch.autograd.grad(saved, (x, y)), torch.autograd.grad(whole, (x, y)))
    with pytest.raises(ValueError, match="`bandwidth` must be a number, several numbers"):
        mmd(x, y, bandwidth="median", second=second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, generator):
    x, y = (torch.randn(30, 8, generator=generator).to(dtype) for _ in range(2))
    value = mmd(x, y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, mmd(x.float(), y.float()))


def test_module_is_the_function_and_shows_its_options(generator):
    x, y = torch.randn(2, 5, 2, generator=generator)
    loss = MMD(kernel="imq", bandwidth=[1.0, 2.0], unbiased=True)
    torch.testing.assert_close(loss(x, y), mmd(x, y, kernel="imq", bandwidth=[1.0, 2.0], unbiased=True))
    assert repr(loss) == "MMD(kernel='imq', bandwidth=[1.0, 2.0], unbiased=True, cache_second=False)"
    assert pickle.loads(pickle.dumps(loss))(x, y) == loss(x, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "cubic"}, "`kernel` must be one of 'gaussian', 'laplacian', 'imq', 'energy', got 'cubic'"),
        ({"bandwidth": 0.0}, "`bandwidth` must be a positive number, got 0.0"),
        (
            {"bandwidth": "mean"},
            "`bandwidth` must be a number, several numbers, or 'median' ",
        ),
        ({"bandwidth": []}, "`bandwidth` must be one number or more, got none"),
        ({"backend": "gpu"}, "`backend` must be one of"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        mmd(torch.zeros(2, 1), torch.zeros(2, 1), **options)
    with pytest.raises(ValueError, match=message):
        MMD(**options)


@pytest.mark.parametrize("bandwidth", [None, torch.ones(2), True, ["wide"]])
def test_bandwidth_of_another_type(bandwidth):
    with pytest.raises(TypeError, match="`bandwidth` must be a"):
        MMD(bandwidth=bandwidth)


@pytest.mark.parametrize("kernel", PROFILES)
def test_median_bandwidth_far_from_the_origin(kernel, generator):
    x, y = 1000 + torch.randn(2, 30, 3, generator=generator)
    expected = mmd(x.double(), y.double(), kernel=kernel, bandwidth="median")
    torch.testing.assert_close(mmd(x, y, kernel=kernel, bandwidth="median").double(), expected, rtol=1e-4, atol=1e-6)


def test_one_point_has_no_unbiased_form():
    with pytest.raises(ValueError, match="`unbiased` must be False where a measure has one point"):
        mmd(torch.zeros(1, 1), torch.zeros(2, 1), unbiased=True)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["gaussian", "energy"])
def test_fifty_thousand_points_below_500_mib(kernel, generator):
    # 500 points, each a hundred times over, are 500 weighted points: the exact value of the large problem is cheap.
    # With the nearest pairs at distance zero this is the hardest case for the energy, too.
    few = [torch.randn(500, 64, generator=generator) / 8 + shift for shift in (0.0, 0.05)]
    x, y = (z.repeat(100, 1)[torch.randperm(50_000, generator=generator)] for z in few)
    x.requires_grad_()

    def run():
        value = mmd(x, y, kernel=kernel)
        value.backward()
        return value.detach()

    value, peak = peak_memory(run)
    expected = mmd(*(z.double() for z in few), kernel=kernel)
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=0)
    assert peak < 500


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_any_unit_of_length(kernel, backend, scale, generator):
    x, y = torch.randn(12, 3, generator=generator), torch.randn(9, 3, generator=generator)
    factor = scale if kernel == "energy" else 1.0
    z = (x * scale).requires_grad_()
    bandwidth = 1.0 if kernel == "energy" else scale
    value = mmd(z, y * scale, kernel=kernel, bandwidth=bandwidth, backend=backend)
    torch.testing.assert_close(value / factor, mmd(x, y, kernel=kernel), rtol=1e-4, atol=1e-6)
    (slope,) = torch.autograd.grad(value, z)
    (expected,) = torch.autograd.grad(mmd(x.requires_grad_(), y, kernel=kernel), x)
    torch.testing.assert_close(slope * scale / factor, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(median_distance(z.detach(), y * scale) / scale, median_distance(x, y))


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("first", [False, True])
def test_a_point_at_infinity_is_not_hidden(kernel, backend, first):
    x, y = torch.zeros(3, 2), torch.ones(4, 2)
    (x if first else y)[1, 0] = torch.inf
    assert mmd(x, y, kernel=kernel, backend=backend).isnan()
    assert mmd_self_term(x if first else y, kernel=kernel, backend=backend).isnan()


@pytest.mark.parametrize("bandwidth", [np.float32(0.5), np.float64(0.5), [np.float32(0.5)], np.array([0.5])])
def test_bandwidth_of_numpy(bandwidth):
    x, y = torch.zeros(1, 2), torch.ones(1, 2)
    torch.testing.assert_close(mmd(x, y, bandwidth=bandwidth), mmd(x, y, bandwidth=0.5))
    torch.testing.assert_close(MMD(bandwidth=bandwidth, cache_second=True)(x, y), mmd(x, y, bandwidth=0.5))


@pytest.mark.parametrize("scales", [(1.0, 1e15), (1e-10, 1e10), (1e-15, 1e15), (1.0, 2.0)])
def test_elements_of_a_batch_have_units_of_their_own(scales):
    x = torch.tensor([[0.0], [1.0]]) * torch.tensor(scales)[:, None, None]
    y = x + 2 * x.amax((1, 2), keepdim=True)
    for options in ({"kernel": "energy"}, {"bandwidth": "median"}):
        alone = torch.stack([mmd(p, q, **options) for p, q in zip(x, y, strict=True)])
        torch.testing.assert_close(mmd(x, y, **options), alone, rtol=1e-5, atol=0)
    torch.testing.assert_close(mmd(x, y, kernel="energy"), 3 * torch.tensor(scales), rtol=1e-5, atol=0)
    own = mmd_self_term(x, kernel="energy")
    torch.testing.assert_close(own, -0.5 * torch.tensor(scales), rtol=1e-5, atol=0)
    torch.testing.assert_close(mmd(x, y[0], kernel="energy")[0], mmd(x[0], y[0], kernel="energy"), rtol=1e-5, atol=0)
