"""Sliced dispersion: the quadratic oracle, POT's closed form, minibatches, short projections."""

import itertools
import math

import pytest
import torch

from otdml.losses import SlicedDispersion, sliced_dispersion, sliced_wasserstein_to_uniform
from otdml.losses.dispersion.sliced import circle_wasserstein
from otdml.sphere import great_circles


def seeded(function, seed=3, **options):
    """``function`` on the same slices at every call."""
    return lambda z: function(z, generator=torch.Generator().manual_seed(seed), **options)


def bernoulli_form(u):
    """Half the mean over all pairs of the Bernoulli polynomial B2 of their distance."""
    x = (u[..., :, None] - u[..., None, :]).abs()
    return (x.square() - x + 1 / 6).mean((-2, -1)) / 2


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_circle_wasserstein_is_the_quadratic_form(n, generator):
    u = torch.rand(5, n, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(circle_wasserstein(u), bernoulli_form(u), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("axis_aligned", [False, True])
def test_slices_are_the_quadratic_form_on_their_great_circles(axis_aligned, generator):
    z = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    options = {"axis_aligned": axis_aligned, "generator": torch.Generator().manual_seed(3)}
    p, q = great_circles(7, z, **options)
    w2 = bernoulli_form(torch.atan2(z @ q.T, z @ p.T).T / (2 * math.pi))
    for function, expected in (
        (sliced_wasserstein_to_uniform, w2.mean()),
        (sliced_dispersion, (2 * math.pi**2 * (w2 - 1 / (12 * 30**2))).mean()),
    ):
        value = seeded(function, n_projections=7, axis_aligned=axis_aligned)(z)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)


def test_circle_wasserstein_does_not_depend_on_where_the_circle_is_cut(generator):
    u = torch.rand(20, generator=generator, dtype=torch.float64)
    turned = (u[None] + torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]) % 1 - 0.5
    torch.testing.assert_close(circle_wasserstein(turned), circle_wasserstein(u).expand(9))


def test_circle_wasserstein_is_pots_closed_form(generator):
    ot = pytest.importorskip("ot")
    u = torch.rand(6, 50, generator=generator, dtype=torch.float64)
    expected = ot.semidiscrete_wasserstein2_unif_circle(u.T)
    torch.testing.assert_close(circle_wasserstein(u), expected)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_equispaced_points_are_best(n):
    t = 0.3 + torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    z = torch.stack([t.cos(), t.sin()], 1)
    assert float(sliced_dispersion(z)) == pytest.approx(0, abs=1e-14)
    assert float(sliced_wasserstein_to_uniform(z)) == pytest.approx(1 / (12 * n * n))


def test_two_points_on_the_circle():
    # At angle t: the best equispaced pair leaves residuals ±(π - t) / 2.
    t = 1.2
    z = torch.tensor([[1.0, 0.0], [math.cos(t), math.sin(t)]], dtype=torch.float64)
    assert float(sliced_dispersion(z)) == pytest.approx(((math.pi - t) / 2) ** 2 / 2)


def test_all_points_in_one_place():
    # W² of a point to the uniform measure of a circle of length one: 1/12.
    z = torch.ones(50, 2, dtype=torch.float64)
    assert float(sliced_wasserstein_to_uniform(z)) == pytest.approx(1 / 12, rel=1e-2)


def test_scales_of_the_two_functions(generator):
    z = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    w2, value = seeded(sliced_wasserstein_to_uniform)(z), seeded(sliced_dispersion)(z)
    torch.testing.assert_close(value, 2 * math.pi**2 * (w2 - 1 / (12 * 81)))


@pytest.mark.parametrize("axis_aligned", [False, True])
def test_gradients_are_finite_differences(axis_aligned, generator):
    z = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    for unbiased in (False, True):
        loss = seeded(sliced_dispersion, n_projections=5, axis_aligned=axis_aligned, unbiased=unbiased)
        assert torch.autograd.gradcheck(loss, (z,))


def test_unbiased_minibatches(generator):
    z = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    for function in (sliced_dispersion, sliced_wasserstein_to_uniform):
        loss = seeded(function, n_projections=6, unbiased=True)
        subsets = list(itertools.combinations(range(7), 3))
        mean = sum(loss(z[list(rows)]) for rows in subsets) / len(subsets)
        torch.testing.assert_close(mean, loss(z))
        torch.testing.assert_close(torch.autograd.grad(mean, z), torch.autograd.grad(loss(z), z))


def test_biased_minibatches_have_a_larger_value(generator):
    z = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    loss = seeded(sliced_wasserstein_to_uniform, n_projections=6)
    subsets = list(itertools.combinations(range(7), 3))
    assert sum(loss(z[list(rows)]) for rows in subsets) / len(subsets) > loss(z) + 0.01


def test_uniform_points_have_unbiased_mean_zero(generator):
    z = torch.randn(500, 10, 3, generator=generator, dtype=torch.float64)
    value = sliced_wasserstein_to_uniform(z, unbiased=True, generator=generator)
    assert value.mean().abs() < 4 * value.std() / 500**0.5


def test_short_projections_have_bounded_gradients():
    # On the plane of the first two coordinates the first point is at the origin, the second all but there.
    rows = [[0.0, 0.0, 1.0], [1e-8, 1e-9, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, -1.0, 0.0]]
    z = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    loss = sliced_dispersion(z, axis_aligned=True, n_projections=64)
    (grad,) = torch.autograd.grad(loss, z)
    assert grad.isfinite().all()
    # Residuals are at most 2π / 5 points, and clipped at a twentieth of sqrt(2/3).
    assert grad.norm(dim=1).max() < 2 * math.pi / 5 / (0.05 * (2 / 3) ** 0.5)


def test_coincident_rows_are_pushed_apart(generator):
    z = torch.randn(8, 3, generator=generator)
    z[4:] = z[3]
    z.requires_grad_()
    (grad,) = torch.autograd.grad(sliced_dispersion(z, generator=generator), z)
    moved = (z - 0.1 * grad).detach()
    x = moved / moved.norm(dim=1, keepdim=True)
    r = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(1)
    assert r.min() > 1e-4


def test_slices_come_from_the_generator(generator):
    z = torch.randn(9, 4, generator=generator)
    assert seeded(sliced_dispersion, seed=1)(z) == seeded(sliced_dispersion, seed=1)(z)
    assert seeded(sliced_dispersion, seed=1)(z) != seeded(sliced_dispersion, seed=2)(z)


def test_batch_elements_share_their_slices(generator):
    z = torch.randn(3, 9, 4, generator=generator)
    torch.testing.assert_close(seeded(sliced_dispersion)(z)[1], seeded(sliced_dispersion)(z[1]))


def test_module_is_the_function(generator):
    z = torch.randn(5, 3, generator=generator)
    module = SlicedDispersion(n_projections=4, unbiased=True, generator=torch.Generator().manual_seed(3))
    assert module(z) == seeded(sliced_dispersion, n_projections=4, unbiased=True)(z)
    assert repr(module) == "SlicedDispersion(n_projections=4, axis_aligned=False, unbiased=True)"


def test_errors():
    with pytest.raises(ValueError, match="`z` must have at least two coordinates, got 1"):
        sliced_dispersion(torch.ones(3, 1))
    with pytest.raises(ValueError, match="`z` must hold at least two points"):
        sliced_dispersion(torch.ones(1, 2))
    with pytest.raises(ValueError, match="`n_projections` must be an integer >= 1, got 0"):
        SlicedDispersion(n_projections=0)
