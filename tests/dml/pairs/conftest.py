"""A batch and a reference of other samples, some of classes of their own."""

import pytest
import torch


@pytest.fixture
def z(generator):
    return 3 * torch.randn(10, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def reference(generator):
    return torch.randn(7, 6, generator=generator, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 5, 5, 0])
