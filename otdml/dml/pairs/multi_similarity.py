"""Multi-similarity: each sample weighs the pairs it is in."""

from torch import Tensor, nn

from otdml._checks import check_number, check_positive
from otdml._precision import full_precision
from otdml.dml._exponents import log_one_plus_sum_exp
from otdml.dml.pairs._comparison import Tuples, compare, pair_masks
from otdml.dml.pairs.miners import informative

__all__ = ["MultiSimilarity", "multi_similarity"]


@full_precision
def multi_similarity(
    z: Tensor,
    labels: Tensor,
    *,
    tuples: Tuples | None = None,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = None,
) -> Tensor:
    r"""Multi-similarity loss of a labelled batch.

    .. math::
        \frac{1}{n} \sum_i \frac{1}{\alpha} \log\Bigl(1 + \sum_{j \in P_i} e^{-\alpha (s_{ij} - \lambda)}\Bigr)
        + \frac{1}{\beta} \log\Bigl(1 + \sum_{j \in N_i} e^{\beta (s_{ij} - \lambda)}\Bigr)

    where :math:`s_{ij}` is the cosine of two samples, :math:`P_i` are the others of the class of i and :math:`N_i`
    those of other classes. Each pair weighs as much as it stands out among all pairs of its anchor. Value and gradient
    are those of ``pytorch_metric_learning.losses.MultiSimilarityLoss``; with ``epsilon`` those of it after
    ``MultiSimilarityMiner(epsilon)``, which the paper takes at 0.1. That class is zero where no more than one positive
    and one negative pair are mined, which have their value and their gradient here.

    Args:
        z: Embeddings, shape (n, d), of any norm.
        labels: Their classes, integers, shape (n,).
        tuples: Which pairs count, as a miner returns them. None for all.
        reference: What the batch is compared with, shape (m, d), such as a memory. None for itself.
        reference_labels: Classes of the reference, shape (m,).
        alpha: Scale of the cosines of positive pairs.
        beta: Scale of the cosines of negative pairs.
        base: The cosine :math:`\lambda` at which a pair counts half.
        epsilon: Which pairs to learn from, see :func:`~otdml.dml.multi_similarity_pairs`. None for all.

    Returns:
        A scalar, zero where there are no pairs.

    Raises:
        ValueError: If the batch is empty or shapes disagree.

    Example:
        >>> import torch
        >>> z, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> multi_similarity(z, labels, alpha=1.0, beta=1.0, base=0.0)  # (2 (log(1 + 1/e) + log(2)) + log(3)) / 3
        tensor(1.0371)

    Source: :cite:p:`wang:19`.
    """
    alpha, beta = check_positive("alpha", alpha), check_positive("beta", beta)
    base = check_number("base", base)
    found = compare(z, labels, reference, reference_labels)
    cosines = found.cosines()
    positive, negative = pair_masks(found, tuples)
    if epsilon is not None:
        positive, negative = informative(cosines.detach(), positive, negative, check_positive("epsilon", epsilon))
    attraction = log_one_plus_sum_exp(-alpha * (cosines - base), positive) / alpha
    repulsion = log_one_plus_sum_exp(beta * (cosines - base), negative) / beta
    return (attraction + repulsion).mean()


class MultiSimilarity(nn.Module):
    """Module form of :func:`multi_similarity`.

    Args:
        alpha: Scale of the cosines of positive pairs.
        beta: Scale of the cosines of negative pairs.
        base: The cosine at which a pair counts half.
        epsilon: Which pairs to learn from, see :func:`~otdml.dml.multi_similarity_pairs`. None for all.

    Example:
        >>> import torch
        >>> loss = MultiSimilarity(alpha=1.0, beta=1.0, base=0.0)
        >>> loss(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(1.0371)
    """

    def __init__(
        self, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float | None = None
    ) -> None:
        super().__init__()
        self.alpha, self.beta = check_positive("alpha", alpha), check_positive("beta", beta)
        self.base = check_number("base", base)
        self.epsilon = None if epsilon is None else check_positive("epsilon", epsilon)

    def extra_repr(self) -> str:
        mining = "" if self.epsilon is None else f", epsilon={self.epsilon:g}"
        return f"alpha={self.alpha:g}, beta={self.beta:g}, base={self.base:g}{mining}"

    def forward(
        self,
        z: Tensor,
        labels: Tensor,
        tuples: Tuples | None = None,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        return multi_similarity(
            z,
            labels,
            tuples=tuples,
            reference=reference,
            reference_labels=reference_labels,
            alpha=self.alpha,
            beta=self.beta,
            base=self.base,
            epsilon=self.epsilon,
        )
