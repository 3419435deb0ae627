"""Kernels: values by hand, slopes by autograd, uniform means by known constants."""

import math

import pytest
import torch

from otdml.kernels import (
    energy,
    gaussian,
    geodesic,
    inverse_multiquadric,
    laplacian,
    logarithmic,
    mixture,
    riesz,
    uniform_mean,
)

KERNELS = {
    "gaussian": (gaussian(0.5), lambda r: math.exp(-2 * r * r), 1.0),
    "laplacian": (laplacian(0.5), lambda r: math.exp(-2 * r), 1.0),
    "imq": (inverse_multiquadric(2.0), lambda r: 1 / math.sqrt(1 + r * r / 4), 1.0),
    "energy": (energy(), lambda r: -r, 0.0),
    "riesz": (riesz(3.0), lambda r: r**-3, math.inf),
    "log": (logarithmic(), lambda r: -math.log(r), math.inf),
    "mixture": (mixture([gaussian(0.5), laplacian(0.5)]), lambda r: (math.exp(-2 * r * r) + math.exp(-2 * r)) / 2, 1.0),
    "geodesic laplacian": (geodesic(laplacian(0.5)), lambda r: math.exp(-4 * math.asin(r / 2)), 1.0),
    "geodesic riesz": (geodesic(riesz(2.0)), lambda r: (2 * math.asin(r / 2)) ** -2, math.inf),
    "geodesic log": (geodesic(logarithmic()), lambda r: -math.log(2 * math.asin(r / 2)), math.inf),
}
RADII = (1e-3, 0.3, 1.0, 1.9)


@pytest.mark.parametrize("name", KERNELS)
def test_values(name):
    kernel, value, at_zero = KERNELS[name]
    r2 = torch.tensor(RADII, dtype=torch.float64).square()
    expected = torch.tensor([value(r) for r in RADII], dtype=torch.float64)
    torch.testing.assert_close(kernel(r2)[0], expected, rtol=1e-12, atol=1e-14)
    assert kernel.at_zero == at_zero


@pytest.mark.parametrize("name", KERNELS)
def test_slopes_are_derivatives(name):
    kernel = KERNELS[name][0]
    r2 = torch.tensor(RADII, dtype=torch.float64).square().requires_grad_()
    value, slope = kernel(r2)
    (expected,) = torch.autograd.grad(value.sum(), r2)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_value_and_slope_are_finite_at_the_least_distance_and_at_the_antipode(name, dtype):
    kernel = KERNELS[name][0]
    for r2 in (kernel.least(dtype), 4.0, 4.0 + 1e-6):
        value, slope = kernel(torch.tensor(r2, dtype=dtype))
        assert value.isfinite()
        assert slope.isfinite()


@pytest.mark.parametrize("s", [1.0, 20.0, 400.0])
def test_riesz_leaves_room_for_sums(s):
    value, slope = riesz(s)(torch.tensor(riesz(s).least(torch.float32)))
    assert max(value, -slope) * 1e5 < torch.finfo(torch.float32).max


def test_relative_kernel_is_the_quotient():
    kernel, logarithm = riesz(3.0).relative_to(torch.tensor(0.25))
    assert logarithm == pytest.approx(3 * math.log(2))
    torch.testing.assert_close(kernel(torch.tensor(1.0))[0], torch.tensor(1 / 8))


# Logarithms of the means of exp(-2 r²), and energies of the unit charge.
@pytest.mark.parametrize(("d", "logarithm"), [(3, -2.07978), (8, -3.08253), (64, -3.87524)])
def test_gaussian_mean_is_calibrated(d, logarithm):
    assert math.log(uniform_mean(gaussian(0.5), d)) == pytest.approx(logarithm, abs=5e-6)


@pytest.mark.parametrize(("d", "s", "mean"), [(3, 1.0, 1.0), (8, 1.0, 0.75255)])
def test_riesz_mean_is_calibrated(d, s, mean):
    assert uniform_mean(riesz(s), d) == pytest.approx(mean, abs=5e-6)


def test_logarithmic_mean_is_that_of_the_sphere():
    assert uniform_mean(logarithmic(), 3) == pytest.approx(0.5 - math.log(2), rel=1e-12)
    assert uniform_mean(logarithmic(), 2) == pytest.approx(0, abs=1e-15)


def test_gaussian_mean_is_the_bessel_form():
    from scipy.special import gammaln, ive

    for d, gamma in ((2, 0.1), (5, 3.0), (30, 20.0)):
        bessel = ive(d / 2 - 1, 2 * gamma)
        expected = math.log(bessel) + gammaln(d / 2) + (1 - d / 2) * math.log(gamma)
        assert math.log(uniform_mean(gaussian((2 * gamma) ** -0.5), d)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [2, 3, 8, 512])
def test_quadrature_agrees_with_the_closed_forms(d):
    from otdml.kernels import _quadrature

    for kernel in (gaussian(0.5), gaussian(0.1), riesz(0.5), logarithmic()):
        assert _quadrature(kernel, d) == pytest.approx(uniform_mean(kernel, d), rel=1e-10, abs=1e-15)


def test_means_by_quadrature():
    # On S², ∫ e^{-t} sin t dt / 2 over [0, π]; on S¹, the mean of e^{-t} over [0, π].
    assert uniform_mean(geodesic(laplacian(1.0)), 3) == pytest.approx((1 + math.exp(-math.pi)) / 4, rel=1e-12)
    assert uniform_mean(geodesic(laplacian(1.0)), 2) == pytest.approx((1 - math.exp(-math.pi)) / math.pi, rel=1e-12)
    # The mean chord of S² is 4/3.
    assert uniform_mean(energy(), 3) == pytest.approx(-4 / 3, rel=1e-12)


def test_supercritical_riesz_energy_is_infinite():
    assert uniform_mean(riesz(2.0), 3) == math.inf
    assert uniform_mean(geodesic(riesz(2.0)), 3) == math.inf


@pytest.mark.parametrize("make", [gaussian, laplacian, inverse_multiquadric, energy, riesz])
def test_scales_must_be_positive(make):
    with pytest.raises(ValueError, match="must be a positive number, got 0"):
        make(0.0)


def test_mixture_needs_a_kernel():
    with pytest.raises(ValueError, match="`kernels` must hold at least one kernel"):
        mixture([])


@pytest.mark.parametrize("gamma", [0.1, 10.0, 499.0, 501.0, 1e4, 1e8, 1e12])
def test_the_uniform_mean_of_a_narrow_gaussian_on_the_sphere(gamma):
    """In three dimensions it is (1 - exp(-4 gamma)) / (4 gamma)."""
    expected = -math.expm1(-4 * gamma) / (4 * gamma)
    assert float(uniform_mean(gaussian((2 * gamma) ** -0.5), 3)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [2, 5, 64])
def test_both_forms_of_that_mean_agree_where_one_takes_over(d):
    turn = max(1000, 10 * (d - 2) ** 2) / 2
    below, above = (float(uniform_mean(gaussian((2 * g) ** -0.5), d)) for g in (turn * (1 - 1e-9), turn * (1 + 1e-9)))
    assert above == pytest.approx(below, rel=1e-6)


@pytest.mark.parametrize("make", [gaussian, laplacian, inverse_multiquadric, energy])
def test_bandwidths_without_a_square_are_refused(make):
    for bandwidth in (1e-320, 1e-200, 1e200):
        with pytest.raises(ValueError, match=r"`bandwidth` must lie between 1e-150 and 1e\+150"):
            make(bandwidth)
    r2 = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    # At distances of the bandwidth's size a kernel is what it is at one.
    for bandwidth in (1e-150, 1e150):
        scaled = make(bandwidth)(r2 * bandwidth**2)[0]
        torch.testing.assert_close(scaled, make(1.0)(r2)[0], rtol=1e-12, atol=0)


def test_the_mean_of_a_mixture_is_that_of_its_kernels():
    kernels = [gaussian(1.0), gaussian(2.0), inverse_multiquadric(0.5)]
    expected = sum(uniform_mean(k, 3) for k in kernels) / 3
    assert uniform_mean(mixture(kernels), 3) == pytest.approx(expected, rel=1e-14)
    with pytest.raises(TypeError, match=r"`kernel` must be one of `otdml.kernels`, got 'gaussian'"):
        uniform_mean("gaussian", 3)
