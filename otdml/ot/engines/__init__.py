"""Ways to compute soft minima over a cost, behind one interface."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from otdml._checks import check_choice
from otdml._cost_forms import Mask
from otdml.costs import Ground
from otdml.ot.engines.base import Engine, RowUpdate, SoftMin
from otdml.ot.engines.dense import Dense
from otdml.ot.engines.keops import Symbolic
from otdml.ot.engines.multiscale import Multiscale
from otdml.ot.engines.streamed import Streamed
from otdml.ot.engines.triton import PRECISIONS, Fused, pays

__all__ = [
    "BACKENDS",
    "Dense",
    "Engine",
    "Fused",
    "Multiscale",
    "RowUpdate",
    "SoftMin",
    "Streamed",
    "Symbolic",
    "engine",
]

_ENGINES: dict[str, Callable[[Ground, Mask | None], Engine]] = {
    "dense": Dense,
    "streamed": Streamed,
    "keops": Symbolic,
    "multiscale": Multiscale,
    "triton": Fused,
    # Rounded more coarsely, and so never chosen by "auto".
    **{f"triton-{precision}": partial(Fused, precision=precision) for precision in PRECISIONS[1:]},
}
BACKENDS = ("auto", *_ENGINES)

# Above this many bytes of matrix, only the points are kept.
DENSE_BYTES = 2**30


def engine(cost: Ground, eps: Tensor | float, backend: str = "auto", mask: Mask | None = None) -> Engine:
    """The engine for the reduced cost divided by ``eps``."""
    check_choice("backend", backend, BACKENDS)
    scaled = cost.scaled(1 / eps).detach()
    if backend == "auto":
        entries = cost.shape.numel()
        fits = entries * cost.first.element_size() <= DENSE_BYTES
        backend = "triton" if pays(scaled, mask, fits) else "dense" if fits else "streamed"
    if backend.startswith("triton") and scaled.dtype == torch.float64:
        # The kernels are in single precision, so a problem that is posed anew in double precision is streamed.
        backend = "streamed"
    return _ENGINES[backend](scaled, mask)
