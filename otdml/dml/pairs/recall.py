"""Recall at k as a loss: the chance that none of the k nearest is of the class."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import check_integer, check_positive
from otdml._precision import full_precision
from otdml.dml.pairs._comparison import Tuples, compare, pair_masks
from otdml.ot._ranks import topk_logits

__all__ = ["RecallAtK", "recall_at_k"]


@full_precision
def recall_at_k(
    z: Tensor,
    labels: Tensor,
    *,
    k: int = 1,
    eps: float = 0.05,
    tuples: Tuples | None = None,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
) -> Tensor:
    r"""One less soft recall at k of a labelled batch.

    .. math:: \operatorname{mean}_a \prod_{p} (1 - m_{ap}), \qquad m_a = \text{soft top-}k \text{ of } \cos(a, \cdot)

    over the positives p of each anchor a that has one, with :func:`otdml.ot.soft_topk` of its similarities to all
    others: the chance to find no positive, if each is found with its share of the k places. As ``eps`` falls it is one
    less the recall at k of :func:`otdml.dml.retrieval_metrics`, the share of queries with one of their class among the
    k nearest. Where that is too coarse for a gradient, at anchors whose positives are many times ``eps`` below the k-th
    similarity, so is this: a larger ``eps`` or k reaches further. :cite:t:`patel:22` smooth the other recall, the share
    of the positives that are found, by sigmoids of all pairs of similarities, in O(m²) for each anchor; this takes
    O(m).

    Args:
        z: Embeddings, shape (n, d), of any norm.
        labels: Their classes, integers, shape (n,).
        k: Number of places; where there are no more points than places, all are found.
        eps: Temperature, in units of the cosine.
        tuples: Which pairs there are, as a miner or a memory returns them. None for all.
        reference: What the batch is compared with, shape (m, d), such as a memory. None for itself.
        reference_labels: Classes of the reference, shape (m,).

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: If the batch is empty or shapes disagree.

    Example:
        >>> import torch
        >>> z, labels = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1, 0])
        >>> recall_at_k(z, labels, eps=1e-3)  # The second and the fourth have the third as their nearest.
        tensor(0.6667)
    """
    found = compare(z, labels, reference, reference_labels)
    positive, negative = pair_masks(found, tuples)
    scores = found.cosines().masked_fill(~(positive | negative), -torch.inf)
    logits = topk_logits(scores, min(check_integer("k", k), scores.shape[1]), check_positive("eps", eps))
    # log(1 - sigmoid(s)) = -softplus(s)
    missed = (-F.softplus(logits).where(positive, 0).sum(1)).exp()
    asked = positive.any(1)
    return missed.where(asked, 0).sum() / asked.sum().clamp_min(1)


class RecallAtK(nn.Module):
    """Module form of :func:`recall_at_k`.

    Args:
        k: Number of places.
        eps: Temperature, in units of the cosine.

    Example:
        >>> import torch
        >>> loss = RecallAtK(k=1, eps=0.1)
        >>> loss(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        tensor(0.1435)
    """

    def __init__(self, *, k: int = 1, eps: float = 0.05) -> None:
        super().__init__()
        self.k, self.eps = check_integer("k", k), check_positive("eps", eps)

    def extra_repr(self) -> str:
        return f"k={self.k}, eps={self.eps:g}"

    def forward(
        self,
        z: Tensor,
        labels: Tensor,
        tuples: Tuples | None = None,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        options = {"reference": reference, "reference_labels": reference_labels}
        return recall_at_k(z, labels, k=self.k, eps=self.eps, tuples=tuples, **options)
