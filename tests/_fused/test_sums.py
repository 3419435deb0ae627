"""Sums of kernels on the fused tiles, interpreted on the CPU, against the dense form in double precision."""

import pytest
import torch
from kernel_marks import INTERPRETED, ON_CPU

from otdml import kernels
from otdml.kernel_sums import cross_sum, pair_sum
from otdml.losses import mmd

KERNELS = {"gaussian": kernels.gaussian, "laplacian": kernels.laplacian}


def interpreted(test):
    for mark in INTERPRETED:
        test = mark(test)
    return test


def clouds(d, batch=()):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*batch, k, d, generator=generator) for k in (37, 70))
    y[..., :2, :] = x[..., :2, :]
    return x, torch.randn(*batch, 37, generator=generator), y + 0.0, torch.randn(*batch, 70, generator=generator)


def with_gradients(total, *tensors, **options):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = total(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def agree(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=float(2e-5 * other.abs().max()))


@interpreted
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("d", [2, 7, 20])
@pytest.mark.parametrize("name", KERNELS)
def test_sums_and_their_gradients(name, d, batch):
    x, a, y, b = clouds(d, batch)
    kernel, double = KERNELS[name](0.8 * d**0.5), [t.double() for t in (x, a, y, b)]

    def cross(x, a, y, b, backend):
        return cross_sum(kernel, x, a, y, b, backend=backend)

    agree(with_gradients(cross, x, a, y, b, backend="triton"), with_gradients(cross, *double, backend="dense"))

    def pairs(x, a, backend):
        return pair_sum(kernel, x, a, backend=backend)

    agree(with_gradients(pairs, x, a, backend="triton"), with_gradients(pairs, *double[:2], backend="dense"))


@interpreted
def test_a_loss_on_it():
    x, _, y, _ = clouds(5)
    for kernel in KERNELS:
        found = mmd(x, y, kernel=kernel, backend="triton")
        torch.testing.assert_close(found.double(), mmd(x.double(), y.double(), kernel=kernel), rtol=1e-4, atol=1e-6)
        assert mmd(x.double(), y.double(), kernel=kernel, backend="triton").dtype == torch.float64


def test_which_kernels_are_made_of_its_tiles():
    assert kernels.gaussian(0.5).tile == ("product", 2.0)
    assert kernels.laplacian(2.0).tile == ("distance", 0.5)
    x, a, y, b = clouds(2)
    others = [
        kernels.energy(),
        kernels.inverse_multiquadric(),
        kernels.riesz(1.0),
        kernels.geodesic(kernels.gaussian()),
    ]
    for kernel in others:
        with pytest.raises(ValueError, match="neither Gaussian nor Laplacian"):
            cross_sum(kernel, x, a, y, b, backend="triton")


@pytest.mark.skipif(ON_CPU, reason="points may be anywhere where it is interpreted")
def test_points_must_be_on_a_gpu():
    x, a, y, b = clouds(2)
    with pytest.raises((RuntimeError, ImportError), match="backend='triton' needs"):
        cross_sum(kernels.gaussian(), x, a, y, b, backend="triton")


@interpreted
@pytest.mark.parametrize("name", KERNELS)
def test_clusters_far_apart_in_units_of_the_bandwidth(name):
    x, a, _, _ = clouds(3)
    x[18:] += 1e4
    kernel, double = KERNELS[name](1.0), [t.double() for t in (x, a)]

    def pairs(x, a, backend):
        return pair_sum(kernel, x, a, backend=backend)

    found, expected = with_gradients(pairs, x, a, backend="triton"), with_gradients(pairs, *double, backend="dense")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=float(1e-3 * other.abs().max()))
