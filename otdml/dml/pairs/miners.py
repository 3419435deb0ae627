"""Miners: which tuples of a batch are worth learning from."""

import math

import torch
from torch import Tensor

from otdml._checks import argument_error, check_matrix, check_positive
from otdml._precision import full_precision
from otdml.dml.pairs._comparison import Comparison, Tuples, compare

__all__ = ["hard_triplets", "multi_similarity_pairs", "semi_hard_triplets"]


@torch.no_grad()
@full_precision
def hard_triplets(
    z: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    distances: Tensor | None = None,
) -> Tuples:
    """The farthest positive and the nearest negative of every anchor that has both.

    Those of ``pytorch_metric_learning.miners.BatchHardMiner``; of points equally far the first.

    Args:
        z: Anchors, shape (n, d), of any norm.
        labels: Their classes, integers, shape (n,).
        reference: What they are compared with, shape (m, d). None for the other anchors.
        reference_labels: Classes of the reference, shape (m,).
        distances: Those of anchors from the reference, shape (n, m), for others than Euclidean ones of directions:
            costs of transport, say.

    Returns:
        Indices of anchors, positives and negatives, of one length.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]])
        >>> hard_triplets(z, torch.tensor([0, 0, 0, 1]))
        (tensor([0, 1, 2]), tensor([2, 2, 0]), tensor([3, 3, 3]))

    Source: :cite:p:`hermans:17`.
    """
    found = compare(z, labels, reference, reference_labels)
    positive, negative, distances = found.positive, found.negative, _distances(found, distances)
    (anchor,) = (positive.any(1) & negative.any(1)).nonzero(as_tuple=True)
    farthest = distances.masked_fill(~positive, -math.inf).argmax(1)
    nearest = distances.masked_fill(~negative, math.inf).argmin(1)
    return anchor, farthest[anchor], nearest[anchor]


@torch.no_grad()
@full_precision
def semi_hard_triplets(
    z: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    distances: Tensor | None = None,
) -> Tuples:
    """All triplets whose negative is farther than the positive, but by no more than the margin.

    Those of ``pytorch_metric_learning.miners.TripletMarginMiner`` with ``type_of_triplets="semihard"``.

    Args:
        z: Anchors, shape (n, d), of any norm.
        labels: Their classes, integers, shape (n,).
        reference: What they are compared with, shape (m, d). None for the other anchors.
        reference_labels: Classes of the reference, shape (m,).
        margin: In units of the distances.
        distances: Those of anchors from the reference, shape (n, m), for others than Euclidean ones of directions:
            costs of transport, say.

    Returns:
        Indices of anchors, positives and negatives, of one length.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]])
        >>> semi_hard_triplets(z, torch.tensor([0, 0, 2, 1]))  # at distances .10 and .20 of the first
        (tensor([0]), tensor([1]), tensor([3]))

    Source: :cite:p:`schroff:15`.
    """
    found = compare(z, labels, reference, reference_labels)
    distances = _distances(found, distances)
    anchor, positive = found.positive.nonzero(as_tuple=True)
    excess = distances[anchor] - distances[anchor, positive, None]
    chosen = found.negative[anchor] & ~((excess <= 0) | (excess > check_positive("margin", margin)))
    pair, negative = chosen.nonzero(as_tuple=True)
    return anchor[pair], positive[pair], negative


@torch.no_grad()
@full_precision
def multi_similarity_pairs(
    z: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    epsilon: float = 0.1,
) -> Tuples:
    """Negatives nearly as similar as the least similar positive, and positives hardly more so than a negative.

    Those of ``pytorch_metric_learning.miners.MultiSimilarityMiner``. An anchor without positives, or without
    negatives, has no pairs.

    Args:
        z: Anchors, shape (n, d), of any norm.
        labels: Their classes, integers, shape (n,).
        reference: What they are compared with, shape (m, d). None for the other anchors.
        reference_labels: Classes of the reference, shape (m,).
        epsilon: What "nearly" and "hardly" are, in units of the cosine.

    Returns:
        Indices of the positive pairs, anchors and positives, and of the negative pairs, anchors and negatives.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
        >>> multi_similarity_pairs(z, torch.tensor([0, 0, 1]))  # cosines of the first: 0.6 and 0.8
        (tensor([0, 1]), tensor([1, 0]), tensor([0, 1]), tensor([2, 2]))

    Source: :cite:p:`wang:19`.
    """
    found = compare(z, labels, reference, reference_labels)
    positive, negative = informative(
        found.cosines(), found.positive, found.negative, check_positive("epsilon", epsilon)
    )
    return (*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True))


def _distances(found: Comparison, given: Tensor | None) -> Tensor:
    """The distances of a comparison, or those given."""
    if given is None:
        return found.distances()
    if check_matrix("distances", given).shape != found.same.shape:
        must = f"hold one distance for each anchor and point of the reference, shape {tuple(found.same.shape)}"
        raise argument_error("distances", must, tuple(given.shape))
    return given


def informative(cosines: Tensor, positive: Tensor, negative: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The pairs of two masks that :func:`multi_similarity_pairs` keeps."""
    least = cosines.masked_fill(~positive, math.inf).amin(1, keepdim=True)
    most = cosines.masked_fill(~negative, -math.inf).amax(1, keepdim=True)
    # Negated, so that what is not a number is kept and seen.
    return positive & ~(cosines - epsilon >= most), negative & ~(cosines + epsilon <= least)
