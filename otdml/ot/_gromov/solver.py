"""Entropic Gromov-Wasserstein: transport between clouds of different spaces, by the costs within each."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from numbers import Real

import torch
from torch import Tensor

from otdml._checks import argument_error, check_equal_mass, check_fraction
from otdml._derivatives import once, refuse_transforms
from otdml._precision import full_precision
from otdml.costs import Cost
from otdml.measures import broadcast_clouds, broadcast_matrix, weights
from otdml.ot._gromov.centred_cost import CentredCost, WithinCost, centred, centred_matrix, check_symmetric
from otdml.ot._gromov.feature_cost import (
    FeatureCost,
    between_features,
    check_between,
    check_features,
    given_between,
)
from otdml.ot._gromov.objective import GromovObjective
from otdml.ot._gromov.options import GROMOV_BACKENDS, GromovOptions, Marginals
from otdml.ot._gromov.plans import MatrixPlan
from otdml.ot._gromov.relaxation import Partial, Relaxation, Unbalanced, check_alone, check_penalties
from otdml.ot._gromov.relaxed_solution import relaxed
from otdml.ot._gromov.result import GromovResult
from otdml.ot._gromov.scale import Scale, size_of_matrix, size_within
from otdml.ot._gromov.solution import constrained
from otdml.ot._gromov.starts import STARTS, Init
from otdml.ot._partial import Mass, check_mass
from otdml.ot._problem import check_mass_of, of_equal_mass
from otdml.ot._result import OTResult

__all__ = ["GROMOV_BACKENDS", "STARTS", "GromovResult", "gromov", "gromov_matrix"]

# With the plan held fixed, second derivatives would be wrong.
_first_order = partial(once, what="Gromov problems have no second derivatives. Leave out `create_graph`.")
Pair = tuple[CentredCost, CentredCost]


@full_precision
def gromov(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    cost_x: WithinCost = "sqeuclidean",
    cost_y: WithinCost = "sqeuclidean",
    features: tuple[Tensor, Tensor] | None = None,
    cost_features: Cost = "sqeuclidean",
    alpha: float | None = None,
    eps: float | Tensor | None = None,
    rho: float | tuple[float, float] | None = None,
    mass: Mass | None = None,
    tol: float = 1e-3,
    max_iter: int = 300,
    init: Init = "best",
    backend: str = "auto",
) -> GromovResult:
    r"""Entropic Gromov-Wasserstein transport between two weighted point clouds, of spaces that may differ.

    .. math::
        \min_{P \ge 0,\; P 1 = a,\; P^\top 1 = b} \; \tfrac12 \sum_{ijkl}
        \bigl( c_X(x_i, x_k) - c_Y(y_j, y_l) \bigr)^2 P_{ij} P_{kl} + \varepsilon \mathrm{KL}(P \,|\, a \otimes b)

    Only costs within each cloud are compared, so the clouds may be rotated, reflected, or live in different
    dimensions :cite:p:`memoli:11`. The problem is not convex; each linearisation is an entropic transport problem
    whose plan gives the next :cite:p:`peyre:16`, which descends for the named bilinear costs, and ends in a local
    optimum that depends on ``init``. For these costs nothing of n × m or n² entries is needed, and a step takes
    O(n m (d + 1)); another cost, or more features than points, takes the matrix of costs within the cloud.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, e).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m). Uniform of mass one if None.
        cost_x: Cost between first points: a name (see :func:`otdml.costs.ground`), a positive multiple of one
            (an object with a name ``cost`` and a ``scale``, such as :class:`otdml.losses.ScaledCost`), or a
            symmetric function of two sets of points.
        cost_y: Cost between second points.
        features: Features of the first and of the second points in one space, shapes (..., n, k) and (..., m, k). The
            problem is then *fused* :cite:p:`vayer:20`: what is minimised is ``1 - alpha`` times the cost of
            transporting features, plus ``alpha`` times the quadratic part above, plus the entropy.
        cost_features: Cost between features, see :func:`otdml.costs.ground`; one that is not bilinear takes a matrix of
            n × m entries.
        alpha: Share of the quadratic part of a fused problem, in (0, 1]; one half if None. The two parts have different
            units, so the share is to be chosen with their sizes in mind.
        eps: Temperature, in units of the product of the two costs, a number or one per batch element. 0.02 times
            the product of the root mean squares of the two costs, centred, if None; of a fused problem, 0.02 times what
            the two parts have of that together.
        rho: Penalty of the marginals in place of constraints, in units of the product of the two costs, a number or a
            pair: the problem is then *unbalanced* :cite:p:`sejourne:21`, with :math:`\tfrac12 \rho_a \mathrm{KL}(p
            \otimes p \,|\, a \otimes a)` for the row sums p, likewise for columns, and an entropy of the same form,
            :math:`\tfrac12 \varepsilon \mathrm{KL}(P \otimes P \,|\, (a \otimes b) \otimes (a \otimes b))`. The
            value includes the penalties. Masses of a and b may differ.
        mass: Mass of the plan, a number or shape (...), where it is *partial* :cite:p:`chapel:20`: its marginals are at
            most a and b, which may have different masses; mass that is not transported has entropy as well, as in
            :func:`sinkhorn`. With free marginals the objective has more local optima, and each step is a transport
            problem solved to the end, so both take longer than the constrained problem.
        tol: When to stop: at a marginal error below ``tol``, and a step of the linearised cost below ``tol * eps``,
            in root mean square.
        max_iter: Most linearisations; beyond them the result has ``converged`` False, and a warning says so. Between
            unrelated clouds their number grows with the number of points.
        init: The plan to start from: "identity" (equal indices are paired; for clouds of equal size and weights),
            "product" (independence, cooled down to ``eps`` in steps, and perturbed to pair points whose costs to the
            extreme point of their cloud are alike, or those whose costs differ most, whichever ends better:
            independence itself is a stationary point for centred clouds under ``cosine`` and ``inner``), "best" (all of
            these, and the best result for each batch element; with free marginals and at most 64 pairs of points also
            plans near each pair, as the marginals have optima of their own), an :class:`OTResult`, or a plan of shape
            (..., n, m). Clouds that cannot be paired start from the product. Where several starts of a fused problem
            with penalties are compared, no plan at all is one of them.
        backend: "auto", "dense" or "streamed", as in :func:`sinkhorn`.

    Returns:
        The result. Its value is the quadratic part of the objective, shape (...); it carries the gradient of the
        whole objective in points, features, weights, scales and ``mass``, with the plan held fixed. There are no
        second derivatives.

    Raises:
        ValueError: If shapes do not fit, masses differ without ``rho`` and ``mass``, the costs are not finite, or the
            value is no number of the dtype: squares of costs of 1e-20 are none of float32. What is, is solved in double
            precision where single precision would lose digits.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> result = gromov(x, -x.flip(0), eps=1e-2)  # A reflection, in another order
        >>> result.plan.argmax(-1)
        tensor([2, 1, 0])
    """
    x, y, a, b = broadcast_clouds(x, y, a, b)
    options = GromovOptions(eps, tol, max_iter, init, backend)
    u, v = check_features(features, x, y)
    refuse_transforms("gromov", x, y, a, b, u, v, mass if isinstance(mass, Tensor) else None)
    x, y = _first_order(x), _first_order(y)
    marginals = _marginals(x, y, a, b, equal=rho is None and mass is None)
    share = _share(alpha, fused=u is not None)
    features = None if u is None or v is None else (_first_order(u), _first_order(v))
    sharpest = _sharpest(eps, rho, fused=features is not None)
    within, scale = _within(_Cloud("cost_x", x, cost_x), _Cloud("cost_y", y, cost_y), marginals, sharpest)
    between = None if features is None else between_features(*features, cost_features, 1 - share, scale.dtype)
    marginals = marginals.to(scale.dtype)
    return _solved(_Fused(within, between, share), marginals, _relaxation(rho, mass, marginals), options, scale)


@full_precision
def gromov_matrix(
    C_x: Tensor,
    C_y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    features: Tensor | None = None,
    alpha: float | None = None,
    eps: float | Tensor | None = None,
    rho: float | tuple[float, float] | None = None,
    mass: Mass | None = None,
    tol: float = 1e-3,
    max_iter: int = 300,
    init: Init = "best",
) -> GromovResult:
    r"""Entropic Gromov-Wasserstein transport for given matrices of costs; see :func:`gromov`.

    Args:
        C_x: Costs between first points, symmetric, shape (..., n, n).
        C_y: Costs between second points, symmetric, shape (..., m, m).
        a: Weights of the first points, shape (..., n). Uniform of mass one if None.
        b: Weights of the second points, shape (..., m). Uniform of mass one if None.
        features: Costs of a fused problem between first and second points, shape (..., n, m).
        alpha: Share of the quadratic part of a fused problem.
        eps: Temperature, in units of the product of the two costs.
        rho: Penalty of the marginals of an unbalanced problem.
        mass: Mass of a partial plan.
        tol: When to stop.
        max_iter: Most linearisations.
        init: The plan to start from.

    Returns:
        The result, differentiable in the matrices, in the weights and in ``mass``.

    Raises:
        ValueError: If shapes do not fit, a matrix is not symmetric, masses differ, or the costs are not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0, 1.0, 3.0])
        >>> C = (x[:, None] - x).abs()
        >>> gromov_matrix(C, C.flip(0, 1), eps=1e-2).plan.argmax(-1)
        tensor([2, 1, 0])
    """
    refuse_transforms("gromov_matrix", C_x, C_y, a, b, features, mass if isinstance(mass, Tensor) else None)
    C_x, a, _ = broadcast_matrix(C_x, a, None, name="C_x")
    C_y, b, _ = broadcast_matrix(C_y, b, None, name="C_y")
    options = GromovOptions(eps, tol, max_iter, init, "auto")
    C_x, C_y, a, b = broadcast_clouds(check_symmetric("C_x", C_x), check_symmetric("C_y", C_y), a, b, second="C_y")
    C_x, C_y = _first_order(C_x), _first_order(C_y)
    marginals = _marginals(C_x, C_y, a, b, equal=rho is None and mass is None)
    sizes = size_of_matrix(C_x), size_of_matrix(C_y)
    sharpest = _sharpest(eps, rho, fused=features is not None)
    scale = Scale(C_x.dtype, ("C_x", "C_y"), sizes, marginals.a.detach().sum(-1).log2(), sharpest)
    marginals = marginals.to(scale.dtype)
    left, right = (centred_matrix(C.to(scale.dtype), w.detach()) for C, w in ((C_x, marginals.a), (C_y, marginals.b)))
    share = _share(alpha, fused=features is not None)
    M = None if features is None else check_between(features, marginals.a, marginals.b)
    between = None if M is None else given_between(_first_order(M), 1 - share)
    return _solved(_Fused((left, right), between, share), marginals, _relaxation(rho, mass, marginals), options, scale)


def _marginals(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, *, equal: bool) -> Marginals:
    shared = _shared_weights(x, y, a, b)
    a, b = _first_order(weights(x, a)), _first_order(weights(y, b))
    check_mass_of("a", a)
    check_mass_of("b", b)
    if shared is None and equal:
        check_equal_mass(a, b)
        b = of_equal_mass(a, b)
    return Marginals(a, b, shared)


def _share(alpha: float | None, *, fused: bool) -> float:
    """The share of the quadratic part."""
    if alpha is None:
        return 0.5 if fused else 1.0
    if not fused:
        raise argument_error("alpha", "be None without `features`", alpha, "Pass `features`.")
    return check_fraction("alpha", alpha)


@dataclass(frozen=True)
class _Cloud:
    """Points with the cost between them, and the argument that holds that cost."""

    argument: str
    points: Tensor
    cost: WithinCost

    def centred(self, weights: Tensor) -> CentredCost:
        return centred(self.argument, self.points, weights.detach(), self.cost)


def _within(first: _Cloud, second: _Cloud, marginals: Marginals, sharpest: float | None) -> tuple[Pair, Scale]:
    """The costs within the two clouds, in the precision that their products need."""

    def costs(marginals: Marginals) -> Pair:
        return first.centred(marginals.a), second.centred(marginals.b)

    found, given = costs(marginals), first.points.dtype
    left, right = (size_within(c.points, c.cost, cost) for c, cost in zip((first, second), found, strict=True))
    scale = Scale(given, ("x", "y"), (left, right), marginals.a.detach().sum(-1).log2(), sharpest)
    return found if scale.dtype == given else costs(marginals.to(scale.dtype)), scale


@dataclass(frozen=True)
class _Fused:
    """The costs within the clouds and between features, and the share of the former."""

    within: Pair
    between: FeatureCost | None
    share: float

    def objective(self, marginals: Marginals) -> GromovObjective:
        left, right = (cost.scaled(math.sqrt(self.share)) for cost in self.within)
        return GromovObjective(left, right, marginals.a.detach(), marginals.b.detach(), self.between)


def _solved(
    costs: _Fused, marginals: Marginals, relaxation: Relaxation | None, options: GromovOptions, scale: Scale
) -> GromovResult:
    scale.check()
    problem = costs.objective(marginals)
    options = dataclasses.replace(options, init=_in_dtype(options.init, scale.dtype))
    return scale.read(
        constrained(problem, marginals, options)
        if relaxation is None
        else relaxed(problem, relaxation, marginals, options)
    )


def _in_dtype(init: Init, dtype: torch.dtype) -> Init:
    """The plan to start from, in the dtype of the problem."""
    if isinstance(init, Tensor):
        return init.detach().to(dtype)
    if isinstance(init, OTResult) and init.value.dtype != dtype:
        return MatrixPlan(init.plan.detach().to(dtype))
    return init


def _relaxation(rho: float | tuple[float, float] | None, mass: Mass | None, marginals: Marginals) -> Relaxation | None:
    check_alone(rho, mass)
    if mass is not None:
        return Partial(_first_order(check_mass(mass, marginals.a, marginals.b)))
    return rho if rho is None else Unbalanced(check_penalties(rho))


def _sharpest(eps: float | Tensor | None, rho: float | tuple[float, float] | None, *, fused: bool) -> float | None:
    """The least of temperature and penalties, see :class:`Scale`."""
    if rho is None:
        return None
    numbers = [*check_penalties(rho)]
    if isinstance(eps, Tensor) and eps.numel():
        numbers.append(float(eps.detach().min()))
    elif isinstance(eps, Real):
        numbers.append(float(eps))
    return 0.0 if fused else min(numbers)


def _shared_weights(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The weights of both clouds, if pairing equal indices is a plan."""
    if x.shape[-2] != y.shape[-2]:
        return None
    if a is None and b is None:
        return weights(x, None)
    a, b = weights(x, a), weights(y, b)
    return a if a is b or torch.equal(a, b) else None
