"""What a Gromov problem's solver returns."""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml.ot._gromov.objective import GromovObjective
from otdml.ot._gromov.options import zero_with_gradient
from otdml.ot._result import Coupling, OTResult

__all__ = ["GromovResult"]


@dataclass(frozen=True)
class GromovResult(OTResult):
    r"""A Gromov problem's solution.

    The potentials, the plan and its products are those of the transport problem with the objective linearised at the
    plan. They carry no gradient; :attr:`value` and :attr:`gap` do.

    Attributes:
        eps: The temperature, shape (...) or ().
        divergence: :math:`\mathrm{KL}(P \,|\, a \otimes b)`, shape (...). The entropic objective is
            ``value + eps * divergence``; the gradient of ``value`` is that of this sum. Of an unbalanced problem half
            of :math:`\mathrm{KL}(P \otimes P \,|\, (a \otimes b) \otimes (a \otimes b))`, of a partial one with the
            mass that is not transported.
    """

    eps: Tensor = field(kw_only=True)
    divergence: Tensor = field(kw_only=True)
    _problem: GromovObjective | None = field(kw_only=True, repr=False)
    _shared: Tensor | None = field(kw_only=True, repr=False)
    _solved: "GromovResult | None" = field(kw_only=True, default=None, repr=False)

    def rounded(self, dtype: torch.dtype) -> "GromovResult":
        """The same, read in another dtype than that in which it was solved."""
        names = ("value", "marginal_error", "eps", "divergence")
        numbers = {name: getattr(self, name).to(dtype) for name in names}
        return dataclasses.replace(self, **numbers, _coupling=_Rounded(self._coupling, dtype), _solved=self)

    @property
    def precise_value(self) -> Tensor:
        return self.value if self._solved is None else self._solved.value

    @cached_property
    def gap(self) -> Tensor:
        """The objective at the pairing of equal indices less that at the plan, shape (...).

        It is the Gromov-Monge gap where ``y`` holds the images of ``x``. The constants of the two values cancel
        before they are computed, so it has more correct digits than their difference.

        Raises:
            ValueError: If the clouds differ in size or in weights, so that the pairing is no plan.
        """
        if self._problem is None:
            raise argument_error("rho", "be None, and `mass` too, for a gap", "relaxed marginals")
        if self._shared is None:
            raise argument_error("y", "pair with `x`, row by row and with equal weights", "another measure")
        if self._solved is not None:
            return self._solved.gap.to(self.value.dtype)
        gap = self._problem.gap(self)
        if not self._shared.requires_grad:
            return gap
        return gap + zero_with_gradient(self._shared, self._problem.detach().gap_dual(self, self.f, self.g))

    @property
    def negative_gap(self) -> Tensor:
        """Whether the pairing has a lower objective than the plan, shape (...), boolean.

        A plan at a positive temperature is blurred, so slightly negative gaps are to be expected; :attr:`suboptimal`
        is true of those that the blur does not explain.
        """
        return (self if self._solved is None else self._solved).gap.detach() < 0

    @property
    def suboptimal(self) -> Tensor:
        """Whether the pairing has a lower entropic objective, too, shape (...), boolean.

        Then the iteration has ended in a worse local optimum, and the gradient of the gap has the wrong sign.
        """
        if self._solved is not None:
            return self._solved.suboptimal
        gap = self.gap.detach()
        assert self._problem is not None
        a = self._problem.a
        mass = a.sum(-1)
        pairing = torch.special.entr(a).sum(-1) - mass + mass.square()
        # The margin is for the error of an objective that is solved to a tolerance.
        return gap < self.eps * (self.divergence - pairing - 0.01)


@dataclass(frozen=True)
class _Rounded(Coupling):
    """A plan that is read in another dtype than that in which it was solved."""

    solved: Coupling
    dtype: torch.dtype

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        f, g = self.solved.potentials
        return f.to(self.dtype), g.to(self.dtype)

    def plan(self) -> Tensor:
        return self.solved.plan().to(self.dtype)

    def product(self, v: Tensor) -> Tensor:
        return self.solved.product(v.double()).to(self.dtype)

    def product_transposed(self, v: Tensor) -> Tensor:
        return self.solved.product_transposed(v.double()).to(self.dtype)

    def conditional_product(self, v: Tensor) -> Tensor:
        return self.solved.conditional_product(v.double()).to(self.dtype)
