"""Quantisation error of the uniform measure."""

import torch
from torch import Tensor, nn

from otdml._checks import argument_error, argument_names, check_boolean, check_generator, check_integer, check_points
from otdml._precision import full_precision
from otdml.neighbors import nearest_center
from otdml.ot import sinkhorn_matrix
from otdml.sphere import angle, distinct_directions, uniform_points, unit

__all__ = ["LloydDispersion", "lloyd_dispersion"]

# Most pairs of a sample and a point whose cosines are in memory; beyond it neighbours are searched in blocks.
_FEW = 2**20
# The temperature of the balanced form, in units of the mean squared angle to the nearest point: the blur is a third of
# a cell's radius at most.
_TEMPERATURE = 0.1


@full_precision
def lloyd_dispersion(
    z: Tensor, *, n_samples: int = 1024, balanced: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    r"""Mean squared angle from a uniform point of the sphere to the nearest of z, to be minimised.

    .. math:: L(z) = \mathbb E_{u \sim \sigma} \min_j \angle(u, z_j)^2

    estimated on fresh samples u: the quantisation error of the uniform measure, whose gradient steps are those of
    online k-means (Lloyd's algorithm :cite:p:`lloyd:82`). It covers the sphere rather than parts near points. Gradients
    are unbiased over the samples but noisy, and a step moves no more than ``n_samples`` points. Of a minibatch of z
    value and gradient are biased: cells are larger with fewer points. Coincident rows are moved apart first as
    described at :func:`otdml.sphere.distinct_directions`. Cost n_samples n d, memory (n_samples + n) d.

    With free weights, the default, a point whose cell is empty feels no force. ``balanced`` gives each point the same
    share 1/n of the samples: semi-discrete optimal transport from the uniform measure to z :cite:p:`merigot:11`. It is
    solved on the samples by :func:`otdml.ot.sinkhorn_matrix` at a temperature of a tenth of the free value, and the
    value includes that much entropy. It costs that problem per call, and the matrix of n_samples × n.

    Args:
        z: Points, shape (..., n, d), d >= 2, of any length: their directions are what counts.
        n_samples: Uniform points drawn per call, the same for each batch element.
        balanced: Give each point the same share of the samples.
        generator: Source of the samples.

    Returns:
        One value per batch element in squared radians, shape (...).

    Raises:
        ValueError: If the shape does not fit.

    Example:
        >>> import math, torch
        >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # (pi / 2)² / 3 on average
        >>> value = lloyd_dispersion(z, n_samples=10_000, generator=torch.Generator().manual_seed(0))
        >>> math.isclose(value, math.pi**2 / 12, rel_tol=0.05)
        True
    """
    if check_points("z", z).shape[-1] < 2:
        raise argument_error("z", "have at least two coordinates", z.shape[-1])
    x = distinct_directions(z)
    u = _samples(check_integer("n_samples", n_samples), x, generator)
    nearest = x.reshape(-1, x.shape[-1])[_cells(u, x.detach())]
    free = angle(u, nearest).square().mean(-1)
    if not check_boolean("balanced", balanced):
        return free
    # In units of the free value the temperature is a constant, and the gradient that of the whole value.
    scale = torch.where(free > 0, free, 1)
    with argument_names(C="z"):
        return scale * sinkhorn_matrix(_squared_angle(u, x) / scale[..., None, None], eps=_TEMPERATURE).value


def _samples(n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform points, drawn in single precision, so that one seed gives the same ones in every precision."""
    u = uniform_points(n, like.shape[-1], generator=generator, dtype=torch.float32, device=like.device)
    return u if u.dtype == like.dtype else unit(u.to(like.dtype))


@torch.no_grad()
def _cells(u: Tensor, x: Tensor) -> Tensor:
    """The nearest row of x to each of u, as indices into ``x.reshape(-1, d)``, shape (..., n_samples)."""
    n, d = x.shape[-2:]
    clouds = x.reshape(-1, n, d)
    if len(u) * len(clouds) * n <= _FEW:
        found = (u @ clouds.mT).argmax(-1)
    else:
        found = torch.stack([nearest_center(u, cloud, metric="inner")[1] for cloud in clouds])
    first = torch.arange(0, len(clouds) * n, n, device=x.device)
    return (found + first[:, None]).view(*x.shape[:-2], len(u))


def _squared_angle(x: Tensor, y: Tensor) -> Tensor:
    # The squared angle is smooth at zero, and insensitive to rounding of the arc cosine there.
    last = 1 - torch.finfo(x.dtype).eps
    return (x @ y.mT).clamp(-last, last).acos().square()


class LloydDispersion(nn.Module):
    """Module form of :func:`lloyd_dispersion`."""

    def __init__(
        self, *, n_samples: int = 1024, balanced: bool = False, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.n_samples = check_integer("n_samples", n_samples)
        self.balanced, self.generator = check_boolean("balanced", balanced), check_generator(generator)

    def extra_repr(self) -> str:
        return f"n_samples={self.n_samples}, balanced={self.balanced}"

    def forward(self, z: Tensor) -> Tensor:
        return lloyd_dispersion(z, n_samples=self.n_samples, balanced=self.balanced, generator=self.generator)
