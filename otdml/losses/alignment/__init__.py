"""Generalized contrastive alignment: any target plan, any marginals, two divergences."""

from otdml.losses.alignment.loss import ContrastiveAlignment, contrastive_alignment
from otdml.losses.alignment.named import BYOL, GCAINCE, GCARINCE, GCAUOT, RINCE, InfoNCE, SupCon
from otdml.losses.alignment.pairs import DomainTarget

__all__ = [
    "BYOL",
    "GCAINCE",
    "GCARINCE",
    "GCAUOT",
    "RINCE",
    "ContrastiveAlignment",
    "DomainTarget",
    "InfoNCE",
    "SupCon",
    "contrastive_alignment",
]
