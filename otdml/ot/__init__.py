"""Optimal transport: points and weights in, a result out."""

from otdml.ot._exact import exact, exact_matrix
from otdml.ot._semidiscrete import SemidiscreteResult, semidiscrete
from otdml.ot._sliced import sliced, wasserstein_1d
from otdml.ot.gromov import GromovResult, gromov
from otdml.ot.result import OTResult
from otdml.ot.sinkhorn import sinkhorn, sinkhorn_matrix

__all__ = [
    "GromovResult",
    "OTResult",
    "SemidiscreteResult",
    "exact",
    "exact_matrix",
    "gromov",
    "semidiscrete",
    "sinkhorn",
    "sinkhorn_matrix",
    "sliced",
    "wasserstein_1d",
]
