"""The linearised optimality conditions of an entropic problem, and their solution.

Where the plan nearly falls into blocks, the system is nearly singular: a constant may go from the row potentials of a
block to its column potentials at next to no cost. Plans and maps do not depend on it, and the solution leaves it out.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from otdml._warnings import warn_caller
from otdml.ot._problem import Posed

__all__ = ["adjoint", "of_size_one", "tangent"]

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
    (df, dg), size = of_size_one(df, dg)
    (first, second), determined = solve(posed, f, g, df, dg)
    if not determined and posed.problem.resolves_more:
        tensors = (t.double() for t in (f, g, df, dg))
        (first, second), determined = solve(posed.double(), *tensors)
    if not determined:
        warn_caller(
            "The plan falls into blocks between which next to no mass moves, so the difference of their potentials, of "
            "which a derivative was asked for, is not determined in this dtype. Its derivative is taken to be zero."
        )
    return size * first.to(f.dtype), size * second.to(g.dtype)


def of_size_one(*cotangents: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Cotangents, shapes (..., n), over the size of their largest entry, and that size, shape (..., 1).

    What is linear in them is that of the quotients times the size: squares of entries beyond 1e19 overflow in single
    precision, and those of entries below 1e-23 vanish. Where the size is not finite the quotients are zero, so that the
    product is not a number.
    """
    largest = functools.reduce(torch.maximum, (t.abs().amax(-1, keepdim=True) for t in cotangents))
    size = largest.clamp(min=torch.finfo(largest.dtype).tiny)
    return tuple(torch.where(size.isfinite(), t / size, 0.0) for t in cotangents), size


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
        return cls(posed, posed.mT, f, g, rows.softmin(f), columns.softmin(g), rows.stiffness, columns.stiffness)

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
        r"""The column part r of the solution, where columns have weight, and whether what it leaves out is rounding.

        Times the root of b / t it solves a system :math:`1 - M^T M` with
        :math:`M_{ij} = \kappa_{ij} \sqrt{a_i b_j / (p q s_i t_j)}`.

        Args:
            rhs: The right-hand side after elimination of the rows, shape (..., m).
            parts: The sum of the sizes of its parts, up to signs.
        """
        rows, columns = self.posed.problem.rows, self.posed.problem.columns
        # Up to a factor.
        root = (torch.log_softmax(self.over_g - self.g + columns.log, -1) / 2).exp_()
        if not self.posed.problem.balanced:
            unresolved = (root < torch.finfo(root.dtype).tiny ** 0.5) & (self.b > 0)
            if bool(unresolved.any()):
                # Their squares vanish. Points that give up so different shares of their mass are blocks of their own.
                return torch.zeros_like(rhs), False
        gram = self.posed.engine.gram((self.f + self.over_f + rows.log) / 2, (self.g + self.over_g + columns.log) / 2)
        scale, null = 1 / (self.p * self.q), root if self.posed.problem.balanced else None
        rhs = root * torch.where(self.b > 0, rhs, 0.0)
        r, dropped = _truncated_solution(lambda v: v - gram(v) * scale, rhs, null)
        size = _norm(rhs)
        determined = bool((dropped <= SHOWN * size).all())
        if not determined:
            # What is left of a right-hand side after its parts have cancelled is rounding.
            largest = torch.finfo(rhs.dtype).eps / FAINT * _norm(root * parts())
            determined = bool((dropped <= SHOWN * torch.maximum(size, largest)).all())
        return torch.where(root > 0, r / root, 0.0), determined


# The plan does not change along a direction whose curvature, of one at most, is below this many rounding units.
FLAT = 256.0
# The share of the right-hand side along such directions above which the requested derivative depends on them.
SHOWN = 1e-3
# The same, over the rounding of its parts.
FAINT = 1e-6
# Most Lanczos vectors; how many there are when the residual is computed in any case; and after how many more that is
# done again, at first, and later as a share of those so far.
MOST, LATEST, CHECK, CHECK_SHARE = 1000, 16, 4, 0.25


def _truncated_solution(operator: Operator, rhs: Tensor, null: Tensor | None) -> tuple[Tensor, Tensor]:
    """The solution of ``operator(r) = rhs``, and the norm of the part of the right-hand side that it leaves out.

    The operator is symmetric and positive, with eigenvalues of at most one. Lanczos' algorithm :cite:p:`golub:13` from
    the right-hand side gives its action on those directions that matter, as a tridiagonal matrix. Directions along
    which it is flat to rounding are left out of the solution: along them right-hand sides of plans and maps are
    rounding as well.

    Args:
        operator: Takes and returns vectors of shape (..., m).
        rhs: Shape (..., m).
        null: The unit vector along which the operator is zero, shape (..., m), or None.

    Returns:
        Shapes (..., m) and (..., 1).
    """
    unit, tiny = torch.finfo(rhs.dtype).eps, torch.finfo(rhs.dtype).tiny
    basis = rhs.new_empty(*rhs.shape[:-1], 0, rhs.shape[-1]) if null is None else null[..., None, :]
    rest, _ = _orthogonal(rhs[..., None, :], basis)
    size = _norm(rest)
    left = ratio = torch.ones_like(size)
    v = rest / size.clamp(min=tiny)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    enough, most, check = unit**0.75, min(MOST, rhs.shape[-1]), LATEST
    while True:
        basis = torch.cat((basis, v), -2)
        rest, components = _orthogonal(operator(v[..., 0, :])[..., None, :], basis)
        # Twice, as once leaves what rounding has put along earlier directions.
        rest, _ = _orthogonal(rest, basis)
        diagonal.append(components[..., -1:])
        # The residual, by elimination from the top of the tridiagonal matrix: right where that is not flat.
        pivot = diagonal[-1] - beside[-1] * ratio if beside else diagonal[-1]
        beside.append(_norm(rest))
        ratio = beside[-1] / pivot.clamp(min=tiny)
        left = left * ratio
        k = len(diagonal)
        if k >= check or k == most or bool((left <= enough).all()):
            coefficients, dropped = _ritz(diagonal, beside[:-1], FLAT * unit)
            if k == most or bool(((beside[-1] * coefficients[..., -1:]).abs() <= enough).all()):
                break
            check = k + max(CHECK, int(CHECK_SHARE * k))
        # Nothing where all directions are exhausted.
        v = rest / torch.threshold(beside[-1], 16 * unit, torch.inf)
    return (coefficients @ basis[..., -k:, :] * size)[..., 0, :], dropped * size[..., 0]


def _orthogonal(v: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``v`` less their components along the rows of ``basis``, and these."""
    components = v @ basis.mT
    return v - components @ basis, components


def _norm(r: Tensor) -> Tensor:
    return torch.linalg.vector_norm(r, dim=-1, keepdim=True)


def _ritz(diagonal: list[Tensor], beside: list[Tensor], flat: float) -> tuple[Tensor, Tensor]:
    """The first row of the tridiagonal matrix's pseudo-inverse, and the share of that side it leaves out."""
    T = torch.diag_embed(torch.cat(diagonal, -1)[..., 0, :])
    if beside:
        # Nothing is read above the diagonal.
        T = T + torch.diag_embed(torch.cat(beside, -1)[..., 0, :], -1)
    values, vectors = torch.linalg.eigh(T)
    first = vectors[..., :1, :]
    steep = values > flat
    inverse = torch.where(steep, 1 / values.clamp(min=flat), 0.0)
    return first * inverse[..., None, :] @ vectors.mT, _norm(first[..., 0, :].masked_fill(steep, 0.0))
