"""Inputs that people report: nearly equal clouds, blobs, empty batches and elements, no mass, half precision later."""

import copy
import math
import pickle
import statistics

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.losses import sinkhorn_divergence, sinkhorn_divergence_matrix
from otdml.ot import OTResult, exact, exact_matrix, gromov, sinkhorn, sinkhorn_matrix


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Near the zero of the divergence


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4])
def test_divergence_of_nearly_equal_clouds_has_its_sign_and_gradient(noise, dtype):
    errors = []
    for seed in range(16):
        x = uniform(50, 2, seed=seed, dtype=dtype).requires_grad_()
        y = x.detach() + noise * normal(50, 2, seed=seed + 100, dtype=dtype)
        value = sinkhorn_divergence(x, y, eps=0.02)
        (gradient,) = torch.autograd.grad(value, x)
        z = x.detach().double().requires_grad_()
        fine = sinkhorn_divergence(z, y.double(), eps=0.02, tol=1e-9, max_iter=20000)
        (right,) = torch.autograd.grad(fine, z)
        assert float(value.detach()) >= 0
        torch.testing.assert_close(float(value.detach()), float(fine.detach()), rtol=1e-2, atol=1e-8)
        errors.append(float((gradient - right).norm() / right.norm()))
    assert statistics.median(errors) < 0.05
    assert max(errors) < 0.2


@pytest.mark.parametrize("rho", [None, 0.5, (0.5, None)])
def test_divergence_of_a_cloud_from_itself_is_zero(rho):
    x, a = uniform(40, 3), uniform(40, seed=1) + 0.1
    assert abs(float(sinkhorn_divergence(x, x.flip(0), a, a.flip(0), rho=rho))) < 1e-8


# Plans that nearly fall into blocks


def blobs(dtype, seed=1):
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64).repeat_interleave(8, 0)
    x = centres + 0.5 * normal(24, 2, seed=seed)
    return x.to(dtype), (x + 0.3 * normal(24, 2, seed=seed + 1)).to(dtype)


READINGS = {
    "map": lambda x, y, eps: (sinkhorn(x, y, eps=eps, tol=1e-8).barycentric_map() * y.flip(0)).sum(),
    "plan": lambda x, y, eps: (sinkhorn(x, y, eps=eps, tol=1e-8).plan * (y @ y.flip(0).mT)).sum(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [3.0, 1.0, 0.3])
@pytest.mark.parametrize("name", READINGS)
def test_derivatives_of_a_plan_in_blocks(name, eps, dtype):
    (x, y), direction, step = blobs(dtype), normal(24, 2, seed=9), 1e-4
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(READINGS[name](x, y, eps), x)
    ends = (READINGS[name](x.detach().double() + s * step * direction, y.double(), eps) for s in (1, -1))
    difference = float(next(ends) - next(ends)) / (2 * step)
    torch.testing.assert_close(float((gradient.double() * direction).sum()), difference, rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_of_a_divergence_in_blocks(dtype):
    (x, y), direction, step = blobs(dtype), normal(24, 2, seed=9), 1e-3

    def slope(x, y):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(sinkhorn_divergence(x, y, eps=1.0, tol=1e-8), x, create_graph=True)
        return x, gradient

    leaf, gradient = slope(x, y)
    (product,) = torch.autograd.grad((gradient * direction.to(dtype)).sum(), leaf)
    ends = (slope(x.double() + s * step * direction, y.double())[1].detach() for s in (1, -1))
    torch.testing.assert_close(product.double(), (next(ends) - next(ends)) / (2 * step), rtol=2e-2, atol=2e-3)


def test_potentials_that_a_plan_does_not_determine_have_a_warning():
    x, y = blobs(torch.float64)
    f = sinkhorn(x.requires_grad_(), y, eps=0.1, tol=1e-8).f
    with pytest.warns(RuntimeWarning, match="falls into blocks"):
        (gradient,) = torch.autograd.grad(f[:8].sum(), x)
    assert gradient.isfinite().all()


# Nothing


@pytest.mark.parametrize("solver", [sinkhorn, sinkhorn_divergence])
def test_an_element_without_mass_is_named(solver):
    x, y, a = uniform(3, 5, 2), uniform(3, 4, 2, seed=1), uniform(3, 5, seed=2)
    a = a / a.sum(-1, keepdim=True)
    a[1] = 0
    with pytest.raises(ValueError, match="`a` must have mass, got weights that are all zero in batch element 1"):
        solver(x, y, a)


def test_an_element_of_another_mass_is_named():
    a = torch.full((2, 3, 5), 0.2)
    a[1, 2] *= 2
    with pytest.raises(ValueError, match=r"a relative difference of 0.5 in batch element \(1, 2\)"):
        sinkhorn(uniform(2, 3, 5, 2, dtype=torch.float32), uniform(2, 3, 4, 2, dtype=torch.float32), a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [0.7, 1e-2, 50.0])
def test_no_mass_against_some_costs_the_penalty(rho, dtype):
    x, y = uniform(2, 5, 2, dtype=dtype), uniform(2, 4, 2, seed=1, dtype=dtype)
    a, b = torch.full((2, 5), 0.2, dtype=dtype), torch.full((2, 4), 0.5, dtype=dtype).requires_grad_()
    a[1] = 0
    result = sinkhorn(x, y, a, b, eps=0.1, rho=rho)
    alone = sinkhorn(x[0], y[0], a[0], b[0], eps=0.1, rho=rho)
    torch.testing.assert_close(result.value[0], alone.value)
    torch.testing.assert_close(float(result.value[1].detach()), 2 * rho)
    torch.testing.assert_close(result.plan[1].detach(), torch.zeros(5, 4, dtype=dtype))
    (gradient,) = torch.autograd.grad(result.value[1], b)
    torch.testing.assert_close(gradient[1], torch.full((4,), rho, dtype=dtype), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [0.5, 1e-3, (0.5, 2.0)])
@pytest.mark.parametrize("eps", [3.0, 1e2, 1e10, 1e30])
def test_no_mass_at_high_temperatures_costs_the_penalty(eps, rho, dtype):
    x, y, a = uniform(5, 2, dtype=dtype), uniform(4, 2, seed=1, dtype=dtype), torch.zeros(5, dtype=dtype)
    b, price = torch.full((4,), 0.5, dtype=dtype).requires_grad_(), rho[1] if isinstance(rho, tuple) else rho
    for backend in ("dense", "streamed"):
        result = sinkhorn(x, y, a, b, eps=eps, rho=rho, backend=backend)
        torch.testing.assert_close(float(result.value.detach()), 2 * price, rtol=1e-5, atol=0)
        (gradient,) = torch.autograd.grad(result.value, b)
        torch.testing.assert_close(gradient, torch.full_like(gradient, price), rtol=1e-4, atol=0)
    # A little mass costs a little of the other penalty, and what is unused of the product of the masses.
    small = sinkhorn(x, y, a + 1e-12, b.detach(), eps=eps, rho=rho)
    assert float(small.value) <= 2 * price + 5e-12 * (1e3 + 2 * eps)


def test_a_batch_of_no_problems_has_no_values():
    x, y = torch.zeros(0, 5, 2, requires_grad=True), torch.zeros(0, 4, 2)
    result = sinkhorn(x, y)
    assert result.value.shape == result.converged.shape == (0,)
    assert result.plan.shape == (0, 5, 4)
    assert torch.autograd.grad(result.value.sum(), x)[0].shape == x.shape
    assert sinkhorn_divergence(x, y).shape == (0,)
    assert sinkhorn_matrix(torch.zeros(0, 3, 4)).value.shape == (0,)


@pytest.mark.parametrize("options", [{}, {"rho": 2.0}, {"rho": (2.0, None)}, {"mass": 0.5}, {"backend": "streamed"}])
@pytest.mark.parametrize("read", [OTResult.barycentric_map, lambda result: result.plan, lambda result: result.f])
def test_what_is_read_of_a_batch_of_no_problems_has_derivatives(options, read):
    # One cloud and its weights are shared by none.
    shared = [torch.ones(5, 2, requires_grad=True), torch.full((5,), 0.2, requires_grad=True)]
    result = sinkhorn(shared[0], torch.zeros(0, 4, 2), shared[1], **options)
    for gradient in torch.autograd.grad(read(result).sum(), shared):
        assert not gradient.any()


# Masses that rounding of the weights has made unequal


def rounded_weights(dtype=torch.float64):
    """Weights whose masses differ by the eighth part of a thousandth, as those of half precision do."""
    a, b = (0.5 + uniform(n, seed=n) for n in (30, 40))
    return (a / a.sum()).to(dtype), (b / b.sum() * (1 + 1.25e-4)).to(dtype)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masses_that_differ_by_rounding_are_solved_as_equal_ones(dtype, backend):
    x, y, (a, b) = normal(30, 2, dtype=dtype), normal(40, 2, seed=1, dtype=dtype), rounded_weights(dtype)
    a, b = a.requires_grad_(), b.requires_grad_()
    result = sinkhorn(x, y, a, b, tol=1e-5, backend=backend)
    assert result.converged
    equal = (b / b.sum() * a.sum()).detach().requires_grad_()
    other = sinkhorn(x, y, a, equal, tol=1e-5, backend=backend)
    torch.testing.assert_close(result.value, other.value, rtol=1e-5, atol=0)
    torch.testing.assert_close(result.f, other.f, rtol=1e-4, atol=1e-4)
    found, expected = torch.autograd.grad(result.value, (a, b)), torch.autograd.grad(other.value, (a, equal))
    for slope, true in zip(found, expected, strict=True):
        torch.testing.assert_close(slope - slope.mean(), true - true.mean(), rtol=1e-3, atol=1e-3)


def test_divergences_of_masses_that_differ_by_rounding():
    x, y, (a, b) = normal(30, 2), normal(40, 2, seed=1), rounded_weights()
    expected = sinkhorn_divergence(x, y, a, b / b.sum(), eps=0.5, tol=1e-7)
    assert float(sinkhorn_divergence(x, y, a, b, eps=0.5, tol=1e-7)) == pytest.approx(float(expected), rel=1e-7)
    matrices = (cost_matrix(*pair) for pair in ((x, y), (x, x), (y, y)))
    found = sinkhorn_divergence_matrix(*matrices, a, b, eps=0.5, tol=1e-7)
    assert float(found) == pytest.approx(float(expected), rel=1e-7)


def test_weights_of_half_precision_have_finite_gradients():
    x, y, (a, b) = normal(30, 2, dtype=torch.float32), normal(40, 2, seed=1, dtype=torch.float32), rounded_weights()
    a, b = a.half().requires_grad_(), b.half().requires_grad_()
    result = sinkhorn(x, y, a, b, tol=1e-4)
    assert result.converged
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(result.value, (a, b)))


# What a kernel does not see


@pytest.mark.parametrize("seed", range(30, 40))
def test_a_pair_of_nearly_equal_weights_that_costs_much_less_than_all_others(seed):
    # What the pair leaves of the larger weight goes elsewhere at exp(-955), and the potential has as far to go.
    a = torch.tensor([0.3929, 0.2406, 0.0339, 0.3326], dtype=torch.float64)
    b = torch.tensor([0.0772, 0.2397, 0.0239, 0.3918, 0.2674], dtype=torch.float64)
    C = 1e-3 * normal(4, 5, seed=seed)
    C[0, 3] = -9.55
    expected = exact_matrix(C, a, b).value
    for dtype in (torch.float32, torch.float64):
        result = sinkhorn_matrix(C.to(dtype), a.to(dtype), b.to(dtype), eps=0.01, max_iter=10_000)
        assert result.converged
        assert float((result.plan.sum(-1).double() - a).abs().sum()) <= 1e-3
        assert float(result.value) == pytest.approx(float(expected), abs=0.03)


# What is off the scale


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_potentials_of_a_plan_of_next_to_no_mass_are_right(backend):
    x, y = torch.zeros(3, 2), torch.full((3, 2), 9.0)
    x, y = x + torch.arange(3.0)[:, None] / 10, y + torch.arange(3.0)[:, None] / 10
    result = sinkhorn(x, y, eps=0.1, rho=0.5, tol=1e-5, backend=backend)
    exactly = sinkhorn(x.double(), y.double(), eps=0.1, rho=0.5, tol=1e-10, backend="streamed")
    torch.testing.assert_close(result.f, exactly.f.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.g, exactly.g.float(), rtol=1e-4, atol=1e-4)


def test_a_mass_beyond_all_numbers_is_said():
    C = torch.full((3, 3), -10.0)
    with pytest.warns(RuntimeWarning, match="a mass beyond all numbers"):
        result = sinkhorn_matrix(C, eps=0.01, rho=0.05)
    assert not result.converged


def test_an_infinite_penalty_is_a_constraint():
    x, y = uniform(5, 2), uniform(4, 2, seed=1)
    torch.testing.assert_close(sinkhorn(x, y, eps=0.1, rho=math.inf).value, sinkhorn(x, y, eps=0.1).value)
    one = sinkhorn(x, y, eps=0.1, rho=(math.inf, 0.5)).value
    torch.testing.assert_close(one, sinkhorn(x, y, eps=0.1, rho=(None, 0.5)).value)


def test_coordinates_whose_squares_overflow_are_an_error_and_smaller_ones_are_solved():
    x, y = (uniform(6, 2, seed=s, dtype=torch.float32) for s in (0, 1))
    torch.testing.assert_close(sinkhorn(1e18 * x, 1e18 * y).plan, sinkhorn(x, y).plan, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"costs that overflow torch.float32; rescale them"):
        sinkhorn(1e25 * x, 1e25 * y)


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("rho", [1e-6, 1e-8, (1e-7, None), (None, 1e-7)])
def test_penalties_that_are_small_beside_the_costs(rho, backend):
    x, y = (normal(6, 2, seed=s, dtype=torch.float32) + 3 * s for s in (0, 1))
    result = sinkhorn(x, y, eps=0.5, rho=rho, backend=backend)
    C = (x.double()[:, None] - y.double()).square().sum(-1)
    assert result.converged
    kernel = torch.exp(-C / 0.5) / 36
    # Without a price on a marginal, its potential is zero.
    if rho == (1e-7, None):
        kernel = kernel / (6 * kernel.sum(0))
    if rho == (None, 1e-7):
        kernel = kernel / (6 * kernel.sum(1, keepdim=True))
    torch.testing.assert_close(result.plan.double(), kernel, rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forbidden_row_without_weight_is_absent(dtype):
    C = torch.tensor([[0.0, 1.0, torch.inf], [2.0, 0.5, torch.inf], [torch.inf] * 3], dtype=dtype).requires_grad_()
    w = torch.tensor([0.5, 0.5, 0.0], dtype=dtype)
    result = sinkhorn_matrix(C, w, w, eps=0.3, tol=1e-6)
    expected = sinkhorn_matrix(C[:2, :2].detach(), eps=0.3, tol=1e-6)
    torch.testing.assert_close(result.value.detach(), expected.value)
    torch.testing.assert_close(result.plan[:2, :2].detach(), expected.plan)
    (gradient,) = torch.autograd.grad(result.value, C)
    torch.testing.assert_close(gradient, result.plan.detach())
    with pytest.raises(
        ValueError, match=r"`C` must give finite costs.*a row or a column with weight of nothing but inf"
    ):
        sinkhorn_matrix(C.detach(), eps=0.3)


def test_a_temperature_beyond_single_precision_is_an_error():
    with pytest.raises(ValueError, match=r"`eps` must be a number of torch.float32, got 1e"):
        sinkhorn(torch.zeros(2, 2), torch.ones(2, 2), eps=1e300)


# Points are compared at scale one, where the costs of every scale are known.
FAR_SCALES = [(torch.float32, 1e-36), (torch.float32, 1e-25), (torch.float32, 1e25), (torch.float32, 1e36)]
FAR_SCALES += [(torch.float64, 1e-250), (torch.float64, 1e-170), (torch.float64, 1e170), (torch.float64, 1e250)]


@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("distance", [1.0, 100.0], ids=["near", "far"])
@pytest.mark.parametrize(("dtype", "scale"), FAR_SCALES)
@pytest.mark.parametrize(("cost", "power"), [("euclidean", 1), ("cosine", 0), ("geodesic", 0)])
def test_distances_and_angles_of_points_of_any_scale(cost, power, dtype, scale, distance, backend):
    def solved(x, y):
        x = x.requires_grad_()
        result = sinkhorn(x, y, cost=cost, backend=backend, tol=1e-5)
        assert result.converged
        (gradient,) = torch.autograd.grad(result.value, x)
        return result.value.detach(), gradient, result.plan.detach()

    x, y = normal(8, 3, seed=1), normal(7, 3, seed=2) + distance
    value, gradient, plan = solved(*((scale * t).to(dtype) for t in (x, y)))
    expected = solved(x, y)
    torch.testing.assert_close(float(value) / scale**power, float(expected[0]), rtol=1e-4, atol=0)
    torch.testing.assert_close((gradient / scale ** (power - 1)).double(), expected[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(plan.double(), expected[2], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("cost", ["sqeuclidean", "inner"])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-25), (torch.float64, 1e-170), (torch.float64, 1e-250)])
def test_coordinates_whose_squares_vanish_are_an_error(cost, dtype, scale):
    x, y = ((scale * normal(6, 2, seed=s)).to(dtype) for s in (0, 1))
    with pytest.raises(ValueError, match=r"`x` must give costs that torch.float\d\d tells from zero.* Rescale them"):
        sinkhorn(x, y, cost=cost)
    with pytest.raises(ValueError, match="Rescale them"):
        exact(x, y, cost=cost)
    # Points that are all at one place have costs of zero.
    assert float(sinkhorn(x[:1].expand(3, 2), x[:1].expand(4, 2)).value) == pytest.approx(0, abs=1e-6)


# Half precision after the fact


@pytest.mark.parametrize("solver", [sinkhorn, exact, gromov])
def test_what_is_read_under_autocast_is_in_full_precision(solver):
    x, y = (0.1 * uniform(30, 2, seed=s, dtype=torch.float32) for s in (0, 1))
    right = solver(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf = x.clone().requires_grad_()
        result = solver(leaf, y)
        found = result.barycentric_map(y), result.apply(y), *result.marginals
        assert {t.dtype for t in found} == {torch.float32}
        if solver is sinkhorn:
            (gradient,) = torch.autograd.grad(found[0].square().sum(), leaf)
    for value, expected in zip(found, (right.barycentric_map(y), right.apply(y), *right.marginals), strict=True):
        torch.testing.assert_close(value, expected)
    if solver is sinkhorn:
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(solver(leaf, y).barycentric_map(y).square().sum(), leaf)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
@pytest.mark.parametrize("options", [{}, {"rho": 1.0}, {"mass": 0.5}])
def test_copies_of_results_of_matrices_can_be_read(options, copied):
    # Made by an operation that writes to it, which tensors count.
    C = torch.zeros(5, 4).add_(uniform(5, 4, dtype=torch.float32))
    result = sinkhorn_matrix(C, eps=0.1, **options)
    other = copied(result)
    for name in ("plan", "f", "g", "value"):
        assert torch.equal(getattr(other, name), getattr(result, name))
    C += 1
    assert torch.equal(copied(other).plan, other.plan)
