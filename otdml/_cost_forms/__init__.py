"""Three algebraic forms of a ground cost; nothing outside of this package asks which form a cost has."""

from otdml._cost_forms.base import Gradients, Ground, LinkedPlan, Mask, Plan, with_zero_row
from otdml._cost_forms.bilinear import Bilinear
from otdml._cost_forms.matrix import Matrix
from otdml._cost_forms.pointwise import GivenCost, Pointwise

__all__ = [
    "Bilinear",
    "GivenCost",
    "Gradients",
    "Ground",
    "LinkedPlan",
    "Mask",
    "Matrix",
    "Plan",
    "Pointwise",
    "with_zero_row",
]
