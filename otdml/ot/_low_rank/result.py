"""What a solver of low rank returns."""

from dataclasses import dataclass, field

from torch import Tensor

from otdml.ot._low_rank.coupling import LowRankCoupling
from otdml.ot._result import OTResult

__all__ = ["LowRankResult"]


@dataclass(frozen=True)
class LowRankResult(OTResult):
    r"""A plan of low rank.

    The plan and its factors carry no gradient; :attr:`value` does. :attr:`f` and :attr:`g` are the derivatives of the
    objective in the weights, up to a constant, and carry none either. Products with the plan are computed from its
    factors; only :attr:`plan` is a matrix of n × m.

    Attributes:
        eps: Temperature, shape (...).
        divergence: The sum of the divergences of Q, R and g from independence, shape (...). The objective is
            ``value + eps * divergence``; the gradient of ``value`` is that of this sum.
        error: The larger of two errors of the last iterate, shape (...). The first is the distance of the factors from
            those that minimise the objective linearised at them: the root mean square distance between the means of
            the hubs' points, in units of that of all points from their mean. The second is the share of the mass by
            which the hubs' masses differ on the two sides, before this is corrected in the plan. ``converged`` says
            that it is within the tolerance.
    """

    eps: Tensor = field(kw_only=True)
    divergence: Tensor = field(kw_only=True)
    error: Tensor = field(kw_only=True)

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Q (..., n, r), R (..., m, r) and g (..., r), with :math:`P = Q \, \mathrm{diag}(1/g) \, R^\top`."""
        assert isinstance(self._coupling, LowRankCoupling)
        return self._coupling.factors
