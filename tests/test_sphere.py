"""Directions, angles, the tie-break, uniform points, great circles and the parametrisation."""

import math

import pytest
import torch
from torch.nn.utils import parametrize
from transforms import TRANSFORMS

from otdml.sphere import UnitRows, _coincident, angle, distinct_directions, great_circles, length, uniform_points, unit


def on_circle(degrees):
    t = torch.as_tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([t.cos(), t.sin()], -1)


def test_unit_rows_have_length_one_and_zero_rows_stay(generator):
    z = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64) * 1e3
    z[0, 0] = 0
    norms = unit(z).norm(dim=-1)
    assert norms[0, 0] == 0
    torch.testing.assert_close(norms.flatten()[1:], torch.ones(9, dtype=torch.float64))


@TRANSFORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("directions", [unit, lambda z: z / length(z)], ids=["unit", "length"])
def test_second_derivatives_beside_a_row_of_zeros(directions, dtype, generator):
    z = torch.randn(3, 2, generator=generator, dtype=dtype)
    w = torch.randn(3, 2, generator=generator, dtype=dtype)
    z[1] = 0

    def tilted(z):
        return (directions(z) * w).sum()

    # The derivative of (w - x <x, w>) / r for each direction x; a row of zeros has the gradient of the identity.
    expected = torch.zeros(3, 2, 3, 2, dtype=dtype)
    for i in (0, 2):
        r = z[i].norm()
        x, slope = z[i] / r, z[i] @ w[i] / r
        mixed = torch.outer(x, w[i])
        expected[i, :, i] = (3 * slope * torch.outer(x, x) - mixed - mixed.mT - slope * torch.eye(2)) / r**2
    plain = torch.autograd.functional.hessian(tilted, z)
    torch.testing.assert_close(plain, expected)
    for hessian in (torch.func.hessian, lambda f: torch.func.jacfwd(torch.func.jacfwd(f))):
        torch.testing.assert_close(hessian(tilted)(z), expected)


def test_unit_gradient_is_tangential_and_finite_at_zero():
    z = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit(z)[:, 0].sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([[0.128, -0.096], [1.0, 0.0]]))


@pytest.mark.parametrize(("dtype", "lengths"), [(torch.float32, (1e-37, 1e37)), (torch.float64, (1e-300, 1e300))])
def test_very_long_and_very_short_rows_keep_their_digits(dtype, lengths, generator):
    z = torch.randn(9, 5, generator=generator, dtype=dtype).requires_grad_()
    (expected,) = torch.autograd.grad(unit(z)[:, 0].sum(), z)
    for factor in lengths:
        scaled = (z.detach() * factor).requires_grad_()
        torch.testing.assert_close(unit(scaled), unit(z), rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
        (grad,) = torch.autograd.grad(unit(scaled)[:, 0].sum(), scaled)
        torch.testing.assert_close(grad * factor, expected)
        twice = torch.cat([scaled.detach(), 2 * scaled.detach()])
        apart = distinct_directions(twice)
        assert apart[:9].equal(unit(twice)[:9])
        torch.testing.assert_close(
            (apart[9:] - apart[:9]).norm(dim=1), torch.full((9,), 1e-3).to(dtype), rtol=0.9, atol=0
        )


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.float64, 1e30), (torch.float64, 1e250)])
def test_lengths_of_very_long_and_very_short_rows(dtype, size):
    rows = [[3 / size, 4 / size], [0.0, 0.0], [3 * size, 4 * size]]
    z = torch.tensor(rows, dtype=dtype, requires_grad=True)
    found = length(z)
    torch.testing.assert_close(found, torch.tensor([[5 / size], [1.0], [5 * size]], dtype=dtype), atol=0, rtol=1e-6)
    (grad,) = torch.autograd.grad(found.sum(), z)
    torch.testing.assert_close(grad, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_below_the_normal_numbers_count_as_zero(dtype):
    z = torch.full((3, 4), torch.finfo(dtype).tiny / 2, dtype=dtype).requires_grad_()
    (grad,) = torch.autograd.grad(unit(z).sum(), z)
    assert grad.equal(torch.ones_like(z))
    x = distinct_directions(z)
    assert torch.pdist(x).min() > 0.1
    (grad,) = torch.autograd.grad(x[:, 0].sum(), z)
    assert grad.isfinite().all()


@pytest.mark.parametrize("degrees", [0, 1e-9, 1e-3, 30, 90, 180 - 1e-9, 180])
def test_angle_keeps_its_digits_everywhere(degrees):
    found = angle(on_circle(0.0), on_circle(degrees))
    assert float(found) == pytest.approx(math.radians(degrees), rel=1e-7, abs=1e-15)


@pytest.mark.parametrize("degrees", [1e-6, 45, 179.9999])
def test_angle_has_a_gradient_of_length_one(degrees):
    x = on_circle(degrees).requires_grad_()
    angle(on_circle(0.0), x).backward()
    tangent = torch.stack([-x.detach()[1], x.detach()[0]])
    assert float(x.grad @ tangent) == pytest.approx(1, rel=1e-6)


def test_angle_of_a_point_with_itself_has_gradient_zero():
    x = on_circle(20.0).requires_grad_()
    angle(x, x.detach()).backward()
    assert x.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 3, 64])
def test_distinct_directions_leave_distinct_rows(dtype, d, generator):
    z = torch.randn(200, d, generator=generator, dtype=dtype)
    assert distinct_directions(z).equal(unit(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 3, 64])
def test_distinct_directions_part_coincident_rows(dtype, d, generator):
    z = torch.randn(50, d, generator=generator, dtype=dtype)
    z[10:40] = z[3]
    z[20:30] *= torch.rand(10, 1, generator=generator, dtype=dtype) + 0.5
    z[45:] = 0
    x = distinct_directions(z)
    # Pairs by differences: products lose the digits that are in question.
    r = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(1)
    # On a circle all of them share one line, and some of its pairs are near by chance.
    assert r.min() > (0 if d == 2 else 1e-5)
    assert r[3, 10:40].max() < 5e-3
    assert x[:3].equal(unit(z[:3]))
    torch.testing.assert_close(x.norm(dim=1), torch.ones(50, dtype=dtype))


def test_equal_directions_are_parted_in_a_large_cloud(generator):
    z = torch.randn(100_000, 8, generator=generator)
    # Powers of two change no digit of a direction.
    copies = z[:1000] * 2.0 ** torch.randint(-3, 4, (1000, 1), generator=generator)
    found, kept = distinct_directions(torch.cat([z, copies])), unit(z)
    assert ((found[100_000:] - kept[:1000]).norm(dim=-1) > 1e-4).all()
    assert torch.equal(found[:1000], kept[:1000])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_glance_at_projections_changes_no_direction(dtype, generator, monkeypatch):
    from otdml import sphere

    apart = torch.randn(3, 400, 6, generator=generator, dtype=dtype)
    zero, twins, near = apart.clone(), apart.clone(), apart.clone()
    zero[1, 7], twins[2, 300] = 0, 3 * twins[2, 5]
    near[0, 9] = near[0, 8] * (1 + 4 * torch.finfo(dtype).eps * torch.randn(6, generator=generator, dtype=dtype))
    glances = [distinct_directions(z) for z in (apart, zero, twins, near)]
    assert all((found != unit(z)).any() for found, z in zip(glances[1:], (zero, twins, near), strict=True))
    monkeypatch.setattr(sphere, "_all_distinct", lambda *_: False)
    for found, z in zip(glances, (apart, zero, twins, near), strict=True):
        assert found.equal(distinct_directions(z))


def test_distinct_directions_is_the_same_each_time_and_in_a_batch(generator):
    z = torch.randn(2, 20, 4, generator=generator)
    z[:, 5:] = z[:, :1]
    x = distinct_directions(z)
    assert x.equal(distinct_directions(z))
    assert x.equal(torch.stack([distinct_directions(cloud) for cloud in z]))


def test_distinct_directions_passes_the_gradient_of_unit(generator):
    z = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    z[2] = z[1]
    z.requires_grad_()
    w = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad((distinct_directions(z) * w).sum(), z)
    (expected,) = torch.autograd.grad((unit(z) * w).sum(), z)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-2)


def test_distinct_directions_lets_nan_through():
    z = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [0.0, 1.0]])
    assert distinct_directions(z)[1].isnan().all()
    assert distinct_directions(z)[[0, 2]].equal(z[[0, 2]])


def test_uniform_points_balance_and_are_reproducible(generator):
    x = uniform_points(20_000, 3, generator=generator, dtype=torch.float64)
    # Each coordinate is uniform on [-1, 1]: mean 0, variance 1/3, with errors of .004 and .002.
    assert x.mean(0).abs().max() < 0.02
    assert (x.T @ x / 20_000 - torch.eye(3) / 3).abs().max() < 0.01
    assert x.equal(uniform_points(20_000, 3, generator=generator.manual_seed(0), dtype=torch.float64))


@pytest.mark.parametrize("axis_aligned", [False, True])
def test_great_circles_are_orthonormal(axis_aligned, generator):
    like = torch.zeros(5, dtype=torch.float64)
    p, q = great_circles(7, like, axis_aligned=axis_aligned, generator=generator)
    assert p.shape == q.shape == (7, 5)
    one, zero = torch.ones(7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    for pair, expected in (((p, p), one), ((q, q), one), ((p, q), zero)):
        torch.testing.assert_close((pair[0] * pair[1]).sum(1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_great_circles_of_the_plane_are_orthonormal(dtype, generator):
    # Both vectors may be drawn nearly parallel, where rounding turns what is left across.
    p, q = great_circles(100_000, torch.zeros(2, dtype=dtype), generator=generator)
    eps = max(torch.finfo(dtype).eps, 1e-10)
    for u, v, product in ((p, p, 1), (q, q, 1), (p, q, 0)):
        assert ((u.double() * v.double()).sum(-1) - product).abs().max() < 2 * eps


def test_axis_aligned_circles_use_each_coordinate_before_the_next_round(generator):
    p, q = great_circles(3, torch.zeros(6), axis_aligned=True, generator=generator)
    assert (p + q).sum(0).equal(torch.ones(6))


def test_great_circles_are_uniform(generator):
    p, q = great_circles(20_000, torch.zeros(3, dtype=torch.float64), generator=generator)
    normal = torch.linalg.cross(p, q)
    assert (normal.T @ normal / 20_000 - torch.eye(3) / 3).abs().max() < 0.01


def test_great_circles_need_a_plane():
    with pytest.raises(ValueError, match="`d` must be an integer >= 2, got 1"):
        great_circles(3, torch.zeros(1))


def test_parametrised_rows_stay_on_the_sphere_under_an_optimiser(generator):
    layer = torch.nn.Linear(3, 10, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(10, 3, generator=generator))
    before = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", UnitRows())
    torch.testing.assert_close(layer.weight, unit(before))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer.weight[:, 0].sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(10))
    assert layer.weight[:, 0].sum() < unit(before)[:, 0].sum()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 1, 0]])
def test_of_coincident_rows_the_first_stays_however_rounding_orders_them(order):
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert _coincident(x, torch.tensor(order)).tolist() == [False, True, False, True]


def test_points_have_coordinates():
    assert uniform_points(0, 3).shape == (0, 3)
    with pytest.raises(ValueError, match=r"`shape` must end with the number of coordinates, 1 or more, got \(3, 0\)"):
        uniform_points(3, 0)
