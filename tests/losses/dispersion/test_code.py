"""Spherical codes against optimal and best known ones, and the Thomson energy."""

import math

import pytest
import torch

from otdml.losses.dispersion import kernel_dispersion, nearest_angles, spherical_code
from otdml.sphere import uniform_points

# Smallest angles of optimal codes on S², in degrees.
TAMMES = {12: 63.4349488, 24: 43.6907671, 48: 30.7627855}


@pytest.mark.parametrize("n", TAMMES)
def test_tammes(n, generator):
    x = spherical_code(n, 3, generator=generator)
    assert 0.995 * TAMMES[n] < float(nearest_angles(x).min()) < TAMMES[n] + 1e-4


@pytest.mark.parametrize(("n", "d"), [(2, 2), (5, 2), (4, 3), (6, 5), (10, 20)])
def test_simplices_and_polygons(n, d, generator):
    x = spherical_code(n, d, restarts=1, steps=300, generator=generator)
    cosine = math.cos(2 * math.pi / n) if d == 2 else -1 / (n - 1)
    assert float(nearest_angles(x).min()) == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-3)


def test_orthoplex(generator):
    x = spherical_code(16, 8, restarts=2, steps=500, generator=generator)
    assert float(nearest_angles(x).min()) == pytest.approx(90, abs=0.2)


def test_is_reproducible_and_keeps_what_it_is_told(generator):
    x = spherical_code(5, 3, restarts=2, steps=20, generator=generator, dtype=torch.float32)
    assert x.dtype == torch.float32
    assert not x.requires_grad
    again = spherical_code(5, 3, restarts=2, steps=20, generator=generator.manual_seed(0), dtype=torch.float32)
    assert x.equal(again)


def test_riesz_energy_reaches_thomsons_and_not_tammes(generator):
    z = uniform_points(24, 3, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=500, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        energy = kernel_dispersion(z, kernel="riesz", s=1.0) * (24 * 23 / 2)
        energy.backward()
        return energy

    optimizer.step(closure)
    assert float(closure().detach()) == pytest.approx(223.347074052, abs=1e-3)
    assert float(nearest_angles(z.detach()).min()) == pytest.approx(42.065, abs=0.01)


@pytest.mark.parametrize(("name", "value"), [("n", 1), ("d", 1), ("restarts", 0), ("steps", 0)])
def test_errors(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= "):
        spherical_code(**{"n": 4, "d": 3, name: value})
