r"""Proxy losses: every class is represented by learned points of the sphere, and samples are compared with those.

====================  ======================================  ===================================================
loss                  mean over                               choose it when
====================  ======================================  ===================================================
:class:`ProxyAnchor`  proxies (each gathers its samples)      batches hold several samples per class: it uses the
                                                              relations between them
:class:`ProxyNCA`     samples (each ranks all proxies)        a cross-entropy with one temperature is wanted
:class:`SoftTriple`   samples (each ranks all classes)        classes have several modes
====================  ======================================  ===================================================

All three cost one matrix product of samples and proxies. Only directions matter: embeddings and proxies are
normalised inside, so the gradient of a proxy is inversely proportional to its norm, and its initial norm sets its
effective learning rate. Published runs give proxies a learning rate of their own, 100 to 4000 times the backbone's.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import argument_error, check_integer, check_labels, check_nonnegative, check_points, check_positive
from otdml._precision import full_precision

__all__ = ["ProxyAnchor", "ProxyNCA", "SoftTriple", "proxy_anchor", "proxy_nca", "soft_triple"]


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
    _check_batch(z, proxies, labels, "(num_classes, d)")
    cosines = F.normalize(z, dim=-1) @ F.normalize(proxies, dim=-1).T
    own = labels[:, None] == torch.arange(len(proxies), device=z.device)
    attraction = _log_one_plus_sum_exp(-alpha * (cosines - delta), own)
    repulsion = _log_one_plus_sum_exp(alpha * (cosines + delta), ~own)
    return attraction.sum() / own.any(dim=0).sum() + repulsion.mean()


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
    _check_batch(z, proxies, labels, "(num_classes, d)")
    cosines = F.normalize(z, dim=-1) @ F.normalize(proxies, dim=-1).T
    return F.cross_entropy(2 / temperature * cosines, labels.long())


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
    _check_batch(z, proxies, labels, "(num_classes, centres, d)")
    centres = F.normalize(proxies, dim=-1)
    cosines = (F.normalize(z, dim=-1) @ centres.flatten(0, 1).T).unflatten(-1, centres.shape[:2])
    similarities = ((cosines / gamma).softmax(dim=-1) * cosines).sum(dim=-1)
    margin = delta * F.one_hot(labels.long(), len(proxies)).to(z.dtype)
    loss = F.cross_entropy(lam * (similarities - margin), labels.long())
    return loss + tau * _spread(centres) if tau else loss


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
        self.proxies = _normal_proxies(
            num_classes, dim, std=math.sqrt(2 / check_integer("num_classes", num_classes)), generator=generator
        )

    def extra_repr(self) -> str:
        return f"{_sizes(self.proxies)}, alpha={self.alpha:g}, delta={self.delta:g}"

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return proxy_anchor(z, self.proxies, labels, alpha=self.alpha, delta=self.delta)

    def class_proxies(self, z: Tensor, labels: Tensor) -> Tensor:
        """The unit proxy of every sample's class, shape (n, d)."""
        return _class_proxies(z, self.proxies, labels)


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
        self.proxies = _normal_proxies(num_classes, dim, std=1 / 8, generator=generator)

    def extra_repr(self) -> str:
        return f"{_sizes(self.proxies)}, temperature={self.temperature:g}"

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return proxy_nca(z, self.proxies, labels, temperature=self.temperature)

    def class_proxies(self, z: Tensor, labels: Tensor) -> Tensor:
        """The unit proxy of every sample's class, shape (n, d)."""
        return _class_proxies(z, self.proxies, labels)


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
        device = generator.device if generator else None
        initial = torch.empty(shape, device=device).uniform_(-bound, bound, generator=generator)
        self.proxies = nn.Parameter(initial.to(torch.get_default_device()))

    def extra_repr(self) -> str:
        numbers = f"lam={self.lam:g}, gamma={self.gamma:g}, delta={self.delta:g}, tau={self.tau:g}"
        return f"{_sizes(self.proxies)}, centres={self.proxies.shape[1]}, {numbers}"

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return soft_triple(z, self.proxies, labels, lam=self.lam, gamma=self.gamma, delta=self.delta, tau=self.tau)

    def class_proxies(self, z: Tensor, labels: Tensor) -> Tensor:
        r"""The unit centre nearest to every sample among those of its class, shape (n, d).

        The nearest, and not the softmax-weighted one that the loss compares with: a density of z conditioned on
        these points holds its condition fixed. The nearest centre is locally constant in z, so it is, and the
        classes become mixtures with hard assignment; the weighted one moves with z and would let a conditional flow
        read the sample off its condition.
        """
        return _nearest_centres(z, self.proxies, labels)


def _check_batch(z: Tensor, proxies: Tensor, labels: Tensor, shape: str) -> None:
    check_points("z", z)
    check_points("proxies", proxies)
    if z.ndim != 2:
        raise argument_error("z", "have shape (n, d)", tuple(z.shape), "Flatten the batch dimensions.")
    if proxies.ndim != shape.count(",") + 1:
        raise argument_error("proxies", f"have shape {shape}", tuple(proxies.shape))
    if z.shape[-1] != proxies.shape[-1]:
        raise argument_error("z", f"have the features of the proxies, {proxies.shape[-1]}", z.shape[-1])
    check_labels("labels", labels, len(z), len(proxies))
    if not z.device == proxies.device == labels.device:
        devices = f"{z.device}, {proxies.device} and {labels.device}"
        raise argument_error("z", "be on one device with proxies and labels", devices, "Move the loss with `.to`.")


def _log_one_plus_sum_exp(exponents: Tensor, mask: Tensor) -> Tensor:
    """``log(1 + sum of exp over the rows in mask)`` of every column."""
    # The row of zeros is the one: columns without entries are then sums over one finite term, never over none.
    return F.pad(exponents.masked_fill(~mask, -math.inf), (0, 0, 1, 0)).logsumexp(dim=0)


def _spread(centres: Tensor) -> Tensor:
    """Sum of the distances between unit centres of a class, over C K (K - 1)."""
    classes, k, _ = centres.shape
    if k == 1:  # no pairs, and no factor
        return centres.new_zeros(())
    i, j = torch.triu_indices(k, k, offset=1, device=centres.device)
    squares = 2 - 2 * (centres @ centres.mT)[:, i, j]
    return squares.add(1e-5).sqrt().sum() / (classes * k * (k - 1))


@full_precision
def _class_proxies(z: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
    _check_batch(z, proxies, labels, "(num_classes, d)")
    return F.normalize(proxies[labels.long()], dim=-1)


@full_precision
def _nearest_centres(z: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
    _check_batch(z, proxies, labels, "(num_classes, centres, d)")
    centres = F.normalize(proxies[labels.long()], dim=-1)
    nearest = (centres @ z[:, :, None]).squeeze(-1).argmax(dim=-1)
    return centres[torch.arange(len(z), device=z.device), nearest]


def _normal_proxies(num_classes: int, dim: int, *, std: float, generator: torch.Generator | None) -> nn.Parameter:
    shape = check_integer("num_classes", num_classes), check_integer("dim", dim)
    initial = torch.randn(shape, generator=generator, device=generator.device if generator else None)
    # A generator may live on another device than the module: its draws come to where all parameters start.
    return nn.Parameter(std * initial.to(torch.get_default_device()))


def _sizes(proxies: Tensor) -> str:
    return f"num_classes={len(proxies)}, dim={proxies.shape[-1]}"
