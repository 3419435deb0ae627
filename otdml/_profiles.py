"""Profiles of radial kernels: functions of the squared distance, with their derivatives."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Geodesic", "Logarithm", "Profile", "Quadric", "Root", "Square"]

Slope = Tensor | float

# Equality by identity: torch 2.7 and older hash a callable before its fields are set when they trace a call.


class Profile(Protocol):
    """A function of the squared distance, with its derivative.

    Attributes:
        smooth: Whether the derivative is finite at distance zero.
        length: The distance over which its exponential changes; infinite where that is the same at every scale.
        tile: How fused kernels evaluate it: a form, ``"product"`` for the squared distance or ``"distance"``, and a
            factor. None where they do not.
    """

    @property
    def tile(self) -> tuple[str, float] | None: ...

    @property
    def smooth(self) -> bool: ...

    @property
    def length(self) -> float: ...

    def __call__(self, r2: Tensor) -> tuple[Tensor, Slope]:
        """The value and the derivative at squared distances r2 > 0."""
        ...


@dataclass(frozen=True, eq=False)
class Square:
    """-γ r²."""

    gamma: float
    smooth: bool = True

    @property
    def tile(self) -> tuple[str, float]:
        return "product", self.gamma

    @property
    def length(self) -> float:
        return (2 * self.gamma) ** -0.5

    def __call__(self, r2: Tensor) -> tuple[Tensor, Slope]:
        return -self.gamma * r2, -self.gamma


@dataclass(frozen=True, eq=False)
class Root:
    """-γ r."""

    gamma: float
    smooth: bool = False

    @property
    def tile(self) -> tuple[str, float]:
        return "distance", self.gamma

    @property
    def length(self) -> float:
        return 1 / self.gamma

    def __call__(self, r2: Tensor) -> tuple[Tensor, Slope]:
        r = r2.sqrt()
        return -self.gamma * r, -self.gamma / 2 / r


@dataclass(frozen=True, eq=False)
class Logarithm:
    """-s log r."""

    s: float
    smooth: bool = False
    length: float = math.inf
    tile: None = None

    def __call__(self, r2: Tensor) -> tuple[Tensor, Slope]:
        return -self.s / 2 * r2.log(), -self.s / 2 / r2


@dataclass(frozen=True, eq=False)
class Quadric:
    """-log(1 + r²/σ²) / 2."""

    bandwidth: float
    smooth: bool = True
    tile: None = None

    @property
    def length(self) -> float:
        return self.bandwidth

    def __call__(self, r2: Tensor) -> tuple[Tensor, Slope]:
        scale = self.bandwidth**2
        return -0.5 * (1 + r2 / scale).log(), -0.5 / (scale + r2)


@dataclass(frozen=True, eq=False)
class Geodesic:
    """A profile of t², t = 2 asin(r/2) the angle between two points of the unit sphere at chord r."""

    profile: Profile
    smooth: bool = False
    tile: None = None

    @property
    def length(self) -> float:
        return self.profile.length

    def __call__(self, r2: Tensor) -> tuple[Tensor, Slope]:
        # Rounding may leave a chord longer than the diameter, and the derivative has a pole at the antipode, where
        # the force along the chord has no part along the sphere: both end a rounding error short of it.
        last = 4 * (1 - torch.finfo(_dtype(r2)).eps)
        r2 = r2 - (r2 - last).relu()
        r = r2.sqrt()
        t = 2 * (r / 2).asin()
        value, slope = self.profile(t.square())
        return value, slope * (t / (r * (1 - r2 / 4).sqrt()))


def _dtype(r2: Tensor) -> torch.dtype:
    # The dtype of a symbolic tensor of KeOps is a string.
    return getattr(torch, r2.dtype) if isinstance(r2.dtype, str) else r2.dtype
