"""How large the costs of a Gromov problem are, and the precision that their products need.

The objective has squares of costs, which are fourth powers of coordinates under squared distances: in single precision
they vanish for coordinates of 1e-10, and overflow for 1e10. Such problems are solved in double precision, and read in
the dtype of their inputs; so are those whose masses, exponentials of products of costs over a penalty or a temperature,
would be lost in rounding.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml._precision import SINGLE_ONLY
from otdml.costs import COSTS
from otdml.ot._gromov.centred_cost import CentredCost, WithinCost, scale_and_cost
from otdml.ot._gromov.result import GromovResult

__all__ = ["Scale", "size_of_matrix", "size_within", "vanishing_squares"]

# Costs, and products of costs, keep all digits where their exponents are within this share of the dtype's.
SHARE = 1 / 3

# Logarithm, base two, of products of costs over the temperature of which single precision keeps thousandths.
SHARP = 13


@dataclass(frozen=True)
class Scale:
    """How large the costs within two clouds are.

    Attributes:
        given: The dtype of the inputs.
        names: What the clouds, or their matrices, are called.
        sizes: Logarithms of the costs, base two, shape (...) each; minus infinity where all are zero.
        mass: The logarithm of the mass, shape (...).
        sharpest: The least of temperature and penalties where marginals are penalised, zero where features are compared
            as well, whose costs are divided by the mass of the plan; else None.
    """

    given: torch.dtype
    names: tuple[str, str]
    sizes: tuple[Tensor, Tensor]
    mass: Tensor
    sharpest: float | None = None

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype to solve in."""
        if self.given == torch.float64 or self.mass.device.type in SINGLE_ONLY:
            return self.given
        found, limit = self._products(), SHARE * math.log2(torch.finfo(self.given).max)
        lost = found.isfinite() & (found.abs() > limit)
        if self.sharpest is not None:
            lost = lost | (2 * torch.maximum(*self.sizes) >= SHARP + found.new_tensor(self.sharpest).log2())
        return torch.float64 if bool(lost.any()) else self.given

    def _products(self) -> Tensor:
        """Logarithms of both costs and of their product, times the mass."""
        x, y = self.sizes
        return torch.stack([x, y, x + self.mass, y + self.mass, 0.5 * (x + y) + self.mass])

    def check(self) -> None:
        """Raise where the product of the two costs would vanish, and with it all that tells one plan from another."""
        limits = torch.finfo(self.dtype)
        product = sum(self.sizes) + 2 * self.mass
        if bool((product.isfinite() & (product < math.log2(limits.tiny / limits.eps))).any()):
            raise vanishing_squares(self.names[0], self.dtype)

    def read(self, result: GromovResult) -> GromovResult:
        """The result in the dtype of the inputs, if that holds its value."""
        limits, value = torch.finfo(self.given), result.value.detach().abs()
        if not bool(((value >= limits.tiny) & (value <= limits.max)).all()):
            self._check_value(value)
        return result if self.dtype == self.given else result.rounded(self.given)

    def _check_value(self, value: Tensor) -> None:
        limits = torch.finfo(self.given)
        if not bool((value <= limits.max).all()):
            x, y = self.names
            remedy = f"Look for NaN or infinity in `{x}` and `{y}`, or rescale them: squares of costs overflow"
            raise argument_error(x, "give a finite value", "NaN or infinity", f"{remedy} {self.given}.")
        for name, size in zip(self.names, self.sizes, strict=True):
            vanishing = size.isfinite() & (2 * size < math.log2(limits.tiny))
            if bool((vanishing & (value < limits.tiny)).any()):
                raise vanishing_squares(name, self.given)


def vanishing_squares(name: str, dtype: torch.dtype) -> Exception:
    """The error for costs of which nothing is left in their squares."""
    must = f"give costs whose squares {dtype} tells from zero"
    return argument_error(name, must, "squares that underflow", "Rescale the points.")


@torch.no_grad()
def size_within(x: Tensor, cost: WithinCost, centred: CentredCost) -> Tensor:
    """The logarithm, base two, of the size of the costs within a cloud, in a dtype that holds it, shape (...)."""
    scale, name = scale_and_cost(cost, x)
    if not isinstance(name, str) or COSTS[name].products is None or COSTS[name].unit:
        K = centred.sigma.abs().amax((-2, -1)) if centred.matrix is None else centred.matrix.abs().amax((-2, -1))
        return torch.stack([centred.mean.abs(), centred.alpha.abs().amax(-1), K.expand_as(centred.mean)]).amax(0).log2()
    # Squares of coordinates may be zero themselves.
    high, low = x.amax(-2), x.amin(-2)
    if name == "sqeuclidean":
        extent = (0.5 * high - 0.5 * low).abs().amax(-1).log2() + 1
    else:
        extent = torch.maximum(high.abs(), low.abs()).amax(-1).log2()
    return 2 * extent + math.log2(x.shape[-1]) + scale.log2()


def size_of_matrix(C: Tensor) -> Tensor:
    """The logarithm, base two, of the largest of given costs, shape (...)."""
    return C.detach().abs().amax((-2, -1)).log2()
