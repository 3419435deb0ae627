"""Lloyd's energy: exact values on the circle and the sphere, dead points, balance."""

import math

import pytest
import torch

from otdml.losses import LloydDispersion, lloyd_dispersion

N_SAMPLES = 20_000


def equispaced(n):
    t = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    return torch.stack([t.cos(), t.sin()], 1)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_equispaced_points_on_the_circle(n, generator):
    # The squared distance to the nearest is uniform² on [0, π/n]: its deviation is (π/n)² sqrt(4/45).
    value = lloyd_dispersion(equispaced(n), n_samples=N_SAMPLES, generator=generator)
    exact = (math.pi / n) ** 2 / 3
    assert abs(float(value) - exact) < 4 * (math.pi / n) ** 2 * math.sqrt(4 / 45 / N_SAMPLES)


ANTIPODES = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64)


def test_antipodes_on_the_sphere(generator):
    value = lloyd_dispersion(ANTIPODES, n_samples=N_SAMPLES, generator=generator)
    assert float(value) == pytest.approx(math.pi - 2, abs=4 * 0.8 / N_SAMPLES**0.5)


def test_balanced_antipodes_have_the_free_value_up_to_entropy(generator):
    # Both cells are of half the sphere already; the entropy adds at most the temperature, a tenth, times log 2.
    value = lloyd_dispersion(ANTIPODES, n_samples=4000, balanced=True, generator=generator)
    assert math.pi - 2 - 0.05 < float(value) < (math.pi - 2) * (1 + 0.1 * math.log(2)) + 0.05


def test_gradients_are_finite_differences(generator):
    z = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = LloydDispersion(n_samples=30, generator=torch.Generator())
    assert torch.autograd.gradcheck(lambda z: (loss.generator.manual_seed(1), loss(z))[1], (z,))


def test_balanced_gradients_are_those_of_the_value_with_its_temperature(generator):
    z = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    ways = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)

    def value(z):
        drawn = torch.Generator().manual_seed(1)
        return lloyd_dispersion(z, n_samples=40, balanced=True, generator=drawn)

    (grad,) = torch.autograd.grad(value(z), z)
    for v in ways:
        # The solver stops at a marginal error of 1e-3.
        numeric = float(value(z.detach() + 1e-3 * v) - value(z.detach() - 1e-3 * v)) / 2e-3
        assert float((grad * v).sum()) == pytest.approx(numeric, abs=5e-3 * float(grad.norm() * v.norm()))


def test_a_dead_point_feels_no_force_unless_balanced(generator):
    # Four points of which the first is surrounded, so closely that no sample is nearest to it.
    z = torch.tensor([[1.0, 0.0], [1.0, 1e-7], [1.0, -1e-7], [-1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    (free,) = torch.autograd.grad(lloyd_dispersion(z, n_samples=200, generator=generator), z)
    (balanced,) = torch.autograd.grad(lloyd_dispersion(z, n_samples=200, balanced=True, generator=generator), z)
    assert free[0].norm() == 0
    assert balanced[0].norm() > 1e-3


def test_descent_finds_the_equispaced_points(generator):
    z = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        optimizer.zero_grad()
        lloyd_dispersion(z, n_samples=500, generator=generator).backward()
        optimizer.step()
    angles = torch.atan2(z[:, 1], z[:, 0]).sort().values.detach()
    gaps = torch.cat([angles, angles[:1] + 2 * math.pi]).diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 2 * math.pi / 5), rtol=0.05, atol=0)


def test_a_search_of_many_equals_the_matrix_of_few(generator, monkeypatch):
    from otdml.losses.dispersion import lloyd

    z = torch.randn(2, 50, 4, generator=generator)
    values = []
    for few in (lloyd._FEW, 0):
        monkeypatch.setattr(lloyd, "_FEW", few)
        values.append(lloyd_dispersion(z, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(*values)
    assert values[0].shape == (2,)


@pytest.mark.parametrize("balanced", [False, True])
def test_coincident_rows_are_pushed_apart(balanced, generator):
    z = torch.randn(4, 3, generator=generator)
    z[1] = z[0]
    z.requires_grad_()
    (grad,) = torch.autograd.grad(lloyd_dispersion(z, balanced=balanced, generator=generator), z)
    assert grad.isfinite().all()
    # Towards its own half of the cell; less so where the plan is blurred.
    assert (grad[0] - grad[1]).norm() > 1e-3


def test_module_is_the_function():
    z = torch.eye(3)
    module = LloydDispersion(n_samples=50, generator=torch.Generator().manual_seed(3))
    assert module(z) == lloyd_dispersion(z, n_samples=50, generator=torch.Generator().manual_seed(3))
    assert repr(module) == "LloydDispersion(n_samples=50, balanced=False)"


def test_errors():
    with pytest.raises(ValueError, match="`z` must have at least two coordinates, got 1"):
        lloyd_dispersion(torch.ones(3, 1))
    with pytest.raises(ValueError, match="`n_samples` must be an integer >= 1, got 0"):
        LloydDispersion(n_samples=0)


@pytest.mark.parametrize("balanced", [False, True])
def test_one_seed_draws_the_same_points_in_both_precisions(balanced):
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    options = {"n_samples": 64, "balanced": balanced}
    single, double = (
        lloyd_dispersion(t, generator=torch.Generator().manual_seed(1), **options) for t in (z, z.double())
    )
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


def test_gradients_of_functions_are_those_of_the_tape_where_cells_are_searched(generator):
    z = torch.randn(3000, 4, generator=generator, requires_grad=True)

    def loss(z):
        # Another seed than that of the points, of which the samples would be the first.
        return lloyd_dispersion(z, n_samples=1000, generator=torch.Generator().manual_seed(1))

    (expected,) = torch.autograd.grad(loss(z), z)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(torch.func.grad(loss)(z.detach()), expected)
