"""Transport on the line and its average over directions."""

import ot as pot
import pytest
import torch

from otdml.ot import sliced, wasserstein_1d


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
