"""Agreement of a clustering with classes."""

import torch
from torch import Tensor

from otdml._checks import argument_error, check_integers, check_labels

__all__ = ["cluster_agreement"]


def cluster_agreement(cells: Tensor, labels: Tensor) -> tuple[float, float]:
    r"""Normalised mutual information and pair F1 between clusters and classes.

    .. math:: \mathrm{NMI} = \frac{2 \, I(c; y)}{H(c) + H(y)}, \qquad \mathrm{F1} = \frac{2 P R}{P + R}

    where P is the share of the pairs within a cluster that are of one class, and R the share of the pairs within a
    class that are in one cluster. Both lie in [0, 1], one for equal partitions :cite:p:`manning:08`. NMI is high for
    many small clusters, whatever they are: compare it at equal numbers of classes only.

    Args:
        cells: Cluster of each item, integers, shape (n,).
        labels: Class of each item, integers, shape (n,).

    Returns:
        NMI and F1.

    Raises:
        ValueError: If the shapes differ, or there is no item.

    Example:
        >>> import torch
        >>> cluster_agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 3, 3]))
        (1.0, 1.0)
    """
    cells = check_integers("cells", cells)
    if not len(cells):
        raise argument_error("cells", "hold one item or more", "none")
    labels = check_labels("labels", labels, len(cells))
    _, both = torch.stack([cells, labels.to(cells)]).unique(dim=1, return_counts=True)
    sizes = [part.unique(return_counts=True)[1] for part in (cells, labels)]
    clusters, classes, joint = (_entropy(counts) for counts in (*sizes, both))
    # One cluster of one class: both entropies are zero, and the partitions are equal.
    nmi = 2 * (clusters + classes - joint) / (clusters + classes) if clusters + classes > 0 else 1.0
    pairs, *each = (float((counts * (counts - 1)).sum()) for counts in (both, *sizes))
    return max(nmi, 0.0), 2 * pairs / sum(each) if sum(each) else 1.0


def _entropy(counts: Tensor) -> float:
    share = counts.double() / counts.sum()
    return float(-(share * share.log()).sum())
