"""Gromov problems: transport between clouds of different spaces, by the costs within each."""

from otdml.ot._gromov.centred_cost import WithinCost, cost_block
from otdml.ot._gromov.solver import STARTS, GromovResult, gromov, gromov_matrix

__all__ = ["STARTS", "GromovResult", "WithinCost", "cost_block", "gromov", "gromov_matrix"]
