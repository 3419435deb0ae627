r"""The temperature of a problem: the given one, or a share of the spread of its costs."""

import math

import torch
from torch import Tensor

from otdml._checks import argument_error, check_positive, has_values, numbers, vanishing_costs
from otdml._cost_forms.base import Ground, Mask

__all__ = ["check_spread", "default_temperature", "spread", "temperature_of", "temperature_of_spread"]

# Share of the spread of the costs that is the temperature where none is given.
_SHARE = 0.05


def temperature_of(eps: Tensor | float | None, cost: Ground, a: Tensor, b: Tensor) -> Tensor | float:
    """The temperature of a problem: ``eps``, a positive number or shape (...), or the default one if it is None."""
    if eps is None:
        return default_temperature(cost, a, b)
    if isinstance(eps, Tensor):
        return eps.detach()
    if (eps := check_positive("eps", eps)) > torch.finfo(cost.dtype).max:
        raise argument_error("eps", f"be a number of {cost.dtype}", eps)
    return eps


def default_temperature(
    cost: Ground, a: Tensor, b: Tensor, mask: Mask | None = None, *, share: float = _SHARE
) -> Tensor:
    r"""The temperature of a problem for which none is given, shape (...), without gradient.

    .. math:: \varepsilon = 0.05 \, \bigl( \langle C \rangle_{a \otimes b} - \min_{ij} C_{ij} \bigr)

    the mean excess of the costs over the least one, over the pairs of points with weight that are not forbidden. It
    does not change when a constant is added to the cost. Where all costs are equal every temperature gives the same
    plan, and it is one.

    Args:
        cost: The cost.
        a: Row weights, shape (..., n).
        b: Column weights, shape (..., m).
        mask: Forbidden pairs, see :class:`~otdml.ot.engines.Engine`.
        share: The factor.

    Raises:
        ValueError: If the costs are not finite, or so small that they are zero in their dtype.

    Example:
        >>> import torch
        >>> from otdml.costs import ground
        >>> x, w = torch.tensor([[0.0], [2.0]]), torch.full((2,), 0.5)
        >>> default_temperature(ground(x, x), w, w)  # The mean of 0, 4, 4 and 0 is 2.
        tensor(0.1000)
    """
    found = spread(cost, a, b, mask)
    check_spread(cost, found)
    return temperature_of_spread(found, share)


def temperature_of_spread(spread: Tensor, share: float = _SHARE) -> Tensor:
    """The temperature where the mean excess of the costs over the least one is ``spread``."""
    return torch.where(spread == 0, torch.ones_like(spread), share * spread)


def check_spread(cost: Ground, spread: Tensor) -> None:
    """Raise where the spread of these costs is not a number, or below all numbers of their dtype."""
    if not (spread.numel() and has_values(spread)):
        return
    least, largest = numbers(torch.stack(torch.aminmax(spread)))
    if not math.isfinite(least + largest):
        remedy = f"Look for {cost.look_for}, or for costs that overflow {cost.dtype}; rescale them."
        raise argument_error(cost.argument, "give finite costs", "NaN or infinity", remedy)
    if least < torch.finfo(cost.dtype).tiny and cost.vanishes():
        raise vanishing_costs("x", cost.dtype)


def spread(cost: Ground, a: Tensor, b: Tensor, mask: Mask | None = None) -> Tensor:
    r"""The mean of :math:`C_{ij} - \min C`, over admissible pairs of points with weight, shape (...).

    It does not change when a constant is added to the cost. Pairs of infinite cost, or where ``mask`` is True, are
    left out. The matrix is read once, in blocks of rows.
    """
    cost, a, b = cost.detach(), _scaled_mass(a.detach()), _scaled_mass(b.detach())
    size = _size(cost.u, a) + _size(cost.v, b)
    u, v = (_centred(offset, w) for offset, w in ((cost.u, a), (cost.v, b)))
    # Points without weight have no part in the least cost.
    v = v.masked_fill(b <= 0, torch.inf)
    u = u.masked_fill(a <= 0, torch.inf)
    totals, masses, least = [], [], []
    for rows, reduced in cost.blocks():
        C = reduced + u[..., rows, None] + v[..., None, :]
        if mask is not None:
            C = C.masked_fill(mask(rows, slice(0, C.shape[-1])), torch.inf)
        least.append(C.amin((-2, -1)))
        admissible = torch.inf > C
        weights = a[..., rows, None] * b[..., None, :] * admissible
        masses.append(weights.sum((-2, -1)))
        totals.append((weights * C.where(admissible, 0.0)).sum((-2, -1)))
    low, mass = torch.stack(least).amin(0), torch.stack(masses).sum(0)
    mean = torch.stack(totals).sum(0) / mass
    found = mean - low
    # What rounding leaves of equal costs is no spread.
    unit = torch.finfo(found.dtype).eps
    noise = torch.maximum(64 * unit * torch.maximum(mean.abs(), low.abs()), 4 * unit * size) + cost.noise
    return torch.where(found <= noise, 0.0, found)


def _scaled_mass(weights: Tensor) -> Tensor:
    """The same weights, of mass one where products of their masses would underflow."""
    mass = weights.sum(-1, keepdim=True)
    return weights / mass.where((mass < 1e-15) & (mass > 0), 1.0)


def _size(offset: Tensor | None, weights: Tensor) -> Tensor:
    """The largest absolute offset of the points with weight, shape (...)."""
    if offset is None:
        return weights.new_zeros(weights.shape[:-1])
    return offset.abs().where(weights > 0, 0.0).amax(-1)


def _centred(offset: Tensor | None, weights: Tensor) -> Tensor:
    """An offset less its mean."""
    if offset is None:
        return torch.zeros_like(weights)
    return offset - (weights * offset).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
