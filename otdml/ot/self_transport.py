"""Entropic transport from a measure to itself."""

from typing import Any

import torch
from torch import Tensor

from otdml.costs import Ground
from otdml.ot.engines import Engine, engine
from otdml.ot.result import OTResult
from otdml.ot.sinkhorn import entropic

__all__ = ["self_transport"]


def self_transport(
    cost: Ground,
    a: Tensor,
    *,
    eps: Tensor | float,
    rho: float | None = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    backend: str = "auto",
) -> OTResult:
    r"""Entropic transport from a measure to itself, for a symmetric cost.

    Its two potentials agree, so one half-step suffices, and averaged with the last iterate it converges in a few
    iterations :cite:p:`feydy:19`: :math:`f \leftarrow \tfrac12 (f + T f)`.

    Args:
        cost: The cost between the points and themselves.
        a: Weights, shape (..., n).
        eps: Temperature, a number or one per batch element.
        rho: Marginal penalty of both sides, or None for hard constraints.
        tol: As in :func:`sinkhorn`.
        max_iter: As in :func:`sinkhorn`.
        backend: As in :func:`sinkhorn`.

    Returns:
        The result of :func:`sinkhorn` between the measure and itself.

    Example:
        >>> import torch
        >>> from otdml.costs import ground
        >>> x = torch.zeros(3, 2)  # One point three times: nothing moves.
        >>> self_transport(ground(x, x), torch.full((3,), 1 / 3), eps=1.0).value.abs()
        tensor(0.)
    """
    f = _fixed_point(engine(cost, eps, backend), cost, a.detach(), eps, rho, tol, max_iter)
    options: dict[str, Any] = {"rho": rho, "tol": tol, "max_iter": max_iter}
    return entropic(cost, a, a, eps=eps, init=(f, f), backend=backend, **options)


@torch.no_grad()
def _fixed_point(
    soft: Engine, cost: Ground, a: Tensor, eps: Tensor | float, rho: float | None, tol: float, max_iter: int
) -> Tensor:
    """The potential in units of the cost."""
    per_point = eps[..., None] if isinstance(eps, Tensor) else eps
    u, v = (0.0 if offset is None else offset.detach() / per_point for offset in (cost.u, cost.v))
    log, tau = a.log(), 1.0 if rho is None else rho / (rho + per_point)
    f = torch.zeros_like(a)
    for iteration in range(max_iter):
        softmin = soft.rows(f - v + log) + u
        # The marginal over the one that is optimal at f is exp(f / tau - softmin).
        excess = a * torch.expm1(f / tau - softmin).abs()
        f = 0.5 * (f + tau * softmin)
        if iteration % CHECK == CHECK - 1 and not bool((excess.nansum(-1) > tol * a.sum(-1)).any()):
            break
    return f * per_point


CHECK = 5
