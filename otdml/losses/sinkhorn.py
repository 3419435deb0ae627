"""Entropic transport and the Sinkhorn divergence."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from otdml._checks import (
    argument_error,
    argument_names,
    check_batches,
    check_boolean,
    check_choice,
    check_integer,
    check_positive,
    check_tensor,
)
from otdml._precision import full_precision
from otdml._transforms import transformable
from otdml.costs import Cost, check_cost
from otdml.losses._divergence import LEAST, Divergence, has_large_mass
from otdml.losses._kept import Kept
from otdml.measures import broadcast_matrix, broadcast_measures, expand, weighted, weights
from otdml.ot._gromov.centred_cost import check_symmetric
from otdml.ot._problem import HARD, Problem, Rho, SolverOptions, check_rho, given_rho, given_temperature, with_mass
from otdml.ot._sinkhorn import entropic, sinkhorn
from otdml.ot.engines import BACKENDS

__all__ = [
    "EntropicOT",
    "SinkhornDivergence",
    "entropic_ot",
    "sinkhorn_divergence",
    "sinkhorn_divergence_matrix",
    "sinkhorn_self_term",
]


@transformable
def entropic_ot(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    cost: Cost = "sqeuclidean",
    eps: float | None = None,
    rho: Rho = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    backend: str = "auto",
) -> Tensor:
    r"""Entropic transport cost between two weighted point clouds.

    .. math::
        \mathrm{OT}_\varepsilon(\alpha, \beta) = \min_{P \ge 0} \langle P, C \rangle
        + \varepsilon \mathrm{KL}(P \,|\, a \otimes b)
        + \rho \, \mathrm{KL}(P 1 \,|\, a) + \rho \, \mathrm{KL}(P^\top 1 \,|\, b)

    The value of :func:`otdml.ot.sinkhorn`, where the options are explained. It is smooth and differentiable in
    points and weights, but biased: it is not zero on equal measures, and its minimum over y is a shrunken copy of x.
    Choose it where one measure is a fixed prior or where many small problems are averaged; to match two measures
    choose :func:`sinkhorn_divergence`. O(n m d) per iteration; memory linear in n and m where streamed.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m). Uniform of mass one if None.
        cost: Ground cost, see :func:`otdml.costs.ground`.
        eps: Temperature in units of the cost. That of :func:`otdml.costs.default_temperature` if None.
        rho: Marginal penalty, a number, a pair, or None for hard constraints (then masses must agree).
        tol: L1 error of the marginals, relative to the mass, at which to stop.
        max_iter: Most iterations.
        backend: "auto", or an engine by name.

    Returns:
        One value per batch element, shape (...), in units of the cost.

    Raises:
        ValueError: If shapes do not fit, masses differ without ``rho``, or the costs are not finite.

    Example:
        >>> import torch
        >>> entropic_ot(torch.tensor([[0.0]]), torch.tensor([[3.0]]))  # One point to another: the cost itself
        tensor(9.)
    """
    others: dict[str, Any] = {"tol": tol, "max_iter": max_iter, "backend": backend}
    return sinkhorn(x, y, a, b, cost=cost, eps=eps, rho=rho, **others).value


@transformable
@full_precision
def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    cost: Cost = "sqeuclidean",
    eps: float | None = None,
    rho: Rho = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    backend: str = "auto",
    second: Tensor | None = None,
) -> Tensor:
    r"""Sinkhorn divergence between two weighted point clouds.

    .. math::
        S_\varepsilon(\alpha, \beta) = \mathrm{OT}_\varepsilon(\alpha, \beta)
        - \tfrac12 \mathrm{OT}_\varepsilon(\alpha, \alpha) - \tfrac12 \mathrm{OT}_\varepsilon(\beta, \beta)
        + \tfrac{\varepsilon}{2} \Bigl( \sum a - \sum b \Bigr)^2

    with the entropic cost of :func:`entropic_ot`. It is non-negative, zero if and only if the measures are equal,
    and convex in each :cite:p:`feydy:19`, also for measures of different mass :cite:p:`sejourne:19`; for a
    translation by t under ``sqeuclidean`` it is exactly :math:`\lVert t \rVert^2`. It tends to the transport cost as
    ``eps`` falls, and to a maximum mean discrepancy as it grows: small ``eps`` follows geometry, large ``eps`` needs
    fewer samples. Smooth in points and weights; the cost of three problems, of which those of a measure with itself
    converge in a few iterations.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, d).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None. Where a mass is above 1,000, named
            costs are computed in double precision inside: single precision would lose digits of the divergence.
        b: Weights of the second points, shape (..., m). Uniform of mass one if None.
        cost: Symmetric ground cost, see :func:`otdml.costs.ground`.
        eps: Temperature in units of the cost, the same in all terms. That of
            :func:`otdml.costs.default_temperature` between x and y if None.
        rho: Marginal penalty, a number, a pair, or None for hard constraints (then masses must agree). With a pair
            of different penalties the divergence is zero on equal measures, but nothing is proved of its sign.
        tol: L1 error of the marginals, relative to the mass, at which to stop. The terms of measures that are nearly
            equal are solved to less, down to a thousandth of it, so that their errors stay small beside their sum; and
            in double precision where those of single precision are rounded by more than ``tol`` of the sum.
        max_iter: Most iterations of each term.
        backend: "auto", or an engine by name.
        second: The value of :func:`sinkhorn_self_term` of (y, b) with the same options, if it is known: it saves a
            third of the work when the second measure is fixed. It needs a number as ``eps``.

    Returns:
        One value per batch element, shape (...), in units of the cost.

    Raises:
        ValueError: If shapes do not fit, masses differ without ``rho``, or the costs are not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> sinkhorn_divergence(x, x + torch.tensor([0.0, 2.0]), eps=0.5)  # A translation by 2
        tensor(4.)
    """
    x, y, a, b = broadcast_measures(x, y, a, b)
    if second is not None:
        _check_second(second, eps, x.shape[:-2])
    dtype = x.dtype
    if isinstance(cost, str) and has_large_mass(x, a, b):
        x, y = x.double(), y.double()
        a, b = (w if w is None else w.double() for w in (a, b))
    options = SolverOptions(tol, max_iter, backend)
    between = Problem.between(x, y, a, b, cost=cost, eps=given_temperature(eps), rho=rho)
    # Points that no pair may move have been taken out, and are there within their measure all the same.
    whole = between.idle and [with_mass("a", weights(z, w), balanced=False) for z, w in ((x, a), (y, b))]
    a, b = whole or (between.a, between.b)
    first = Problem.with_itself(x, a, cost=cost, eps=between.eps, rho=rho)
    last = Problem.with_itself(y, b, cost=cost, eps=between.eps, rho=rho) if second is None else second
    return Divergence(between, first, last, b).value(options).to(dtype)


def _check_second(second: Tensor, eps: float | None, batch: torch.Size) -> None:
    """Raise unless the term of the second measure is one value, or one per batch element."""
    if eps is None:
        raise argument_error("eps", "be a number where `second` is given", eps, "It was computed at some temperature.")
    check_tensor("second", second)
    if check_batches(x=batch, second=second.shape) != batch:
        must = f"have the batch dimensions of the points, {tuple(batch)}, or none"
        raise argument_error("second", must, tuple(second.shape))


@transformable
@full_precision
def sinkhorn_divergence_matrix(
    C: Tensor,
    C_x: Tensor,
    C_y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float | None = None,
    rho: Rho = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
) -> Tensor:
    r"""Sinkhorn divergence for given matrices of costs; see :func:`sinkhorn_divergence`.

    It is a divergence where the three are costs of one kind, such as distances along a graph that holds both measures.

    Args:
        C: Costs between the measures, shape (..., n, m); plus infinity forbids a pair.
        C_x: Symmetric costs within the first measure, shape (..., n, n).
        C_y: Symmetric costs within the second measure, shape (..., m, m).
        a: Weights of the rows, shape (..., n). Uniform of mass one if None.
        b: Weights of the columns, shape (..., m). Uniform of mass one if None.
        eps: Temperature in units of the cost. That of :func:`otdml.costs.default_temperature` between the measures if
            None.
        rho: As in :func:`sinkhorn_divergence`.
        tol: As in :func:`sinkhorn_divergence`.
        max_iter: Most iterations of each term.

    Returns:
        One value per batch element, shape (...), in units of the cost, differentiable in matrices and weights.

    Raises:
        ValueError: If shapes do not fit, costs within a measure are not symmetric and finite, or masses differ without
            ``rho``.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])
        >>> C, C_x, C_y = ((s[:, None] - t).square() for s, t in ((x, y), (x, x), (y, y)))
        >>> sinkhorn_divergence_matrix(C, C_x, C_y, eps=0.5)  # A translation by 2
        tensor(4.)
    """
    C, a, b = broadcast_matrix(C, a, b)
    for name, (cost, w) in {"C_x": (C_x, a), "C_y": (C_y, b)}.items():
        if not isinstance(cost, Tensor) or cost.shape[-2:] != (w.shape[-1],) * 2:
            got = tuple(cost.shape) if isinstance(cost, Tensor) else type(cost).__name__
            raise argument_error(name, f"have shape (..., {w.shape[-1]}, {w.shape[-1]}), as `C` says", got)
        check_symmetric(name, cost)
    batch, dtype = check_batches(C=C.shape[:-2], C_x=C_x.shape[:-2], C_y=C_y.shape[:-2]), C.dtype
    C, C_x, C_y, a, b = (expand(t, batch, own) for t, own in ((C, 2), (C_x, 2), (C_y, 2), (a, 1), (b, 1)))
    if has_large_mass(C, a, b):
        C, C_x, C_y, a, b = (t.double() for t in (C, C_x, C_y, a, b))
    between = Problem.of_matrix(C, a, b, eps=given_temperature(eps), rho=rho)
    a, b = (a, b) if between.idle else (between.a, between.b)
    first = Problem.of_matrix(C_x, a, a, eps=between.eps, rho=rho)
    last = Problem.of_matrix(C_y, b, b, eps=between.eps, rho=rho)
    return Divergence(between, first, last, last.b).value(SolverOptions(tol, max_iter, "dense")).to(dtype)


@transformable
@full_precision
def sinkhorn_self_term(
    y: Tensor,
    b: Tensor | None = None,
    *,
    cost: Cost = "sqeuclidean",
    eps: float,
    rho: Rho = None,
    tol: float = 1e-3,
    max_iter: int = 2000,
    backend: str = "auto",
) -> Tensor:
    r"""Entropic transport cost of a measure to itself, which :func:`sinkhorn_divergence` takes as ``second``.

    Args:
        y: Points, shape (..., m, d).
        b: Weights, shape (..., m). Uniform of mass one if None.
        cost: As in :func:`sinkhorn_divergence`.
        eps: Temperature in units of the cost.
        rho: As in :func:`sinkhorn_divergence`.
        tol: As in :func:`sinkhorn_divergence`.
        max_iter: As in :func:`sinkhorn_divergence`.
        backend: As in :func:`sinkhorn_divergence`.

    Returns:
        One value per batch element, shape (...), in units of the cost.

    Example:
        >>> import torch
        >>> sinkhorn_self_term(torch.tensor([[0.0], [100.0]]), eps=1.0)  # Far apart, each point stays: eps log 2.
        tensor(0.6931)
    """
    given, (y, b) = b, weighted(y, b, name="y", weight="b")
    options = SolverOptions(tol, max_iter, backend)
    if given is not None:
        b = with_mass("b", b, balanced=check_rho(rho) == HARD)
    with argument_names(x="y"):
        problem = Problem.between(y, y, b, b, cost=cost, eps=check_positive("eps", eps), rho=rho)
        rough = entropic(problem, options, symmetric=problem.rho[0] == problem.rho[1])
    # It is used again and again, also for first measures that are nearly equal to this one.
    fine = dataclasses.replace(options, tol=LEAST * tol)
    return entropic(problem, fine, init=(None, rough.g.detach()), quiet=True).value


class EntropicOT(nn.Module):
    """Module form of :func:`entropic_ot`."""

    def __init__(
        self,
        *,
        cost: Cost = "sqeuclidean",
        eps: float | None = None,
        rho: Rho = None,
        tol: float = 1e-3,
        max_iter: int = 2000,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.cost = check_cost(cost)
        self.eps = eps if eps is None else check_positive("eps", eps)
        self.rho, self.tol = given_rho(rho), check_positive("tol", tol)
        self.max_iter = check_integer("max_iter", max_iter)
        self.backend = check_choice("backend", backend, BACKENDS)

    def extra_repr(self) -> str:
        return f"cost={self.cost!r}, eps={self.eps}, rho={self.rho}, tol={self.tol:g}"

    def _options(self) -> dict[str, Any]:
        names = ("cost", "eps", "rho", "tol", "max_iter", "backend")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        return entropic_ot(x, y, a, b, **self._options())


class SinkhornDivergence(EntropicOT):
    """Module form of :func:`sinkhorn_divergence`.

    Args:
        cache_second: Whether to keep the term of the second measure with itself for as long as the same tensors are
            passed and not written to, which saves a third of the work. It needs a number as ``eps``. Under a cost with
            parameters that are learnt nothing is kept; other tensors that a function reads must stay as they are, or
            be buffers of a module.
    """

    def __init__(
        self,
        *,
        cost: Cost = "sqeuclidean",
        eps: float | None = None,
        rho: Rho = None,
        tol: float = 1e-3,
        max_iter: int = 2000,
        backend: str = "auto",
        cache_second: bool = False,
    ) -> None:
        super().__init__(cost=cost, eps=eps, rho=rho, tol=tol, max_iter=max_iter, backend=backend)
        self.cache_second = check_boolean("cache_second", cache_second)
        if cache_second and eps is None:
            raise argument_error("eps", "be a number where `cache_second` is on", eps)
        self._kept = Kept()

    def extra_repr(self) -> str:
        return super().extra_repr() + f", cache_second={self.cache_second}"

    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        return sinkhorn_divergence(x, y, a, b, **self._options(), second=self._second(x, y, a, b))

    def _second(self, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if not self.cache_second:
            return None
        broadcast_measures(x, y, a, b)
        options = self._options()
        # As they are given, and not as views for a batch. Parameters and buffers of a cost may be written to.
        given = (y, b, *self.parameters(), *self.buffers())
        return self._kept(lambda: sinkhorn_self_term(y, b, **options), given, options)
