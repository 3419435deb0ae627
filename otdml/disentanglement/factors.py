"""Sets of pictures with known, independent factors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._arguments import argument_error
from otdml._checks import check_integer, check_integers, device_of_draws

__all__ = ["FactorSet", "coarse", "random_factors"]


def random_factors(values: Mapping[str, int], n: int, generator: torch.Generator | None) -> Tensor:
    """Independent uniform indices of values of each factor, shape (n, factors), on the default device."""
    device = device_of_draws(generator)
    drawn = [torch.randint(k, (n,), generator=generator, device=device) for k in values.values()]
    return torch.stack(drawn, 1).to(torch.empty(0).device)


@dataclass(frozen=True)
class FactorSet:
    """Pictures drawn from independent factors, each uniform over its values.

    Attributes:
        factors: Name of each factor and the number of its values.
        channels: Of a picture.
        draw: ``draw(n, size=..., generator=...)`` makes n pictures in [0, 1], shape (n, channels, size, size), and the
            indices of their factors, shape (n, factors).
    """

    factors: Mapping[str, int]
    channels: int
    draw: Callable[..., tuple[Tensor, Tensor]]

    @property
    def counts(self) -> Tensor:
        """The number of values of each factor."""
        return torch.tensor(list(self.factors.values()))


def coarse(factors: Tensor, counts: Tensor, *, values: int = 8) -> Tensor:
    """Factors with at most ``values`` values each: longer ones are cut into as many equal ranges.

    Boosted trees cost one tree per value and round, so the rotation of a sprite in 40 steps costs as much as all other
    factors together.

    Args:
        factors: Indices, shape (n, factors).
        counts: Number of values of each factor, shape (factors,).
        values: Most values of a factor.

    Raises:
        ValueError: The shapes do not agree, or an index is none of its factor.

    Example:
        >>> import torch
        >>> coarse(torch.tensor([[2, 5, 39, 0, 17]]), torch.tensor([3, 6, 40, 32, 32]))
        tensor([[2, 5, 7, 0, 4]])
    """
    factors, counts = check_integers("factors", factors), check_integers("counts", counts)
    if counts.ndim != 1 or bool((counts < 1).any()):
        raise argument_error("counts", "be a vector of positive integers", counts.tolist())
    if factors.ndim != 2 or factors.shape[1:] != counts.shape:
        raise argument_error("factors", f"have shape (n, {len(counts)})", tuple(factors.shape))
    if outside := ((factors < 0) | (factors >= counts)).any(0).nonzero()[:, 0].tolist():
        column, count = factors[:, outside[0]], int(counts[outside[0]])
        found = f"{int(column.min())} to {int(column.max())} in column {outside[0]}"
        raise argument_error("factors", f"be indices below their counts, {count} there", found)
    values = check_integer("values", values)
    return torch.where(counts > values, factors * values // counts, factors)
