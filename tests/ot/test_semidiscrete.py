"""Semi-discrete transport against cells that are known."""

import math

import pytest
import torch
from torch.autograd import forward_ad
from transforms import TRANSFORMS

from otdml.costs import cost_matrix
from otdml.ot import exact, semidiscrete
from otdml.sphere import uniform_points


def uniform(n, generator=None):
    generator = generator or torch.Generator().manual_seed(0)
    return lambda k: torch.rand(k, n, dtype=torch.float64, generator=generator)


def test_two_points_on_an_interval():
    y = torch.tensor([[0.1], [0.6]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.25, 0.75], dtype=torch.float64, requires_grad=True)
    result = semidiscrete(uniform(1), y, b, n_samples=5000)
    # The cells are [0, 1/4] and [1/4, 1]: there the two costs less the potentials agree.
    difference = (0.25 - 0.1) ** 2 - (0.25 - 0.6) ** 2
    assert float(result.g[0] - result.g[1]) == pytest.approx(difference, abs=3e-3)
    assert float(result.marginal_error) < 0.04
    assert result.cells(torch.tensor([[0.23], [0.27]], dtype=y.dtype)).tolist() == [0, 1]
    integral = (0.15**3 + 0.1**3 + 0.4**3 + 0.35**3) / 3
    assert result.value.item() == pytest.approx(integral, rel=0.03)
    dy, db = torch.autograd.grad(result.value, (y, b))
    # Twice the mass times the way from the cell's centre.
    torch.testing.assert_close(dy[:, 0], torch.tensor([-0.0125, -0.0375], dtype=y.dtype), rtol=0, atol=5e-3)
    torch.testing.assert_close(db, result.g)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_a_large_sample_solves_the_problem_of_points(cost):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(k, 2, dtype=torch.float64, generator=generator) for k in (500, 5))
    result = semidiscrete(x, y, cost=cost, generator=generator)
    solution = exact(x, y, cost=cost)
    assert float(result.value) == pytest.approx(float(solution.value), rel=0.05)
    dual = (cost_matrix(x, y, cost) - result.g).min(-1).values.mean() + result.g.mean()
    assert 0.999 * solution.value < dual < solution.value + 1e-12
    # A few points are split between cells.
    agreement = (result.cells(x) == solution.plan.argmax(-1)).double().mean()
    assert agreement > 0.97


def test_antipodes_share_the_sphere():
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])

    def squared_angle(x, y):
        return (x @ y.mT).clamp(-1, 1).acos().square()

    result = semidiscrete(lambda n: uniform_points(n, 3, generator=generator), y, cost=squared_angle)
    assert result.g.abs().max() < 0.03
    # The mean squared angle to a pole over its hemisphere: the integral of t² sin t up to a right angle.
    assert float(result.value) == pytest.approx(math.pi - 2, rel=0.03)


def test_one_point_takes_everything():
    y = torch.tensor([[1.0, 1.0]])
    result = semidiscrete(torch.zeros(3, 2), y, n_samples=10, n_steps=2)
    torch.testing.assert_close(result.value, torch.tensor(2.0))
    torch.testing.assert_close(result.mass, torch.ones(1))


def test_errors_name_the_argument():
    y = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="`b` must have mass one, got 2"):
        semidiscrete(torch.zeros(4, 3), y, torch.ones(2))
    with pytest.raises(ValueError, match=r"`y` must have shape \(m, d\)"):
        semidiscrete(torch.zeros(4, 3), y[None])
    with pytest.raises(ValueError, match="`y` must have the features of `x`"):
        semidiscrete(torch.zeros(4, 2), y)
    with pytest.raises(ValueError, match=r"`b` must hold no negative weight, got -1"):
        semidiscrete(torch.zeros(4, 3), y, torch.tensor([-1.0, 2.0]))
    with pytest.raises(TypeError, match=r"`x` must be points in a torch.Tensor, or a function .* got list"):
        semidiscrete([[0.0, 0.0, 0.0]], y)


def test_a_point_without_mass_stands_where_its_cell_begins():
    y = torch.tensor([[0.0], [1.0], [0.5]], dtype=torch.float64)
    b = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    result = semidiscrete(uniform(1), y, b, n_samples=5000)
    # The others meet at the middle, where both cost 1/4 and it costs nothing.
    torch.testing.assert_close(result.g, torch.tensor([0, 0, -0.25], dtype=y.dtype), atol=5e-3, rtol=0)
    assert result.mass[2] < 0.01


def test_cells_are_read_in_full_precision():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2000, 2, generator=generator), 10 + torch.rand(50, 2, generator=generator)
    result = semidiscrete(x, y, n_samples=256, n_steps=5, generator=generator)
    expected = result.cells(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(result.cells(x), expected)
    assert torch.equal(result.cells(x.double()), expected)


@TRANSFORMS
def test_derivatives_that_do_not_exist_are_refused():
    x, y = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.0, 0.0], [1.0, 1.0]])

    def value(y, b=None):
        return semidiscrete(x, y, b, n_samples=20, n_steps=2, generator=torch.Generator().manual_seed(0)).value

    b = torch.full((2,), 0.5, requires_grad=True)
    for slope in torch.autograd.grad(value(y.requires_grad_(), b), (y, b), create_graph=True):
        with pytest.raises(RuntimeError, match="semidiscrete has no second derivatives"):
            slope.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"semidiscrete has no transforms of torch.func"):
        torch.func.grad(value)(y.detach())
    with pytest.raises(RuntimeError, match=r"no derivatives in forward mode. Use `torch.autograd.grad`"):
        torch.func.jvp(value, (y.detach(),), (y.detach(),))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no derivatives in forward mode"):
        semidiscrete(forward_ad.make_dual(x, x), y.detach())


def test_points_are_one_cloud():
    y = torch.randn(5, 2)
    for x in (torch.randn(10, 5, 2), lambda n: torch.randn(10, n, 2)):
        with pytest.raises(ValueError, match=r"`x` must have shape \(n, d\)"):
            semidiscrete(x, y, n_samples=16, n_steps=2)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_points_of_the_source_have_the_gradient_of_their_costs(cost):
    # A translation of both sides changes nothing, and nor does that of the sample against its cells in first order.
    source = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    y = torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.2, 2.0]], dtype=torch.float64, requires_grad=True)
    options = {"n_samples": 64, "n_steps": 3, "cost": cost, "generator": torch.Generator().manual_seed(1)}
    of_source, of_y = torch.autograd.grad(semidiscrete(source, y, **options).value, (source, y), create_graph=True)
    assert of_source.norm() > 0.1
    torch.testing.assert_close(of_source.sum(0), -of_y.sum(0))
    with pytest.raises(RuntimeError, match="semidiscrete has no second derivatives"):
        of_source.sum().backward()


def test_parameters_of_a_source_have_a_gradient():
    # Of a source that is scaled, sent to the origin, the cost is the square of the scale.
    scale, draw = torch.tensor(3.0, dtype=torch.float64, requires_grad=True), uniform(2)
    value = semidiscrete(lambda n: scale * draw(n), torch.zeros(1, 2, dtype=torch.float64), n_samples=64).value
    (slope,) = torch.autograd.grad(value, scale)
    torch.testing.assert_close(slope, 2 * value.detach() / scale.detach())
