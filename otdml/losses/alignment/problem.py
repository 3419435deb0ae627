"""One alignment problem, anchors against candidates, and its value."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from otdml._checks import argument_error, check_finite
from otdml._cost_forms import Mask
from otdml._fused.barred import Barred
from otdml.costs import Bilinear
from otdml.losses.alignment.logsumexp import (
    Edit,
    logsumexp,
    mutual_logsumexp,
    safe_shift,
    symmetric_logsumexp,
    weighted_logsumexp,
)
from otdml.losses.alignment.options import Options
from otdml.losses.alignment.pairs import Forbidden, Pairing
from otdml.losses.alignment.target import GroupTarget, MatchTarget, PairTarget, Plan
from otdml.ot._problem import Problem, SolverOptions, check_rho
from otdml.ot._sinkhorn import entropic
from otdml.sphere import length, unit

__all__ = ["Alignment", "directions", "factors"]

Potentials = tuple[Tensor | None, Tensor | None]

# Up to this many bytes the kernel is kept during Sinkhorn's iterations, each of which is then a product with a vector.
_KERNEL_BYTES = 2**28
# Up to this many entries a matrix of logits costs less than the overhead of streaming.
_SMALL = 2**16
# Unbalanced plans of similarities beyond the first are solved for in double precision, which ends at the second.
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
    """:func:`otdml.sphere.unit` over a number, with a shorter way back.

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
    # A compiler makes its own way back, shorter than what it can trace.
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
    """

    x: Tensor
    y: Tensor
    eps: Tensor | float
    pairing: Pairing
    target: Plan
    ids: tuple[Tensor, Tensor] | None

    @property
    def forbidden(self) -> Forbidden | None:
        """Pairs without mass, or None if there are none."""
        if self.pairing.itself is None and self.ids is None:
            return None
        return Forbidden(self.pairing.itself, self.ids, self.target.block)

    @property
    def mask(self) -> Mask | None:
        """The same for a solver, by integers where those say it: a fused kernel takes no function."""
        forbidden, kept = self.forbidden, self.target.groups_of_positives
        if forbidden is None or (self.ids is not None and kept is None):
            return forbidden
        candidates = torch.arange(len(self.y), dtype=torch.int32, device=self.y.device)
        own = None if self.pairing.itself is None else (self.pairing.itself.int(), candidates)
        return Barred(own, self.ids, kept if self.ids is not None else None)

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

    def potentials(self, options: Options) -> Potentials:
        """Potentials of the plan that is compared to the target, of mean zero, shapes (n,) and (m,); None for zeros."""
        if options.marginals in ("rows", "none"):
            return None, None
        x, y, a, b = self.x, self.y, self.target.rows, self.target.columns
        check_finite("z1", x)
        check_finite("z2", y)
        if options.constant_potentials:
            # The divergence is least at the solution, so the potential has no part in the first derivative.
            x, y = x.detach(), y.detach()
        if not isinstance(options.marginals, str) and self.bound > _STEEP:
            # Masses of the points of an unbalanced plan differ by up to the exponential of twice that.
            self._check_steepness()
            x, y, a, b = x.double(), y.double(), a.double(), b.double()
        mass: Tensor | float = 0.0
        if not isinstance(options.marginals, str):
            # A common factor of the kernel does not change the shape of the plan. This one gives the kernel a mass of
            # one, as the exponentials of an unbalanced plan's potentials could overflow else.
            with torch.no_grad():
                mass = self._normaliser(None, options).logsumexp(0).to(x.dtype)
        dense = x.element_size() * len(x) * len(y) <= _KERNEL_BYTES
        # With these offsets the reference measure is that of the similarities, not the product of the marginals.
        cost = Bilinear(x, y, _log(a) + mass, _log(b))
        rho = check_rho(None if isinstance(options.marginals, str) else options.marginals)
        # Of a GPU's ways, the one that the solver would choose; on a CPU, none that keeps so large a kernel.
        large = "streamed" if x.device.type == "cpu" else "auto"
        backend = ("dense" if dense else large) if options.backend == "auto" else options.backend
        problem = Problem(cost, a, b, 1.0, rho, self.mask)
        result = entropic(problem, SolverOptions(options.tol, options.max_iter, backend))
        return _centred(result.f, a).to(self.x.dtype), _centred(result.g, b).to(self.x.dtype)

    def _check_steepness(self) -> None:
        if self.bound > 1.01 * _STEEPEST:
            must = f"be at least {1 / _STEEPEST:g} where `marginals` is a penalty"
            raise argument_error("eps", must, f"{1 / self.bound:.3g}", "Masses of the plan overflow below.")

    def value(self, h: Tensor | None, options: Options) -> Tensor:
        """Divergence of the softmax of the similarities plus ``h`` from the target."""
        if options.marginals == "none":
            return self.target.rows.sum() / self.eps - self.target.attraction(self.x, self.y)
        if options.divergence == "kl":
            if self.small(options):
                return self._cross_entropy(self._scores, h)
            return self._total(h, options) - self._attraction(h)
        normaliser = self._normaliser(h, options)
        robust = self._robust(h, normaliser, options)
        if options.divergence == "rince":
            return robust
        return (self.target.rows * normaliser).sum() - self._attraction(h) + options.weight * robust

    def mutual_value(self, turned: "Alignment", h: Potentials, options: Options) -> Tensor | None:
        """The sum of this value and that of the problem with anchors and candidates exchanged, if it is safe."""
        if self.small(options):
            scores = self._scores
            return self._cross_entropy(scores, h[1]) + turned._cross_entropy(scores.mT, h[0])
        if safe_shift(self.bound, self.x.dtype, *h) is None:
            return None
        weights = self.target.rows, turned.target.rows
        terms = turned._terms(h[0]), self._terms(h[1])
        total = mutual_logsumexp(self.x, self.y, terms, weights, self._edit, bound=self.bound)
        return total - self._attraction(h[1]) - turned._attraction(h[0])

    def small(self, options: Options) -> bool:
        """Whether the value is a cross-entropy of few logits, for which torch's own function is the fastest."""
        few = len(self.x) * len(self.y) <= _SMALL and options.backend != "streamed"
        return few and isinstance(self.target, MatchTarget)

    @property
    def _scores(self) -> Tensor:
        scores = self.x @ self.y.mT
        if self._edit is not None:
            # Unseen by autograd: the softmax has no mass at minus infinity, so no gradient comes from there.
            self._edit(scores.detach(), slice(0, len(self.x)), slice(0, len(self.y)))
        return scores

    def _cross_entropy(self, scores: Tensor, h: Tensor | None) -> Tensor:
        return F.cross_entropy(scores if h is None else scores + h, self.pairing.own)

    def _terms(self, h: Tensor | None) -> Tensor:
        """One term for each candidate."""
        return self.y.new_zeros(len(self.y)) if h is None else h

    @property
    def bound(self) -> float:
        """The largest similarity that can be."""
        # Rounding lets the cosine of a vector with itself exceed one.
        eps = self.eps.detach() if isinstance(self.eps, Tensor) else self.eps
        return (1 + 1e-5) / float(eps)

    @property
    def symmetric(self) -> bool:
        """Whether the logits, infinite ones included, are a symmetric matrix."""
        return self.y is self.x and (self.ids is None or isinstance(self.target, (GroupTarget, MatchTarget)))

    @property
    def _edit(self) -> Edit | None:
        return None if self.forbidden is None else self.forbidden.edit

    def _normaliser(self, h: Tensor | None, options: Options) -> Tensor:
        return logsumexp(self.x, self.y, self._terms(h), self._edit, backend=options.backend)

    def _total(self, h: Tensor | None, options: Options) -> Tensor:
        """The mean normaliser."""
        terms, w = self._terms(h), self.target.rows
        shift = safe_shift(self.bound, self.x.dtype, h)
        if self.symmetric and shift is not None and options.backend != "dense" and not terms.requires_grad:
            return symmetric_logsumexp(self.x, terms, w, self._edit, bound=self.bound)
        return weighted_logsumexp(self.x, self.y, terms, w, self._edit, shift=shift, backend=options.backend)

    def _attraction(self, h: Tensor | None) -> Tensor:
        found, b = self.target.attraction(self.x, self.y), self.target.columns
        return found if h is None else found + torch.dot(b, h.where(b > 0, 0.0))

    def _robust(self, h: Tensor | None, normaliser: Tensor, options: Options) -> Tensor:
        # Both powers are taken less one, which cancels, so that no digits are lost as q falls to zero.
        repulsion = self.target.rows * torch.expm1(options.q * (math.log(options.lam) + normaliser))
        return (repulsion.sum() - self._mean_power(h, options)) / options.q

    def _mean_power(self, h: Tensor | None, options: Options) -> Tensor:
        """The mean of exp(q s) - 1 over the target plan."""
        T, q = self.target, options.q
        if isinstance(T, (MatchTarget, PairTarget)):
            return T.mean(torch.expm1(q * T.products(self.x, self.y, h)))

        def weigh(scores: Tensor, rows: slice, columns: slice) -> None:
            scores.add_(T.block(rows, columns).log())

        powers = logsumexp(q * self.x, self.y, q * self._terms(h), weigh, backend=options.backend)
        a = T.rows
        return (a * torch.expm1(powers - _log(a))).sum()


def _centred(g: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, g - (b * g).sum(), -torch.inf)


def _log(a: Tensor) -> Tensor:
    # Points without mass have potentials all the same; their logarithm is left out of them.
    return torch.where(a > 0, a, 1.0).log()
