"""One alignment problem, anchors against candidates, and its value."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from otdml._checks import argument_error, check_finite
from otdml.costs import Bilinear
from otdml.losses.alignment.logits import KERNEL_BYTES, Logits
from otdml.losses.alignment.options import Options
from otdml.losses.alignment.pairs import Forbidden, Pairing
from otdml.losses.alignment.target import TargetPlan
from otdml.ot._problem import HARD, Problem, SolverOptions
from otdml.ot._sinkhorn import solution
from otdml.sphere import length, unit

__all__ = ["Alignment", "directions", "factors"]

Potentials = tuple[Tensor | None, Tensor | None]

# Largest similarities over the temperature, beyond which unbalanced plans take double precision, and are refused.
_STEEP, _STEEPEST = 30.0, 500.0


def factors(z1: Tensor, z2: Tensor, eps: Tensor | float, *, joint: bool) -> tuple[Tensor, Tensor]:
    """Anchors and candidates whose scalar products are cosines over ``eps``: one and the same tensor if ``joint``."""
    root = eps**0.5
    fixed = 1.0 if isinstance(root, Tensor) else root
    parts = (torch.cat([z1, z2]),) if joint else (z1, z2)
    found = [directions(z, fixed) for z in parts]
    found = [z / root for z in found] if isinstance(root, Tensor) else found
    return found[0], found[-1]


def directions(z: Tensor, divisor: float = 1.0) -> Tensor:
    """:func:`otdml.sphere.unit` divided by a number, with a cheaper backward pass.

    Args:
        z: Vectors, shape (n, d).
        divisor: The number.

    Returns:
        Shape (n, d).

    Example:
        >>> import torch
        >>> directions(torch.tensor([[3.0, 4.0]]), 0.1)
        tensor([[6., 8.]])
    """
    # A compiler derives a backward pass of its own, and cannot trace this one.
    return unit(z) / divisor if torch.compiler.is_compiling() else _Directions.apply(z, divisor)


class _Directions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, divisor: float) -> Tensor:
        norm = length(z)
        norm *= divisor
        x = z / norm
        ctx.divisor = divisor
        ctx.save_for_backward(z, x, norm)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, x, norm = ctx.saved_tensors
        if torch.is_grad_enabled():
            # For a second derivative, which has to see how the length depends on z.
            norm = ctx.divisor * length(z)
            x = z / norm
        along = (x * grad).sum(-1, keepdim=True)
        return torch.addcmul(grad, x, along, value=-(ctx.divisor**2)).div_(norm), None


@dataclass(frozen=True, eq=False)
class Alignment:
    """Anchors, candidates and the target plan between them.

    Attributes:
        x: Anchors, shape (n, d), whose scalar products with the candidates are cosines over the temperature.
        y: Candidates, shape (m, d), the same tensor as x where all samples are both.
        eps: Temperature.
        pairing: Which candidates belong to which anchor.
        target: Target plan.
        ids: Instance of each anchor and candidate, or None.
        backend: How matrices are treated.
        logits: The similarities over the temperature.
    """

    x: Tensor
    y: Tensor
    eps: Tensor | float
    pairing: Pairing
    target: TargetPlan
    ids: tuple[Tensor, Tensor] | None
    backend: str = "auto"
    logits: Logits = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        symmetric = self.y is self.x and (self.ids is None or self.target.symmetric)
        logits = Logits(self.x, self.y, self.eps, self.forbidden, symmetric, self.backend)
        object.__setattr__(self, "logits", logits)

    @property
    def forbidden(self) -> Forbidden | None:
        """Pairs without mass, or None if there are none."""
        if self.pairing.itself is None and self.ids is None:
            return None
        kept = None if self.ids is None else self.target.groups_of_positives
        return Forbidden(self.pairing, self.ids, self.target.block, kept)

    def part(self, anchors: Tensor | None) -> "Alignment":
        """The same candidates for some anchors, None for all."""
        if anchors is None:
            return self
        return dataclasses.replace(
            self,
            x=self.x[anchors],
            pairing=self.pairing.take(anchors),
            target=self.target.take(anchors),
            ids=self.ids and (self.ids[0][anchors], self.ids[1]),
        )

    def potentials(self, options: Options, *, both: bool = False) -> Potentials:
        """Potentials of the plan that is compared to the target, of mean zero, shapes (n,) and (m,); None for zeros.

        Args:
            options: The options.
            both: Whether the potential of the anchors is wanted, and not that of the candidates alone.
        """
        if options.marginals in ("rows", "none"):
            return None, None
        check_finite("z1", self.x)
        check_finite("z2", self.y)
        problem = self._transport(options)
        found = SolverOptions(options.tol, options.max_iter, self._transport_backend(problem))
        f, g = solution(problem, found).potentials
        row = _centred(f, problem.a).to(self.x.dtype) if both else None
        return row, _centred(g, problem.b).to(self.x.dtype)

    def _transport(self, options: Options) -> Problem:
        """The transport problem of the plan, at the temperature one."""
        x, y, a, b = self.x, self.y, self.target.rows, self.target.columns
        if options.constant_potentials:
            # The divergence is least at the solution, so the potential has no part in the first derivative.
            x, y = x.detach(), y.detach()
        mass: Tensor | float = 0.0
        if options.penalties is not None:
            if self.logits.bound > _STEEP:
                # Masses of the points of an unbalanced plan differ by up to the exponential of twice that.
                _check_steepness(self.logits.bound)
                x, y, a, b = x.double(), y.double(), a.double(), b.double()
            # A common factor of the kernel does not change the shape of the plan. This one gives the kernel a mass of
            # one; otherwise exponentials of an unbalanced plan's potentials could overflow.
            mass = self.logits.log_mass().to(x.dtype)
        # With these offsets the reference measure is that of the similarities, not the product of the marginals.
        cost = Bilinear(x, y, _log(a) + mass, _log(b))
        forbidden = self._forbidden_with_mass(a, b)
        return Problem(cost, a, b, 1.0, options.penalties or HARD, forbidden and forbidden.mask)

    def _transport_backend(self, problem: Problem) -> str:
        """The engine of the iterations, which keeps a kernel up to ``KERNEL_BYTES``."""
        if self.backend != "auto":
            return self.backend
        cost = problem.cost
        if cost.shape.numel() * cost.first.element_size() <= KERNEL_BYTES:
            return "dense"
        return "streamed" if cost.device.type == "cpu" else "auto"

    def _forbidden_with_mass(self, a: Tensor, b: Tensor) -> Forbidden | None:
        """The forbidden pairs of points with mass.

        All pairs of a point without mass may be forbidden. It has no part in the plan, and its potential is a number if
        one of its pairs is admissible.
        """
        if self.forbidden is None or self.ids is None:
            return self.forbidden
        first, second = self.ids
        new = torch.minimum(first.amin(), second.amin()) - 1
        ids = torch.where(a > 0, first, new), torch.where(b > 0, second, new - 1)
        return dataclasses.replace(self.forbidden, ids=ids)

    def value(self, h: Tensor | None, options: Options) -> Tensor:
        """Divergence of the softmax of the similarities plus ``h`` from the target."""
        if options.marginals == "none":
            return self.target.rows.sum() / self.eps - self.target.attraction(self.x, self.y)
        logits = self.logits
        if options.divergence == "kl":
            if self.target.match is not None and logits.small:
                # Torch's own function is the fastest for a small matrix.
                return F.cross_entropy(logits.matrix(h), self.target.match)
            return logits.weighted_logsumexp(self.target.rows, h) - self._attraction(h)
        normaliser = logits.logsumexp(h)
        robust = self._robust(h, normaliser, options)
        if options.divergence == "rince":
            return robust
        return (self.target.rows * normaliser).sum() - self._attraction(h) + options.weight * robust

    def mutual_value(self, swapped: "Alignment", h: Potentials) -> Tensor | None:
        """The sum of this value and that of the problem with anchors and candidates exchanged, from the same logits.

        None where a common shift of all logits is not safe.
        """
        logits, own, others = self.logits, self.target.match, swapped.target.match
        if own is not None and others is not None and logits.small:
            scores = logits.matrix()
            forward, backward = ((s if t is None else s + t) for s, t in ((scores, h[1]), (scores.mT, h[0])))
            return F.cross_entropy(forward, own) + F.cross_entropy(backward, others)
        total = logits.mutual_logsumexp((self.target.rows, swapped.target.rows), h)
        return None if total is None else total - self._attraction(h[1]) - swapped._attraction(h[0])

    def _attraction(self, h: Tensor | None) -> Tensor:
        found, b = self.target.attraction(self.x, self.y), self.target.columns
        return found if h is None else found + torch.dot(b, h.where(b > 0, 0.0))

    def _robust(self, h: Tensor | None, normaliser: Tensor, options: Options) -> Tensor:
        # Both powers are taken less one, which cancels in the sum and keeps digits as q falls to zero.
        q = options.q
        repulsion = self.target.rows * torch.expm1(q * (math.log(options.lam) + normaliser))
        return (repulsion.sum() - self.target.expectation(lambda s: torch.expm1(q * s), self.x, self.y, h)) / q


def _check_steepness(bound: float) -> None:
    if bound > 1.01 * _STEEPEST:
        must = f"be at least {1 / _STEEPEST:g} where `marginals` is a penalty"
        raise argument_error("eps", must, f"{1 / bound:.3g}", "Masses of the plan overflow below.")


def _centred(g: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, g - (b * g).sum(), -torch.inf)


def _log(a: Tensor) -> Tensor:
    # Points without mass have potentials all the same; their logarithm is left out of them.
    return torch.where(a > 0, a, 1.0).log()
