"""Distortion and the Gromov-Monge gap by value; the solver's own tests are in tests/ot/test_gromov.py."""

import math

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.losses import (
    Distortion,
    FusedGromovWasserstein,
    GromovMongeGap,
    ScaledCost,
    distortion,
    gromov_monge,
    gromov_monge_gap,
)
from otdml.ot import gromov


def cloud(n=12, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d=3):
    return torch.linalg.qr(cloud(d, d, seed=9))[0]


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", "inner", "euclidean"])
def test_distortion_is_its_definition(cost):
    x, y = cloud(), cloud(d=5, seed=1)
    A, B = cost_matrix(x, x, cost), cost_matrix(y, y, cost)
    expected = (A - B).square().sum() / (2 * 12**2)
    torch.testing.assert_close(distortion(x, y, cost_x=cost, cost_y=cost), expected)


def test_cosine_similarity_and_distance_agree():
    def similarity(x, y):
        return 1 - cost_matrix(x, y, "cosine")

    x, y = cloud(), cloud(seed=1)
    torch.testing.assert_close(distortion(x, y), distortion(x, y, cost_x=similarity, cost_y=similarity))
    gap = gromov_monge_gap(x, y, cost_x=similarity, cost_y=similarity, eps=0.05, tol=1e-8)
    torch.testing.assert_close(gap, gromov_monge_gap(x, y, eps=0.05, tol=1e-8), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
def test_isometries_are_not_distorted(cost):
    x = cloud()
    y = x @ rotation() + (1.0 if cost == "sqeuclidean" else 0.0)
    assert distortion(x, y, cost_x=cost, cost_y=cost) < 1e-20
    scale = float(cost_matrix(x, x, cost).mean() ** 2)
    assert abs(float(gromov_monge_gap(x, y, cost_x=cost, cost_y=cost, eps=1e-3 * scale))) < 1e-5 * scale


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
def test_all_of_a_permuted_isometry_s_distortion_is_avoidable(cost):
    x = cloud()
    y = (x @ rotation()).roll(1, 0)
    value = gromov_monge_gap(x, y, cost_x=cost, cost_y=cost)
    torch.testing.assert_close(value, distortion(x, y, cost_x=cost, cost_y=cost), rtol=1e-2, atol=0)


def test_gap_is_distortion_less_gromov_wasserstein():
    x, y = cloud(), cloud(d=5, seed=1)
    value = gromov_monge_gap(x, y, eps=0.02, tol=1e-8)
    expected = distortion(x, y) - gromov(x, y, cost_x="cosine", cost_y="cosine", eps=0.02, tol=1e-8).value
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def test_gap_of_float32_keeps_its_digits():
    x = cloud(64, 10)
    y = x + 1e-3 * cloud(64, 10, seed=1)
    eps = 1e-4
    exact = gromov_monge_gap(x, y, eps=eps, tol=1e-7)
    single = gromov_monge_gap(x.float(), y.float(), eps=eps, tol=1e-7)
    torch.testing.assert_close(float(single), float(exact), rtol=0, atol=1e-8)


def test_blocks_of_rows_change_nothing(monkeypatch):
    x, y = cloud(20).requires_grad_(), cloud(20, seed=1).requires_grad_()
    a = torch.linspace(1, 2, 20, dtype=x.dtype) / 30
    whole = distortion(x, y, a)
    expected = torch.autograd.grad(whole, (x, y))
    monkeypatch.setattr(gromov_monge, "BLOCK", 20 * 3)
    blocks = distortion(x, y, a)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(torch.autograd.grad(blocks, (x, y)), expected)


def test_scaled_cost_is_learnt():
    x = cloud()
    cost = ScaledCost("sqeuclidean", 1.0)
    loss = Distortion(cost_x="sqeuclidean", cost_y=cost)
    assert [name for name, _ in loss.named_parameters()] == ["cost_y.log_scale"]
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=50, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        value = loss(x, 2 * x)
        value.backward()
        return value

    optimizer.step(closure)
    # Distances in 2 x are twice, their squares four times as long.
    torch.testing.assert_close(float(cost.scale.detach()), 0.25, rtol=1e-4, atol=0)


def test_fixed_scale_has_no_gradient():
    assert not ScaledCost("sqeuclidean", 2.0, learnable=False).log_scale.requires_grad


def test_gap_s_scale_has_a_gradient():
    x, y = cloud(), cloud(seed=1)
    loss = GromovMongeGap(cost_x="sqeuclidean", cost_y=ScaledCost("sqeuclidean", 0.5), eps=1.0)
    loss(x, y).backward()
    assert loss.cost_y.log_scale.grad.abs() > 0


def test_gap_trains_a_map_to_an_isometry():
    x = cloud(16, 2)
    weight = torch.tensor([[1.0, 0.8], [0.0, 0.5]], dtype=x.dtype, requires_grad=True)
    loss = GromovMongeGap(cost_x="cosine", cost_y="cosine")
    optimizer = torch.optim.Adam([weight], lr=0.05)
    before = distortion(x, x @ weight).detach()
    for _ in range(100):
        optimizer.zero_grad()
        loss(x, x @ weight).backward()
        optimizer.step()
    # Where no permutation improves on the map the gap is zero, which is short of an isometry.
    assert distortion(x, x @ weight) < 0.8 * before
    assert loss(x, x @ weight) < 0.01


def test_zero_rows_under_cosine():
    x, y = cloud(), cloud(seed=1)
    x[0] = 0
    x = x.requires_grad_()
    gromov_monge_gap(x, y).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 1e3


def test_gap_lies_between_its_bounds():
    x, y = cloud(), cloud(seed=1)
    for eps in (0.01, 0.1, 1.0):
        gap = gromov_monge_gap(x, y, eps=eps)
        assert -eps * math.log(12) <= gap <= distortion(x, y)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`init` must be one of 'best'"):
        GromovMongeGap(init="random")
    with pytest.raises(ValueError, match="`cost_x` must be one of"):
        distortion(cloud(), cloud(), cost_x="manhattan")
    with pytest.raises(ValueError, match="`scale` must be a positive number, got -1"):
        ScaledCost("sqeuclidean", -1.0)


@pytest.mark.slow
def test_memory_of_a_large_batch():
    from otdml.benchmarks.speed.harness import peak_memory

    x, noise = (torch.randn(4096, 10, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    x, y = x.requires_grad_(), (x + 0.3 * noise).requires_grad_()
    gromov_monge_gap(x[:64], y[:64]).backward()

    def run():
        gromov_monge_gap(x, y, tol=1e-2).backward()

    assert peak_memory(run)[1] < 200


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "inner"])
@pytest.mark.parametrize("loss", [distortion, gromov_monge_gap])
def test_costs_whose_squares_overflow_are_refused_with_the_remedy(loss, cost):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 9, 3, generator=generator) for _ in range(2))
    for scale in (1e25, 1e30):
        with pytest.raises(
            ValueError, match=r"`x` must give (a finite distortion|.*finite).*, or rescale them: squares"
        ):
            loss(scale * x, scale * y, cost_x=cost, cost_y=cost)
    # Where they do not, the values are those of double precision.
    options = {"tol": 1e-6, "max_iter": 3000} if loss is gromov_monge_gap else {}
    large = 1e15 if cost == "euclidean" else 1e8
    pairs = (x, y), (x.double(), y.double())
    single, double = (loss(large * s, large * t, cost_x=cost, cost_y=cost, **options) for s, t in pairs)
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss", [distortion, gromov_monge_gap])
@pytest.mark.parametrize(("cost", "scale"), [("sqeuclidean", 1e-18), ("sqeuclidean", 1e-25), ("euclidean", 1e-25)])
def test_costs_whose_squares_vanish_are_no_zero(loss, cost, scale):
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.eye(6)
    for first, second, name in ((scale * x, scale * y, "x"), (x[:1].expand(6, 3), scale * y, "y")):
        with pytest.raises(ValueError, match=rf"`{name}` must give costs whose squares torch.float32 tells from zero"):
            loss(first, second, cost_x=cost, cost_y=cost)
    # Of an isometry, and of points that are one, the value is zero for good.
    rotated = 1e-3 * x.roll(1, -1)
    assert float(distortion(1e-3 * x, rotated, cost_x=cost, cost_y=cost)) < 1e-12
    assert float(loss(0 * x, 0 * y, cost_x=cost, cost_y=cost)) == 0
    assert float(distortion(x.double() * scale, y.double() * scale, cost_x=cost, cost_y=cost)) > 0


@pytest.mark.parametrize("make", [Distortion, GromovMongeGap, FusedGromovWasserstein])
@pytest.mark.parametrize("name", ["cost_x", "cost_y"])
def test_costs_that_are_none_are_refused_at_once(make, name):
    for wrong in ("foo", 3):
        with pytest.raises((ValueError, TypeError), match=f"`{name}` must be"):
            make(**{name: wrong})


@pytest.mark.parametrize("loss", [distortion, gromov_monge_gap])
def test_squares_that_vanish_beside_others_are_refused_in_no_batch(loss, generator):
    """Those of one side of an element that has a value, where another element has none because its points coincide."""
    x = torch.randn(3, 5, 2, generator=generator)
    x = torch.stack([1e-12 * x[0], x[1], x[2, :1].expand(5, 2)])
    costs = {"cost_x": "euclidean", "cost_y": "sqeuclidean"}
    alone = torch.stack([loss(cloud, cloud.flip(0), **costs) for cloud in x])
    assert alone[2] == 0
    torch.testing.assert_close(loss(x, x.flip(1), **costs), alone, rtol=1e-4, atol=0)
