"""Whether a transform of ``torch.func``, or forward-mode differentiation, is at work."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["transforming"]


def transforming(*tensors: Tensor | None) -> bool:
    """Whether some of the tensors are seen through a transform of ``torch.func``, or carry a tangent.

    Solvers branch on values and write in place, which such tensors do not allow; they are unwrapped by an
    ``autograd.Function`` that knows the transform.

    Example:
        >>> import torch
        >>> transforming(torch.ones(2))
        False
    """
    if torch._C._are_functorch_transforms_active():
        return True
    # There are no dual tensors outside of a level of forward-mode differentiation.
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
