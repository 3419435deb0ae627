"""Nearest-neighbour regularisers: by brute force, at simplices, and where rows coincide."""

import functools
import itertools
import math

import pytest
import torch

from otdml.losses import KoLeo, MaxCosine, MaxMinAngle, koleo, max_cosine, max_min_angle
from otdml.sphere import uniform_points

LOSSES = {"koleo": koleo, "koleo k=2": functools.partial(koleo, k=2), "angle": max_min_angle, "cosine": max_cosine}


def brute_force(name, z):
    """Each value as the loop over points that defines it."""
    x = [row / row.norm() for row in z]
    values = []
    for i, p in enumerate(x):
        cosines = sorted((float(p @ q) for j, q in enumerate(x) if j != i), reverse=True)
        values += {
            "koleo": [-math.log(math.sqrt(2 - 2 * cosines[0]))],
            "koleo k=2": [-math.log(math.sqrt(2 - 2 * c)) for c in cosines[:2]],
            "angle": [-math.acos(cosines[0])],
            "cosine": [cosines[0]],
        }[name]
    return sum(values) / len(values)


@pytest.mark.parametrize("name", LOSSES)
def test_equals_brute_force(name, generator):
    z = 5 * torch.randn(30, 4, generator=generator, dtype=torch.float64)
    assert float(LOSSES[name](z)) == pytest.approx(brute_force(name, z), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_a_search_of_many_points_equals_the_matrix_of_few(name, dtype, generator, monkeypatch):
    from otdml.losses.dispersion import nearest

    z = uniform_points(2, 300, 8, generator=generator, dtype=dtype).requires_grad_()
    few = LOSSES[name](z)
    expected = torch.autograd.grad(few.sum(), z)
    monkeypatch.setattr(nearest, "_FEW", 10)
    many = LOSSES[name](z)
    torch.testing.assert_close(many, few)
    torch.testing.assert_close(torch.autograd.grad(many.sum(), z), expected)


@pytest.mark.parametrize("d", [2, 5, 40])
def test_simplex(d):
    # d + 1 points with cosines -1/d, the best possible for all.
    x = torch.eye(d + 1, dtype=torch.float64) - 1 / (d + 1)
    assert float(max_cosine(x)) == pytest.approx(-1 / d)
    assert float(max_min_angle(x)) == pytest.approx(-math.acos(-1 / d))
    assert float(koleo(x)) == pytest.approx(-math.log(2 + 2 / d) / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_differences(name, generator):
    z = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LOSSES[name], (z,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_coincident_rows_are_pushed_apart(name, dtype, generator):
    z = torch.randn(6, 3, generator=generator, dtype=dtype)
    z[3] = z[2] = 2 * z[1]
    z.requires_grad_()
    value = LOSSES[name](z)
    (grad,) = torch.autograd.grad(value, z)
    assert value.isfinite()
    moved = (z - 1e-2 * grad / grad.abs().max()).detach()
    x = moved / moved.norm(dim=1, keepdim=True)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances[1, 2] > 1e-6
    assert distances[1, 3] > 1e-6


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_collapsed_embedding_spreads(name, scale):
    z = torch.full((40, 5), scale, requires_grad=True)
    before = LOSSES[name](z)
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        LOSSES[name](z).backward()
        optimizer.step()
    assert z.isfinite().all()
    assert LOSSES[name](z) < before - 0.2 or scale == 0.0


def test_the_force_of_the_angle_has_length_one_however_near():
    for angle in (1e-4, 0.1, 3.0):
        z = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64, requires_grad=True)
        # Either point is the nearest of the other, so that each term pulls at both.
        (grad,) = torch.autograd.grad(max_min_angle(z), z)
        torch.testing.assert_close(grad.norm(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["koleo", "angle"])
def test_minibatches_see_larger_distances(name, generator):
    z = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    subsets = list(itertools.combinations(range(8), 4))
    mean = sum(LOSSES[name](z[list(rows)]) for rows in subsets) / len(subsets)
    assert mean < LOSSES[name](z) - 0.1


def test_nan_stays_nan():
    z = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [0.0, 1.0]])
    assert all(loss(z).isnan() for loss in (koleo, max_min_angle, max_cosine))


def test_modules_are_the_functions(generator):
    z = torch.randn(3, 7, 4, generator=generator)
    for module, function in (
        (KoLeo(k=3), functools.partial(koleo, k=3)),
        (MaxMinAngle(), max_min_angle),
        (MaxCosine(), max_cosine),
    ):
        assert module(z).equal(function(z))
    assert repr(KoLeo(k=3)) == "KoLeo(k=3)"


def test_errors():
    with pytest.raises(ValueError, match="`z` must hold at least two points"):
        max_min_angle(torch.ones(1, 3))
    with pytest.raises(ValueError, match="`k` must be less than the number of points, 4, got 4"):
        koleo(torch.eye(4), k=4)
    with pytest.raises(ValueError, match="`k` must be an integer >= 1, got 0"):
        KoLeo(k=0)
    with pytest.raises(ValueError, match="`z` must have at least two coordinates, got 1"):
        koleo(torch.tensor([[1.0], [-1.0], [1.0]]))


def test_an_embedding_table_and_a_linear_head_spread(generator):
    """Of each the weight is the cloud: four rows in three dimensions end at the tetrahedron, whatever their lengths."""
    torch.manual_seed(0)
    for layer in (torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4)):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        for step in range(200):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
            optimizer.zero_grad()
            koleo(layer.weight).backward()
            optimizer.step()
        assert float(max_min_angle(layer.weight.detach())) == pytest.approx(-math.acos(-1 / 3), abs=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_antipodes_are_at_rest(name):
    z = torch.tensor([[0.0, 2.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name] if name != "koleo k=2" else koleo
    (grad,) = torch.autograd.grad(loss(z), z)
    assert grad.abs().max() < 1e-12


@pytest.mark.parametrize("n", [32, 1500])
@pytest.mark.parametrize("loss", [koleo, max_min_angle, max_cosine])
def test_neighbours_of_a_collapsed_cloud_are_those_of_double_precision(loss, n):
    """Cosines of single precision do not tell angles of a ten-thousandth apart; these losses are there to part them."""
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(8, generator=generator)
    z = centre + 2e-4 * torch.randn(n, 8, generator=generator)
    z[-1] = z[7]
    found, expected = z.clone().requires_grad_(), z.double().requires_grad_()
    torch.testing.assert_close(loss(found).double(), loss(expected), rtol=1e-3, atol=0)
    (gradient,), (true,) = (torch.autograd.grad(loss(one), one) for one in (found, expected))
    assert torch.cosine_similarity(gradient.double().flatten(), true.flatten(), dim=0) > 0.99


def test_copies_have_an_angle_of_zero():
    from otdml.losses.dispersion import dispersion_metrics, nearest_angles

    z = torch.ones(8) + 2e-4 * torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    z[31] = z[7]
    assert nearest_angles(z)[[7, 31]].tolist() == [0.0, 0.0]
    assert dispersion_metrics(z)["smallest_angle"] == 0.0


@pytest.mark.parametrize("few", [10, 2])
def test_neighbours_of_points_nearer_than_double_precision_has_cosines_for(few, monkeypatch):
    """Of four angles a hundred-millionth apart and less, each has its own nearest, in either kind of search."""
    from otdml.losses.dispersion import nearest, nearest_angles

    monkeypatch.setattr(nearest, "_FEW", few)
    t = torch.tensor([0.0, 1e-8, 1.1e-8, 1.13e-8, 2.0, 4.0], dtype=torch.float64)
    z = torch.stack([t.cos(), t.sin()], -1)
    expected = torch.tensor([1e-8, 1e-9, 3e-10, 3e-10, 2.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(nearest_angles(z).deg2rad(), expected, rtol=1e-6, atol=0)
    chords = 2 * (expected / 2).sin()
    torch.testing.assert_close(koleo(z), -chords.log().mean())
    second = 2 * (torch.tensor([1.1e-8, 1.3e-9, 1e-9, 1.3e-9, 2.0, 2 * math.pi - 4], dtype=torch.float64) / 2).sin()
    torch.testing.assert_close(koleo(z[None].expand(3, -1, -1), k=2)[1], -torch.cat([chords, second]).log().mean())


@pytest.mark.parametrize("n", [32, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [koleo, max_min_angle])
def test_gradients_of_functions_are_those_of_the_tape(loss, dtype, n, generator):
    z = torch.randn(n, 8, generator=generator, dtype=dtype).requires_grad_()
    (expected,) = torch.autograd.grad(loss(z), z)
    torch.testing.assert_close(torch.func.grad(loss)(z.detach()), expected)


def test_neighbours_of_a_collapsed_batch_are_the_same_under_vmap(generator):
    """Where no value may be looked at, what single precision does not tell is compared in double all the same."""
    z = torch.ones(8) + 1e-4 * torch.randn(3, 40, 8, generator=generator)
    torch.testing.assert_close(torch.vmap(koleo)(z), koleo(z))
    torch.testing.assert_close(torch.compile(koleo, backend="eager")(z), koleo(z))
