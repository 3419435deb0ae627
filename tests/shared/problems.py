"""Small entropic problems, and the update that solves them."""

import torch

from otdml.costs import Matrix
from otdml.ot._problem import Posed, Problem
from otdml.ot._updates import Alternating

__all__ = ["alternating", "offset_problem"]


def alternating(posed: Posed) -> Alternating:
    """Sinkhorn's iteration of a problem."""
    return Alternating(posed.engine, posed.problem.rows, posed.problem.columns)


def offset_problem(rho=(None, None), eps=0.5) -> Problem:
    """A problem of four rows and three columns, for a matrix of costs with offsets."""
    generator = torch.Generator().manual_seed(0)
    C, a, b, u, v = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), 4, 3, 4, 3))
    return Problem(Matrix(C, u, v), a / a.sum(), b / b.sum(), eps, rho)
