"""The linearised optimality conditions of an entropic problem, and their solution.

Where the plan nearly falls into blocks, the system is nearly singular: a constant may go from the row potentials of a
block to its column potentials at next to no cost. Plans and maps do not depend on it, and the solution leaves it out.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from otdml._warnings import warn_caller
from otdml.ot._marginal import Marginal
from otdml.ot._problem import Posed

__all__ = ["adjoint", "stiffness", "tangent"]

Operator = Callable[[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]


class _Linear(Protocol):
    def __call__(self, posed: Posed, f: Tensor, g: Tensor, df: Tensor, dg: Tensor) -> tuple[Pair, bool]: ...


def adjoint(posed: Posed, f: Tensor, g: Tensor, df: Tensor, dg: Tensor) -> Pair:
    r"""The multipliers of the optimality conditions for cotangents ``df``, ``dg`` of the potentials.

    With :math:`\kappa = \exp(f + g - R)` the conditions are :math:`\kappa b = s = e^{-f/\rho_a}` and
    :math:`\kappa^T a = t = e^{-g/\rho_b}` (of the full potentials), whose derivatives have the diagonals p s and q t
    with :math:`p = 1 + 1/\rho_a`, :math:`q = 1 + 1/\rho_b`. The multipliers, returned as :math:`s \lambda` and
    :math:`t \mu` since s and t leave the range of floating point where mass is given up, are
    :math:`s \lambda = df / p + a l` and :math:`t \mu = dg / q + b r`, where r solves a symmetric positive system. So
    points without weight are no exception.
    """
    return _determined(_adjoint, posed, f, g, df, dg)


def tangent(posed: Posed, f: Tensor, g: Tensor, df: Tensor, dg: Tensor) -> Pair:
    """The transpose of :func:`adjoint`, as a linear map of ``df`` and ``dg``."""
    return _determined(_tangent, posed, f, g, df, dg)


def _adjoint(posed: Posed, f: Tensor, g: Tensor, df: Tensor, dg: Tensor) -> tuple[Pair, bool]:
    system = _System.at(posed, f, g)
    a, b, to_rows, to_columns = system.a, system.b, system.to_rows, system.to_columns
    rows, columns = df / system.p, dg / system.q
    rhs = to_columns(rows + a * to_rows(columns))
    r, determined = system.solution(rhs, lambda: to_columns(rows.abs() - a * to_rows(columns.abs())))
    mu = columns + b * r
    return (rows + a * to_rows(mu), mu), determined


def _tangent(posed: Posed, f: Tensor, g: Tensor, df: Tensor, dg: Tensor) -> tuple[Pair, bool]:
    # The transposed products are those with the potentials and their soft minima exchanged.
    system = _System.at(posed, f, g).exchanged()
    a, b, to_rows, to_columns = system.a, system.b, system.to_rows, system.to_columns
    rows, columns = df / system.p, dg / system.q
    rhs = columns + to_columns(a * rows)
    r, determined = system.solution(rhs, lambda: columns.abs() - to_columns(a * rows.abs()))
    # Points without weight follow from the others, and nothing follows from them.
    r = torch.where(b > 0, r, rhs + to_columns(a * to_rows(b * r)))
    return (rows + to_rows(b * r), r), determined


def _determined(solve: _Linear, posed: Posed, f: Tensor, g: Tensor, df: Tensor, dg: Tensor) -> Pair:
    """The solution, in double precision where that determines it and single precision does not."""
    # Squares of cotangents beyond 1e19 are none in single precision.
    size = torch.maximum(df.abs().amax(-1), dg.abs().amax(-1)).clamp(min=torch.finfo(f.dtype).tiny)[..., None]
    (first, second), determined = solve(posed, f, g, df / size, dg / size)
    if not determined and posed.problem.resolves_more:
        tensors = (t.double() for t in (f, g, df / size, dg / size))
        (first, second), determined = solve(posed.double(), *tensors)
    if not determined:
        warn_caller(
            "The plan falls into blocks between which next to no mass moves, so the difference of their potentials, of "
            "which a derivative was asked for, is not determined in this dtype. Its derivative is taken to be zero."
        )
    return size * first.to(f.dtype), size * second.to(g.dtype)


@dataclass(frozen=True)
class _System:
    """The linear maps between the two sides at a solution.

    Attributes:
        posed: The problem.
        transposed: The problem with rows and columns exchanged.
        f, g: Its reduced potentials.
        over_f, over_g: The soft minima that they are the updates of.
        p, q: The stiffness of each marginal.
    """

    posed: Posed
    transposed: Posed
    f: Tensor
    g: Tensor
    over_f: Tensor
    over_g: Tensor
    p: Tensor | float
    q: Tensor | float

    @classmethod
    def at(cls, posed: Posed, f: Tensor, g: Tensor) -> "_System":
        rows, columns = posed.problem.rows, posed.problem.columns
        return cls(posed, posed.mT, f, g, rows.softmin(f), columns.softmin(g), stiffness(rows), stiffness(columns))

    def exchanged(self) -> "_System":
        """The maps with the potentials and their soft minima exchanged, which differ where there are penalties."""
        return dataclasses.replace(self, f=self.over_f, g=self.over_g, over_f=self.f, over_g=self.g)

    @property
    def a(self) -> Tensor:
        return self.posed.problem.rows.weights

    @property
    def b(self) -> Tensor:
        return self.posed.problem.columns.weights

    def to_rows(self, mu: Tensor) -> Tensor:
        return -self.posed.engine.plan_product(self.f, self.over_g, mu[..., None])[..., 0] / self.p

    def to_columns(self, lam: Tensor) -> Tensor:
        return -self.transposed.engine.plan_product(self.g, self.over_f, lam[..., None])[..., 0] / self.q

    def solution(self, rhs: Tensor, parts: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """The column part r of the solution, where columns have weight, and whether what it leaves out is rounding.

        Args:
            rhs: The right-hand side after elimination of the rows, shape (..., m).
            parts: The sum of the sizes of its parts, up to signs.
        """

        def operator(r: Tensor) -> Tensor:
            return r - self.to_columns(self.a * self.to_rows(self.b * r))

        columns = self.posed.problem.columns
        rhs = torch.where(self.b > 0, rhs, 0.0)
        metric = torch.softmax(self.over_g - self.g + columns.log, -1)
        r, dropped = _truncated_solution(operator, rhs, metric, singular=self.posed.problem.balanced)
        determined = bool((dropped <= SHOWN * _norm(rhs, metric)).all())
        if not determined:
            # What is left of a right-hand side after its parts have cancelled is rounding.
            largest = torch.finfo(rhs.dtype).eps / FAINT * _norm(parts(), metric)
            determined = bool((dropped <= SHOWN * torch.maximum(_norm(rhs, metric), largest)).all())
        return r, determined


def stiffness(marginal: Marginal) -> Tensor | float:
    """The derivative of the soft minimum that a potential is the update of, in the potential."""
    return 1.0 if marginal.rho is None else 1 + 1 / marginal.rho


# The plan does not change along a direction whose curvature, of one at most, is below this many rounding units.
FLAT = 256.0
# The share of the right-hand side along such directions above which the requested derivative depends on them.
SHOWN = 1e-3
# The same, over the rounding of its parts.
FAINT = 1e-6
# Most Lanczos vectors, and steps between two checks of the residual: at first, and later as a share of those so far.
MOST, CHECK, CHECK_SHARE = 1000, 4, 0.25


def _truncated_solution(operator: Operator, rhs: Tensor, metric: Tensor, *, singular: bool) -> tuple[Tensor, Tensor]:
    """The solution of ``operator(r) = rhs``, and the norm of the part of the right-hand side that it leaves out.

    The operator is symmetric in the inner product of ``metric``, and positive with eigenvalues of at most one. Lanczos'
    algorithm :cite:p:`golub:13` from the right-hand side gives its action on those directions that matter, as a
    tridiagonal matrix. Directions along which it is flat to rounding are left out of the solution: along them
    right-hand sides of plans and maps are rounding as well.
    """

    def project(r: Tensor) -> Tensor:
        return r - (metric * r).sum(-1, keepdim=True) / metric.sum(-1, keepdim=True) if singular else r

    unit, tiny = torch.finfo(rhs.dtype).eps, torch.finfo(rhs.dtype).tiny
    direction = project(rhs)
    size = _norm(direction, metric)
    basis = [direction / size.clamp(min=tiny)]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    most, check = min(MOST, rhs.shape[-1]), CHECK
    while True:
        image = project(operator(basis[-1]))
        diagonal.append((metric * basis[-1] * image).sum(-1, keepdim=True))
        Q = torch.stack(basis, -2)
        # Twice, as once leaves what rounding has put along earlier directions.
        for _ in range(2):
            image = image - ((Q @ (metric * image)[..., None]).mT @ Q)[..., 0, :]
        beside.append(_norm(image, metric))
        k = len(diagonal)
        if k >= min(check, most):
            coefficients, dropped = _ritz(diagonal, beside[:-1], FLAT * unit)
            left = beside[-1] * coefficients[..., -1:]
            if k == most or bool((left.abs() <= unit**0.75).all()):
                break
            check = k + max(CHECK, int(CHECK_SHARE * k))
        basis.append(torch.where(beside[-1] > unit * 16, image / beside[-1].clamp(min=tiny), 0.0))
    found = (coefficients[..., None, :] @ Q)[..., 0, :] * size
    return project(found), dropped[..., None] * size


def _norm(r: Tensor, metric: Tensor) -> Tensor:
    return (metric * r.square()).sum(-1, keepdim=True).sqrt()


def _ritz(diagonal: list[Tensor], beside: list[Tensor], flat: float) -> tuple[Tensor, Tensor]:
    """The first column of the tridiagonal matrix's pseudo-inverse, and the share of that side it leaves out."""
    T = torch.diag_embed(torch.cat(diagonal, -1))
    if beside:
        off = torch.cat(beside, -1)
        T = T + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(T)
    first = vectors[..., 0, :]
    inverse = torch.where(values > flat, 1 / values.clamp(min=flat), 0.0)
    dropped = torch.where(values > flat, 0.0, first.square()).sum(-1).sqrt()
    return (vectors @ (inverse * first)[..., None])[..., 0], dropped
