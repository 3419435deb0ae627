"""Logarithms of sums of exponentials."""

import math

from torch import Tensor
from torch.nn import functional as F

__all__ = ["log_one_plus_sum_exp"]


def log_one_plus_sum_exp(exponents: Tensor, mask: Tensor) -> Tensor:
    """``log(1 + sum of exp over the entries in mask)`` of every row, shape (n,), zero for rows without any.

    Example:
        >>> import torch
        >>> log_one_plus_sum_exp(torch.zeros(2, 3), torch.tensor([[True, True, False], [False, False, False]])).exp()
        tensor([3., 1.])
    """
    # The zero in front is the logarithm of the one. A row without entries then has one finite term, not none.
    return F.pad(exponents.masked_fill(~mask, -math.inf), (1, 0)).logsumexp(dim=1)
