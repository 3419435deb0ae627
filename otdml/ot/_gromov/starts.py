"""The plans that a descent starts from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import argument_error, check_batches, check_choice
from otdml.ot._gromov.centred_cost import CentredCost
from otdml.ot._gromov.objective import GromovObjective
from otdml.ot._gromov.plans import FactoredPlan, MatrixPlan, PairedPlan, ReadablePlan
from otdml.ot._result import OTResult

__all__ = ["STARTS", "Init", "Start", "perturbed_product", "starts"]

STARTS = ("best", "identity", "product")
Init = str | ReadablePlan | Tensor

# Pairs of points up to which descents with free marginals start near each of them, and how near.
PAIRS, NEARNESS = 64, 0.9

# Points of the smaller cloud of which no centred functions lead to other marginals, where these are free: costs between
# two points are the same for both.
FEW = 2


@dataclass(frozen=True)
class Start:
    """A plan to start from.

    Attributes:
        plan: The plan.
        fixed_cost: Whether the cost stays the one at this plan while the temperature falls.
    """

    plan: ReadablePlan
    fixed_cost: bool


def starts(objective: GromovObjective, init: Init, *, paired: bool, free: bool = False) -> list[Start]:
    """The starts that ``init`` of :func:`~otdml.ot.gromov` asks for.

    Args:
        objective: The objective, detached.
        init: A name, or a plan.
        paired: Whether the pairing of equal indices is a plan.
        free: Whether plans have other marginals than the weights.
    """
    if not isinstance(init, str):
        return [Start(_given(init, torch.Size((*objective.a.shape, objective.b.shape[-1]))), fixed_cost=True)]
    check_choice("init", init, STARTS)
    pairing = [Start(PairedPlan(objective.a), fixed_cost=True)] if paired and init != "product" else []
    if init == "identity" and paired:
        return pairing
    # Costs between features lead away from independence without a perturbation.
    sizes = (0.5, -0.5) if objective.features is None else (0.0, 0.5, -0.5)
    plans = [perturbed_product(objective, size) for size in sizes]
    sides = objective.a.shape[-1], objective.b.shape[-1]
    if free and init == "best" and sides[0] * sides[1] <= PAIRS:
        plans += _near_pairs(objective)
    elif free and min(sides) <= FEW:
        plans += [_skewed_product(objective, size) for size in (0.5, -0.5)]
    return pairing + [Start(plan, fixed_cost=False) for plan in plans]


def _given(init: ReadablePlan | Tensor, shape: torch.Size) -> ReadablePlan:
    """A plan to start from, if it is one for problems of this shape, (..., n, m)."""
    if isinstance(init, MatrixPlan):
        init = init.plan
    if not isinstance(init, (OTResult, Tensor)):
        must = f"be one of {', '.join(map(repr, STARTS))}, a result, or a plan in a torch.Tensor"
        raise argument_error("init", must, type(init).__name__, kind=TypeError)
    found = init.shape if isinstance(init, Tensor) else torch.Size((*init.f.shape, init.g.shape[-1]))
    if found[-2:] != shape[-2:] or check_batches(x=shape[:-2], init=found[:-2]) != shape[:-2]:
        raise argument_error("init", f"be a plan of shape (..., {shape[-2]}, {shape[-1]})", tuple(found))
    if isinstance(init, OTResult):
        return init if found == shape else MatrixPlan(init.plan.detach().expand(shape))
    if not bool(((init >= 0) & (init < torch.inf)).all()):
        raise argument_error("init", "be a plan", "a negative entry, NaN or infinity")
    return MatrixPlan(init.expand(shape))


def perturbed_product(objective: GromovObjective, size: float) -> FactoredPlan:
    r"""The plan :math:`a_i b_j (1 + t h_i h'_j)` of size t, with centred functions h and h' of the points.

    At independence itself the gradient of the objective can vanish. A positive t pairs points whose costs to the
    extreme point of their cloud are alike, a negative one those whose costs differ.
    """
    a, b = objective.a, objective.b
    h, k = _costs_to_extreme_point(objective.left, a), _costs_to_extreme_point(objective.right, b)
    columns = torch.stack([b, b * k], -1) / b.sum(-1)[..., None, None]
    return FactoredPlan(torch.stack([a, size * a * h], -1), columns)


def _skewed_product(objective: GromovObjective, size: float) -> FactoredPlan:
    r"""The plan :math:`a_i (1 + t h_i) b_j (1 + t h'_j)` of size t, see :func:`perturbed_product`."""
    a, b = objective.a, objective.b
    h, k = _costs_to_extreme_point(objective.left, a), _costs_to_extreme_point(objective.right, b)
    columns = b * (1 + size * k) / b.sum(-1)[..., None]
    return FactoredPlan((a * (1 + size * h))[..., None], columns[..., None])


def _near_pairs(objective: GromovObjective) -> list[FactoredPlan]:
    r"""For each pair of points k and l the plan :math:`a_i (1 + t h_{ki}) b_j (1 + t h'_{lj})`, with a t near one.

    Which parts of the clouds have mass is decided early where marginals are free, and other parts are other optima.
    """
    sides = []
    for cost, w in (objective.left, objective.a), (objective.right, objective.b):
        own = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device).expand(*w.shape, -1)
        h = cost.times(own)
        h = _scaled(h * h.diagonal(dim1=-2, dim2=-1)[..., None, :].sign(), -2)
        sides.append((w / w.sum(-1, keepdim=True))[..., None] * (1 + NEARNESS * h))
    rows, columns = (side.split(1, -1) for side in sides)
    return [FactoredPlan(row, column) for row in rows for column in columns]


def _costs_to_extreme_point(cost: CentredCost, a: Tensor) -> Tensor:
    """The centred costs to the point whose costs are the largest, scaled to at most one, shape (..., n)."""
    extreme = cost.energies(a).where(a > 0, -1.0).argmax(-1, keepdim=True)
    h = cost.times(torch.zeros_like(a).scatter(-1, extreme, 1.0)[..., None])[..., 0]
    return _scaled(h * h.gather(-1, extreme).sign(), -1)


def _scaled(h: Tensor, dim: int) -> Tensor:
    top = h.abs().amax(dim, keepdim=True)
    return h / torch.where(top > 0, top, torch.ones_like(top))
