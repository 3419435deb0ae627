"""Transport on the line and its average over directions."""

import ot as pot
import pytest
import torch

from otdml.ot import sliced, wasserstein_1d
from otdml.ot._sliced import directions


def line(n, m):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, k, dtype=torch.float64, generator=generator) for k in (n, m))
    a, b = (torch.rand(2, k, dtype=torch.float64, generator=generator) for k in (n, m))
    return x, y, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_line_is_the_quantile_formula_of_pot(p):
    x, y, a, b = line(7, 9)
    arrays = zip(*(t.numpy() for t in (x, y, a, b)), strict=True)
    expected = torch.tensor([pot.wasserstein_1d(*one, p=p) for one in arrays], dtype=x.dtype)
    torch.testing.assert_close(wasserstein_1d(x, y, a, b, p=p), expected)


def test_uniform_weights_take_the_same_value_on_the_short_way():
    x, y, _, _ = line(8, 8)
    w = torch.full((2, 8), 1 / 8, dtype=x.dtype)
    torch.testing.assert_close(wasserstein_1d(x, y), wasserstein_1d(x, y, w, w))


@pytest.mark.parametrize("p", [1.5, 2.0])
def test_gradients_of_points_and_weights(p):
    x, y, a, b = line(4, 5)
    s, t = (torch.eye(k, dtype=x.dtype) - 1 / k for k in (4, 5))

    def value(x, y, u, v):
        return wasserstein_1d(x, y, a + u @ s, b + v @ t, p=p)

    inputs = [t.requires_grad_() for t in (x, y, torch.zeros_like(a), torch.zeros_like(b))]
    assert torch.autograd.gradcheck(value, inputs)


def test_points_without_weight_do_not_count():
    x = torch.tensor([0.0, 100.0, 1.0])
    torch.testing.assert_close(
        wasserstein_1d(x, torch.tensor([2.0, 3.0]), torch.tensor([0.5, 0.0, 0.5]), p=1), torch.tensor(2.0)
    )


def test_sliced_of_a_translation(generator):
    # The mean of <theta, t>^2 over the sphere is |t|^2 / d.
    x = torch.randn(6, 3, generator=generator)
    t = torch.tensor([3.0, 0.0, 4.0])
    value = sliced(x, x + t, n_projections=40000, generator=generator)
    torch.testing.assert_close(value, torch.tensor(25 / 3), rtol=0.02, atol=0)


def test_sliced_is_reproducible_and_takes_batches(generator):
    x, y = torch.randn(2, 3, 5, 4, generator=generator), torch.randn(2, 3, 6, 4, generator=generator)

    def draw(x, y):
        return sliced(x, y, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(draw(x, y)[1, 2], draw(x[1, 2], y[1, 2]))


def test_errors_name_the_argument():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="`p` must be a number in"):
        sliced(x, x, p=0.5)
    with pytest.raises(ValueError, match="`n_projections` must be an integer >= 1"):
        sliced(x, x, n_projections=0)


def test_given_directions_are_those_that_are_drawn():
    x, y = line(7, 9)[0].mT, line(7, 9)[1].mT
    theta = directions(2, 5, generator=torch.Generator().manual_seed(3), like=x)
    drawn = sliced(x, y, n_projections=5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sliced(x, y, projections=theta), drawn)
    # Along the first axis alone.
    axis = torch.tensor([[1.0, 0.0]], dtype=x.dtype)
    torch.testing.assert_close(sliced(x, y, projections=axis), wasserstein_1d(x[:, 0], y[:, 0]))
    with pytest.raises(ValueError, match=r"`projections` must have shape \(L, 2\), got \(5, 3\)"):
        sliced(x, y, projections=torch.ones(5, 3, dtype=x.dtype))
    with pytest.raises(ValueError, match="`n_projections` must be None where `projections` are given, got 4"):
        sliced(x, y, n_projections=4, projections=axis)


def test_clouds_and_weights_are_shared_by_a_batch():
    x, y, a, b = line(7, 9)
    shared = wasserstein_1d(x, y[0], a, b[0])
    torch.testing.assert_close(shared, wasserstein_1d(x, y[:1].expand(2, -1), a, b[:1].expand(2, -1)))


def test_weights_of_no_mass_or_of_the_wrong_sign():
    x, y, a, b = line(7, 9)
    a, b = a.clone(), b.clone()
    a[0], b[0] = 0, 0
    values = wasserstein_1d(x, y, a, b)
    torch.testing.assert_close(values, torch.stack([x.new_zeros(()), wasserstein_1d(x[1], y[1], a[1], b[1])]))
    a[0, 0] = -1
    with pytest.raises(ValueError, match="`a` must hold no negative weight, got -1"):
        wasserstein_1d(x, y, a, b)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_equal_levels_have_the_gradient_of_one_side(p):
    """Uniform weights of as many points have equal levels everywhere: the cost has a bend there, and is not flat."""
    x, y = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([3.0, 1.0, 5.0]).double()
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)

    def cost(a):
        return wasserstein_1d(x, y, a, p=p)

    gradient = torch.autograd.functional.jacobian(cost, uniform)
    for direction in torch.tensor([[-1.0, 0.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]).double():
        sides = [float(cost(uniform + t * direction) - cost(uniform)) / t for t in (1e-6, -1e-6)]
        assert min(sides) - 1e-5 <= float(gradient @ direction) <= max(sides) + 1e-5
    # Where there are none, it is the derivative: levels of 6 points against those of 5.
    y = torch.randn(5, generator=torch.Generator().manual_seed(0)).double()
    x, a = y.repeat(2)[:6] + 0.3, torch.rand(6, generator=torch.Generator().manual_seed(1)).double() + 0.1
    assert torch.autograd.gradcheck(
        lambda logits: wasserstein_1d(x, y, logits.softmax(0), p=p), a.log().requires_grad_()
    )


def test_weights_are_learnt_from_uniform_ones():
    x, y = torch.linspace(0, 1, 8).double(), torch.linspace(0, 1, 8).double() ** 3
    logits = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    optimizer, values = torch.optim.Adam([logits], lr=0.05), []
    for _ in range(100):
        optimizer.zero_grad()
        value = wasserstein_1d(x, y, logits.softmax(0))
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.2 * values[0]


def test_points_of_the_line_that_are_none_are_named():
    x = torch.zeros(3)
    with pytest.raises(TypeError, match=r"`x` must be a torch\.Tensor, got list\. Convert it"):
        wasserstein_1d([0.0, 1.0], x)
    with pytest.raises(TypeError, match=r"`y` must be a torch\.Tensor, got NoneType"):
        wasserstein_1d(x, None)
    for y in (torch.tensor(1.0), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match=r"`y` must have shape \(\.\.\., n\) with n >= 1, got \((2, 0)?\)\.$"):
            wasserstein_1d(x, y)
