"""Sums of kernels: dense, streamed and KeOps forms against each other and by hand."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from otdml import _precision, _tiles, kernel_sums
from otdml.kernel_sums import cross_sum, pair_sum, quadratic_form, smallest_squared_distance
from otdml.kernels import (
    energy,
    gaussian,
    geodesic,
    inverse_multiquadric,
    laplacian,
    logarithmic,
    mixture,
    riesz,
)
from otdml.sphere import uniform_points

FINITE = {
    "gaussian": gaussian(0.7),
    "laplacian": laplacian(0.7),
    "imq": inverse_multiquadric(0.5),
    "energy": energy(),
    "mixture": mixture([gaussian(0.3), laplacian(1.0)]),
    "geodesic laplacian": geodesic(laplacian(0.8)),
}
SINGULAR = {"riesz": riesz(1.0), "log": logarithmic(), "geodesic riesz": geodesic(riesz(1.5))}


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setitem(_tiles.TILE, "cpu", 64 * 64)


def clouds(d, batch, dtype, generator):
    x, y = (uniform_points(*batch, n, d, generator=generator, dtype=dtype) for n in (150, 131))
    y[..., :3, :] = x[..., :3, :]
    a, b = (torch.randn(z.shape[:-1], generator=generator, dtype=dtype) for z in (x, y))
    return [t.requires_grad_() for t in (x, a, y, b)]


def value_and_gradients(function, tensors):
    value = function(*tensors)
    return [value, *torch.autograd.grad((value * torch.arange(1.0, 1 + value.numel())).sum(), tensors)]


def assert_same(function, tensors, backend, tol, extra=0.0):
    dense = value_and_gradients(functools.partial(function, backend="dense"), tensors)
    other = value_and_gradients(functools.partial(function, backend=backend), tensors)
    for expected, actual in zip(dense, other, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=tol * float(expected.detach().abs().max()) + extra)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("name", [*FINITE, *SINGULAR])
def test_streamed_pairs_are_dense_pairs(name, d, batch, dtype, tol, generator, small_tiles):
    kernel = (FINITE | SINGULAR)[name]
    x, a, _, _ = clouds(d, batch, dtype, generator)
    assert_same(functools.partial(pair_sum, kernel), (x, a), "streamed", tol)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("name", FINITE)
def test_streamed_cross_terms_are_dense_ones_where_points_meet(name, d, batch, dtype, tol, generator, small_tiles):
    # In float32 the force of points that are antipodes to within rounding has no digits.
    tol = 10 * tol if "geodesic" in name else tol
    tensors, kernel = clouds(d, batch, dtype, generator), FINITE[name]
    extra = antipodal_rounding(kernel, *tensors) if "geodesic" in name else 0.0
    assert_same(functools.partial(cross_sum, kernel), tensors, "streamed", tol, extra)


@torch.no_grad()
def antipodal_rounding(kernel, x, a, y, b):
    """What 16 rounding units of each squared distance r² change the forces by: a share of 1 / (4 - r²) of each."""
    unit = 16 * torch.finfo(x.dtype).eps
    x, a, y, b = (t.double() for t in (x, a, y, b))
    r2 = torch.cdist(x, y).square()
    force = 2 * (a[..., :, None] * b[..., None, :] * kernel(r2)[1] * r2.sqrt()).abs()
    doubt = (force * unit / (4 - r2).clamp(min=unit)).where(r2 > 2, 0.0)
    numbered = doubt.flatten(0, -3) if doubt.ndim > 2 else doubt[None]
    numbered = numbered * torch.arange(1.0, 1 + len(numbered))[:, None, None]
    return max(float(numbered.sum(-1).max()), float(numbered.sum(-2).max()))


@pytest.mark.keops
@pytest.mark.xdist_group("keops")
def test_keops_sums_are_dense_sums(generator):
    pytest.importorskip("pykeops")
    x, a, y, b = clouds(3, (), torch.float64, generator)
    assert_same(functools.partial(pair_sum, riesz(1.0)), (x, a), "keops", 1e-11)
    assert_same(functools.partial(cross_sum, gaussian(0.5)), (x, a, y, b), "keops", 1e-11)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_gradients_are_finite_differences(backend, generator, small_tiles):
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    a, b = (torch.randn(n, generator=generator, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    for kernel in (*FINITE.values(), *SINGULAR.values()):
        if "Geodesic" in repr(kernel):
            continue
        assert torch.autograd.gradcheck(functools.partial(pair_sum, kernel, backend=backend), (x, a))
        assert torch.autograd.gradcheck(functools.partial(cross_sum, kernel, backend=backend), (x, a, y, b))


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_second_derivatives_are_finite_differences(backend, generator, small_tiles):
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64, requires_grad=True) for n in (4, 3))
    a, b = (torch.randn(n, generator=generator, dtype=torch.float64, requires_grad=True) for n in (4, 3))
    for kernel in (laplacian(), riesz(1.0)):
        assert torch.autograd.gradgradcheck(functools.partial(pair_sum, kernel, backend=backend), (x, a))
        assert torch.autograd.gradgradcheck(functools.partial(cross_sum, kernel, backend=backend), (x, a, y, b))


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("name", FINITE)
def test_coincident_points_of_two_clouds_have_finite_gradients(name, backend):
    x = torch.eye(3, requires_grad=True)
    weights = torch.full((3,), 1 / 3)
    value = cross_sum(FINITE[name], x, weights, torch.eye(3), weights, backend=backend)
    (grad,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert grad.isfinite().all()
    # By symmetry each row of the gradient is normal to the line of the other two.
    torch.testing.assert_close(grad[0, 1], grad[0, 2])


def test_quadratic_form_is_the_matrix_form(generator):
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    a = torch.randn(6, generator=generator, dtype=torch.float64)
    K = (-torch.cdist(x, x) / 2).exp()
    torch.testing.assert_close(quadratic_form(laplacian(2.0), x, a), a @ K @ a)


def test_near_pairs_keep_their_digits_far_from_the_origin(small_tiles):
    x = torch.linspace(0, 1, 200)[:, None] * torch.ones(20) / 20**0.5
    weights = torch.full((200,), 1 / 200)
    near, far = (cross_sum(energy(), z, weights, z, weights, backend="streamed") for z in (x, x + 100.0))
    assert float(near) == pytest.approx(-(200**2 - 1) / (3 * 200 * 199), rel=1e-5)
    # The rounding of the points themselves: 4e-6 of some 0.3.
    assert float(far) == pytest.approx(float(near), rel=1e-4)


class LargestTensor(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_memory_is_that_of_a_tile(generator):
    x = torch.randn(3000, 4, generator=generator, requires_grad=True)
    with LargestTensor() as seen:
        pair_sum(gaussian(), x, torch.full((3000,), 1 / 3000)).backward()
    assert 2**20 < seen.entries <= _tiles.TILE["cpu"]


def test_smallest_squared_distance(generator, small_tiles):
    # 129 = 2 * 64 + 1 points leave a last tile that holds one point alone.
    x = torch.randn(2, 129, 12, generator=generator)
    x[1, 128] = x[1, 5]
    r2 = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    r2.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    torch.testing.assert_close(smallest_squared_distance(x), r2.amin((-2, -1), keepdim=True))


def test_unknown_backend_is_named():
    with pytest.raises(
        ValueError, match="`backend` must be one of 'auto', 'dense', 'streamed', 'keops', 'triton', got 'gpu'"
    ):
        pair_sum(gaussian(), torch.zeros(2, 2), torch.ones(2), backend="gpu")


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_sums_are_taken_in_full_precision(backend, generator):
    x, a, y, b = clouds(3, (), torch.float32, generator)
    x.requires_grad_()

    def sums():
        values = pair_sum(gaussian(0.5), x, a, backend=backend), cross_sum(gaussian(0.5), x, a, y, b, backend=backend)
        return *values, *torch.autograd.grad(sum(values), x)

    expected = sums()
    with torch.autocast("cpu", torch.bfloat16):
        found = sums()
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(found[2], expected[2], rtol=0.02, atol=0.02 * float(expected[2].abs().max()))
    assert pair_sum(gaussian(0.5), x.bfloat16(), a, backend=backend).dtype == torch.float32


def test_clouds_and_weights_share_a_batch(generator):
    x, a, y, b = clouds(3, (), torch.float64, generator)
    more = torch.rand(4, len(a), generator=generator, dtype=torch.float64)
    for backend in ("dense", "streamed"):
        found = cross_sum(gaussian(0.5), x, more, y, b, backend=backend)
        torch.testing.assert_close(found, torch.stack([cross_sum(gaussian(0.5), x, w, y, b) for w in more]))
        found = pair_sum(gaussian(0.5), x, more, backend=backend)
        torch.testing.assert_close(found, torch.stack([pair_sum(gaussian(0.5), x, w) for w in more]))


NARROW = {
    "gaussian": gaussian(1.0),
    "laplacian": laplacian(1.0),
    "imq": inverse_multiquadric(1.0),
    "mixture": mixture([gaussian(2.0), inverse_multiquadric(1.0)]),
}


def far_apart(n, d, distance, generator):
    """Points of two clusters of the size of one, and weights."""
    x = torch.randn(n, d, generator=generator)
    x[n // 2 :] += distance
    return x, torch.full((n,), 1 / n)


def assert_precise(function, tensors, value, gradient, backend="streamed"):
    """Value and gradients in single precision beside those of the dense form in double precision."""
    expected = value_and_gradients(functools.partial(function, backend="dense"), [t.double() for t in tensors])
    found = value_and_gradients(functools.partial(function, backend=backend), tensors)
    for tol, e, f in zip((value, *[gradient] * len(tensors)), expected, found, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=0, atol=tol * float(e.detach().abs().max()))


@pytest.mark.parametrize("distance", [1e2, 1e4])
@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("name", NARROW)
def test_clusters_far_apart_in_units_of_the_bandwidth(name, d, distance, generator):
    x, a = (t.requires_grad_() for t in far_apart(210, d, distance, generator))
    assert_precise(functools.partial(pair_sum, NARROW[name]), (x, a), 1e-4, 1e-3)
    y, b = (t.requires_grad_() for t in far_apart(200, d, distance, generator))
    assert_precise(functools.partial(cross_sum, NARROW[name]), (x, a, y, b), 1e-4, 1e-3)


@pytest.mark.parametrize("name", NARROW)
def test_clusters_far_apart_where_there_is_no_double_precision(name, generator, monkeypatch):
    monkeypatch.setattr(_precision, "SINGLE_ONLY", ("cpu",))
    x, a = far_apart(210, 3, 1e4, generator)
    expected = pair_sum(NARROW[name], x.double(), a.double(), backend="dense")
    torch.testing.assert_close(pair_sum(NARROW[name], x, a, backend="streamed").double(), expected, rtol=2e-5, atol=0)


def test_clusters_too_far_apart_for_double_precision(generator):
    x, a = (t.double() for t in far_apart(210, 3, 1e9, generator))
    x[105:] -= 1e9 - 2.0**30
    expected = pair_sum(gaussian(1.0), x, a, backend="dense")
    torch.testing.assert_close(pair_sum(gaussian(1.0), x, a, backend="streamed"), expected, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_clusters_far_apart_in_a_compiled_sum(generator):
    torch._dynamo.reset()
    x, a = far_apart(210, 20, 1e4, generator)
    compiled = torch.compile(functools.partial(pair_sum, gaussian(3.0)), fullgraph=True, backend="aot_eager")
    expected = pair_sum(gaussian(3.0), x.double(), a.double(), backend="dense")
    torch.testing.assert_close(compiled(x, a, backend="streamed").double(), expected, rtol=2e-5, atol=0)


def test_the_usual_sum_stays_in_single_precision(generator):
    x, a = far_apart(210, 20, 4.0, generator)
    with Precisions() as seen:
        pair_sum(gaussian(1.0), x, a, backend="streamed")
    assert torch.float64 not in seen.dtypes


class Precisions(TorchDispatchMode):
    """Notes the dtypes of results."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, (tuple, list)) else (out,)
        self.dtypes |= {t.dtype for t in results if isinstance(t, torch.Tensor)}
        return out


@pytest.mark.parametrize(("distance", "sums"), [(4.0, "fused_sums"), (1e4, "_tile_sums")])
def test_fused_tiles_are_for_what_single_precision_resolves(distance, sums, generator):
    x, _ = far_apart(210, 3, distance, generator)
    for kernel in (gaussian(1.0), laplacian(1.0)):
        assert kernel_sums._Form(kernel, "triton", True).sums(x, x) is getattr(kernel_sums, sums)


POINTS, ONES = torch.zeros(4, 2), torch.ones(4)


@pytest.mark.parametrize(
    ("kernel", "measures", "message"),
    [
        ("gaussian", (POINTS, ONES), r"`kernel` must be one of `otdml.kernels`, got 'gaussian'"),
        (gaussian(1e-30), (POINTS, ONES), r"`kernel` must have a bandwidth of 1e-19 or more for torch.float32"),
        (
            gaussian(),
            (torch.zeros(0, 2), torch.ones(0)),
            r"`x` must have shape \(..., n, d\) with n, d >= 1, got \(0, 2",
        ),
        (gaussian(), (POINTS.long(), ONES), "`x` must be of floating point, got torch.int64"),
        (gaussian(), (POINTS, None), "`a` must be a torch.Tensor, got NoneType"),
        (gaussian(), (POINTS, ONES[:3]), r"`a` must hold one weight per point, shape \(4,\), got \(3,\)"),
        (gaussian(), (POINTS, ONES[:1]), r"`a` must hold one weight per point, shape \(4,\), got \(1,\)"),
        (gaussian(), (POINTS.expand(3, 4, 2), ONES.expand(2, 4)), "`a` must have the batch dimensions of `x`"),
        (gaussian(), (POINTS[:, :1], ONES, POINTS, ONES), "`y` must have the features of `x`, 1, got 2"),
        (gaussian(), (POINTS, ONES, POINTS, ONES[:3]), r"`b` must hold one weight per point, shape \(4,\), got \(3,\)"),
    ],
)
@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_bad_arguments_are_named(kernel, measures, message, backend):
    for total in (pair_sum, quadratic_form) if len(measures) == 2 else (cross_sum,):
        with pytest.raises((ValueError, TypeError), match=message):
            total(kernel, *measures, backend=backend)


def test_a_sum_over_all_pairs_needs_a_value_at_zero():
    for kernel in (riesz(1.0), logarithmic(), mixture([gaussian(), riesz(2.0)])):
        with pytest.raises(ValueError, match=r"`kernel` must be finite at distance zero.*`pair_sum`"):
            quadratic_form(kernel, POINTS, ONES)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize(
    ("kernel", "distance", "near"),
    [(riesz(1.0), 1.2e-7, 1e-8), (logarithmic(), 1.2e-7, 1e-8), (riesz(20.0), 0.04, 0.03)],
)
def test_kernels_with_a_pole_are_constant_below_the_documented_distance(kernel, distance, near, backend):
    def between(r, dtype):
        return pair_sum(kernel, torch.tensor([[0.0], [r]], dtype=dtype), torch.ones(2, dtype=dtype), backend=backend)

    assert float(between(near, torch.float32)) == pytest.approx(float(between(distance, torch.float64)), rel=0.2)
    assert float(between(near, torch.float64)) > float(between(near, torch.float32)) * 1.1
