"""MMD to the uniform measure: calibration, and the kernels it refuses."""

import math

import pytest
import torch

from otdml.losses import MMDToUniform, kernel_dispersion, mmd, mmd_to_uniform
from otdml.sphere import uniform_points

ALLOWED = [
    {"kernel": "gaussian"},
    {"kernel": "laplacian"},
    {"kernel": "laplacian", "distance": "geodesic"},
    {"kernel": "riesz", "s": 0.5},
    {"kernel": "riesz", "s": 0.5, "distance": "geodesic"},
    {"kernel": "log"},
    {"kernel": "log", "distance": "geodesic"},
]


@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize("options", ALLOWED, ids=str)
def test_uniform_points_have_mean_zero(options, d, generator):
    z = uniform_points(2000, 20, d, generator=generator, dtype=torch.float64)
    value = mmd_to_uniform(z, **options, unbiased=True)
    assert value.mean().abs() < 4 * value.std() / 2000**0.5


def test_v_statistic_of_the_antipodal_pair():
    z = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -1.0]], dtype=torch.float64)
    # The mean of exp(-2 r²) over S² is (1 - exp(-8)) / 8.
    expected = (1 + math.exp(-8)) / 2 - (1 - math.exp(-8)) / 8
    assert float(mmd_to_uniform(z)) == pytest.approx(expected, rel=1e-12)


def test_equals_the_mmd_to_many_uniform_points(generator):
    z = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    u = uniform_points(3000, 3, generator=generator, dtype=torch.float64)
    x = z / z.norm(dim=1, keepdim=True)
    # The bandwidth of exp(-2 r²) is 1/2; the sampled measure adds an error of some 1/3000.
    assert float(mmd_to_uniform(z)) == pytest.approx(float(mmd(x, u, bandwidth=0.5)), abs=3e-3)


def test_equispaced_points_of_the_circle_approach_zero():
    t = torch.arange(50, dtype=torch.float64) * 2 * math.pi / 50
    value = mmd_to_uniform(torch.stack([t.cos(), t.sin()], 1))
    assert 0 <= float(value) + 1e-15 < 1e-12


@pytest.mark.parametrize("options", ALLOWED, ids=str)
def test_gradient_is_that_of_the_energy(options, generator):
    z = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(mmd_to_uniform(z, **options, unbiased=True), z)
    (expected,) = torch.autograd.grad(kernel_dispersion(z, **options), z)
    torch.testing.assert_close(grad, expected)


def test_the_gaussian_of_the_angle_is_refused():
    for call in (lambda o: mmd_to_uniform(torch.eye(3), **o), lambda o: MMDToUniform(**o)):
        with pytest.raises(ValueError, match="must be positive definite, got the Gaussian of the angle"):
            call({"distance": "geodesic"})


def test_a_scale_that_the_kernel_does_not_have_is_refused():
    for call in (lambda o: mmd_to_uniform(torch.eye(4), **o), lambda o: MMDToUniform(**o)):
        with pytest.raises(ValueError, match=r"`gamma` must be None with kernel='riesz', got 2.0"):
            call({"kernel": "riesz", "gamma": 2.0})
        with pytest.raises(ValueError, match=r"`s` must be None with kernel='laplacian', got 1.0"):
            call({"kernel": "laplacian", "s": 1.0})


def test_the_gaussian_of_the_angle_is_not_positive_definite():
    # The reason of the refusal: on the circle its matrix has a negative eigenvalue at a moderate width.
    t = torch.arange(40, dtype=torch.float64) * 2 * math.pi / 40
    x = torch.stack([t.cos(), t.sin()], 1)
    angle = (x @ x.T).clamp(-1, 1).acos()
    assert torch.linalg.eigvalsh((-0.2 * angle.square()).exp()).min() < -1e-3
    assert torch.linalg.eigvalsh((-0.2 * angle).exp()).min() > 0


def test_supercritical_riesz_is_refused():
    with pytest.raises(ValueError, match=r"`s` must be below d - 1 = 2, got 2.0. The uniform measure has infinite"):
        mmd_to_uniform(torch.eye(3), kernel="riesz", s=2.0)


def test_singular_kernels_have_no_v_statistic():
    with pytest.raises(ValueError, match="`unbiased` must be True or None for 'log'"):
        mmd_to_uniform(torch.eye(3), kernel="log", unbiased=False)


def test_a_line_has_no_sphere():
    with pytest.raises(ValueError, match="`z` must have at least two coordinates, got 1"):
        mmd_to_uniform(torch.ones(3, 1))


def test_module_is_the_function(generator):
    z = torch.randn(4, 5, 3, generator=generator)
    module = MMDToUniform(kernel="riesz", s=1.5)
    assert module(z).equal(mmd_to_uniform(z, kernel="riesz", s=1.5))
    assert repr(module) == "MMDToUniform(kernel='riesz', distance='chord', s=1.5, unbiased=True)"
