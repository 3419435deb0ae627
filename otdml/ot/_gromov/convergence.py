"""When the steps of a Gromov descent are small, and how it cools down before."""

import math

import torch
from torch import Tensor

__all__ = ["cooling_steps", "is_small", "rounding_of_marginals"]

# A step of the cost that is smaller than this share of it, in units of the precision, is rounding.
ROUNDING = 40
# Marginals are met no better than to this many rounding units.
RESOLVED = 64


def is_small(step: Tensor, limit: Tensor, size: Tensor) -> Tensor:
    """Whether a step of costs of this size is within the limit, shape (...). NaN is, and ends a descent."""
    return ~(step > limit + ROUNDING * torch.finfo(step.dtype).eps * size)


def rounding_of_marginals(costs: Tensor) -> float:
    """The error of marginals that rounding of costs over the temperature leaves."""
    return torch.finfo(costs.dtype).eps * max(RESOLVED, 3 * float(costs.max()) if costs.numel() else 0.0)


def cooling_steps(ratio: Tensor, factor: float, most: int) -> int:
    """The steps until the temperature has fallen by the largest ``ratio``, if each multiplies it by ``factor``."""
    largest = float(ratio.max()) if ratio.numel() else 1.0
    return min(math.ceil(math.log(largest) / -math.log(factor)), most) if 1 < largest < math.inf else 0
