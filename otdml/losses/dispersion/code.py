"""Spherical codes: points whose smallest mutual angle is maximised."""

import torch
from torch import Tensor

from otdml._checks import check_integer
from otdml.losses.dispersion.energy import kernel_dispersion
from otdml.losses.dispersion.metrics import nearest_angles
from otdml.sphere import uniform_points, unit

__all__ = ["spherical_code"]

_RATE = 0.05
# First and last value of gamma, in units of the inverse squared distance of neighbours: at first the force reaches
# across the sphere, in the end a thousandth beyond the nearest neighbour.
_WIDEST, _NARROWEST = 0.15, 1000.0
# Share of the steps in which gamma grows; in the others the step size falls to zero.
_ANNEALING = 0.7


def spherical_code(
    n: int,
    d: int,
    *,
    restarts: int = 5,
    steps: int = 1000,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""n points of the unit sphere whose smallest angle is as large as could be found (Tammes' problem).

    .. math:: \max_{x_1, \dots, x_n} \min_{i \ne j} \angle(x_i, x_j)

    For use as class prototypes or as an initial table of embeddings. Adam descends the logarithm of the Gaussian energy
    of :func:`~otdml.losses.kernel_dispersion`, whose ``gamma`` grows until only the nearest pairs count; all restarts
    run at once, and the best is returned. Up to n = d + 1 points that is a simplex, up to 2 d points all angles are at
    least 90 degrees :cite:p:`rankin:55`; beyond, local optima remain, most of them within a percent of the best known
    :cite:p:`sloane:00`. The cost is ``restarts`` × ``steps`` × n² d.

    Args:
        n: Number of points, at least 2.
        d: Number of coordinates, at least 2.
        restarts: Number of random starts.
        steps: Steps of Adam.
        generator: Source of the starts.
        dtype: Data type of the points and of the arithmetic.
        device: Where to compute.

    Returns:
        Unit vectors, shape (n, d).

    Raises:
        ValueError: If a number is too small.

    Example:
        >>> import torch
        >>> x = spherical_code(4, 3, restarts=1, steps=200, generator=torch.Generator().manual_seed(0))
        >>> (x @ x.T)[0, 1:].allclose(torch.tensor(-1 / 3, dtype=x.dtype), atol=1e-3)  # the tetrahedron
        True
    """
    n, d, steps = check_integer("n", n, least=2), check_integer("d", d, least=2), check_integer("steps", steps)
    shape = (check_integer("restarts", restarts), n, d)
    z = uniform_points(*shape, generator=generator, dtype=dtype, device=device).requires_grad_()
    optimizer = torch.optim.Adam([z])
    with torch.enable_grad():
        for step in range(steps):
            gamma, optimizer.param_groups[0]["lr"] = _schedule(n, d, step / steps)
            optimizer.zero_grad()
            # Divided by gamma, the loss tends to minus the smallest squared distance, so that forces keep their size.
            kernel_dispersion(z, gamma=gamma, log=True).div(gamma).sum().backward()
            optimizer.step()
    x = unit(z.detach())
    return x[nearest_angles(x).amin(-1).argmax()]


def _schedule(n: int, d: int, done: float) -> tuple[float, float]:
    """The rate of the Gaussian, and the step of the optimiser, when a part of the steps is done."""
    narrowing = (_NARROWEST / _WIDEST) ** min(1.0, done / _ANNEALING)
    # About the radius of n equal caps that cover the sphere.
    squared_distance = min(2.0, 4 * n ** (-2 / (d - 1)))
    # A force of short range is steep and needs shorter steps, less than in proportion, as it acts on fewer pairs.
    step = _RATE * narrowing**-0.5 * min(1.0, (1 - done) / (1 - _ANNEALING))
    return _WIDEST * narrowing / squared_distance, step
