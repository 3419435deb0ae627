"""Distances to the Gaussian against quadrature, closed forms, and means over samples."""

import math

import numpy as np
import pytest
import torch
from draws import drawn, seeded
from scipy import integrate, stats

from otdml.losses import MMDToGaussian, SIGReg, mmd, mmd_to_gaussian, sigreg
from otdml.ot._sliced import directions

DOUBLE = torch.float64


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_on_the_line_means_are_integrals(sigma):
    z = 1.5 * drawn(4, 1) + 0.3

    def kernel(r):
        return math.exp(-(r**2) / (2 * sigma**2))

    def mean(x):
        return integrate.quad(lambda y: kernel(x - y) * stats.norm.pdf(y), -12, 12, epsabs=1e-12)[0]

    pairs = np.mean([[kernel(a - b) for a in z[:, 0].tolist()] for b in z[:, 0].tolist()])
    constant = integrate.quad(lambda x: mean(x) * stats.norm.pdf(x), -12, 12, epsabs=1e-12)[0]
    expected = pairs - 2 * np.mean([mean(x) for x in z[:, 0].tolist()]) + constant
    assert float(mmd_to_gaussian(z, bandwidth=sigma)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("d", [2, 7])
def test_is_the_discrepancy_to_a_large_sample(d):
    z, sample = 0.7 * drawn(20, d) + 0.4, drawn(20_000, d, seed=1)
    for sigma in (1.0, [1.0, 3.0]):
        close = mmd(z, sample, bandwidth=sigma)
        assert float(mmd_to_gaussian(z, bandwidth=sigma)) == pytest.approx(float(close), abs=3e-3)


@pytest.mark.parametrize("d", [1, 3, 50, 2000])
def test_mean_over_samples_of_the_gaussian(d):
    z = drawn(400, 10, d)
    biased, unbiased = mmd_to_gaussian(z), mmd_to_gaussian(z, unbiased=True)
    constant = (d / (2 + d)) ** (d / 2)
    for values, expected in ((biased, (1 - constant) / 10), (unbiased, 0.0)):
        error = float(values.std()) / 400**0.5
        assert float(values.mean()) == pytest.approx(expected, abs=4 * error)
    assert float(biased.mean()) > 10 * float(biased.std()) / 400**0.5


def test_default_bandwidth_sees_in_high_dimension():
    z = drawn(200, 500)
    value = mmd_to_gaussian(z)
    for other in (1.3 * z, 0.7 * z, z + 0.2, z * torch.linspace(0.1, 1.9, 500, dtype=DOUBLE)):
        assert mmd_to_gaussian(other) > 1.05 * value


def test_large_and_far_points():
    assert float(mmd_to_gaussian(torch.full((3, 2), 1e6), bandwidth=1.0)) == pytest.approx(1 + 1 / 3, rel=1e-5)
    assert not mmd_to_gaussian(torch.tensor([[torch.inf, 0.0], [0.0, 0.0]])).isfinite()


def test_descent_leads_to_a_gaussian():
    z = (0.1 * drawn(300, 2)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        mmd_to_gaussian(z, bandwidth=[0.5, 1.5]).backward()
        optimizer.step()
    assert torch.cov(z.detach().T).sub(torch.eye(2)).abs().max() < 0.1
    assert stats.kstest(z.detach()[:, 0].numpy(), "norm").statistic < 0.04


# ---- on random lines


def test_is_the_integral_of_characteristic_functions():
    z = 1.3 * drawn(6, 2)
    theta = directions(2, 3, generator=seeded(), like=z)

    def integrand(t, u):
        return abs(np.exp(1j * t * u).mean() - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2)

    integrals = [integrate.quad(integrand, -9, 9, args=(u,), epsabs=1e-12, limit=200)[0] for u in (theta @ z.T).numpy()]
    fine = sigreg(z, n_projections=3, n_knots=200, largest=9.0, generator=seeded())
    assert float(fine) == pytest.approx(np.mean(integrals), rel=1e-10)
    assert float(sigreg(z, n_projections=3, generator=seeded())) == pytest.approx(np.mean(integrals), rel=1e-4)


def test_is_the_mean_discrepancy_of_lines():
    z = drawn(30, 4)
    lines = (directions(4, 16, generator=seeded(), like=z) @ z.T)[..., None]
    expected = math.sqrt(2 * math.pi) * mmd_to_gaussian(lines, bandwidth=1.0).mean()
    found = sigreg(z, n_projections=16, generator=seeded())
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_mean_of_the_statistic_over_samples():
    values = 20 * sigreg(drawn(500, 20, 3), n_projections=8, generator=seeded())
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / 500**0.5)


@pytest.mark.parametrize("loss", [SIGReg, MMDToGaussian])
def test_collapse_costs_most(loss):
    z = drawn(64, 8)
    spread, line = loss()(z), loss()(z[:, :1] * torch.ones(8, dtype=DOUBLE))
    point = loss()(z[:1].expand(64, 8))
    assert spread < 0.2 * line
    assert line < point


def test_statistic_of_the_paper():
    """The published code: knots on [-5, 5], a Gaussian window, the trapezoidal rule, times the number of samples."""
    z = drawn(50, 6)
    A = directions(6, 32, generator=seeded(), like=z).T
    t = torch.linspace(-5, 5, 33, dtype=DOUBLE)
    target = torch.exp(-0.5 * t**2)
    empirical = torch.exp(1j * (z @ A).unsqueeze(2) * t).mean(0)
    error = (empirical - target).abs().square() * target
    expected = 50 * torch.trapezoid(error, t, dim=1).mean()
    found = 50 * sigreg(z, n_projections=32, generator=seeded())
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_errors():
    z = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="`unbiased` must be False where there is one point"):
        mmd_to_gaussian(z, unbiased=True)
    for make in (
        lambda: MMDToGaussian(bandwidth=0.0),
        lambda: MMDToGaussian(bandwidth=[]),
        lambda: MMDToGaussian(backend="slow"),
        lambda: SIGReg(n_projections=0),
        lambda: SIGReg(n_knots=1),
        lambda: SIGReg(largest=-1.0),
    ):
        with pytest.raises(ValueError, match=r"must be"):
            make()
