"""SoftTriple: each sample ranks the classes, which have several centres."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import check_integer, check_nonnegative, check_positive, device_of_draws
from otdml._precision import full_precision
from otdml.dml.proxies._batch import check_batch, check_no_tuples, nearest_centres, sizes
from otdml.dml.proxies._softened import class_similarities
from otdml.sphere import unit

__all__ = ["SoftTriple", "soft_triple"]


@full_precision
def soft_triple(
    z: Tensor,
    proxies: Tensor,
    labels: Tensor,
    *,
    lam: float = 20.0,
    gamma: float = 0.1,
    delta: float = 0.01,
    tau: float = 0.2,
) -> Tensor:
    r"""SoftTriple loss of a labelled batch, with K centres per class.

    .. math::
        S_{ic} = \sum_k \frac{e^{s_{ick} / \gamma}}{\sum_l e^{s_{icl} / \gamma}} s_{ick}, \qquad
        -\frac{1}{n} \sum_i \log \frac{e^{\lambda (S_{iy_i} - \delta)}}
            {e^{\lambda (S_{iy_i} - \delta)} + \sum_{c \neq y_i} e^{\lambda S_{ic}}}
        + \frac{\tau}{C K (K - 1)} \sum_c \sum_{k < l} \lVert w_{ck} - w_{cl} \rVert

    where :math:`s_{ick}` is the cosine of sample i and centre k of class c. The softmax of the similarities runs over
    the centres of a class. The last term draws the centres of a class together, so that K need only be an upper
    bound; its distances are :math:`\sqrt{d^2 + 10^{-5}}`, which keeps its gradient finite where centres coincide.
    With ``tau=0`` value and gradient are those of ``pytorch_metric_learning.losses.SoftTripleLoss``, which leaves the
    last term out (``la`` and ``margin`` are ``lam`` and ``delta``; its ``fc`` holds the centres as columns).

    Args:
        z: Embeddings, shape (n, d), of any norm.
        proxies: The centres, shape (num_classes, K, d), of any norm.
        labels: Classes in [0, num_classes), shape (n,).
        lam: Scale of the class similarities.
        gamma: Temperature of the softmax over centres, in units of the cosine.
        delta: Margin, in units of the cosine.
        tau: Weight of the distances between the centres of a class.

    Returns:
        A scalar.

    Raises:
        ValueError: If the batch is empty, shapes disagree, or a label has no proxy.

    Example:
        >>> import torch
        >>> z, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> soft_triple(z, torch.eye(2)[:, None], labels, lam=1.0, delta=0.0)  # similarities 1 and 0: log(1 + 1/e)
        tensor(0.3133)

    Source: :cite:p:`qian:19`.
    """
    labels = check_batch(z, proxies, labels, "(num_classes, centres, d)")
    lam, gamma = check_positive("lam", lam), check_positive("gamma", gamma)
    delta, tau = check_nonnegative("delta", delta), check_nonnegative("tau", tau)
    directions = unit(z)
    similarities = class_similarities(directions, proxies, gamma)
    margin = delta * F.one_hot(labels, len(proxies)).to(similarities)
    loss = F.cross_entropy(lam * (similarities - margin), labels)
    return loss + tau * _spread(proxies) if tau else loss


class SoftTriple(nn.Module):
    r"""Module form of :func:`soft_triple`, with its centres.

    Centres start uniform in :math:`\pm 1 / \sqrt{C K}` (Kaiming, fan in of the published d × CK matrix), as in the
    published code. Published runs take K = 10 for some hundred classes, and K = 2 for many small ones.

    Args:
        num_classes: Number of classes, C.
        dim: Number of features, d.
        centres: Number of centres per class, K.
        lam: Scale of the class similarities.
        gamma: Temperature of the softmax over centres, in units of the cosine.
        delta: Margin, in units of the cosine.
        tau: Weight of the distances between the centres of a class.
        generator: Source of the initial centres. PyTorch's default one if None.

    Attributes:
        proxies: Parameter of shape (C, K, d).

    Example:
        >>> import torch
        >>> loss = SoftTriple(2, 2, centres=1, lam=1.0, delta=0.0)
        >>> with torch.no_grad():
        ...     _ = loss.proxies.copy_(torch.eye(2)[:, None])
        >>> loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0])).item()  # log(1 + 1/e)
        0.3132...
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        centres: int = 10,
        lam: float = 20.0,
        gamma: float = 0.1,
        delta: float = 0.01,
        tau: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shape = check_integer("num_classes", num_classes), check_integer("centres", centres), check_integer("dim", dim)
        self.lam, self.gamma = check_positive("lam", lam), check_positive("gamma", gamma)
        self.delta, self.tau = check_nonnegative("delta", delta), check_nonnegative("tau", tau)
        bound = 1 / math.sqrt(num_classes * centres)
        initial = torch.empty(shape, device=device_of_draws(generator)).uniform_(-bound, bound, generator=generator)
        self.proxies = nn.Parameter(initial.to(torch.empty(0).device))

    def extra_repr(self) -> str:
        numbers = f"lam={self.lam:g}, gamma={self.gamma:g}, delta={self.delta:g}, tau={self.tau:g}"
        return f"{sizes(self.proxies)}, centres={self.proxies.shape[1]}, {numbers}"

    def forward(self, z: Tensor, labels: Tensor, tuples: None = None) -> Tensor:
        check_no_tuples(tuples)
        return soft_triple(z, self.proxies, labels, lam=self.lam, gamma=self.gamma, delta=self.delta, tau=self.tau)

    def class_proxies(self, z: Tensor, labels: Tensor) -> Tensor:
        r"""The unit centre nearest to every sample among those of its class, shape (n, d).

        The nearest, and not the softmax-weighted one that the loss compares with: a density of z conditioned on
        these points holds its condition fixed. The nearest centre is locally constant in z, so it is, and the
        classes become mixtures with hard assignment; the weighted one moves with z and would let a conditional flow
        read the sample off its condition.
        """
        return nearest_centres(z, self.proxies, labels)


def _spread(proxies: Tensor) -> Tensor:
    """Sum of the distances between unit centres of a class, over C K (K - 1)."""
    classes, k, _ = proxies.shape
    if k == 1:  # There are no pairs.
        return proxies.new_zeros(())
    directions = unit(proxies)
    cosines = directions @ directions.mT
    distances = (2 - 2 * cosines).clamp_min(0).add(1e-5).sqrt()
    itself = torch.eye(k, dtype=torch.bool, device=proxies.device)
    # Every pair is counted in both orders.
    return distances.masked_fill(itself, 0).sum() / (2 * classes * k * (k - 1))
