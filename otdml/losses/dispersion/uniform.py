"""Maximum mean discrepancy to the uniform measure of the sphere."""

from torch import Tensor, nn

from otdml._checks import argument_error, check_boolean, check_choice
from otdml._precision import full_precision
from otdml.kernel_sums import BACKENDS, pair_sum
from otdml.kernels import constant_mean
from otdml.losses.dispersion.energy import check_scale, check_several, zonal_kernel
from otdml.sphere import distinct_directions

__all__ = ["MMDToUniform", "mmd_to_uniform"]


@full_precision
def mmd_to_uniform(
    z: Tensor,
    *,
    kernel: str = "gaussian",
    distance: str = "chord",
    gamma: float | None = None,
    s: float | None = None,
    unbiased: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Squared maximum mean discrepancy between points on the sphere and its uniform measure.

    .. math:: \mathrm{MMD}_k^2(z) = \frac{1}{n^2} \sum_{i,j} k(x_i, x_j) - c_k, \qquad
        c_k = \iint k \, d\sigma \, d\sigma

    The uniform measure :math:`\sigma` enters by a constant alone, because the mean of a kernel of distances over
    :math:`\sigma` is the same at every point. So this is :func:`kernel_dispersion` on a scale with a meaning: zero for
    the uniform measure, 1/n times :math:`k(0) - c_k` on average for n uniform points (zero with ``unbiased``), and
    comparable between numbers of points and dimensions. Gradients are those of :func:`kernel_dispersion`, and so are
    cost and tie-break.

    Only positive definite kernels have such a reading. The Gaussian of the *angle* is not positive definite on any
    sphere, and for :math:`s \ge d - 1` the Riesz energy of the uniform measure is infinite: both are refused.

    Args:
        z: Points, shape (..., n, d), d >= 2, of any length: their directions are what counts.
        kernel: ``"gaussian"``, ``"laplacian"``, ``"riesz"`` or ``"log"``, as in :func:`kernel_dispersion`.
        distance: ``"chord"`` or ``"geodesic"``.
        gamma: Rate of the Gaussian and the Laplacian, positive; 2 if None.
        s: Exponent of the Riesz kernel, in (0, d - 1); 1 if None.
        unbiased: Leave out the pairs of a point with itself (U-statistic), which makes value and gradient of
            minibatches unbiased. None does so for ``"riesz"`` and ``"log"``, which are infinite there.
        backend: As in :func:`kernel_dispersion`.

    Returns:
        One value per batch element, shape (...), non-negative up to rounding unless unbiased.

    Raises:
        ValueError: If there are fewer than two points, the kernel has no such reading, or ``gamma`` or ``s`` is given
            to a kernel without it.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
        >>> mmd_to_uniform(z, kernel="riesz")  # 1/2, less the energy 1 of the unit sphere
        tensor(-0.5000)
    """
    n, d = check_several(z).shape[-2:]
    unbiased = _check_kernel(kernel, distance, unbiased)
    scale = check_scale(kernel, gamma, s)
    _check_dimension(scale, d)
    k = zonal_kernel(kernel, distance, **scale)
    x = distinct_directions(z)
    mean = 1 / (n * (n - 1)) if unbiased else 1 / n**2
    pairs = pair_sum(k, x, x.new_full(x.shape[:-1], mean**0.5), backend=backend)
    constant = constant_mean(k, d)
    constant = constant.to(x) if isinstance(constant, Tensor) else constant
    return pairs + ((0 if unbiased else k.at_zero / n) - constant)


def _check_kernel(kernel: str, distance: str, unbiased: bool | None) -> bool:
    """Whether to leave out the diagonal, if the kernel allows the question."""
    if (kernel, distance) == ("gaussian", "geodesic"):
        got = "the Gaussian of the angle, which is not positive definite on a sphere"
        remedy = "Take distance='chord', kernel='laplacian', or kernel_dispersion."
        raise argument_error("kernel", "be positive definite", got, remedy)
    infinite = kernel in ("riesz", "log")
    if infinite and unbiased is False:
        raise argument_error("unbiased", f"be True or None for {kernel!r}, which is infinite at distance 0", unbiased)
    return infinite if unbiased is None else check_boolean("unbiased", unbiased)


def _check_dimension(scale: dict[str, float], d: int) -> None:
    if scale.get("s", 0.0) >= d - 1:
        remedy = "The uniform measure has infinite energy there: use kernel_dispersion."
        raise argument_error("s", f"be below d - 1 = {d - 1}", scale["s"], remedy)


class MMDToUniform(nn.Module):
    """Module form of :func:`mmd_to_uniform`."""

    def __init__(
        self,
        *,
        kernel: str = "gaussian",
        distance: str = "chord",
        gamma: float | None = None,
        s: float | None = None,
        unbiased: bool | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        zonal_kernel(kernel, distance, gamma, s)
        self.unbiased = _check_kernel(kernel, distance, unbiased)
        self.kernel, self.distance = kernel, distance
        self.scale = check_scale(kernel, gamma, s)
        self.backend = check_choice("backend", backend, BACKENDS)

    def extra_repr(self) -> str:
        scale = "".join(f", {name}={value:g}" for name, value in self.scale.items())
        return f"kernel={self.kernel!r}, distance={self.distance!r}{scale}, unbiased={self.unbiased}"

    def forward(self, z: Tensor) -> Tensor:
        return mmd_to_uniform(
            z, kernel=self.kernel, distance=self.distance, **self.scale, unbiased=self.unbiased, backend=self.backend
        )
