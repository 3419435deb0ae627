"""Fused Gromov-Wasserstein: clouds of different spaces compared by costs within each, and by features of both."""

from dataclasses import dataclass

from torch import Tensor, nn

from otdml._checks import check_choice, check_fraction, check_integer, check_positive
from otdml._precision import full_precision
from otdml._transforms import transformable
from otdml.costs import Cost, check_cost
from otdml.ot._gromov.centred_cost import WithinCost, check_within
from otdml.ot._gromov.feature_cost import check_pair
from otdml.ot._gromov.relaxation import check_alone, check_penalties
from otdml.ot._gromov.solver import GROMOV_BACKENDS, STARTS, gromov
from otdml.ot._partial import Mass

__all__ = ["FusedGromovWasserstein", "fused_gromov_wasserstein"]

Features = tuple[Tensor, Tensor]


def fused_gromov_wasserstein(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    features: Features | None = None,
    alpha: float | None = None,
    cost_x: WithinCost = "sqeuclidean",
    cost_y: WithinCost = "sqeuclidean",
    cost_features: Cost = "sqeuclidean",
    eps: float | None = None,
    rho: float | tuple[float, float] | None = None,
    mass: Mass | None = None,
    tol: float = 1e-3,
    max_iter: int = 300,
    init: str = "best",
    backend: str = "auto",
) -> Tensor:
    r"""Fused Gromov-Wasserstein cost between two weighted clouds of points with features.

    .. math:: \min_{P \in \Pi(a, b)} \; (1 - \alpha) \sum_{ij} c(u_i, v_j) P_{ij} + \tfrac{\alpha}{2} \sum_{ijkl}
        \bigl( c_X(x_i, x_k) - c_Y(y_j, y_l) \bigr)^2 P_{ij} P_{kl}

    of points x, y, which may be in different spaces, and features u, v, which are in one :cite:p:`vayer:20`; without
    features, Gromov-Wasserstein :cite:p:`memoli:11`. It is zero where some plan keeps all costs within the clouds and
    moves between equal features only. Choose it to match structures, such as graphs or shapes, of which more is known
    than their costs; where rows are paired already, :func:`distortion` is the quadratic part of that pairing.

    The plan is solved at temperature ``eps`` (:func:`otdml.ot.gromov`), and the value is that plan's without the
    entropy, so it is above the least one by what the blur costs, and not zero for equal clouds. The problem is not
    convex: what is found is a local optimum. The gradient is that of the entropic objective with the plan held fixed;
    there are no second derivatives. Time per step O(n m (d + e + k)) and memory O((n + m) (d + e + k)) where all costs
    are bilinear.

    Args:
        x: First points, shape (..., n, d).
        y: Second points, shape (..., m, e).
        a: Weights of the first points, shape (..., n). Uniform if None.
        b: Weights of the second points, shape (..., m). Uniform if None.
        features: Features of the first and of the second points, shapes (..., n, k) and (..., m, k).
        alpha: Share of the quadratic part, in (0, 1]; one half if None, where there are features.
        cost_x: Cost between first points, see :func:`otdml.ot.gromov`.
        cost_y: Cost between second points.
        cost_features: Cost between features, see :func:`otdml.costs.ground`.
        eps: Temperature. That of :func:`otdml.ot.gromov` if None.
        rho: Penalty of the marginals in place of constraints; the value includes it.
        mass: Mass of a partial plan.
        tol: Tolerance of the solver.
        max_iter: Most linearisations.
        init: Plan to start from: "best", "identity" or "product".
        backend: "auto", "dense" or "streamed".

    Returns:
        One value per batch element, shape (...), non-negative.

    Raises:
        ValueError: If shapes do not fit, masses differ without ``rho`` and ``mass``, or the costs are not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> # A reflection keeps the distances, but each feature is now one away from its own.
        >>> fused_gromov_wasserstein(x, -x, features=(x, x + 1), alpha=0.5, eps=1e-3)
        tensor(0.5000)
    """
    options = _Options(alpha, cost_x, cost_y, cost_features, eps, rho, tol, max_iter, init, backend)
    u, v = (None, None) if features is None else check_pair(features)
    return _value(x, y, a, b, u, v, mass, options)


@dataclass(frozen=True)
class _Options:
    """The arguments that are not tensors of a batch."""

    alpha: float | None
    cost_x: WithinCost
    cost_y: WithinCost
    cost_features: Cost
    eps: float | None
    rho: float | tuple[float, float] | None
    tol: float
    max_iter: int
    init: str
    backend: str


@transformable
@full_precision
def _value(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    u: Tensor | None,
    v: Tensor | None,
    mass: Mass | None,
    options: _Options,
) -> Tensor:
    features = None if u is None or v is None else (u, v)
    return gromov(x, y, a, b, features=features, mass=mass, **vars(options)).value


class FusedGromovWasserstein(nn.Module):
    """Module form of :func:`fused_gromov_wasserstein`."""

    def __init__(
        self,
        *,
        alpha: float | None = None,
        cost_x: WithinCost = "sqeuclidean",
        cost_y: WithinCost = "sqeuclidean",
        cost_features: Cost = "sqeuclidean",
        eps: float | None = None,
        rho: float | tuple[float, float] | None = None,
        mass: float | None = None,
        tol: float = 1e-3,
        max_iter: int = 300,
        init: str = "best",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.alpha = alpha if alpha is None else check_fraction("alpha", alpha)
        self.cost_x, self.cost_y = check_within("cost_x", cost_x), check_within("cost_y", cost_y)
        self.cost_features = check_cost(cost_features)
        self.eps = eps if eps is None else check_positive("eps", eps)
        self.rho = rho if rho is None else check_penalties(rho)
        self.mass = mass if mass is None else check_positive("mass", mass)
        check_alone(rho, mass)
        self.tol = check_positive("tol", tol)
        self.max_iter = check_integer("max_iter", max_iter)
        self.init = check_choice("init", init, STARTS)
        self.backend = check_choice("backend", backend, GROMOV_BACKENDS)

    def extra_repr(self) -> str:
        given = {"alpha": self.alpha, "eps": self.eps, "rho": self.rho, "mass": self.mass}
        shown = [f"{name}={value}" for name, value in given.items() if value is not None]
        return ", ".join([f"cost_x={self.cost_x!r}", f"cost_y={self.cost_y!r}", *shown, f"tol={self.tol:g}"])

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        a: Tensor | None = None,
        b: Tensor | None = None,
        *,
        features: Features | None = None,
    ) -> Tensor:
        return fused_gromov_wasserstein(
            x,
            y,
            a,
            b,
            features=features,
            alpha=self.alpha,
            cost_x=self.cost_x,
            cost_y=self.cost_y,
            cost_features=self.cost_features,
            eps=self.eps,
            rho=self.rho,
            mass=self.mass,
            tol=self.tol,
            max_iter=self.max_iter,
            init=self.init,
            backend=self.backend,
        )
