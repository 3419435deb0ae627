"""Exact optimal transport."""

import contextlib
import io

import torch
from torch import Tensor

from otdml._checks import argument_error, check_measures
from otdml._precision import full_precision
from otdml.costs import Cost, cost_matrix
from otdml.measures import weights
from otdml.ot.result import OTResult

__all__ = ["exact"]

# The network simplex needs more pivots than POT's default of 1e5 from some 5,000 points on.
MOST_PIVOTS = 10**8


@full_precision
def exact(
    x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, cost: Cost = "sqeuclidean"
) -> OTResult:
    r"""Optimal transport between two weighted point clouds, without regularisation.

    .. math:: \min_{P \ge 0} \langle P, C \rangle \quad \text{with} \quad P 1 = a, \; P^\top 1 = b

    Solved on the CPU in float64 by the network simplex of POT :cite:p:`flamary:21` :cite:p:`bonneel:11`, in some
    :math:`O(n^2 m)`: for thousands of points, not tens of thousands. The value is piecewise smooth in the points and
    the weights; where several plans are optimal, the gradient is one of its subgradients.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m). Uniform of mass one if None.
        cost: Ground cost, see :func:`~otdml.costs.ground`.

    Returns:
        The result. Its potentials are optimal for the dual problem, shifted so that :math:`\langle a, f \rangle =
        \langle b, g \rangle`; they and the plan carry no gradient.

    Raises:
        ValueError: If shapes do not fit, the masses differ, or a cost is not finite.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [1.0]])
        >>> exact(x, y).value  # 0 goes to 1, and 1 goes to 3.
        tensor(2.5000)
    """
    check_measures(x, y, a, b)
    a, b = weights(x, a), weights(y, b)
    C = cost_matrix(x, y, cost)
    batch = C.shape[:-2]
    flat = [t.detach().reshape(-1, *t.shape[len(batch) :]) for t in (C, a, b)]
    solved = [_solve(*problem) for problem in zip(*flat, strict=True)]
    plan, f, g = (torch.stack(part).reshape(*batch, *part[0].shape) for part in zip(*solved, strict=True))
    value = (plan * C).sum((-2, -1))
    # The value is that of the plan; the potentials enter as its gradient in the weights alone.
    value = value + (f * (a - a.detach())).sum(-1) + (g * (b - b.detach())).sum(-1)
    return OTResult(
        value=value,
        converged=torch.ones(batch, dtype=torch.bool, device=C.device),
        n_iter=0,
        marginal_error=((plan.sum(-1) - a.detach()).abs().sum(-1) + (plan.sum(-2) - b.detach()).abs().sum(-1)),
        _potentials=lambda: (f, g),
        _product=plan.matmul,
        _product_transpose=plan.mT.matmul,
        _plan=lambda: plan,
        _y=y,
    )


def _solve(C: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # POT imports GeomLoss, which imports KeOps, which prints that it found no GPU.
    with contextlib.redirect_stdout(io.StringIO()):
        import ot

    if not bool(C.isfinite().all()):
        raise argument_error("x", "give finite costs", "NaN or infinity", "Look for them in `x` and `y`.")
    p, q = (w.double().cpu().numpy() for w in (a, b))
    if not abs(p.sum() - q.sum()) <= 1e-5 * p.sum():
        raise argument_error(
            "b", "have the mass of `a`", f"{q.sum():g} and {p.sum():g}", "Normalise the weights of both."
        )
    plan, log = ot.emd(p, q * (p.sum() / q.sum()), C.double().cpu().numpy(), numItermax=MOST_PIVOTS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"The network simplex failed: {log['warning']}")
    f, g = torch.from_numpy(log["u"]), torch.from_numpy(log["v"])
    shift = (f @ torch.from_numpy(p) - g @ torch.from_numpy(q)) / (2 * p.sum())
    return torch.from_numpy(plan).to(C), (f - shift).to(C), (g + shift).to(C)
