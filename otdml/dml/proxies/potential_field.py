"""PFML: samples and proxies as charges, whose potential energy is minimised."""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from otdml._checks import argument_error, check_integer, check_positive
from otdml._precision import full_precision
from otdml.dml.proxies._batch import check_batch, check_no_tuples, nearest_centres, normal_proxies, sizes
from otdml.sphere import unit

__all__ = ["PotentialField", "potential_field"]

# Most pairs of charges in memory. Beyond that, blocks of rows are computed, and again for the gradient.
_PAIRS = 2**23
# Within this part of `delta`, repulsion has no pole.
_CORE = 0.1
# Power of ten of the largest slope: sums over 1e8 pairs are numbers of single precision.
_LARGEST = 30


@full_precision
def potential_field(z: Tensor, proxies: Tensor, labels: Tensor, *, alpha: float = 3.0, delta: float = 0.2) -> Tensor:
    r"""Potential energy of a labelled batch and its proxies (PFML).

    The charges :math:`r_1, \dots, r_N` are the n samples and all C K proxies, on the unit sphere. Those of one class
    attract each other, those of different classes repel each other at close range:

    .. math::
        U = \sum_i \sum_{j \ne i} \psi(r_i, r_j), \qquad
        \psi(r, s) = \begin{cases}
            -\max(\lVert r - s \rVert, \delta)^{-\alpha} & \text{of one class} \\
            \min(\lVert r - s \rVert, \delta)^{-\alpha} - \delta^{-\alpha} & \text{of two classes}
        \end{cases}

    and the value is U / N, the mean potential of a charge. Attraction decays with the distance, unlike that of most
    losses, so that samples gather around the nearest proxy of their class and an outlier pulls at nobody; within
    :math:`\delta` it ends and repulsion begins. The least value, where every class lies in a ball of diameter
    :math:`\delta` and no other comes that near, is :math:`-\delta^{-\alpha}` times the mean number of companions of a
    charge, and the gradient is zero there.

    The energy is that of the paper, but for what has no gradient there: its sum has the pairs of a charge with itself,
    and its repulsion is not shifted to zero at :math:`\delta`. It is divided by N, which changes nothing under Adam.
    Within :math:`\delta / 10` repulsion goes on with the slope, in the squared distance, that it has there: its pole
    has no finite gradient. The paper gives :math:`\alpha` among 0, ..., 6 and :math:`\delta` between 0.1 and 0.3 as
    cross-validated for each data set without their values; ours are from the middle.

    Time is that of the distances between all N charges; memory is bounded by computing blocks of them twice.

    Args:
        z: Embeddings, shape (n, d), of any norm.
        proxies: Shape (num_classes, K, d), of any norm.
        labels: Classes in [0, num_classes), shape (n,).
        alpha: Power with which the potential decays.
        delta: Distance on the unit sphere within which attraction ends and repulsion begins, below 2.

    Returns:
        A scalar.

    Raises:
        ValueError: If the batch is empty, shapes disagree, a label has no proxy, or ``alpha`` is too large a power.

    Example:
        >>> import torch
        >>> z, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> potential_field(z, torch.eye(2)[:, None], labels, alpha=2.0, delta=0.5)  # -4, twice, over three charges
        tensor(-2.6667)

    Source: :cite:p:`bhatnagar:25`.
    """
    labels = check_batch(z, proxies, labels, "(num_classes, centres, d)")
    alpha, delta = _checked(alpha, delta)
    charges = torch.cat([unit(z), unit(proxies).flatten(0, 1)])
    owners = torch.arange(len(proxies), device=z.device).repeat_interleave(proxies.shape[1])
    classes = torch.cat([labels, owners])
    rows = max(1, _PAIRS // len(charges))
    if rows >= len(charges):
        return _energy(charges, classes, 0, len(charges), alpha, delta) / len(charges)
    parts = [
        checkpoint(_energy, charges, classes, start, start + rows, alpha, delta, use_reentrant=False)
        for start in range(0, len(charges), rows)
    ]
    return torch.stack(parts).sum() / len(charges)


def _checked(alpha: float, delta: float) -> tuple[float, float]:
    """Both parameters, if the largest slope that they give is a number of single precision, and so are its sums."""
    alpha, delta = check_positive("alpha", alpha), check_positive("delta", delta)
    if delta >= 2:
        raise argument_error("delta", "be below 2, the largest distance on the sphere", delta)
    if -(alpha + 2) * math.log10(_CORE * delta) > _LARGEST:
        remedy = "Take a smaller power, or a larger `delta`."
        raise argument_error("alpha", f"keep ({_CORE:g} delta)^(-alpha - 2) below 1e{_LARGEST}", alpha, remedy)
    return alpha, delta


def _energy(charges: Tensor, classes: Tensor, start: int, stop: int, alpha: float, delta: float) -> Tensor:
    """The energy of the charges from ``start`` to ``stop`` in the field of all charges."""
    squares = 2 - 2 * (charges[start:stop] @ charges.T)
    same = classes[start:stop, None] == classes
    itself = torch.ones_like(same).triu_(start).tril_(start)
    attraction = -squares.clamp_min(delta**2).pow(-alpha / 2)
    core = (_CORE * delta) ** 2
    outside = squares.clamp(core, delta**2).pow(-alpha / 2) - delta**-alpha
    slope = -alpha / 2 * core ** (-alpha / 2 - 1)
    repulsion = outside + slope * (squares.clamp_max(core) - core)
    return torch.where(same, attraction, repulsion).masked_fill(itself, 0).sum()


class PotentialField(nn.Module):
    r"""Module form of :func:`potential_field`, with its proxies.

    Proxies start as those of :class:`~otdml.dml.ProxyAnchor`; the paper does not say how. Published runs take 15 of
    them for each of some hundred classes, 2 for each of many small ones, and 100 times the network's learning rate.

    Args:
        num_classes: Number of classes, C.
        dim: Number of features, d.
        centres: Number of proxies per class, K.
        alpha: Power with which the potential decays.
        delta: Distance on the unit sphere within which attraction ends and repulsion begins, below 2.
        generator: Source of the initial proxies. PyTorch's default one if None.

    Attributes:
        proxies: Parameter of shape (C, K, d).

    Example:
        >>> import torch
        >>> loss = PotentialField(2, 2, centres=1, alpha=2.0, delta=0.5)
        >>> with torch.no_grad():
        ...     _ = loss.proxies.copy_(torch.eye(2)[:, None])
        >>> loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0])).item()  # -4, twice, over three charges
        -2.6666...
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        centres: int = 15,
        alpha: float = 3.0,
        delta: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.delta = _checked(alpha, delta)
        std = math.sqrt(2 / check_integer("num_classes", num_classes))
        self.proxies = normal_proxies((num_classes, check_integer("centres", centres), dim), std, generator)

    def extra_repr(self) -> str:
        return f"{sizes(self.proxies)}, centres={self.proxies.shape[1]}, alpha={self.alpha:g}, delta={self.delta:g}"

    def forward(self, z: Tensor, labels: Tensor, tuples: None = None) -> Tensor:
        check_no_tuples(tuples)
        return potential_field(z, self.proxies, labels, alpha=self.alpha, delta=self.delta)

    def class_proxies(self, z: Tensor, labels: Tensor) -> Tensor:
        """The unit proxy nearest to every sample among those of its class, shape (n, d)."""
        return nearest_centres(z, self.proxies, labels)
