"""Results of solvers under the transforms of ``torch.func`` and forward-mode derivatives."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec

from torch import Tensor

from otdml._transforms import called, transforming
from otdml.ot._annealing import check_init
from otdml.ot._result import Coupling, OTResult

__all__ = ["transformable_result"]

P = ParamSpec("P")
Solver = Callable[..., OTResult]
Reading = Callable[..., Tensor]


def transformable_result(solver: Callable[P, OTResult]) -> Callable[P, OTResult]:
    """A solver whose results take every transform; there each thing that is read is solved for anew."""
    signature = inspect.signature(solver)

    @functools.wraps(solver)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> OTResult:
        if not transforming(*[v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]):
            return solver(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return _transformed(*_with_named_start(solver, bound.arguments))

    return wrapper


def _with_named_start(solver: Solver, arguments: dict[str, Any]) -> tuple[Solver, dict[str, Any]]:
    """The solver as a function of the potentials to start from, which then are batches as all other tensors are."""
    init = arguments.pop("init")
    if init is None:
        return solver, arguments

    def started(*, f: Tensor | None, g: Tensor | None, **others: Any) -> OTResult:
        return solver(init=(f, g), **others)

    return started, dict(zip("fg", check_init(init), strict=True)) | arguments


def _transformed(solver: Solver, arguments: Mapping[str, Any]) -> OTResult:
    error = called(_Read(solver, lambda result: result.marginal_error), arguments).detach()
    converged = called(_Read(solver, lambda result: result.converged.to(result.value.dtype)), arguments).detach() > 0
    value = called(_Read(solver, lambda result: result.value), arguments)
    return OTResult(value, converged, -1, error, _CalledCoupling(solver, arguments), arguments.get("y"))


@dataclass(frozen=True)
class _Read:
    """What ``reading`` takes from the solver's result, and perhaps from a tensor ``v``."""

    solver: Solver
    reading: Reading

    def __call__(self, v: Tensor | None = None, **arguments: Any) -> Tensor:
        result = self.solver(**arguments)
        return self.reading(result) if v is None else self.reading(result, v)


@dataclass(frozen=True)
class _CalledCoupling(Coupling):
    solver: Solver
    arguments: Mapping[str, Any]

    def _read(self, reading: Reading, **more: Tensor) -> Tensor:
        return called(_Read(self.solver, reading), {**self.arguments, **more}, scalar=False)

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        return self._read(lambda result: result.f), self._read(lambda result: result.g)

    def plan(self) -> Tensor:
        return self._read(lambda result: result.plan)

    def product(self, v: Tensor) -> Tensor:
        return self._read(lambda result, v: result._coupling.product(v), v=v)

    def product_transposed(self, v: Tensor) -> Tensor:
        return self._read(lambda result, v: result._coupling.product_transposed(v), v=v)

    def conditional_product(self, v: Tensor) -> Tensor:
        return self._read(lambda result, v: result._coupling.conditional_product(v), v=v)
