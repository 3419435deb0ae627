"""Pairwise energies of points on the sphere."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from otdml._checks import argument_error, check_boolean, check_choice, check_points, check_positive
from otdml._precision import full_precision
from otdml.kernel_sums import BACKENDS, pair_sum, smallest_squared_distance
from otdml.kernels import RadialKernel, gaussian, geodesic, laplacian, logarithmic, riesz
from otdml.sphere import distinct_directions

__all__ = ["KernelDispersion", "check_scale", "check_several", "kernel_dispersion", "zonal_kernel"]

KERNELS: dict[str, Callable[..., RadialKernel]] = {
    "gaussian": lambda gamma: gaussian((2 * gamma) ** -0.5),
    "laplacian": lambda gamma: laplacian(1 / gamma),
    "riesz": riesz,
    "log": logarithmic,
}
# What the scale of a kernel is called, and by default.
SCALES = {"gaussian": "gamma", "laplacian": "gamma", "riesz": "s"}
DEFAULTS = {"gamma": 2.0, "s": 1.0}
DISTANCES = ("chord", "geodesic")
# Rates at which a Gaussian or a Laplacian is far from underflow at the diameter, by angle too.
_TAME = 3.0


@full_precision
def kernel_dispersion(
    z: Tensor,
    *,
    kernel: str = "gaussian",
    distance: str = "chord",
    gamma: float | None = None,
    s: float | None = None,
    log: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""Mean potential energy of pairs of points on the sphere, to be minimised.

    .. math:: E(z) = \frac{1}{n (n - 1)} \sum_{i \ne j} k(r_{ij}),
        \qquad r_{ij} = \left\lVert \frac{z_i}{\lVert z_i \rVert} - \frac{z_j}{\lVert z_j \rVert} \right\rVert

    All of these kernels are least at the uniform measure on chords. Choose ``"gaussian"`` with ``log=True`` for the
    uniformity of contrastive learning :cite:p:`wang:20`, ``"riesz"`` for hyperspherical energy :cite:p:`liu:18` and for
    well-separated points, the better the larger ``s``, and ``"log"`` where no scale should be preferred. A large
    ``gamma`` or ``s`` counts near pairs only; take ``log=True`` then, which can neither under- nor overflow.

    The mean over pairs is a U-statistic: without ``log``, the mean over random minibatches of its value and of its
    gradient are those of all points. The cost is n² d / 2, the memory n d. Coincident rows are moved apart first as
    described at :func:`otdml.sphere.distinct_directions`. Without ``log``, a Riesz kernel is held
    constant below the distance where sums of :math:`r^{-s-2}` would overflow (in float32 0.04 for s = 20), and its
    force is proportional to the distance there.

    Args:
        z: Points, shape (..., n, d), d >= 2, of any length: their directions are what counts.
        kernel: ``"gaussian"`` :math:`e^{-\gamma r^2}`, ``"laplacian"`` :math:`e^{-\gamma r}`, ``"riesz"``
            :math:`r^{-s}`, or ``"log"`` :math:`-\log r`.
        distance: ``"chord"``, or ``"geodesic"`` for the angle in place of r. The Gaussian of the angle is not positive
            definite.
        gamma: Rate of the Gaussian and the Laplacian, positive; 2 if None.
        s: Exponent of the Riesz kernel, positive; 1 if None.
        log: Return the logarithm of the mean.
        backend: ``"dense"``, ``"streamed"``, ``"keops"``, ``"triton"``, or ``"auto"``, as in
            :func:`otdml.kernel_sums.pair_sum`.

    Returns:
        One value per batch element, shape (...).

    Raises:
        ValueError: If there are fewer than two points or two coordinates, an option is unknown, ``log`` is asked of
            ``"log"``, or ``gamma`` or ``s`` is given to a kernel without it.

    Example:
        >>> import torch
        >>> kernel_dispersion(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), kernel="riesz")  # antipodes: 1/2
        tensor(0.5000)
    """
    check_several(z)
    _check_log(kernel, log)
    k = zonal_kernel(kernel, distance, gamma, s)
    x = distinct_directions(z)
    n = z.shape[-2]
    uniform = x.new_full(x.shape[:-1], (n * (n - 1)) ** -0.5)
    if not log or check_scale(kernel, gamma, s).get("gamma", _TAME) < _TAME:
        mean = pair_sum(k, x, uniform, backend=backend)
        return mean.log() if log else mean
    # Relative to its largest term the sum lies between 1 / n² and 1, whatever gamma and s.
    largest, logarithm = k.relative_to(smallest_squared_distance(x).clamp_min(torch.finfo(x.dtype).eps ** 2))
    return pair_sum(largest, x, uniform, backend=backend).log() + logarithm[..., 0, 0]


def zonal_kernel(kernel: str, distance: str, gamma: float | None = None, s: float | None = None) -> RadialKernel:
    """The kernel of these names on the sphere.

    Example:
        >>> import torch
        >>> zonal_kernel("gaussian", "chord")(torch.tensor(0.5))[0]  # exp(-1)
        tensor(0.3679)
    """
    check_choice("distance", distance, DISTANCES)
    chord = KERNELS[check_choice("kernel", kernel, KERNELS)](**check_scale(kernel, gamma, s))
    return chord if distance == "chord" else geodesic(chord)


def check_scale(kernel: str, gamma: float | None, s: float | None) -> dict[str, float]:
    """The scale of a kernel under its name, given or by default, unless one is given that it does not have.

    Example:
        >>> check_scale("laplacian", None, None)
        {'gamma': 2.0}
        >>> check_scale("riesz", 0.5, None)
        Traceback (most recent call last):
        ValueError: `gamma` must be None with kernel='riesz', got 0.5. It belongs to 'gaussian' and 'laplacian'.
    """
    own, given = SCALES.get(check_choice("kernel", kernel, KERNELS)), {"gamma": gamma, "s": s}
    for name, value in given.items():
        if name != own and value is not None:
            users = " and ".join(repr(one) for one, scale in SCALES.items() if scale == name)
            raise argument_error(name, f"be None with kernel={kernel!r}", value, f"It belongs to {users}.")
    if own is None:
        return {}
    scale = given[own]
    return {own: check_positive(own, DEFAULTS[own] if scale is None else scale)}


def check_several(z: Tensor) -> Tensor:
    """``z``, if it holds two points of two coordinates or more: on a line no way leads from one direction to the other.

    Example:
        >>> import torch
        >>> check_several(torch.zeros(1, 3))
        Traceback (most recent call last):
        ValueError: `z` must hold at least two points, got shape (1, 3).
    """
    if check_points("z", z).shape[-2] < 2:
        raise argument_error("z", "hold at least two points", f"shape {tuple(z.shape)}")
    if z.shape[-1] < 2:
        raise argument_error("z", "have at least two coordinates", z.shape[-1])
    return z


def _check_log(kernel: str, log: bool) -> None:
    if check_boolean("log", log) and kernel == "log":
        raise argument_error("log", "be False for the kernel 'log', whose mean may be negative", log)


class KernelDispersion(nn.Module):
    """Module form of :func:`kernel_dispersion`."""

    def __init__(
        self,
        *,
        kernel: str = "gaussian",
        distance: str = "chord",
        gamma: float | None = None,
        s: float | None = None,
        log: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        zonal_kernel(kernel, distance, gamma, s)
        _check_log(kernel, log)
        self.kernel, self.distance, self.log = kernel, distance, log
        self.scale = check_scale(kernel, gamma, s)
        self.backend = check_choice("backend", backend, BACKENDS)

    def extra_repr(self) -> str:
        scale = "".join(f", {name}={value:g}" for name, value in self.scale.items())
        return f"kernel={self.kernel!r}, distance={self.distance!r}{scale}, log={self.log}"

    def forward(self, z: Tensor) -> Tensor:
        return kernel_dispersion(
            z, kernel=self.kernel, distance=self.distance, **self.scale, log=self.log, backend=self.backend
        )
