r"""Barycentres whose points are free: the points at which the maps to all clouds average to the map to themselves.

With equal weights :math:`1/m` of the points y and squared distances, the envelope theorem gives

.. math:: \frac{m}{2} \, \nabla_{y_j} \sum_k w_k S_\varepsilon(\beta, \alpha_k) = T_\beta(y_j) - \sum_k w_k T_k(y_j)

where :math:`T_k` is the barycentric map of the entropic plan to cloud k, and :math:`T_\beta` that of :math:`\beta` to
itself, or the identity without debiasing. The step of length one against this gradient, to
:math:`y + \sum_k w_k T_k(y) - T_\beta(y)`, is that of :cite:p:`cuturi:14`. Here it is the first step of a quasi-Newton
method, because thousands of plain steps are needed where the objective is nearly flat.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml.ot._barycenters.adjoint import implicit
from otdml.ot._barycenters.measures import Measures
from otdml.ot._barycenters.quasi_newton import NOISE, Evaluation, Found, minimised
from otdml.ot._problem import Problem, SolverOptions
from otdml.ot._result import OTResult
from otdml.ot._sinkhorn import entropic

__all__ = ["free_points"]

# The tolerance of the transport problems in units of that of the points, and the largest error of the steps.
INNER, LOOSEST = 0.05, 0.1


@dataclass
class _Objective:
    """Half of the objective, and its steps, at points y.

    The potentials of a solve are kept as the start of the next.

    Attributes:
        debias: Whether the divergence is meant, or the entropic cost.
        backend: An engine by name.
    """

    debias: bool
    backend: str
    between: Tensor | None = None
    own: Tensor | None = None

    def to_clouds(self, y: Tensor, measures: Measures, tol: float) -> OTResult:
        """The plans from y, shape (..., m, d), to each of the clouds."""
        each = y[..., None, :, :].expand(*measures.x.shape[:-2], *y.shape[-2:])
        problem = Problem.between(each, measures.x, None, measures.a, eps=measures.temperatures)
        found = entropic(problem, self._options(tol), init=_start(self.between), quiet=True, points=measures.x)
        self.between = found.g.detach()
        return found

    def to_itself(self, y: Tensor, measures: Measures, tol: float) -> OTResult:
        """The plan from y to itself."""
        b = y.new_full(y.shape[:-1], 1 / y.shape[-2])
        problem = Problem.with_itself(y, b, cost=measures.cost, eps=measures.eps)
        start = _start(self.own)
        found = entropic(problem, self._options(tol), init=start, symmetric=True, quiet=True, points=y)
        self.own = found.g.detach()
        return found

    def _options(self, tol: float) -> SolverOptions:
        # Rounding errors average out in the maps, as other errors do.
        return SolverOptions(tol, backend=self.backend, rounding=10 * tol)

    def step(self, y: Tensor, measures: Measures, tol: float) -> Tensor:
        """Where the maps would send the points, less where they are, shape (..., m, d)."""
        target = measures.average(self.to_clouds(y, measures, tol).barycentric_map(), 2)
        return target - (self.to_itself(y, measures, tol).barycentric_map() if self.debias else y)

    def local(self, y: Tensor, measures: Measures, tol: float) -> Evaluation:
        """Value and step."""
        clouds = self.to_clouds(y, measures, tol)
        values, target = [measures.average(clouds.value, 0)], measures.average(clouds.barycentric_map(), 2)
        if self.debias:
            own = self.to_itself(y, measures, tol)
            values.append(-0.5 * own.value)
        step = target - (own.barycentric_map() if self.debias else y)
        size = torch.stack([v.abs() for v in values]).sum(0)
        noise = NOISE * torch.finfo(y.dtype).eps * size + measures.eps * tol**2
        # In the mean over coordinates, of which a point has d.
        return Evaluation(sum(values[1:], values[0]) / y.shape[-1], step.flatten(-2), noise / y.shape[-1])


def _start(g: Tensor | None) -> tuple[None, Tensor] | None:
    return None if g is None else (None, g)


def free_points(measures: Measures, y: Tensor, rounding: Tensor, *, debias: bool, options: SolverOptions) -> Found:
    """The barycentre's points from the start ``y``, shape (..., m, d), differentiable in the measures.

    Args:
        measures: The measures.
        y: Points to start from.
        rounding: The rounding error of the points, shape (); a ``tol`` below it is not reached.
        debias: Whether the divergence is meant, or the entropic cost.
        options: When to stop, and how to compute.
    """
    objective, fixed, shape = _Objective(debias, options.backend), measures.detach(), y.shape
    with torch.no_grad():
        least, scale = rounding / options.tol, fixed.scale()
        # Clouds of single points have no size of their own.
        scale = torch.where(scale > least, scale, y.square().sum(-1).mean(-1).sqrt().clamp(min=least))
        scale = scale / shape[-1] ** 0.5
        found = minimised(
            lambda s, precision: objective.local(s.view(shape), fixed, INNER * precision),
            y.flatten(-2),
            scale,
            tol=options.tol,
            max_iter=options.max_iter,
            loosest=LOOSEST,
        )

    def residual(s: Tensor, *tensors: Tensor) -> Tensor:
        # A copy, so that one backward pass leaves the next as it was.
        return (
            dataclasses.replace(objective).step(s.view(shape), measures.of(*tensors), INNER * options.tol).flatten(-2)
        )

    points = implicit(found.point, residual, *measures.tensors, tol=options.tol)
    return Found(points.view(shape), found.error, found.n_iter)
