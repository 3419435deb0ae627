"""Optimal transport: points and weights in, a result out."""

from otdml.ot._barycenters.solver import BarycenterResult, sinkhorn_barycenter
from otdml.ot._couplings import couple
from otdml.ot._exact import exact, exact_matrix
from otdml.ot._gromov.solver import GromovResult, gromov, gromov_matrix
from otdml.ot._low_rank.result import LowRankResult
from otdml.ot._low_rank.solver import low_rank_sinkhorn
from otdml.ot._padding import pad_clouds
from otdml.ot._ranks import soft_rank, soft_topk
from otdml.ot._result import OTResult
from otdml.ot._semidiscrete import SemidiscreteResult, semidiscrete
from otdml.ot._sinkhorn import sinkhorn, sinkhorn_matrix
from otdml.ot._sliced import sliced, wasserstein_1d

__all__ = [
    "BarycenterResult",
    "GromovResult",
    "LowRankResult",
    "OTResult",
    "SemidiscreteResult",
    "couple",
    "exact",
    "exact_matrix",
    "gromov",
    "gromov_matrix",
    "low_rank_sinkhorn",
    "pad_clouds",
    "semidiscrete",
    "sinkhorn",
    "sinkhorn_barycenter",
    "sinkhorn_matrix",
    "sliced",
    "soft_rank",
    "soft_topk",
    "wasserstein_1d",
]
