"""The three terms of a Sinkhorn divergence, each solved to what their sum needs."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import has_values
from otdml._precision import SINGLE_ONLY
from otdml.ot._problem import Problem, SolverOptions, of_equal_mass
from otdml.ot._result import OTResult
from otdml.ot._sinkhorn import entropic

__all__ = ["LEAST", "Divergence", "has_large_mass"]

# Of the root of the divergence over the temperature, the share that errors of marginals may be. The gradient of a
# divergence near zero is of the size of that root, and the error of each term's gradient of the size of its marginals'.
SHARPNESS = 0.02
# The least tolerance, in units of the given one, and the factor between those that are tried.
LEAST, FINER = 1e-3, 1 / 30
# The mass above which single precision has too few digits: terms grow as its square, and their sum as the mass.
LARGE_MASS = 1000.0


@dataclass(frozen=True)
class Divergence:
    """The three terms of a divergence: their problems, or the value of the last; and the second measure's weights."""

    between: Problem
    first: Problem
    last: Problem | Tensor
    b: Tensor

    def value(self, options: SolverOptions, before: list[OTResult] | None = None) -> Tensor:
        """The divergence, shape (...), each term to a tolerance at which their errors are small beside their sum.

        Args:
            options: When to stop at the latest, and how to compute.
            before: Solutions to start from.
        """
        terms = self._solved(options, before)
        value, finer = self._sum(terms), options.tol
        while finer > LEAST * options.tol and (enough := self._tolerance(value)) < finer:
            finer = max(enough, finer * FINER, LEAST * options.tol)
            terms = self._solved(dataclasses.replace(options, tol=finer), terms)
            value = self._sum(terms)
        return self._double().value(options, terms) if self._loses_digits(value, terms, options.tol) else value

    def _double(self) -> "Divergence":
        """The same in double precision, in which masses that were equal up to rounding are equal."""
        between, first, last = self.between.double(), self.first.double(), self.last.double()
        assert isinstance(last, Problem)
        b = of_equal_mass(first.a, last.a) if between.balanced else last.a
        return Divergence(between, first, dataclasses.replace(last, a=b, b=b), b)

    @torch.no_grad()
    def _loses_digits(self, value: Tensor, terms: list[OTResult], tol: float) -> bool:
        """Whether the terms, whose inputs are rounded, are known to less than their sum is asked for.

        They are next to equal where measures are. A last term that was given is rounded already.
        """
        dtype = self.between.a.dtype
        if dtype == torch.float64 or isinstance(self.last, Tensor) or value.device.type in SINGLE_ONLY:
            return False
        size = torch.stack([term.precise_value.abs() for term in terms]).sum(0)
        return bool((torch.finfo(dtype).eps * size > tol * value.abs()).any())

    def _solved(self, options: SolverOptions, before: list[OTResult] | None) -> list[OTResult]:
        """The terms that are problems, from their solutions to a larger tolerance if there are any."""
        problems = [p for p in (self.between, self.first, self.last) if isinstance(p, Problem)]
        starts = [None] * len(problems) if before is None else [(None, result.g.detach()) for result in before]
        found = []
        for i, (problem, start) in enumerate(zip(problems, starts, strict=True)):
            # Unequal penalties break the symmetry of a term of a measure with itself.
            symmetric = i > 0 and problem.rho[0] == problem.rho[1] and before is None
            found.append(entropic(problem, options, init=start, symmetric=symmetric, quiet=before is not None))
        return found

    def _sum(self, terms: list[OTResult]) -> Tensor:
        between, first, *rest = (result.precise_value for result in terms)
        last = self.last if isinstance(self.last, Tensor) else rest[0]
        return between - 0.5 * first - 0.5 * last + 0.5 * self.between.eps * self._excess_mass().square()

    def _excess_mass(self) -> Tensor:
        """The mass of the first measure less that of the second, zero up to rounding, which a temperature may blow up.

        Its derivatives are those of the difference all the same.
        """
        a, b = self.first.a.sum(-1), self.b.sum(-1)
        known = (a - b).detach()
        equal = known.abs() <= 32 * torch.finfo(a.dtype).eps * (a + b).detach()
        return a - b - (known if self.between.balanced else known.where(equal, 0.0))

    @torch.no_grad()
    def _tolerance(self, value: Tensor) -> float:
        """The error of marginals that is small beside the divergence."""
        if value.numel() == 0:
            return math.inf
        mass = (self.between.a.sum(-1) * self.between.b.sum(-1)).sqrt()
        return SHARPNESS * float((value / (self.between.eps * mass)).clamp(min=0).sqrt().min())


def has_large_mass(x: Tensor, a: Tensor | None, b: Tensor | None) -> bool:
    """Whether inputs are to be double before anything: gradients of terms so large lose digits where they are added."""
    if x.dtype == torch.float64 or x.device.type in SINGLE_ONLY:
        return False
    given = [w for w in (a, b) if w is not None and w.numel() and has_values(w)]
    return any(bool((w.detach().sum(-1) > LARGE_MASS).any()) for w in given)
