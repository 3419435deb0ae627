"""What the tests of the proxy losses share: a batch, and the comparison with a peer."""

import pytest
import torch


@pytest.fixture
def batch(generator):
    """Embeddings of any norm, labels with unequal counts and absent classes, and proxies of five classes."""
    z = 3 * torch.randn(9, 6, generator=generator, dtype=torch.float64)
    proxies = 0.2 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    return z, proxies, torch.tensor([0, 0, 0, 0, 3, 3, 1, 1, 1])


@pytest.fixture
def agree():
    """Asserts that two losses of the same points have equal values and gradients."""

    def check(ours, theirs, *points):
        found = []
        for loss in (ours, theirs):
            leaves = [x.clone().requires_grad_() for x in points]
            value = loss(*leaves)
            found.append((value.detach(), *torch.autograd.grad(value, leaves)))
        for actual, expected in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)

    return check
