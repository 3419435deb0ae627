"""Optimal transport: points and weights in, a result out."""

from otdml.ot.result import OTResult
from otdml.ot.sinkhorn import sinkhorn, sinkhorn_matrix

__all__ = ["OTResult", "sinkhorn", "sinkhorn_matrix"]
