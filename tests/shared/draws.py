"""Random numbers from a seed."""

import torch
from torch import Tensor

__all__ = ["drawn", "seeded"]


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of this seed."""
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)
