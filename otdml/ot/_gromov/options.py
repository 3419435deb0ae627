"""How a Gromov problem is solved, and the weights that its result is differentiated in."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from otdml._checks import check_choice, check_fields, check_integer, check_positive
from otdml._warnings import warn_caller
from otdml.ot._gromov.starts import Init

__all__ = ["GROMOV_BACKENDS", "GromovOptions", "Marginals", "zero_with_gradient"]

# Engines that take any number of features and batches of starts.
GROMOV_BACKENDS = ("auto", "dense", "streamed")


@dataclass(frozen=True)
class GromovOptions:
    """When and how a problem is solved; see :func:`~otdml.ot.gromov`."""

    eps: float | Tensor | None
    tol: float
    max_iter: int
    init: Init
    backend: str

    def __post_init__(self) -> None:
        check_fields(self, tol=check_positive, max_iter=check_integer)
        check_choice("backend", self.backend, GROMOV_BACKENDS)

    def warn_unless(self, converged: Tensor) -> None:
        """Warn where a descent has stopped at ``max_iter``."""
        if not bool(converged.all()):
            warn_caller(
                f"Gromov-Wasserstein stopped at `max_iter`={self.max_iter} before its steps fell below "
                f"`tol`={self.tol:g}. Raise `max_iter` or `eps`, or accept a larger `tol`."
            )


@dataclass(frozen=True)
class Marginals:
    """The weights, with their graph.

    Attributes:
        a: Shape (..., n).
        b: Shape (..., m).
        shared: The weights of both clouds where pairing equal indices is a plan, else None.
    """

    a: Tensor
    b: Tensor
    shared: Tensor | None

    def to(self, dtype: torch.dtype) -> "Marginals":
        shared = self.shared if self.shared is None else self.shared.to(dtype)
        return Marginals(self.a.to(dtype), self.b.to(dtype), shared)

    def differentiated(self, value: Tensor, duals: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        """``value``, with these gradients in the weights."""
        if not (self.a.requires_grad or self.b.requires_grad):
            return value
        da, db = duals()
        return value + zero_with_gradient(self.a, da) + zero_with_gradient(self.b, db)


def zero_with_gradient(w: Tensor, gradient: Tensor) -> Tensor:
    """Zero, shape (...), with this gradient in the weights ``w``, shape (..., n)."""
    return ((w - w.detach()) * gradient).sum(-1)
