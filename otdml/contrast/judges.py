"""Evaluation of a frozen encoder by labels that it was not trained on: a linear probe, and nearest neighbours."""

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from otdml._arguments import argument_error
from otdml._checks import check_integer, check_labels, check_matrix
from otdml._precision import full_precision
from otdml.sphere import unit

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
    z, labels, test_z, test_labels = (x.cpu() for x in _checked(z, labels, test_z, test_labels))
    if len(labels.unique()) < 2:
        raise argument_error("labels", "be of two classes or more", "one class")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = z.mean(0), z.std(0)
    # What is constant but for rounding tells nothing.
    scale = torch.where(scale > 8 * torch.finfo(z.dtype).eps * z.abs().amax(0), scale, torch.inf)
    judge = LogisticRegression(max_iter=check_integer("steps", steps))
    with warnings.catch_warnings():
        # Accuracy converges long before the weights do.
        warnings.simplefilter("ignore", ConvergenceWarning)
        judge.fit(((z - mean) / scale).numpy(), labels.numpy())
    return float(judge.score(((test_z - mean) / scale).numpy(), test_labels.numpy()))


@full_precision
def neighbours(z: Tensor, labels: Tensor, test_z: Tensor, test_labels: Tensor, *, k: int = 20) -> float:
    """Test accuracy of the vote of the k training rows of largest cosine; of classes with equal votes, the first.

    Of rows with equal cosines the first ones vote. Arguments are those of :func:`linear_probe`.

    Example:
        >>> import torch
        >>> z = torch.eye(2)
        >>> neighbours(z, torch.tensor([0, 1]), torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([0, 1]), k=1)
        1.0
    """
    z, labels, test_z, test_labels = _checked(z, labels, test_z, test_labels)
    if (k := check_integer("k", k)) > len(z):
        raise argument_error("k", f"be at most the number of training rows, {len(z)}", k)
    z, right = unit(z), 0
    classes, labels = labels.unique(return_inverse=True)
    for part, truth in zip(test_z.split(1000), test_labels.split(1000), strict=True):
        votes = F.one_hot(labels[_nearest(unit(part) @ z.mT, k)], len(classes)).sum(1)
        right += int((classes[votes.argmax(1)] == truth).sum())
    return right / len(test_z)


def _nearest(cosines: Tensor, k: int) -> Tensor:
    """Indices of the k largest of each row; of equal ones the first, which `topk` does not promise."""
    least, nearest = cosines.topk(k)
    tied = ((cosines >= least[:, -1:]).sum(1) > k).nonzero()[:, 0]
    nearest[tied] = cosines[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return nearest


def _checked(z: Tensor, labels: Tensor, test_z: Tensor, test_labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows in single precision at least, without a graph, and their labels, on the device of the training rows."""
    z, test_z = (check_matrix(name, x).detach() for name, x in (("z", z), ("test_z", test_z)))
    if z.shape[1] != test_z.shape[1]:
        raise argument_error("test_z", f"have as many features as `z`, {z.shape[1]}", test_z.shape[1])
    dtype = torch.promote_types(torch.promote_types(z.dtype, test_z.dtype), torch.float32)
    labels, test_labels = check_labels("labels", labels, len(z)), check_labels("test_labels", test_labels, len(test_z))
    return z.to(dtype), labels.to(z.device), test_z.to(z.device, dtype), test_labels.to(z.device)
