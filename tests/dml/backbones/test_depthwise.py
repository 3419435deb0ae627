"""Depthwise convolution: value and gradients of torch's own, in every way of computing them."""

import pytest
import torch
from torch.nn import functional as F

from otdml.dml.backbones.depthwise import DENSE, depthwise


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [(5, 5, 1, 2), (10, 5, 2, 0), (11, 5, 2, 0), (5, 3, 1, 1), (7, 3, 2, 1), (6, 3, 3, 0), (5, 5, 1, 0), (12, 3, 1, 1)],
)
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_those_of_a_grouped_convolution(side, kernel, stride, padding, biased):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, side, side, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(4, 1, kernel, kernel, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_() if biased else None
    learnt = [maps, weight, *([bias] if biased else [])]
    found = depthwise(maps, weight, bias, stride, padding)
    expected = F.conv2d(maps, weight, bias, stride, padding, 1, 4)
    slope = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(value, learnt, slope) for value in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_small_maps_go_their_own_way():
    weight = torch.ones(2, 1, 3, 3, requires_grad=True)
    for side, name in ((5, "_DepthwiseBackward"), (40, "ConvolutionBackward0")):
        assert ((side * side) ** 2 <= DENSE) == (name == "_DepthwiseBackward")
        assert type(depthwise(torch.ones(1, 2, side, side), weight, None, 1, 1).grad_fn).__name__ == name


def test_under_autocast_it_is_in_its_precision():
    maps, weight = torch.randn(4, 8, 5, 5), torch.randn(8, 1, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise(maps, weight, None, 1, 2)
    assert found.dtype == torch.bfloat16
    expected = F.conv2d(maps, weight, None, 1, 2, 1, 8)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.1)
    (ours,), (theirs,) = (torch.autograd.grad(value.float().sum(), [weight]) for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.2)


def test_in_half_precision_long_sums_are_exact_to_its_rounding():
    # Each entry of the kernel sums thousands of ones; bfloat16 itself would stop counting at 256.
    maps, weight = torch.ones(64, 2, 12, 12), torch.ones(2, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise(maps, weight, None, 1, 1)
    (slope,) = torch.autograd.grad(found.float().sum(), [weight])
    line = torch.tensor([11.0, 12.0, 11.0])
    torch.testing.assert_close(slope[0, 0], 64 * line[:, None] * line, rtol=2**-8, atol=0)


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (2, 0)])
def test_second_derivatives_are_those_of_a_grouped_convolution(stride, padding):
    """They were read as zero where they may be unused, as in a Hessian."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(3, 1, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    found = []
    for value in (depthwise(maps, weight, None, stride, padding), F.conv2d(maps, weight, None, stride, padding, 1, 3)):
        slopes = torch.autograd.grad(value.pow(3).sum(), [maps, weight], create_graph=True)
        found += [torch.autograd.grad(sum(s.square().sum() for s in slopes), [maps, weight], allow_unused=True)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
