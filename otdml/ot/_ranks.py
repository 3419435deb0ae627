r"""Ranks and the choice of the k largest, as transport of scores to sorted targets, which makes them differentiable.

Sorting n scores x is transport: among all plans between x and ascending targets r, of equal weights, that of the sorted
order has the largest :math:`\sum_{ij} P_{ij} x_i r_j` (the rearrangement inequality). An entropic plan
:cite:p:`cuturi:19` is differentiable in the scores, and the mean of the targets of a score is its soft rank. Squared
distances give the same plans at twice the temperature, because the marginals fix the squares of scores and targets.
"""

import math
from typing import Any

import torch
from torch import Tensor

from otdml._checks import argument_error, check_boolean, check_in_range, check_integer, check_points, check_positive
from otdml._precision import full_precision
from otdml._transforms import called, refuse_forward_twice, transforming
from otdml.ot._problem import Problem, SolverOptions
from otdml.ot._sinkhorn import entropic

__all__ = ["soft_rank", "soft_topk", "topk_logits"]


@full_precision
def soft_rank(
    x: Tensor,
    *,
    eps: float,
    descending: bool = False,
    tol: float = 1e-4,
    max_iter: int = 2000,
    backend: str = "auto",
) -> Tensor:
    r"""Differentiable ranks of scores.

    .. math:: R_i = \frac{\sum_j P_{ij} \, j}{\sum_j P_{ij}}, \qquad
        P = \arg\min_P \; - \sum_{ij} P_{ij} \, x_i \, j
        + \varepsilon \mathrm{KL}(P \,|\, \tfrac1n \otimes \tfrac1n)

    with equal weights of the scores and of the ranks j = 1, ..., n. Scores that differ by much less than ``eps`` have
    nearly the mean of their ranks, and equal scores exactly that. As ``eps`` falls below the gaps the ranks become
    those of sorting, and their gradient vanishes; as it grows all ranks tend to (n + 1) / 2. The solver starts from the
    potentials of the sorted order, so it needs few iterations at every temperature, of n² operations each. Derivatives
    are those of the optimum :cite:p:`cuturi:19`; second ones exist with ``backend="dense"``.

    Args:
        x: Scores, shape (..., n).
        eps: Temperature, in units of the scores: about the gap below which two of them share their ranks.
        descending: Whether rank 1 is the largest score's, and not the smallest one's.
        tol: L1 error of the plan's marginals at which to stop; a rank is wrong by some n times that.
        max_iter: Most iterations.
        backend: As in :func:`sinkhorn`.

    Returns:
        Ranks in [1, n], shape (..., n), whose mean is (n + 1) / 2 up to n ``tol``.

    Raises:
        ValueError: If there is no score, or scores are not finite.

    Example:
        >>> import torch
        >>> soft_rank(torch.tensor([0.3, 2.0, 0.3, -1.0]), eps=0.01)
        tensor([2.5000, 4.0000, 2.5000, 1.0000])
    """
    _check_scores(x)
    options = SolverOptions(check_positive("tol", tol), check_integer("max_iter", max_iter), backend)
    eps, descending = check_positive("eps", eps), check_boolean("descending", descending)
    if transforming(x):
        others = {"eps": eps, "descending": descending, "options": options}
        return called(_ranks, {"x": x[..., None], **others}, scalar=False)
    return _ranks(x[..., None], eps, descending, options)


def _ranks(x: Tensor, eps: float, descending: bool, options: SolverOptions) -> Tensor:
    """The ranks of scores, shape (..., n, 1)."""
    ranks = torch.arange(1, x.shape[-2] + 1, dtype=x.dtype, device=x.device).expand(x.shape[:-1])[..., None]
    x = -x if descending else x
    problem = Problem.between(x, ranks, None, None, cost="inner", eps=eps)
    found = entropic(problem, options, init=(None, _sorted_potential(x.detach()[..., 0])), points=ranks)
    return found.barycentric_map()[..., 0]


def _sorted_potential(x: Tensor) -> Tensor:
    r"""A potential of the ranks for which the plan of the sorted order is optimal without entropy.

    Complementary slackness asks for :math:`-x_{(j+1)} \le g_{j+1} - g_j \le -x_{(j)}`; this is the middle.
    """
    x = x.sort(-1).values
    steps = -0.5 * (x[..., 1:] + x[..., :-1])
    return torch.cat((torch.zeros_like(x[..., :1]), steps.cumsum(-1)), -1)


@full_precision
def soft_topk(x: Tensor, k: int, *, eps: float) -> Tensor:
    r"""Differentiable indicator of the k largest scores.

    .. math:: m_i = \sigma \bigl( (x_i - t) / \varepsilon \bigr), \qquad \sum_i m_i = k

    the share of a score's mass that entropic transport sends to the target 1, when k / n of the mass is to go there and
    the rest to the target 0 :cite:p:`xie:20`. With two targets a plan is determined by a threshold t, which is found by
    a sort and bisection to the last digit. As ``eps`` falls the result tends to the indicator of the k largest; scores
    that tie for the last places share them. Derivatives of any order are those of the root.

    Args:
        x: Scores, shape (..., n); one of minus infinity is no candidate.
        k: How many, 1 <= k <= n.
        eps: Temperature, in units of the scores.

    Returns:
        Numbers in [0, 1] that sum to k, or to the number of candidates where these are fewer, shape (..., n).

    Raises:
        ValueError: If k is out of range.

    Example:
        >>> import torch
        >>> soft_topk(torch.tensor([0.3, 2.0, 0.3, -1.0]), 2, eps=0.01)
        tensor([0.5000, 1.0000, 0.5000, 0.0000])
    """
    return topk_logits(x, k, eps).sigmoid()


def topk_logits(x: Tensor, k: int, eps: float) -> Tensor:
    """The logits of :func:`soft_topk`, shape (..., n)."""
    _check_scores(x)
    if (k := check_integer("k", k)) > x.shape[-1]:
        raise argument_error("k", f"be at most the number of scores, {x.shape[-1]}", k)
    eps = check_in_range("eps", eps, x.dtype)
    # Relative to the k-th largest, so that scores far from zero leave the threshold its digits.
    origin = x.detach().sort(-1, descending=True).values[..., k - 1 : k]
    x = x - torch.where(origin == -torch.inf, 0, origin)
    return (x - _Threshold.apply(x, k, eps)[..., None]) / eps


class _Threshold(torch.autograd.Function):
    """The threshold t of :func:`soft_topk`, shape (...)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, k: int, eps: float) -> Tensor:
        # A score of minus infinity is no candidate.
        n = (x != -torch.inf).sum(-1)
        lowest = torch.where(x == -torch.inf, torch.inf, x).amin(-1)
        # Where no score has to be left out, all are far above the threshold.
        all_in = torch.where(n > 0, lowest, 0) - ALL_IN * eps
        if k == x.shape[-1]:
            return all_in
        top, rest = x.sort(-1, descending=True).values.tensor_split((k,), -1)
        # Bounds of the root. At the middle of the gap every score of the top is at least as far above as any other is
        # below; a shift by eps log k, or eps log (n - k), makes up for their numbers.
        middle = 0.5 * (top[..., -1] + rest[..., 0])
        low, high = middle - eps * math.log(k), middle + eps * (n - k).clamp(min=1).to(x.dtype).log()
        for _ in range(BISECTIONS[x.dtype]):
            middle = 0.5 * (low + high)
            # At the root the k largest lack as much of k as the others have. Both sums may be small, and have more
            # correct digits than their difference from k.
            lack = ((middle[..., None] - top) / eps).sigmoid().sum(-1)
            above = ((rest - middle[..., None]) / eps).sigmoid().sum(-1) > lack
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return torch.where(x.isnan().any(-1), torch.nan, torch.where(n > k, 0.5 * (low + high), all_in))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.eps = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, t = ctx.saved_tensors
        return grad[..., None] * _shares(x, t, ctx.eps), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        refuse_forward_twice()
        x, t = ctx.saved_tensors
        return (_shares(x, t, ctx.eps) * tangent).sum(-1)


# Halvings after which the threshold is known to a rounding unit of the temperature, with a margin.
BISECTIONS = {torch.float32: 34, torch.float64: 64}
# Temperatures above the threshold at which the indicator of a score is one to all digits.
ALL_IN = 100.0


def _shares(x: Tensor, t: Tensor, eps: float) -> Tensor:
    """The derivative of the threshold in the scores: their slopes over the sum, also where all of these vanish."""
    # Where there is no candidate, all are infinite.
    z = ((x - t[..., None]) / eps).abs().clamp(max=torch.finfo(x.dtype).max ** 0.5)
    return (-z - 2 * torch.nn.functional.softplus(-z)).softmax(-1)


def _check_scores(x: Tensor) -> None:
    if isinstance(x, Tensor) and (x.ndim == 0 or x.shape[-1] == 0):
        raise argument_error("x", "have shape (..., n) with n >= 1", tuple(x.shape))
    check_points("x", x[..., None] if isinstance(x, Tensor) else x)
