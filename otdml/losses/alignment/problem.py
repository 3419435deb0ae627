"""One alignment problem, anchors against candidates, and its value."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import check_finite
from otdml.costs import Bilinear
from otdml.losses.alignment.logsumexp import Edit, logsumexp, weighted_logsumexp
from otdml.losses.alignment.options import Options
from otdml.losses.alignment.pairing import Forbidden, Pairing
from otdml.losses.alignment.target import PairTarget, Plan
from otdml.ot.sinkhorn import entropic

__all__ = ["Alignment"]

# Up to this many bytes the kernel is kept during Sinkhorn's iterations, each of which is then a product with a vector.
_KERNEL_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Alignment:
    """Anchors, candidates and the target plan between them.

    Attributes:
        x: Unit anchors over the temperature, shape (n, d).
        y: Unit candidates, shape (m, d).
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

    def take(self, anchors: Tensor) -> "Alignment":
        """The same candidates for some anchors."""
        return dataclasses.replace(
            self,
            x=self.x[anchors],
            pairing=self.pairing.take(anchors),
            target=self.target.take(anchors),
            ids=self.ids and (self.ids[0][anchors], self.ids[1]),
        )

    def potential(self, options: Options) -> Tensor:
        """Column potential of the plan that is compared to the target, of mean zero, shape (m,)."""
        if options.marginals in ("rows", "none"):
            return self.y.new_zeros(len(self.y))
        x, y, a, b = self.x, self.y, self.target.rows, self.target.columns
        check_finite("z1", x)
        check_finite("z2", y)
        if options.marginals == "balanced" and options.divergence == "kl":
            # The divergence is least at the solution, so the potential has no part in the first derivative.
            x, y = x.detach(), y.detach()
        with torch.no_grad():
            # A common factor of the kernel does not change the shape of the plan. This one gives the kernel a mass of
            # one, as the exponentials of an unbalanced plan's potentials could overflow else.
            mass = self._normaliser(self.y.new_zeros(len(self.y)), options).logsumexp(0)
        dense = x.element_size() * len(x) * len(y) <= _KERNEL_BYTES
        result = entropic(
            # With these offsets the reference measure is that of the similarities, not the product of the marginals.
            Bilinear(x, y, _log(a) + mass, _log(b)),
            a,
            b,
            eps=1.0,
            rho=None if isinstance(options.marginals, str) else options.marginals,
            tol=options.tol,
            max_iter=options.max_iter,
            backend=("dense" if dense else "streamed") if options.backend == "auto" else options.backend,
            mask=self.forbidden,
        )
        return torch.where(b > 0, result.g - (b * result.g).sum(), -torch.inf)

    def value(self, h: Tensor, options: Options) -> Tensor:
        """Divergence of the softmax of the similarities plus ``h`` from the target."""
        if options.marginals == "none":
            return self.target.rows.sum() / self.eps - self._attraction(h)
        if options.divergence == "kl":
            terms = self.x, self.y, h, self.target.rows
            return weighted_logsumexp(*terms, self._edit, backend=options.backend) - self._attraction(h)
        normaliser = self._normaliser(h, options)
        robust = self._robust(h, normaliser, options)
        if options.divergence == "rince":
            return robust
        return (self.target.rows * normaliser).sum() - self._attraction(h) + options.weight * robust

    @property
    def _edit(self) -> Edit | None:
        return None if self.forbidden is None else self.forbidden.edit

    def _normaliser(self, h: Tensor, options: Options) -> Tensor:
        return logsumexp(self.x, self.y, h, self._edit, backend=options.backend)

    def _attraction(self, h: Tensor) -> Tensor:
        b = self.target.columns
        return (self.x * self.target.product(self.y)).sum() + (b * torch.where(b > 0, h, 0.0)).sum()

    def _robust(self, h: Tensor, normaliser: Tensor, options: Options) -> Tensor:
        # Both powers are taken less one, which cancels, so that no digits are lost as q falls to zero.
        repulsion = self.target.rows * torch.expm1(options.q * (math.log(options.lam) + normaliser))
        return (repulsion.sum() - self._mean_power(h, options)) / options.q

    def _mean_power(self, h: Tensor, options: Options) -> Tensor:
        """The mean of exp(q s) - 1 over the target plan."""
        T, q = self.target, options.q
        if isinstance(T, PairTarget):
            return (T.mass * torch.expm1(q * ((self.x[T.i] * self.y[T.j]).sum(-1) + h[T.j]))).sum()

        def weigh(scores: Tensor, rows: slice) -> None:
            scores.add_(T.block(rows, slice(0, len(self.y))).log())

        powers = logsumexp(q * self.x, self.y, q * h, weigh, backend=options.backend)
        a = T.rows
        return (a * torch.expm1(powers - _log(a))).sum()


def _log(a: Tensor) -> Tensor:
    # Points without mass have potentials all the same; their logarithm is left out of them.
    return torch.where(a > 0, a, 1.0).log()
