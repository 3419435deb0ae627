"""ProxyNCA++: each sample ranks the proxies."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import check_positive
from otdml._precision import full_precision
from otdml.dml.proxies._batch import check_batch, check_no_tuples, normal_proxies, sizes, unit_proxies
from otdml.sphere import unit

__all__ = ["ProxyNCA", "proxy_nca"]


@full_precision
def proxy_nca(z: Tensor, proxies: Tensor, labels: Tensor, *, temperature: float = 1 / 9) -> Tensor:
    r"""ProxyNCA++ loss of a labelled batch.

    .. math:: -\frac{1}{n} \sum_i \log \frac{e^{-d^2(z_i, p_{y_i}) / T}}{\sum_c e^{-d^2(z_i, p_c) / T}}

    with the squared distance on the unit sphere, :math:`d^2 = 2 - 2 \cos`: the cross-entropy of the cosines at
    temperature T / 2. Unlike the first ProxyNCA, the denominator holds the sample's own class, which makes it
    non-negative; it is zero only for a single class. Value and gradient are those of
    ``pytorch_metric_learning.losses.ProxyNCALoss`` with ``softmax_scale = 1 / temperature`` (there 1 by default),
    but for samples whose own probability underflows: that class leaves them out of the loss, here they have their
    large value and their gradient.

    Args:
        z: Embeddings, shape (n, d), of any norm.
        proxies: One point per class, shape (num_classes, d), of any norm.
        labels: Classes in [0, num_classes), shape (n,).
        temperature: T, in units of the squared distance.

    Returns:
        A scalar.

    Raises:
        ValueError: If the batch is empty, shapes disagree, or a label has no proxy.

    Example:
        >>> import torch
        >>> z, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> proxy_nca(z, torch.eye(2), labels, temperature=1.0)  # d^2 is 0 and 2: log(1 + exp(-2))
        tensor(0.1269)

    Source: :cite:p:`teh:20`.
    """
    labels = check_batch(z, proxies, labels, "(num_classes, d)")
    cosines = unit(z) @ unit(proxies).T
    return F.cross_entropy(2 / check_positive("temperature", temperature) * cosines, labels)


class ProxyNCA(nn.Module):
    r"""Module form of :func:`proxy_nca`, with its proxies.

    Proxies start normal with standard deviation 1/8, as in the published code.

    Args:
        num_classes: Number of classes, C.
        dim: Number of features, d.
        temperature: T, in units of the squared distance.
        generator: Source of the initial proxies. PyTorch's default one if None.

    Attributes:
        proxies: Parameter of shape (C, d).

    Example:
        >>> import torch
        >>> loss = ProxyNCA(2, 2, temperature=1.0)
        >>> with torch.no_grad():
        ...     _ = loss.proxies.copy_(torch.eye(2))
        >>> loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0])).item()  # log(1 + exp(-2))
        0.1269...
    """

    def __init__(
        self, num_classes: int, dim: int, *, temperature: float = 1 / 9, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.temperature = check_positive("temperature", temperature)
        self.proxies = normal_proxies((num_classes, dim), 1 / 8, generator)

    def extra_repr(self) -> str:
        return f"{sizes(self.proxies)}, temperature={self.temperature:g}"

    def forward(self, z: Tensor, labels: Tensor, tuples: None = None) -> Tensor:
        check_no_tuples(tuples)
        return proxy_nca(z, self.proxies, labels, temperature=self.temperature)

    def class_proxies(self, z: Tensor, labels: Tensor) -> Tensor:
        """The unit proxy of every sample's class, shape (n, d)."""
        return unit_proxies(z, self.proxies, labels)
