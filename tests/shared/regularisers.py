"""Regularisers whose answer is known."""

import torch
from torch import Tensor, nn

__all__ = ["Width"]


class Width(nn.Module):
    """The squared difference of the points' sum of squares and a parameter ``width``, which is one at first."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        return (z.square().sum() - self.width).square()
