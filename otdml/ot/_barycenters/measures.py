"""What a barycentre is asked of: clouds, the weights of their points, and those of the clouds."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import (
    argument_error,
    check_batches,
    check_in_range,
    check_points,
    check_signs,
    check_weight_shape,
    vanishing_costs,
)
from otdml._cost_forms.temperature import spread
from otdml.costs import Cost, ground, temperature_of_spread
from otdml.measures import expand, weights

__all__ = ["Measures", "check_clouds", "check_numbers"]


@dataclass(frozen=True)
class Measures:
    """Weighted clouds of one space, with their graph, and how to compare them.

    Attributes:
        x: Points, shape (..., K, n, d).
        a: Their weights, of mass one in each cloud, shape (..., K, n).
        shares: Weights of the clouds, of sum one, shape (..., K).
        cost: Ground cost.
        eps: Temperature, shape (...), without graph.
    """

    x: Tensor
    a: Tensor
    shares: Tensor
    cost: Cost
    eps: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a barycentre is differentiable in."""
        return self.x, self.a, self.shares

    def of(self, x: Tensor, a: Tensor, shares: Tensor) -> "Measures":
        """The same of other tensors."""
        return dataclasses.replace(self, x=x, a=a, shares=shares)

    def detach(self) -> "Measures":
        """The same without graph."""
        return self.of(*(t.detach() for t in self.tensors))

    def double(self) -> "Measures":
        """The same in double precision."""
        return dataclasses.replace(self.of(*(t.double() for t in self.tensors)), eps=self.eps.double())

    def expand(self, batch: torch.Size) -> "Measures":
        """The same with these batch dimensions."""
        tensors = (expand(t, batch, own) for t, own in zip(self.tensors, (3, 2, 1), strict=True))
        return dataclasses.replace(self.of(*tensors), eps=self.eps.expand(batch))

    @property
    def temperatures(self) -> Tensor:
        """The temperature of each cloud, shape (..., K)."""
        return self.eps[..., None].expand(self.x.shape[:-2])

    def average(self, values: Tensor, dims: int = 1) -> Tensor:
        """The mean over the clouds of values with ``dims`` dimensions after that of the clouds."""
        return (self.shares[(..., *(None,) * dims)] * values).sum(-1 - dims)

    def means(self) -> Tensor:
        """The mean of each cloud, shape (..., K, d)."""
        return (self.a[..., None] * self.x).sum(-2)

    def scale(self) -> Tensor:
        """The root mean square distance of the points from the mean of their cloud, shape (...)."""
        squares = (self.a * (self.x - self.means()[..., None, :]).square().sum(-1)).sum(-1)
        return self.average(squares, 0).sqrt()


def check_clouds(clouds: Tensor, weights_: Tensor | None, a: Tensor | None, cost: Cost, eps: float | None) -> Measures:
    """The measures, checked, with equal batch dimensions."""
    if isinstance(clouds, (list, tuple)):
        remedy = "Make one of clouds of different sizes by `otdml.ot.pad_clouds`, which also returns `a`."
        raise argument_error("clouds", "be a torch.Tensor", type(clouds).__name__, remedy, TypeError)
    if check_points("clouds", clouds).ndim < 3 or clouds.shape[-3] == 0:
        must = "have shape (..., K, n, d) with K, n, d >= 1"
        raise argument_error("clouds", must, tuple(clouds.shape), "Stack the clouds, or pad them by `pad_clouds`.")
    if weights_ is not None:
        check_weight_shape("weights", weights_, clouds.shape[:-2], clouds.device)
    if a is not None:
        check_weight_shape("a", a, clouds.shape[:-1], clouds.device)
        if a.ndim < 2 or a.shape[-2] not in (1, clouds.shape[-3]):
            must = f"hold one weight per point of each cloud, shape {tuple(clouds.shape[:-1])}"
            raise argument_error("a", must, tuple(a.shape))
    check_signs(weights=weights_, a=a)
    shapes = {"clouds": clouds.shape[:-3]}
    shapes |= {} if weights_ is None else {"weights": weights_.shape[:-1]}
    shapes |= {} if a is None else {"a": a.shape[:-2]}
    batch = check_batches(**shapes)
    check_numbers("clouds", clouds)
    x = expand(clouds, batch, 3)
    masses = weights(x, None if a is None else a.expand(*batch, *x.shape[-3:-1]))
    shares = x.new_ones(x.shape[:-2]) if weights_ is None else expand(weights_, batch, 1).to(x)
    masses, shares = _normalised("a", masses), _normalised("weights", shares)
    return Measures(x, masses, shares, cost, _temperature(x.detach(), masses.detach(), shares.detach(), cost, eps))


def check_numbers(name: str, x: Tensor) -> None:
    """Raise if one of the points is NaN or infinite."""
    # A sum is quicker, and one of large numbers may overflow.
    if not bool(x.detach().sum().isfinite()) and not bool(x.detach().isfinite().all()):
        raise argument_error(name, "give finite costs", "NaN or infinity", f"Look for them in `{name}`.")


def _normalised(name: str, w: Tensor) -> Tensor:
    largest = w.detach().amax(-1, keepdim=True)
    if bool((largest == 0).any()):
        raise argument_error(name, "have mass", "weights that are all zero", "Leave that cloud, or problem, out.")
    # The sum of large ones would overflow.
    w = w / largest
    return w / w.sum(-1, keepdim=True)


def _temperature(x: Tensor, a: Tensor, shares: Tensor, cost: Cost, eps: float | None) -> Tensor:
    """One for each problem: the given one, or the mean over the clouds of that within each."""
    if eps is not None:
        return x.new_full(x.shape[:-3], check_in_range("eps", eps, x.dtype))
    within = ground(x, x, cost)
    spreads = spread(within, a, a)
    if bool((spreads < torch.finfo(x.dtype).tiny).any()) and within.vanishes():
        raise vanishing_costs("clouds", x.dtype)
    mean = (shares * spreads).sum(-1)
    if not bool(mean.isfinite().all()):
        raise argument_error("clouds", "give finite costs", "NaN or infinity", "Look for them in `clouds`.")
    return temperature_of_spread(mean)
