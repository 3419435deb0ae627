"""The sliced Wasserstein distance."""

import torch
from torch import Tensor, nn

from otdml._checks import check_generator
from otdml.ot._sliced import check_exponent, check_projections, sliced

__all__ = ["SlicedWasserstein", "sliced_wasserstein"]


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    n_projections: int | None = None,
    projections: Tensor | None = None,
    p: float = 2.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The p-th power of the sliced Wasserstein distance between two weighted point clouds.

    .. math:: \mathrm{SW}_p^p(\alpha, \beta) = \mathbb{E}_\theta \, W_p^p(\theta_\# \alpha, \theta_\# \beta)

    with :math:`\theta` uniform on the sphere :cite:p:`bonneel:15`, estimated on random directions. It is zero if and
    only if the measures are equal, and differentiable wherever no two projected points of a measure coincide. Choose
    it for large clouds: O(L (n + m) (d + log(n + m))), without temperature or iteration; in high dimension random
    directions see little, and it takes more of them. For a translation by t and p = 2 it is
    :math:`\lVert t \rVert^2 / d` in expectation.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m), of the same mass. Uniform if None.
        n_projections: Number L of directions to draw, the same ones for all batch elements; 64 if None.
        projections: The directions, shape (L, d), where they are not to be drawn; taken as they are.
        p: Exponent of the distance, at least 1.
        generator: Source of the directions.

    Returns:
        One value per batch element, shape (...), in the units of the points to the power p.

    Raises:
        ValueError: If shapes do not fit, masses differ, or an option is out of range.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0]])  # On the line there is one direction, up to its sign.
        >>> sliced_wasserstein(x, x + 2)
        tensor(4.)
    """
    return sliced(x, y, a, b, n_projections=n_projections, projections=projections, p=p, generator=generator)


class SlicedWasserstein(nn.Module):
    """Module form of :func:`sliced_wasserstein`; each call draws new directions, unless they are given."""

    def __init__(
        self,
        *,
        n_projections: int | None = None,
        projections: Tensor | None = None,
        p: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_projections = check_projections(n_projections, projections)
        self.p = check_exponent(p)
        self.generator = check_generator(generator)
        self.projections: Tensor | None
        # A copy: a module is not changed by writing to what it was made of.
        self.register_buffer("projections", None if projections is None else projections.detach().clone())

    def extra_repr(self) -> str:
        return f"n_projections={self.n_projections}, p={self.p:g}"

    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        n = self.n_projections if self.projections is None else None
        return sliced_wasserstein(
            x, y, a, b, n_projections=n, projections=self.projections, p=self.p, generator=self.generator
        )
