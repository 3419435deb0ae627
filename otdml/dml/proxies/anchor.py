"""Proxy-anchor: each proxy ranks the samples of the batch."""

import math

import torch
from torch import Tensor, nn

from otdml._checks import check_integer, check_nonnegative, check_positive
from otdml._precision import full_precision
from otdml.dml._exponents import log_one_plus_sum_exp
from otdml.dml.proxies._batch import check_batch, check_no_tuples, normal_proxies, sizes, unit_proxies
from otdml.sphere import unit

__all__ = ["ProxyAnchor", "proxy_anchor"]


@full_precision
def proxy_anchor(z: Tensor, proxies: Tensor, labels: Tensor, *, alpha: float = 32.0, delta: float = 0.1) -> Tensor:
    r"""Proxy-anchor loss of a labelled batch.

    .. math::
        \frac{1}{|P^+|} \sum_{p \in P^+} \log\Bigl(1 + \sum_{i \in X_p^+} e^{-\alpha (s_{ip} - \delta)}\Bigr)
        + \frac{1}{|P|} \sum_{p \in P} \log\Bigl(1 + \sum_{i \in X_p^-} e^{\alpha (s_{ip} + \delta)}\Bigr)

    where :math:`s_{ip}` is the cosine of sample i and proxy p, :math:`X_p^+` are the samples of the class of p,
    :math:`X_p^-` all others, and :math:`P^+` the proxies whose class is in the batch. The first mean is over *these
    proxies*, not over samples: a class counts once, however many samples it has. Smooth away from zero embeddings,
    and never zero. With ``alpha`` and ``delta`` (there ``margin``) equal, value and gradient are those of
    ``pytorch_metric_learning.losses.ProxyAnchorLoss``, which computes in the inputs' dtype, not in float32.

    Args:
        z: Embeddings, shape (n, d), of any norm.
        proxies: One point per class, shape (num_classes, d), of any norm.
        labels: Classes in [0, num_classes), shape (n,).
        alpha: Scale of the cosines.
        delta: Margin, in units of the cosine.

    Returns:
        A scalar.

    Raises:
        ValueError: If the batch is empty, shapes disagree, or a label has no proxy.

    Example:
        >>> import torch
        >>> z, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> proxy_anchor(z, torch.eye(2), labels, alpha=1.0, delta=0.0)  # log(1 + 1/e) + log(1 + 1) / 2
        tensor(0.6598)

    Source: :cite:p:`kim:20`.
    """
    labels = check_batch(z, proxies, labels, "(num_classes, d)")
    alpha, delta = check_positive("alpha", alpha), check_nonnegative("delta", delta)
    cosines = unit(proxies) @ unit(z).T
    own = torch.arange(len(proxies), device=z.device)[:, None] == labels
    attraction = log_one_plus_sum_exp(-alpha * (cosines - delta), own)
    repulsion = log_one_plus_sum_exp(alpha * (cosines + delta), ~own)
    return attraction.sum() / own.any(dim=1).sum() + repulsion.mean()


class ProxyAnchor(nn.Module):
    r"""Module form of :func:`proxy_anchor`, with its proxies.

    Proxies start normal with variance ``2 / num_classes`` (Kaiming, fan out), as in the published code: with many
    classes they are short, and so move fast.

    Args:
        num_classes: Number of classes, C.
        dim: Number of features, d.
        alpha: Scale of the cosines.
        delta: Margin, in units of the cosine.
        generator: Source of the initial proxies. PyTorch's default one if None.

    Attributes:
        proxies: Parameter of shape (C, d).

    Example:
        >>> import torch
        >>> loss = ProxyAnchor(2, 2, alpha=1.0, delta=0.0)
        >>> with torch.no_grad():
        ...     _ = loss.proxies.copy_(torch.eye(2))
        >>> loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0])).item()  # log(1 + 1/e) + log(1 + 1) / 2
        0.6598...
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        alpha: float = 32.0,
        delta: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.alpha = check_positive("alpha", alpha)
        self.delta = check_nonnegative("delta", delta)
        std = math.sqrt(2 / check_integer("num_classes", num_classes))
        self.proxies = normal_proxies((num_classes, dim), std, generator)

    def extra_repr(self) -> str:
        return f"{sizes(self.proxies)}, alpha={self.alpha:g}, delta={self.delta:g}"

    def forward(self, z: Tensor, labels: Tensor, tuples: None = None) -> Tensor:
        check_no_tuples(tuples)
        return proxy_anchor(z, self.proxies, labels, alpha=self.alpha, delta=self.delta)

    def class_proxies(self, z: Tensor, labels: Tensor) -> Tensor:
        """The unit proxy of every sample's class, shape (n, d)."""
        return unit_proxies(z, self.proxies, labels)
