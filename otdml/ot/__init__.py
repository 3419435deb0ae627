"""Optimal transport: points and weights in, a result out."""

from otdml.ot.exact import exact
from otdml.ot.gromov import GromovResult, gromov
from otdml.ot.result import OTResult
from otdml.ot.semidiscrete import SemidiscreteResult, semidiscrete
from otdml.ot.sinkhorn import sinkhorn, sinkhorn_matrix
from otdml.ot.sliced import sliced, wasserstein_1d

__all__ = [
    "GromovResult",
    "OTResult",
    "SemidiscreteResult",
    "exact",
    "gromov",
    "semidiscrete",
    "sinkhorn",
    "sinkhorn_matrix",
    "sliced",
    "wasserstein_1d",
]
