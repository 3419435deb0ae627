"""Clouds of different sizes as one batch."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from otdml._checks import argument_error, check_points, check_weights

__all__ = ["pad_clouds"]


def pad_clouds(clouds: Sequence[Tensor], masses: Sequence[Tensor | None] | None = None) -> tuple[Tensor, Tensor]:
    """A batch of points and weights from clouds of different sizes.

    Shorter clouds are filled with copies of their first point that have no weight, so every solver and loss that takes
    weights gives what it gives for each cloud alone, and padding has no gradient. In a batch the descent of a Gromov
    problem may take other steps than alone, and end in another local optimum.

    Args:
        clouds: Points, shape (n_i, d) each.
        masses: Their weights, shape (n_i,) each; uniform of mass one where None.

    Returns:
        Points, shape (batch, n, d) with the largest n, and weights, shape (batch, n), in float32 at least.

    Raises:
        ValueError: If there is no cloud, or shapes do not fit.

    Example:
        >>> import torch
        >>> points, mass = pad_clouds([torch.zeros(1, 2), torch.ones(3, 2)])
        >>> points.shape, mass[0]
        (torch.Size([2, 3, 2]), tensor([1., 0., 0.]))
    """
    if not isinstance(clouds, (Sequence, Tensor)):
        raise argument_error("clouds", "be a list of tensors", type(clouds).__name__, kind=TypeError)
    if len(clouds) == 0:
        raise argument_error("clouds", "hold at least one cloud", "none")
    masses = [None] * len(clouds) if masses is None else masses
    if len(masses) != len(clouds):
        raise argument_error("masses", f"hold one entry per cloud, {len(clouds)}", len(masses))
    points, kept = [], []
    n = max(check_points(f"clouds[{i}]", x).shape[0] for i, x in enumerate(clouds))
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in clouds])
    # Weights of half precision would not have mass one.
    full = torch.promote_types(dtype, torch.float32)
    for i, (x, a) in enumerate(zip(clouds, masses, strict=True)):
        if x.ndim != 2 or x.shape[1] != clouds[0].shape[1]:
            must = f"have shape (n, {clouds[0].shape[-1]}), the features of the first one"
            raise argument_error(f"clouds[{i}]", must, tuple(x.shape))
        if x.device != clouds[0].device:
            raise argument_error(f"clouds[{i}]", f"be on the device of the first one, {clouds[0].device}", x.device)
        check_weights(f"masses[{i}]", a, x)
        short = n - len(x)
        points.append(torch.cat([x, x[:1].detach().expand(short, -1)]).to(dtype))
        own = x.new_full((len(x),), 1 / len(x), dtype=full) if a is None else a.to(full)
        kept.append(torch.nn.functional.pad(own, (0, short)))
    return torch.stack(points), torch.stack(kept)
