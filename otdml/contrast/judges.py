"""Evaluation of a frozen encoder by labels that it was not trained on: a linear probe, and nearest neighbours."""

import warnings

from torch import Tensor
from torch.nn import functional as F

from otdml._checks import check_integer

__all__ = ["linear_probe", "neighbours"]


def linear_probe(z: Tensor, labels: Tensor, test_z: Tensor, test_labels: Tensor, *, steps: int = 100) -> float:
    """Test accuracy of a logistic regression on features, each scaled to unit variance over the training rows.

    Args:
        z: Training features, shape (n, d).
        labels: Their classes, shape (n,).
        test_z: Test features, shape (m, d).
        test_labels: Their classes, shape (m,).
        steps: Most iterations of L-BFGS.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = z.mean(0), z.std(0).clamp(min=1e-6)
    judge = LogisticRegression(max_iter=check_integer("steps", steps))
    with warnings.catch_warnings():
        # Accuracy converges long before the weights do.
        warnings.simplefilter("ignore", ConvergenceWarning)
        judge.fit(((z - mean) / scale).numpy(), labels.numpy())
    return float(judge.score(((test_z - mean) / scale).numpy(), test_labels.numpy()))


def neighbours(z: Tensor, labels: Tensor, test_z: Tensor, test_labels: Tensor, *, k: int = 20) -> float:
    """Test accuracy of the vote of the k training rows of largest cosine; of classes with equal votes, the first.

    Arguments are those of :func:`linear_probe`.

    Example:
        >>> import torch
        >>> z = torch.eye(2)
        >>> neighbours(z, torch.tensor([0, 1]), torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([0, 1]), k=1)
        1.0
    """
    k = check_integer("k", k)
    z, right = F.normalize(z, dim=-1), 0
    for part, truth in zip(test_z.split(1000), test_labels.split(1000), strict=True):
        nearest = (F.normalize(part, dim=-1) @ z.mT).topk(k).indices
        votes = F.one_hot(labels[nearest], int(labels.max()) + 1).sum(1)
        right += int((votes.argmax(1) == truth).sum())
    return right / len(test_z)
