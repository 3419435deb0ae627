"""Pairwise energies: exact optima, closed forms, the tie-break, minibatches."""

import functools
import itertools
import math

import pytest
import torch

from otdml.losses import KernelDispersion, kernel_dispersion
from otdml.sphere import uniform_points


def orthoplex(d):
    return torch.cat([torch.eye(d), -torch.eye(d)]).double()


def icosahedron():
    phi = (1 + 5**0.5) / 2
    base = torch.tensor([[0, a, b * phi] for a in (-1, 1) for b in (-1, 1)], dtype=torch.float64)
    return torch.cat([base.roll(k, dims=1) for k in range(3)])


def e8_roots():
    pairs = [
        [a if k == i else b if k == j else 0 for k in range(8)]
        for i, j in itertools.combinations(range(8), 2)
        for a in (-1, 1)
        for b in (-1, 1)
    ]
    halves = [signs for signs in itertools.product((-0.5, 0.5), repeat=8) if math.prod(signs) > 0]
    return torch.tensor(pairs + halves, dtype=torch.float64)


def cell600():
    """The unit icosians: eight axes, sixteen halves, and the even permutations of (±φ, ±1, ±1/φ, 0) / 2."""
    phi = (1 + 5**0.5) / 2
    halves = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=4)), dtype=torch.float64)
    even = [p for p in itertools.permutations(range(4)) if torch.eye(4)[list(p)].det() > 0]
    base = [(a * phi / 2, b / 2, c / (2 * phi), 0) for a, b, c in itertools.product((-1, 1), repeat=3)]
    rest = torch.tensor([[row[k] for k in p] for p in even for row in base], dtype=torch.float64)
    return torch.cat([orthoplex(4), halves, rest])


def derived(x):
    """The nearest neighbours of the first point of a code, as seen from it: a code of one dimension less."""
    x = x / x.norm(dim=1, keepdim=True)
    cosines = x @ x[0]
    largest = cosines[cosines < 1 - 1e-9].max()
    basis = torch.linalg.qr(torch.cat([x[:1], torch.eye(x.shape[1], dtype=x.dtype)]).T).Q[:, 1:]
    return x[(cosines - largest).abs() < 1e-9] @ basis


E8, CODE56 = e8_roots(), derived(e8_roots())
SCHLAEFLI = derived(CODE56)
# Points; sums over pairs of 1/r, 1/r² and -log r; and the logarithm of the mean of exp(-2 r²).
CODES = {
    "icosahedron": (icosahedron(), 12, 3, 49.165253058, 39, -21.606145230, -2.971451050),
    "cross-polytope": (orthoplex(8), 16, 8, 83.195959493, 58, -44.361419556, -4.067685467),
    "Clebsch": (derived(SCHLAEFLI), 16, 5, 85.606232978, 62.5, -42.063161366, -3.585288921),
    "Schläfli": (SCHLAEFLI, 27, 6, 254.305547821, 189, -117.946561161, -3.454865215),
    "56 points": (CODE56, 56, 7, 1131.668766647, 857.5, -498.905402081, -3.310820028),
    "600-cell": (cell600(), 120, 4, 5796.576455702, 5395, -1903.986315015, -2.504415859),
    "E8": (E8, 240, 8, 21351.248340495, 16550, -9014.707636625, -3.171312559),
}
ENERGIES = [{"kernel": "riesz", "s": 1.0}, {"kernel": "riesz", "s": 2.0}, {"kernel": "log"}]
UNIFORMITY = {"kernel": "gaussian", "gamma": 2.0, "log": True}


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("name", CODES)
def test_universally_optimal_codes(name, backend):
    x, n, d, *sums, uniformity = CODES[name]
    assert x.shape == (n, d)
    pairs = n * (n - 1) / 2
    for energy, expected in zip(ENERGIES, sums, strict=True):
        assert float(kernel_dispersion(x, **energy, backend=backend)) * pairs == pytest.approx(expected, rel=1e-9)
    assert float(kernel_dispersion(x, **UNIFORMITY, backend=backend)) == pytest.approx(uniformity, abs=1e-7)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("name", CODES)
def test_optimal_codes_are_at_rest(name, backend):
    x = CODES[name][0].clone().requires_grad_()
    pairs = len(x) * (len(x) - 1) / 2
    for energy in (*ENERGIES, UNIFORMITY, {"kernel": "laplacian"}):
        value = kernel_dispersion(x, **energy, backend=backend) * pairs
        (grad,) = torch.autograd.grad(value, x)
        assert grad.norm(dim=1).max() < 1e-9 * max(1, float(value.detach()) / 100)
        # Of the mean over pairs, which is what is minimised:
        assert grad.norm(dim=1).max() / pairs < 1e-9


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kernel": "gaussian", "gamma": 0.5}, math.exp(-1)),
        ({"kernel": "laplacian", "gamma": 0.5}, math.exp(-(0.5**0.5))),
        ({"kernel": "riesz", "s": 4.0}, 0.25),
        ({"kernel": "log"}, -math.log(2) / 2),
        ({"kernel": "gaussian", "gamma": 0.5, "distance": "geodesic"}, math.exp(-(math.pi**2) / 8)),
        ({"kernel": "laplacian", "gamma": 0.5, "distance": "geodesic"}, math.exp(-math.pi / 4)),
        ({"kernel": "riesz", "s": 4.0, "distance": "geodesic"}, (math.pi / 2) ** -4),
        ({"kernel": "log", "distance": "geodesic"}, -math.log(math.pi / 2)),
    ],
)
def test_a_right_angle(options, expected):
    z = torch.tensor([[2.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    assert float(kernel_dispersion(z, **options)) == pytest.approx(expected, rel=1e-12)
    if options["kernel"] != "log":
        assert float(kernel_dispersion(z, **options, log=True)) == pytest.approx(math.log(expected), rel=1e-12)


@pytest.mark.parametrize("distance", ["chord", "geodesic"])
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "riesz", "log"])
def test_gradients_are_finite_differences(kernel, distance, generator):
    z = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    for log in (False, True):
        if kernel != "log" or not log:
            function = functools.partial(kernel_dispersion, kernel=kernel, distance=distance, log=log)
            assert torch.autograd.gradcheck(function, (z,))


@pytest.mark.parametrize("options", [{"kernel": "gaussian", "gamma": 1e4}, {"kernel": "riesz", "s": 500.0}])
def test_the_logarithm_neither_underflows_nor_overflows(options):
    # Four points of the square: the eight ordered pairs of neighbours at distance sqrt(2) outweigh the rest.
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], requires_grad=True)
    value = kernel_dispersion(z, **options, log=True)
    log_largest = -2e4 if options["kernel"] == "gaussian" else -250 * math.log(2)
    assert float(value.detach()) == pytest.approx(log_largest + math.log(8 / 12), rel=1e-6)
    value.backward()
    assert z.grad.isfinite().all()


OPTIONS = [
    {"kernel": k, "distance": d} for k in ("gaussian", "laplacian", "riesz", "log") for d in ("chord", "geodesic")
] + [{"kernel": "riesz", "s": 20.0}, {"kernel": "gaussian", "log": True}, {"kernel": "riesz", "log": True, "s": 50.0}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_coincident_rows_are_pushed_apart(options, backend, dtype, generator):
    z = torch.randn(6, 3, generator=generator, dtype=dtype)
    z[3] = z[2] = 2 * z[1]
    z.requires_grad_()
    value = kernel_dispersion(z, **options, backend=backend)
    (grad,) = torch.autograd.grad(value, z)
    assert value.isfinite()
    assert grad.isfinite().all()
    moved = (z - 1e-2 * grad / grad.abs().max()).detach()
    for i, j in ((1, 2), (1, 3), (2, 3)):
        assert not torch.allclose(*(moved[k] / moved[k].norm() for k in (i, j)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_just_too_far_apart_to_be_moved_repel(options, backend, d, generator):
    """Rows within 16 rounding units are moved apart; those of 19 have to part by their own force."""
    x = uniform_points(30, d, generator=generator, dtype=torch.float64)
    aside = x[2] - (x[2] @ x[1]) * x[1]
    x[2] = x[1] + 19 * torch.finfo(torch.float32).eps * aside / aside.norm()
    z = x.float().requires_grad_()
    (grad,) = torch.autograd.grad(kernel_dispersion(z, **options, backend=backend), z)
    apart = (z[2] - z[1]).detach()
    force = (grad[1] - grad[2]) @ apart / apart.norm()
    # A smooth kernel has none at such a distance, and a capped one little.
    if options.get("kernel") != "gaussian" and options.get("s") != 20.0:
        assert force > 0.1 * grad.norm(dim=1).max()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_collapsed_cloud_has_finite_gradients(options):
    for z in (torch.ones(300, 64), torch.zeros(300, 64)):
        z.requires_grad_()
        value = kernel_dispersion(z, **options)
        (grad,) = torch.autograd.grad(value, z)
        assert value.isfinite()
        assert grad.isfinite().all()
        # The higher powers see the nearest pairs alone.
        assert (grad.abs().amax(1) > 0).sum() >= (2 if options.get("s") == 50 else 300)


def minibatch_means(function, z, size):
    """Mean over all minibatches of one size of the value and of the gradient in z."""
    subsets = list(itertools.combinations(range(len(z)), size))
    mean = sum(function(z[list(rows)]) for rows in subsets) / len(subsets)
    return mean, *torch.autograd.grad(mean, z)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "riesz", "log"])
def test_minibatches_are_unbiased(kernel, generator):
    z = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    function = functools.partial(kernel_dispersion, kernel=kernel)
    value = function(z)
    (grad,) = torch.autograd.grad(value, z)
    found = minibatch_means(function, z, 3)
    torch.testing.assert_close(found, (value, grad))


def test_logarithms_of_minibatches_are_biased(generator):
    z = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    function = functools.partial(kernel_dispersion, log=True)
    assert minibatch_means(function, z, 3)[0] < function(z) - 0.01


def test_streamed_equals_dense_on_a_large_cloud_in_float32(generator):
    z = uniform_points(700, 32, generator=generator).requires_grad_()
    results = []
    for backend in ("dense", "streamed"):
        value = kernel_dispersion(z, kernel="riesz", backend=backend)
        results.append((value, *torch.autograd.grad(value, z)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-8)


def test_nan_stays_nan():
    assert kernel_dispersion(torch.tensor([[1.0, 0.0], [math.nan, 0.0], [0.0, 1.0]])).isnan()


def test_batch_and_autocast(generator):
    z = torch.randn(2, 3, 5, 4, generator=generator)
    value = kernel_dispersion(z)
    assert value.shape == (2, 3)
    torch.testing.assert_close(value[1, 2], kernel_dispersion(z[1, 2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernel_dispersion(z).equal(value)


def test_module_is_the_function(generator):
    z = torch.randn(5, 3, generator=generator)
    module = KernelDispersion(kernel="riesz", s=2.0, distance="geodesic", log=True)
    assert module(z) == kernel_dispersion(z, kernel="riesz", s=2.0, distance="geodesic", log=True)
    assert repr(module) == "KernelDispersion(kernel='riesz', distance='geodesic', s=2, log=True)"
    assert repr(KernelDispersion()) == "KernelDispersion(kernel='gaussian', distance='chord', gamma=2, log=False)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "cosine"}, "`kernel` must be one of 'gaussian', 'laplacian', 'riesz', 'log', got 'cosine'"),
        ({"distance": "angle"}, "`distance` must be one of 'chord', 'geodesic', got 'angle'"),
        ({"gamma": -1.0}, "`gamma` must be a positive number, got -1"),
        ({"kernel": "riesz", "s": 0.0}, "`s` must be a positive number, got 0"),
        ({"kernel": "log", "log": True}, "`log` must be False for the kernel 'log'"),
        ({"kernel": "riesz", "gamma": 2.0}, "`gamma` must be None with kernel='riesz', got 2.0. It belongs to"),
        ({"kernel": "log", "s": 1.0}, "`s` must be None with kernel='log', got 1.0. It belongs to 'riesz'"),
        ({"kernel": "gaussian", "gamma": 1.0, "s": 1.0}, "`s` must be None with kernel='gaussian', got 1.0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        kernel_dispersion(torch.eye(2), **options)
    with pytest.raises(ValueError, match=message):
        KernelDispersion(**options)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
def test_the_logarithm_of_a_slow_kernel_is_that_of_the_mean(kernel, generator):
    """Where nothing can underflow the mean is not taken relative to its largest term, with the same result."""
    z = torch.randn(20, 3, generator=generator)
    for gamma in (2.999, 3.001):
        value = kernel_dispersion(z.double(), kernel=kernel, gamma=gamma).log()
        torch.testing.assert_close(kernel_dispersion(z, kernel=kernel, gamma=gamma, log=True), value.float())


def test_one_point_has_no_energy():
    with pytest.raises(ValueError, match="`z` must hold at least two points, got shape"):
        kernel_dispersion(torch.ones(1, 3))
