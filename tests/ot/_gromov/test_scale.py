"""Gromov problems of points of any size: the value, the plan and the gradient of double precision, or a refusal."""

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.losses import ScaledCost, distortion, fused_gromov_wasserstein, gromov_monge_gap
from otdml.ot import gromov, gromov_matrix

OPTIONS = {"tol": 1e-5, "max_iter": 3000}
RELAXED = {"tol": 1e-4, "max_iter": 3000}


def cloud(seed, n=9, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = cloud(0), cloud(1, d=4)


def in_single(t, scale):
    """The points at a scale in single precision, and the same points in double precision."""
    single = (scale * t).float()
    return single, single.double()


# Coordinates from which products of costs, or their sums, leave single precision, while the value does not.
PAIRS = [(1e-9, 1e-9), (1e9, 1e9), (1e-15, 1.0), (1.0, 1e-15), (1e-18, 1e-3), (1e-20, 1e7), (1e-12, 1e9)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_value_plan_and_gradient_are_those_of_double_precision(first, second):
    (x, x64), (y, y64) = in_single(X, first), in_single(Y, second)
    x, y, x64, y64 = (t.requires_grad_() for t in (x, y, x64, y64))
    found, right = gromov(x, y, **OPTIONS), gromov(x64, y64, **OPTIONS)
    torch.testing.assert_close(found.value.double(), right.value, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.plan.double(), right.plan, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.divergence.double(), right.divergence, rtol=1e-4, atol=0)
    assert found.value.dtype == found.plan.dtype == found.f.dtype == found.gap.dtype == torch.float32
    slopes = zip(torch.autograd.grad(found.value, (x, y)), torch.autograd.grad(right.value, (x64, y64)), strict=True)
    for slope, expected in slopes:
        largest = float(expected.abs().max())
        if largest > 1e-37:
            torch.testing.assert_close(slope.double(), expected, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("relaxed", [{"mass": 0.6}, {"rho": 1.0}, {"alpha": 0.5}])
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_relaxed_and_fused_problems_of_small_and_large_points(relaxed, scale):
    (x, x64), (y, y64) = in_single(X, scale), in_single(Y, scale)
    # Penalties and features are in units of squares of costs.
    given = {k: v * scale**4 if k == "rho" else v for k, v in relaxed.items()}
    pair = tuple(in_single(cloud(s, d=2), scale**2) for s in (5, 6)) if "alpha" in relaxed else None
    kept = [{"features": tuple(p[i] for p in pair)} if pair else {} for i in (0, 1)]
    found, right = (gromov(*c, **given, **kept[i], **RELAXED) for i, c in enumerate(((x, y), (x64, y64))))
    torch.testing.assert_close(found.value.double(), right.value, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.plan.double(), right.plan, rtol=1e-2, atol=1e-4)
    unit = gromov(X, Y, **relaxed, **({"features": (cloud(5, d=2), cloud(6, d=2))} if pair else {}), **RELAXED)
    torch.testing.assert_close(found.value.double() / scale**4, unit.value, rtol=1e-3, atol=0)


def test_a_batch_of_very_different_scales_is_a_loop():
    scales = torch.tensor([1e-9, 1.0, 1e8])[:, None, None]
    x, y = (scales * t.float() for t in (X, Y))
    found = gromov(x, y, **OPTIONS)
    for i in range(3):
        one = gromov(x[i].double(), y[i].double(), **OPTIONS)
        torch.testing.assert_close(found.value[i].double(), one.value, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.plan[i].double(), one.plan, rtol=1e-3, atol=1e-6)
    gap = gromov_monge_gap(x, y, cost_x="sqeuclidean", cost_y="sqeuclidean", **OPTIONS)
    torch.testing.assert_close(gap, torch.stack([gromov(s, t, **OPTIONS).gap for s, t in zip(x, y, strict=True)]))


@pytest.mark.parametrize("mass", [1e-18, 1e18])
def test_weights_of_small_and_large_mass(mass):
    x, y, w = X.float(), Y.float(), torch.full((9,), mass / 9)
    found, unit = gromov(x, y, w, w, **OPTIONS), gromov(X, Y, **OPTIONS)
    torch.testing.assert_close(found.value.double() / mass**2, unit.value, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.plan.double() / mass, unit.plan, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_given_matrices(scale):
    C_x, C_y = cost_matrix(X, X), cost_matrix(Y, Y)
    found = gromov_matrix((scale * C_x).float(), (scale * C_y).float(), **OPTIONS)
    unit = gromov_matrix(C_x, C_y, **OPTIONS)
    torch.testing.assert_close(found.value.double() / scale**2, unit.value, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.plan.double(), unit.plan, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match=r"`C_x` must give costs whose squares torch.float32 tells from zero"):
        gromov_matrix((1e-30 * C_x).float(), (1e-30 * C_y).float())


def test_functions_are_called_in_the_dtype_of_the_points():
    weight = (1e9 * torch.eye(3)).requires_grad_()

    def cost(x, y):
        return cost_matrix(x @ weight, y @ weight)

    x = X.float()
    result = gromov(x, x.flip(0) / 2, cost_x=cost, cost_y=ScaledCost("sqeuclidean", 1e18), **OPTIONS)
    right = gromov(1e9 * X, 5e8 * X.flip(0), **OPTIONS).value
    torch.testing.assert_close(result.value.double(), right, rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(result.value, weight)
    assert slope.isfinite().all()
    assert float(slope.abs().max()) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_values_of_single_precision(dtype):
    x, y = (40 * X).to(dtype), (0.01 * Y).to(dtype)
    for loss in (distortion, gromov_monge_gap, lambda *c, **o: fused_gromov_wasserstein(*c, **o)):
        costs = {"cost_x": "sqeuclidean", "cost_y": "sqeuclidean"}
        torch.testing.assert_close(loss(x, y, **costs), loss(x.float(), y.float(), **costs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["gromov", "fused", "partial", "gap"])
def test_what_no_number_tells_from_zero_is_refused(loss, dtype):
    functions = {
        "gromov": lambda x, y: gromov(x, y).value,
        "fused": lambda x, y: fused_gromov_wasserstein(x, y),
        "partial": lambda x, y: gromov(x, y, mass=0.5).value,
        "gap": lambda x, y: gromov_monge_gap(x, y, cost_x="sqeuclidean", cost_y="sqeuclidean"),
    }
    for scale in (1e-12, 1e-15, 1e-25) if dtype == torch.float32 else (1e-78, 1e-120, 1e-200):
        x, y = (scale * X).to(dtype), (scale * Y).to(dtype)
        with pytest.raises(ValueError, match=rf"`x` must give costs whose squares {dtype} tells from zero"):
            functions[loss](x, y)
        # A point, and a cloud without extent, have the value zero for good.
        assert float(functions[loss](0 * x, 0 * y)) == 0


def test_a_start_of_another_precision():
    single, double = gromov(X.float(), Y.float(), **OPTIONS), gromov(X, Y, **OPTIONS)
    for init in (single, single.plan):
        torch.testing.assert_close(gromov(X, Y, init=init, **OPTIONS).value, double.value, rtol=1e-4, atol=0)
    for init in (double, double.plan):
        found = gromov(X.float(), Y.float(), init=init, **OPTIONS)
        torch.testing.assert_close(found.value, single.value, rtol=1e-4, atol=0)


def test_the_precise_value_is_the_value():
    single, small = gromov(X.float(), Y.float()), gromov(1e-9 * X.float(), 1e-9 * Y.float())
    torch.testing.assert_close(single.precise_value, single.value)
    torch.testing.assert_close(small.precise_value.float(), small.value)


@pytest.mark.parametrize("scale", [1e-9, 3e-10, 1e9])
def test_distortion_of_small_and_large_points(scale):
    x, y = (scale * X).float().requires_grad_(), (scale * Y).float()
    found = distortion(x, y, cost_x="sqeuclidean", cost_y="sqeuclidean")
    exact = x.detach().double().requires_grad_()
    right = distortion(exact, y.double(), cost_x="sqeuclidean", cost_y="sqeuclidean")
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=0)
    slope, expected = torch.autograd.grad(found, x)[0], torch.autograd.grad(right, exact)[0]
    torch.testing.assert_close(slope.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_distortion_whose_squares_overflow_and_whose_value_does_not():
    x, y = torch.zeros(1000, 1), torch.zeros(1000, 1)
    x[0] = 1.5e10
    # Two pairs of 10^6 are apart, by 2.25e20, whose square single precision does not hold.
    value = distortion(x, y, cost_x="sqeuclidean", cost_y="sqeuclidean")
    torch.testing.assert_close(float(value), 1998 / 2 * 2.25e20**2 / 1e6, rtol=1e-5, atol=0)
