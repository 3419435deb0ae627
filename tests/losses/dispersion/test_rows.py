"""Rows as they come: very long and very short, strided, in half precision, and of an embedding with padding."""

from functools import partial

import pytest
import torch

from otdml.losses import (
    kernel_dispersion,
    koleo,
    lloyd_dispersion,
    max_cosine,
    max_min_angle,
    mmd_to_uniform,
    sliced_dispersion,
)
from otdml.losses.dispersion import dispersion_metrics, sliced_wasserstein_to_uniform


def seeded(function, **options):
    return lambda z: function(z, **options, generator=torch.Generator().manual_seed(1))


LOSSES = {
    "uniformity": partial(kernel_dispersion, log=True),
    "laplacian": partial(kernel_dispersion, kernel="laplacian", backend="streamed"),
    "geodesic riesz": partial(kernel_dispersion, kernel="riesz", distance="geodesic"),
    "mmd": mmd_to_uniform,
    "koleo": partial(koleo, k=2),
    "max min angle": max_min_angle,
    "max cosine": max_cosine,
    "lloyd": seeded(lloyd_dispersion),
    "sliced": seeded(sliced_dispersion),
    "sliced wasserstein": seeded(sliced_wasserstein_to_uniform, axis_aligned=True),
}


def with_gradient(loss, z):
    z = z.detach().requires_grad_()
    value = loss(z)
    return value.detach(), torch.autograd.grad(value, z)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_long_and_short_rows_have_the_value_and_the_force_of_their_directions(name, generator):
    # In float32 the squares of the longest overflow and those of the shortest vanish.
    lengths = torch.tensor([1e-30, 1e-20, 1.0, 1e20, 1e30] * 4)[:, None]
    z = torch.randn(20, 6, generator=generator)
    expected, force = with_gradient(LOSSES[name], z)
    value, grad = with_gradient(LOSSES[name], z * lengths)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double() * lengths.double(), force.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_strided_rows_are_rows(name, generator):
    table = torch.randn(8, 40, generator=generator)
    expected = with_gradient(LOSSES[name], table.T[::2, :6].contiguous())
    torch.testing.assert_close(with_gradient(LOSSES[name], table.T[::2, :6]), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_rows_are_read_exactly_and_get_the_rounded_force(name, dtype, generator):
    z = torch.randn(20, 6, generator=generator).to(dtype)
    expected, force = with_gradient(LOSSES[name], z.float())
    value, grad = with_gradient(LOSSES[name], z)
    assert value.equal(expected)
    assert grad.equal(force.to(dtype))


def test_metrics_do_not_look_at_lengths(generator):
    z = torch.randn(20, 6, generator=generator)
    long_and_short = z * torch.tensor([1e-30, 1e30] * 10)[:, None]
    assert dispersion_metrics(long_and_short) == pytest.approx(dispersion_metrics(z), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_stays_where_the_loss_is_not_given_it(name, generator):
    torch.manual_seed(0)
    table = torch.nn.Embedding(10, 4, padding_idx=0)
    LOSSES[name](table.weight[1:]).backward()
    assert table.weight.grad[0].eq(0).all()
    assert table.weight.grad[1:].ne(0).any()
