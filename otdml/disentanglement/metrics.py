"""How well codes separate known factors: DCI and the mutual information gap."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otdml._arguments import argument_error
from otdml._checks import check_integer, check_integers, check_matrix

__all__ = ["DCI", "dci", "dci_scores", "importances", "mutual_information_gap"]

# Of all importances together: what may lie below zero.
ROUNDING = 1e-9


@dataclass(frozen=True)
class DCI:
    """Disentanglement, completeness, and informativeness (the mean test accuracy of the classifiers), in [0, 1]."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci_scores(importance: Tensor) -> tuple[float, float]:
    r"""Disentanglement and completeness from the importance of each code for each factor.

    .. math:: D = \sum_i \rho_i \bigl( 1 - H_K(R_{i\cdot} / \textstyle\sum_j R_{ij}) \bigr), \qquad
        \rho_i = \textstyle\sum_j R_{ij} / \sum R

    with the entropy in base K, the number of factors; completeness likewise over the codes of each factor, weighted
    by the factors' shares :cite:p:`eastwood:18`. A code is disentangled if it matters for one factor only, a factor
    complete if one code captures it.

    Args:
        importance: R, non-negative but for rounding, shape (codes, factors).

    Returns:
        The two scores, in [0, 1]; zero where nothing matters at all.

    Example:
        >>> import torch
        >>> dci_scores(torch.eye(3))
        (1.0, 1.0)
        >>> dci_scores(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
        (0.0, 0.0)
    """
    R = check_matrix("importance", importance).double()
    R = R / R.abs().max().clamp(min=torch.finfo(R.dtype).tiny)
    # The importances of trees are sums of differences of variances: of codes that tell nothing, zero but for rounding.
    least, rounding = float(R.min()), ROUNDING * float(R.abs().sum())
    if least < -rounding:
        raise argument_error("importance", "have no negative numbers", float(importance.min()))
    R = R.clamp(min=0)
    return _concentration(R), _concentration(R.mT)


def _concentration(R: Tensor) -> float:
    total = R.sum()
    if total == 0:
        return 0.0
    mass = R.sum(1)
    shares = R / mass.clamp(min=torch.finfo(R.dtype).tiny)[:, None]
    entropy = torch.special.entr(shares).sum(1) / math.log(max(2, R.shape[1]))
    # Rounding may lead beyond.
    return min(1.0, max(0.0, float((mass / total * (1 - entropy)).sum())))


def importances(codes: Tensor, factors: Tensor, classifier: Callable[[], Any]) -> tuple[Tensor, list[Any]]:
    """Feature importances of one classifier per factor, shape (codes, factors), and the fitted classifiers.

    Args:
        codes: Shape (n, codes).
        factors: Integers, two values or more of each, shape (n, factors).
        classifier: Makes one classifier with ``feature_importances_``.
    """
    codes, factors = _checked(codes, factors)
    fitted = [classifier().fit(codes.numpy(), column.numpy()) for column in factors.unbind(1)]
    return torch.stack([torch.as_tensor(model.feature_importances_, device="cpu") for model in fitted], 1), fitted


def dci(codes: Tensor, factors: Tensor, *, n_train: int, classifier: Callable[[], Any] | None = None) -> DCI:
    """DCI of codes for known factors.

    The figure depends on the classifier: name it beside the figure.

    Args:
        codes: Shape (n, codes); for a variational encoder the posterior means.
        factors: Integers, shape (n, factors).
        n_train: How many rows train the classifiers; the others give the informativeness.
        classifier: Makes one classifier with ``feature_importances_``. scikit-learn's ``GradientBoostingClassifier``
            of the source if None, seeded, which takes minutes for thousands of rows.

    Returns:
        The three scores.

    Raises:
        ValueError: If no row is left to test on, or a factor has one value in the rows that train.
    """
    if (n_train := check_integer("n_train", n_train)) >= len(codes):
        raise argument_error("n_train", f"lie between 0 and the number of rows, {len(codes)}", n_train)
    codes, factors = _checked(codes, factors)
    matrix, fitted = importances(codes[:n_train], factors[:n_train], classifier or boosted_trees)
    rest = codes[n_train:].numpy()
    accuracy = [m.score(rest, f.numpy()) for m, f in zip(fitted, factors[n_train:].unbind(1), strict=True)]
    return DCI(*dci_scores(matrix), float(np.mean(accuracy)))


def _checked(codes: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and factors on the CPU, where there is something to tell."""
    codes = check_matrix("codes", codes).detach().cpu()
    factors = check_integers("factors", factors).cpu()
    if factors.ndim != 2 or len(factors) != len(codes) or not factors.shape[1]:
        raise argument_error("factors", f"have shape (n, factors) with n = {len(codes)}", tuple(factors.shape))
    constant = (factors == factors[0]).all(0).nonzero()[:, 0].tolist()
    if constant:
        found = f"one value alone in column {constant[0]}"
        raise argument_error("factors", "take two values or more each", found, "Leave that factor out.")
    return codes if codes.dtype.itemsize > 2 else codes.float(), factors


def boosted_trees(rounds: int = 100) -> Any:
    """A classifier that is not fitted yet, scikit-learn's, with so many trees per value of a factor.

    Seeded: between codes that tell as much, trees choose by chance.
    """
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(n_estimators=rounds, random_state=0)


def mutual_information_gap(codes: Tensor, factors: Tensor, *, bins: int = 20) -> float:
    r"""Mutual information gap :math:`\operatorname{mean}_j (I_{1j} - I_{2j}) / H(v_j)` :cite:p:`chen:18`.

    I1 and I2 are the two largest mutual informations of factor j with a code, each cut into ``bins`` equal bins.

    Args:
        codes: Two or more, shape (n, codes).
        factors: Integers, two values or more of each, shape (n, factors).
        bins: Number of bins of each code.

    Returns:
        The gap, in [0, 1].

    Example:
        >>> import torch
        >>> factor = torch.arange(40) % 2
        >>> mutual_information_gap(torch.stack([factor.float(), torch.zeros(40)], 1), factor[:, None])
        1.0
    """
    bins = check_integer("bins", bins)
    codes, factors = _checked(codes, factors)
    if codes.shape[1] < 2:
        raise argument_error("codes", "be two or more, as the second best one of each factor counts", codes.shape[1])
    codes = codes.double()
    low, high = codes.amin(0), codes.amax(0)
    width = torch.where(high > low, high - low, torch.ones_like(high))
    cells = ((codes - low) / width * bins).long().clamp(max=bins - 1)
    gaps = []
    for factor in factors.unbind(1):
        values = factor.unique(return_inverse=True)[1]
        told = torch.tensor(
            [_mutual_information(c, values) for c in cells.unbind(1)], dtype=torch.float64, device="cpu"
        )
        first, second = told.topk(2).values.tolist()
        gaps.append((first - second) / _mutual_information(values, values))
    return min(1.0, sum(gaps) / len(gaps))  # Rounding may lead beyond.


def _mutual_information(u: Tensor, v: Tensor) -> float:
    joint = torch.zeros(int(u.max()) + 1, int(v.max()) + 1, dtype=torch.float64, device=u.device)
    joint.index_put_((u, v), torch.ones(len(u), dtype=torch.float64, device=u.device), accumulate=True)
    joint /= len(u)
    return float(
        (torch.special.entr(joint.sum(0)).sum() + torch.special.entr(joint.sum(1)).sum())
        - torch.special.entr(joint).sum()
    )
