"""Triplet margin: a positive nearer than a negative, by a margin."""

import torch
from torch import Tensor, nn

from otdml._checks import check_nonnegative
from otdml._precision import full_precision
from otdml.dml.pairs._comparison import Comparison, Tuples, check_tuples, compare

__all__ = ["TripletMargin", "triplet_margin"]


@full_precision
def triplet_margin(
    z: Tensor,
    labels: Tensor,
    *,
    tuples: Tuples | None = None,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    margin: float = 0.05,
) -> Tensor:
    r"""Triplet margin loss of a labelled batch.

    .. math:: \operatorname{mean} \{ v > 0 : v = d_{ap} - d_{an} + m \}

    over the triplets of an anchor a, a positive p and a negative n, with Euclidean distances on the unit sphere.
    Triplets that hold the margin :math:`m` already are left out of the mean, which is zero if all do: few triplets of a
    trained network violate it, and a mean over all would fade with them. Value and gradient are those of
    ``pytorch_metric_learning.losses.TripletMarginLoss``, which takes this mean by default.

    Args:
        z: Embeddings, shape (n, d), of any norm.
        labels: Their classes, integers, shape (n,).
        tuples: Which triplets count, as a miner returns them. None for all; of pairs, all triplets that they make.
        reference: What the batch is compared with, shape (m, d), such as a memory. None for itself.
        reference_labels: Classes of the reference, shape (m,).
        margin: In units of the distance.

    Returns:
        A scalar.

    Raises:
        ValueError: If the batch is empty or shapes disagree.

    Example:
        >>> import torch
        >>> z, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
        >>> triplet_margin(z, labels, margin=0.2)  # the second is as far from the third as from the first
        tensor(0.2000)

    Source: :cite:p:`schroff:15`.
    """
    found = compare(z, labels, reference, reference_labels)
    excess = _excess(found, tuples) + check_nonnegative("margin", margin)
    # A distance that is not a number holds no margin, and must not leave the mean.
    violated = ~(excess <= 0)
    return excess.where(violated, 0).sum() / violated.sum().clamp_min(1)


def _excess(found: Comparison, tuples: Tuples | None) -> Tensor:
    """By how much the positive is farther than the negative, for every triplet."""
    distances = found.distances()
    if tuples is None:
        anchor, positive = found.positive.nonzero(as_tuple=True)
        # One row per positive pair: its distance less those to all negatives of its anchor.
        excess = distances[anchor, positive, None] - distances[anchor]
        return excess[found.negative[anchor]]
    tuples = check_tuples(tuples, found.shape, found.z.device)
    if len(tuples) == 3:
        anchor, positive, negative = tuples
        return distances[anchor, positive] - distances[anchor, negative]
    anchor, positive, other, negative = tuples
    pair, rival = _matches(anchor, other, len(found.z))
    return distances[anchor[pair], positive[pair]] - distances[other[rival], negative[rival]]


def _matches(first: Tensor, second: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Where two lists of integers in [0, n) agree: all pairs of places, without the matrix of those that do not."""
    counts, order = second.bincount(minlength=n), second.argsort(stable=True)
    each = counts[first]
    places = torch.arange(len(first), device=first.device).repeat_interleave(each)
    # Places in `second` of one integer are neighbours in `order`, from the number of those of smaller integers on.
    starts = (counts.cumsum(0) - counts)[first] - (each.cumsum(0) - each)
    return places, order[starts[places] + torch.arange(len(places), device=first.device)]


class TripletMargin(nn.Module):
    """Module form of :func:`triplet_margin`.

    Args:
        margin: In units of the Euclidean distance on the unit sphere.

    Example:
        >>> import torch
        >>> loss = TripletMargin(margin=0.2)
        >>> loss(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1]))
        tensor(0.2000)
    """

    def __init__(self, *, margin: float = 0.05) -> None:
        super().__init__()
        self.margin = check_nonnegative("margin", margin)

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}"

    def forward(
        self,
        z: Tensor,
        labels: Tensor,
        tuples: Tuples | None = None,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        return triplet_margin(
            z, labels, tuples=tuples, reference=reference, reference_labels=reference_labels, margin=self.margin
        )
