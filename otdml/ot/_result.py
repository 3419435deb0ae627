"""What a solver returns."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from otdml._checks import argument_error

__all__ = ["Coupling", "OTResult"]


class Coupling(ABC):
    """A plan and its potentials, computed on demand, in the dtype of the problem."""

    @property
    @abstractmethod
    def potentials(self) -> tuple[Tensor, Tensor]:
        """f and g in units of the cost, shapes (..., n) and (..., m)."""

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """The plan times ``v``, shape (..., n, e) for ``v`` of shape (..., m, e)."""

    @abstractmethod
    def product_transposed(self, v: Tensor) -> Tensor:
        """The transposed plan times ``v``, shape (..., m, e) for ``v`` of shape (..., n, e)."""

    @abstractmethod
    def plan(self) -> Tensor:
        """The plan, shape (..., n, m)."""

    def conditional_product(self, v: Tensor) -> Tensor:
        """The plan times ``v``, up to a factor for each row that may make rows of little mass readable."""
        return self.product(v)


@dataclass(frozen=True)
class OTResult:
    r"""A transport problem's solution.

    Attributes:
        value: The optimal value, shape (...); it carries the gradient in the points, the weights or the matrix.
        converged: Whether the marginal error is within the tolerance, shape (...).
        n_iter: Number of iterations that it took; -1 under a transform of ``torch.func``, where it is not known.
        marginal_error: L1 error of the plan's marginals relative to the mass, shape (...). What rounding of the
            potentials may add to it is part of it.

    Potentials and plan of an entropic problem are differentiable; those of others (exact, Gromov, low-rank) carry no
    gradient. The plan is computed on demand; :meth:`apply`, :meth:`apply_transpose` and :attr:`marginals` never form it
    on an engine that does not keep the matrix. What would be read of costs or points that were changed in place in the
    meantime raises a RuntimeError.
    """

    value: Tensor
    converged: Tensor
    n_iter: int
    marginal_error: Tensor
    _coupling: Coupling = field(repr=False)
    _y: Tensor | None = field(default=None, repr=False)
    _precise: Tensor | None = field(default=None, repr=False)

    @property
    def precise_value(self) -> Tensor:
        """The value in the precision in which the problem was solved, for differences of values that nearly agree."""
        return self.value if self._precise is None else self._precise

    @property
    def f(self) -> Tensor:
        """The first potential, shape (..., n), in the units of the cost."""
        return self._coupling.potentials[0]

    @property
    def g(self) -> Tensor:
        """The second potential, shape (..., m), in the units of the cost."""
        return self._coupling.potentials[1]

    @property
    def plan(self) -> Tensor:
        """The transport plan, shape (..., n, m)."""
        return self._coupling.plan()

    @property
    def marginals(self) -> tuple[Tensor, Tensor]:
        """The plan's row sums (..., n) and column sums (..., m)."""
        return self.apply(torch.ones_like(self.g)), self.apply_transpose(torch.ones_like(self.f))

    def apply(self, v: Tensor) -> Tensor:
        r"""The plan times ``v``.

        Args:
            v: Shape (..., m), or (..., m, e).

        Returns:
            :math:`\sum_j P_{ij} v_j`, shape (..., n), or (..., n, e).
        """
        return _columns(self._coupling.product, v, self.g)

    def apply_transpose(self, v: Tensor) -> Tensor:
        r"""The transposed plan times ``v``.

        Args:
            v: Shape (..., n), or (..., n, e).

        Returns:
            :math:`\sum_i P_{ij} v_i`, shape (..., m), or (..., m, e).
        """
        return _columns(self._coupling.product_transposed, v, self.f)

    def barycentric_map(self, y: Tensor | None = None) -> Tensor:
        r"""Where the plan sends each point of x on average, :math:`\sum_j P_{ij} y_j / \sum_j P_{ij}`.

        A point without weight, or whose mass is given up, is sent where a little of it would go.

        Args:
            y: Values at the second points, shape (..., m, e). The points themselves if None.

        Returns:
            Shape (..., n, e).

        Raises:
            ValueError: If ``y`` is None and the solver was given costs in place of points of one space.
        """
        y = self._y if y is None else y
        if y is None:
            must = "be given where the solver compared costs and not points of one space"
            raise argument_error("y", must, "None", "Pass the second points, or values at them.")
        image = _columns(self._coupling.conditional_product, torch.cat([y, torch.ones_like(y[..., :1])], -1), self.g)
        return image[..., :-1] / image[..., -1:]


def _columns(product: Callable[[Tensor], Tensor], v: Tensor, potential: Tensor) -> Tensor:
    if not isinstance(v, Tensor):
        remedy = "Convert it with `torch.as_tensor`."
        raise argument_error("v", "be a torch.Tensor", type(v).__name__, remedy, TypeError)
    if v.shape == potential.shape:
        return product(v[..., None])[..., 0]
    if v.ndim != potential.ndim + 1 or v.shape[:-1] != potential.shape:
        must = f"have shape {tuple(potential.shape)}, or one more dimension"
        raise argument_error("v", must, tuple(v.shape))
    return product(v)
