"""Ways to compute soft minima over a cost, behind one interface."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from otdml._checks import check_choice
from otdml.costs import Ground
from otdml.ot.engines.dense import Dense
from otdml.ot.engines.keops import Symbolic
from otdml.ot.engines.multiscale import Multiscale
from otdml.ot.engines.streamed import Mask, Streamed, Update

__all__ = ["BACKENDS", "Dense", "Engine", "Mask", "Multiscale", "Streamed", "Symbolic", "engine"]

_ENGINES: dict[str, type[Streamed]] = {
    "dense": Dense,
    "streamed": Streamed,
    "keops": Symbolic,
    "multiscale": Multiscale,
}
BACKENDS = ("auto", *_ENGINES)

# Above this many bytes of matrix, only the points are kept.
DENSE_BYTES = 2**30


class Engine(Protocol):
    """Soft minima and plan products of one dimensionless cost; see :class:`Streamed` for the definitions."""

    keeps_matrix: bool
    cost: Ground

    @property
    def has_kernel(self) -> bool: ...
    @property
    def shape(self) -> torch.Size: ...
    @property
    def mT(self) -> "Engine": ...
    def start(self, a: Tensor, b: Tensor, *, balanced: bool) -> Tensor: ...
    def centre(self, g: Tensor) -> None: ...
    def recentre(self, f: Tensor, g: Tensor, *, lost: bool = False) -> bool: ...
    def rows(self, h: Tensor) -> Tensor: ...
    def columns(self, h: Tensor) -> Tensor: ...
    def sweep(self, h: Tensor, log: Tensor, update: Update) -> tuple[Tensor, Tensor]: ...
    def scalings(self, g: Tensor, a: Tensor, b: Tensor, times: int) -> tuple[Tensor, Tensor] | None: ...
    def excess(self, f: Tensor, g: Tensor, b: Tensor) -> Tensor: ...
    def plan(self, hf: Tensor, hg: Tensor) -> Iterator[tuple[slice, Tensor]]: ...
    def product(self, hf: Tensor, hg: Tensor, v: Tensor) -> Tensor: ...
    def sparse(self, b: Tensor, g: Tensor) -> "Engine | None": ...


def engine(cost: Ground, eps: Tensor | float, backend: str = "auto", mask: Mask | None = None) -> Engine:
    """The engine for the reduced cost divided by ``eps``."""
    check_choice("backend", backend, BACKENDS)
    scaled = cost.detach().scaled(1 / eps)
    if backend == "auto":
        entries = cost.shape.numel()
        backend = "dense" if entries * cost.leaves[0].element_size() <= DENSE_BYTES else "streamed"
    return _ENGINES[backend](scaled, mask)
