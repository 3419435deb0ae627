"""The Monge gap."""

from typing import Any

from torch import Tensor, nn

from otdml._checks import argument_error, check_choice, check_integer, check_positive
from otdml._precision import full_precision
from otdml._transforms import transformable
from otdml.costs import Cost, check_cost, cost_matrix
from otdml.measures import broadcast_pairs, weights
from otdml.ot._sinkhorn import sinkhorn
from otdml.ot.engines import BACKENDS

__all__ = ["MongeGap", "monge_gap"]


@transformable
@full_precision
def monge_gap(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    *,
    cost: Cost = "sqeuclidean",
    eps: float | None = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    backend: str = "auto",
) -> Tensor:
    r"""Monge gap of the map that sends each point of a cloud to its image.

    .. math:: \mathrm{M}_\varepsilon(T) = \sum_i a_i \, c(x_i, T(x_i))
        - \mathrm{OT}_\varepsilon(\alpha, T_\# \alpha)

    the mean cost of the map less the least cost of reaching the same images :cite:p:`uscidda:23`. Without entropy it
    is zero if and only if T is an optimal map from :math:`\alpha` to its images, and positive otherwise. Choose it
    to make a network that already fits a target into an optimal map; it says nothing about the target itself.

    The second term is the value of :func:`otdml.ot.sinkhorn`, with :math:`\varepsilon \mathrm{KL}(P | a \otimes a)`,
    so it is at most :math:`\varepsilon \log n` above the transport cost, the gap is at least
    :math:`-\varepsilon \log n` (uniform weights), and its gradient is exact up to ``tol`` of that of each term: near an
    optimal map these cancel, and what is left is resolved with a smaller ``tol``. With the entropy
    :math:`-\varepsilon H(P)` in place of that term, as in the paper, the value would be larger by the constant
    :math:`2 \varepsilon \log n`, with the same gradient.

    Args:
        x: Points, shape (..., n, d).
        y: Their images, shape (..., n, d); row i is the image of row i of ``x``.
        a: Weights, shape (..., n). Uniform if None.
        cost: Ground cost, see :func:`otdml.costs.ground`.
        eps: Temperature in units of the cost. That of :func:`otdml.costs.default_temperature` if None.
        tol: L1 error of the marginals, relative to the mass, at which to stop.
        max_iter: Most iterations.
        backend: "auto", or an engine by name.

    Returns:
        One value per batch element, shape (...), in units of the cost.

    Raises:
        ValueError: If ``y`` differs from ``x`` in rows or features.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [10.0]])
        >>> monge_gap(x, x.flip(0), eps=1.0)  # 100, which no move would save; and eps log 2
        tensor(99.3069)
    """
    x, y, a = broadcast_pairs(x, y, a)
    if x.shape[-1] != y.shape[-1]:
        raise argument_error("y", f"have the features of `x`, {x.shape[-1]}", y.shape[-1])
    paired = cost_matrix(x[..., None, :], y[..., None, :], cost)[..., 0, 0]
    options: dict[str, Any] = {"cost": cost, "eps": eps, "tol": tol, "max_iter": max_iter, "backend": backend}
    return (weights(x, a) * paired).sum(-1) - sinkhorn(x, y, a, a, **options).value


class MongeGap(nn.Module):
    """Module form of :func:`monge_gap`."""

    def __init__(
        self,
        *,
        cost: Cost = "sqeuclidean",
        eps: float | None = None,
        tol: float = 1e-3,
        max_iter: int = 2000,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.cost = check_cost(cost)
        self.eps = eps if eps is None else check_positive("eps", eps)
        self.tol = check_positive("tol", tol)
        self.max_iter = check_integer("max_iter", max_iter)
        self.backend = check_choice("backend", backend, BACKENDS)

    def extra_repr(self) -> str:
        return f"cost={self.cost!r}, eps={self.eps}, tol={self.tol:g}"

    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None) -> Tensor:
        options: dict[str, Any] = {name: getattr(self, name) for name in ("cost", "eps", "tol", "max_iter", "backend")}
        return monge_gap(x, y, a, **options)
