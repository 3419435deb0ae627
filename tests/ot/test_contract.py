"""The laws that every public function of ``otdml.ot`` obeys; a new one joins by one line in ``SOLVERS``.

A line says what is read of it, one number per problem, and which laws do not apply and why. Derivatives and transforms
are held by ``tests/test_contract_transforms.py``.

========  ===================  ================================================================
kind      call                 meaning
========  ===================  ================================================================
measures  ``(x, y, a, b)``     two weighted clouds, whose weights may be None
scores    ``(x)``              numbers, of which there are n
========  ===================  ================================================================
"""

import re
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from draws import seeded
from torch import Tensor
from torch.nn.functional import pad

import otdml.ot
from otdml.costs import cost_matrix
from otdml.measures import weights
from otdml.ot import (
    exact,
    exact_matrix,
    gromov,
    gromov_matrix,
    low_rank_sinkhorn,
    semidiscrete,
    sinkhorn,
    sinkhorn_barycenter,
    sinkhorn_matrix,
    sliced,
    soft_rank,
    soft_topk,
    wasserstein_1d,
)


@dataclass(frozen=True)
class Solver:
    """One line of the contract.

    Attributes:
        function: A public function.
        read: One number per problem, from the function with its options and the tensors of the kind.
        options: Those with which it is called.
        kind: The kind of arguments.
        without: Laws that do not apply, and why.
        title: What it does, where that is not its name.
    """

    function: Callable[..., Any]
    read: Callable[..., Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "measures"
    without: dict[str, str] = field(default_factory=dict)
    title: str = ""

    @property
    def name(self) -> str:
        return self.title or self.function.__name__

    def __call__(self, *tensors: Tensor | None, cast: bool = False, **changes: Any) -> Tensor:
        def solve(*given: Any, **own: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                return self.function(*given, **own, **self.options | changes)

        return self.read(solve, *tensors)


def tilted(values: Tensor) -> Tensor:
    """A sum over the last dimension with unequal factors."""
    return values @ torch.linspace(-1, 2, values.shape[-1], dtype=values.dtype)


def of_value(solve, x, y, a=None, b=None):
    return solve(x, y, a, b).value


def of_matrix(solve, x, y, a=None, b=None):
    return solve(cost_matrix(x.float(), y.float()) if x.dtype.itemsize == 2 else cost_matrix(x, y), a, b).value


def of_matrices(solve, x, y, a=None, b=None):
    x, y = (t.float() if t.dtype.itemsize == 2 else t for t in (x, y))
    return solve(cost_matrix(x, x), cost_matrix(y, y), a, b).value


def of_features(solve, x, y, a=None, b=None):
    return solve(x, y, a, b, features=(x, y)).value


def of_line(solve, x, y, a=None, b=None):
    return solve(x[..., 0], y[..., 0], a, b)


def clouds(x, y, a, b):
    """Two clouds as one tensor: the second one has a point of no weight more."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2], *(w.shape[:-1] for w in (a, b) if w is not None))
    a, b = (weights(p, w).expand(*batch, -1) for p, w in ((x, a), (y, b)))
    x, y = (t.expand(*batch, -1, -1) for t in (x, y))
    short = x.shape[-2] - y.shape[-2]
    x, y = pad(x, (0, 0, 0, max(0, -short))), pad(y, (0, 0, 0, max(0, short)))
    a, b = pad(a, (0, max(0, -short))), pad(b, (0, max(0, short)))
    return torch.stack([x, y], -3), torch.stack([a, b], -2)


def of_free_points(solve, x, y, a=None, b=None):
    points, masses = clouds(x, y, a, b)
    start = torch.tensor([[0.0, 1.0, 0.5], [2.0, 0.25, -1.0]], dtype=points.dtype)
    return tilted(solve(points, None, masses, init=start).points.flatten(-2))


def of_support(solve, x, y, a=None, b=None):
    points, masses = clouds(x, y, a, b)
    support = torch.tensor([[0.0, 1.0, 0.5], [2.0, 0.25, -1.0], [-1.0, -1.0, 0.0]], dtype=points.dtype)
    return tilted(solve(points, None, masses, support=support).weights)


def of_samples(solve, x, y, a=None, b=None):
    return solve(x, y, b, generator=seeded()).value


def of_scores(solve, x):
    return tilted(solve(x).to(torch.promote_types(x.dtype, torch.float32)))


TIGHT = {"eps": 2.0, "tol": 1e-9, "max_iter": 5000}
ONE = "it solves one problem"
SOLVERS = [
    Solver(exact, of_value),
    Solver(exact, of_value, {"mass": 0.6}, title="exact of a mass"),
    Solver(exact_matrix, of_matrix),
    Solver(sinkhorn, of_value, TIGHT),
    Solver(sinkhorn, of_value, TIGHT | {"mass": 0.6}, title="sinkhorn of a mass"),
    Solver(sinkhorn, of_value, TIGHT | {"rho": 3.0, "backend": "streamed"}, title="sinkhorn unbalanced"),
    Solver(sinkhorn_matrix, of_matrix, TIGHT),
    Solver(low_rank_sinkhorn, of_value, {"rank": 1, "tol": 1e-8}),
    Solver(gromov, of_value, TIGHT | {"eps": 20.0}),
    Solver(gromov, of_features, TIGHT | {"eps": 20.0, "alpha": 0.5}, title="gromov fused"),
    Solver(gromov, of_value, TIGHT | {"eps": 20.0, "mass": 0.6}, title="gromov of a mass"),
    Solver(gromov, of_value, TIGHT | {"eps": 20.0, "rho": 20.0}, title="gromov unbalanced"),
    Solver(gromov_matrix, of_matrices, TIGHT | {"eps": 20.0}),
    Solver(sinkhorn_barycenter, of_free_points, TIGHT),
    Solver(sinkhorn_barycenter, of_support, TIGHT | {"debias": False}, title="sinkhorn_barycenter on a support"),
    Solver(sliced, lambda solve, *t: solve(*t, generator=seeded()), {"n_projections": 5}),
    Solver(wasserstein_1d, of_line),
    Solver(soft_rank, of_scores, {"eps": 0.5, "tol": 1e-9}, "scores"),
    Solver(
        soft_topk,
        of_scores,
        {"k": 2, "eps": 0.5},
        "scores",
        {"infinity": "one of the k largest is chosen, by however much it is larger"},
    ),
    Solver(
        semidiscrete,
        of_samples,
        {"n_samples": 64, "n_steps": 8},
        without={
            "batch": ONE,
            "empty batch": ONE,
            "shared": ONE,
            "order": "the samples are drawn by number",
            "doubled point": "its steps are random, and differ with the number of points",
            "zero weight": "weights are those of the second points alone",
            "float32": "its steps are random, and a sample near a border goes to either side",
        },
    ),
]
# Public functions without a line, and why.
WITHOUT = {
    "couple": "it draws pairs of indices: their frequencies are held to plans by test_couplings.py",
    "pad_clouds": "it solves nothing: solvers of what it makes are held to loops by test_padding.py",
}
LAWS: set[str] = set()


def obeys(law: str, *kinds: str):
    """Parametrise a test over the solvers of these kinds (all, if none is named) that do not waive ``law``."""
    LAWS.add(law)
    chosen = [s for s in SOLVERS if (s.kind in kinds or not kinds) and law not in s.without]
    return pytest.mark.parametrize("solver", chosen, ids=lambda solver: solver.name)


def points_of(solver: Solver, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = seeded()
    if solver.kind == "scores":
        return [torch.randn(*batch, 6, generator=generator, dtype=torch.float64).to(dtype)]
    return [torch.randn(*batch, n, 3, generator=generator, dtype=torch.float64).to(dtype) for n in (6, 5)]


def weights_of(solver: Solver, points: list[Tensor]) -> list[Tensor]:
    if solver.kind == "scores":
        return []
    generator = torch.Generator().manual_seed(7)
    raw = [torch.rand(x.shape[:-1], generator=generator, dtype=torch.float64) + 0.5 for x in points]
    return [(a / a.sum(-1, keepdim=True)).to(points[0].dtype) for a in raw]


def close(actual: Tensor, expected: Tensor, tol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


@obeys("batch")
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_batch_is_loop(solver, weighted):
    points = points_of(solver, (2, 2))
    tensors = points + (weights_of(solver, points) if weighted else [])
    found = solver(*tensors)
    assert found.shape == (2, 2)
    close(found, torch.stack([torch.stack([solver(*(t[i, j] for t in tensors)) for j in range(2)]) for i in range(2)]))


@obeys("shared", "measures")
def test_what_has_no_batch_is_shared_by_all_of_it(solver):
    points = points_of(solver, (2,))
    tensors = points + weights_of(solver, points)
    for i in range(len(tensors)):
        shared = [t[0] if i == j else t for j, t in enumerate(tensors)]
        close(solver(*shared), solver(*(t[:1].expand_as(t) if i == j else t for j, t in enumerate(tensors))))


@obeys("empty batch")
def test_a_batch_of_no_problems_has_no_values(solver):
    assert solver(*points_of(solver, (0,))).shape == (0,)


@obeys("layout")
def test_layout_in_memory_is_immaterial(solver):
    points = points_of(solver)
    tensors = points + weights_of(solver, points)
    close(solver(*(torch.stack([t, -t], -1)[..., 0] for t in tensors)), solver(*tensors))
    # A negation that is due, of which NumPy knows nothing.
    close(solver(*(torch.complex(t, -t).conj().imag for t in tensors)), solver(*tensors))


@obeys("order", "measures")
def test_order_of_points_is_immaterial(solver):
    x, y = points_of(solver)
    a, b = weights_of(solver, [x, y])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    close(solver(x[order], y.flip(0), a[order], b.flip(0)), solver(x, y, a, b))


@obeys("doubled point", "measures")
def test_doubled_point_is_doubled_weight(solver):
    x, y = points_of(solver)
    even = torch.full((7,), 1 / 7, dtype=x.dtype)
    once = torch.tensor([2, 1, 1, 1, 1, 1], dtype=x.dtype) / 7
    close(solver(torch.cat([x, x[:1]]), y, even, None), solver(x, y, once, None))


@obeys("zero weight", "measures")
def test_point_of_no_weight_is_absent(solver):
    x, y = points_of(solver)
    a, b = weights_of(solver, [x, y])
    far = torch.cat([x, 5 * x[:2]]), torch.cat([y, y[:1], -7 * y[1:2]])
    close(solver(*far, pad(a, (0, 2)), pad(b, (0, 2))), solver(x, y, a, b))


@obeys("uniform weights", "measures")
def test_no_weights_are_uniform_weights(solver):
    x, y = points_of(solver)
    close(solver(x, y, weights(x, None), weights(y, None)), solver(x, y))


@obeys("float32")
def test_float32_agrees_with_float64(solver):
    points = points_of(solver)
    tensors = points + weights_of(solver, points)
    found = solver(*(t.float() for t in tensors), **({"tol": 1e-4} if "tol" in solver.options else {}))
    assert found.dtype == torch.float32
    close(found.double(), solver(*tensors), tol=5e-3)


@obeys("half precision")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_single(solver, dtype):
    changes = {"tol": 1e-4} if "tol" in solver.options else {}
    points = points_of(solver, dtype=dtype)
    found = solver(*points, **changes)
    assert found.dtype == torch.float32
    close(found, solver(*(p.float() for p in points), **changes), tol=1e-5)
    close(solver(*points, cast=True, **changes), found, tol=1e-5)


@obeys("mixed precision", "measures")
def test_mixed_precision_is_that_of_the_finest(solver):
    x, y = points_of(solver)
    x = x.float()
    close(solver(x, y), solver(x.double(), y))


@obeys("inputs untouched")
def test_inputs_are_left_alone(solver):
    points = points_of(solver)
    tensors = points + weights_of(solver, points)
    before = [t.clone() for t in tensors]
    solver(*tensors)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


@obeys("gradient mode")
def test_gradient_mode_is_left_alone(solver):
    points = [p.requires_grad_() for p in points_of(solver)]
    with torch.no_grad():
        assert not solver(*points).requires_grad
        assert not torch.is_grad_enabled()
    value = solver(*points)
    assert torch.is_grad_enabled()
    # A sampled source is no argument of its value.
    places = points[-1:]
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, places))


@obeys("not a number")
@pytest.mark.parametrize("position", [0, 1])
def test_not_a_number_is_not_hidden(solver, position):
    not_hidden(solver, position, torch.nan)


@obeys("infinity")
@pytest.mark.parametrize("position", [0, 1])
def test_infinity_is_not_hidden(solver, position):
    not_hidden(solver, position, torch.inf)


def not_hidden(solver: Solver, position: int, bad: float) -> None:
    points = points_of(solver)
    points[min(position, len(points) - 1)].flatten()[0] = bad
    try:
        value = solver(*points)
    except ValueError as error:
        assert re.search("finite|NaN|number", str(error))  # noqa: PT017 -- either answer is right.
    else:
        assert not value.isfinite()


@obeys("one point", "measures")
def test_one_point(solver):
    x, y = points_of(solver)
    assert solver(x[:1], y[:1]).isfinite()


@obeys("points that meet")
def test_points_that_coincide(solver):
    points = [torch.ones_like(p).requires_grad_() for p in points_of(solver)]
    value = solver(*points)
    assert value.isfinite()
    assert torch.autograd.grad(value, points[-1])[0].isfinite().all()


@obeys("errors")
def test_error_points_that_are_no_tensor(solver):
    points = points_of(solver)
    with pytest.raises(TypeError, match=r"^`\w+` must be a torch.Tensor.*, got ndarray"):
        solver.function(*(p.numpy() for p in points), **solver.options)


@obeys("errors", "measures")
@pytest.mark.parametrize("weight", [-1.0, torch.nan])
def test_error_weights(solver, weight):
    x, y = points_of(solver)
    a, b = weights_of(solver, [x, y])
    b = b.index_fill(0, torch.tensor([2]), weight)
    with pytest.raises(ValueError, match=r"^`[ab]` must hold (no negative|finite) weight"):
        solver(x, y, a, b)


NUMBERS = {
    "eps": np.float32,
    "tol": np.float64,
    "max_iter": np.int64,
    "rank": np.int32,
    "k": np.int16,
    "mass": np.float64,
}
NUMBERS |= {
    "alpha": np.float64,
    "rho": np.float64,
    "n_projections": np.int64,
    "n_samples": np.int64,
    "n_steps": np.int8,
}


@obeys("numbers of NumPy")
def test_options_may_be_numbers_of_numpy(solver):
    points = points_of(solver)
    changes = {name: NUMBERS[name](value) for name, value in solver.options.items() if name in NUMBERS}
    close(solver(*points, **changes), solver(*points))


@obeys("options that are words")
def test_options_that_are_words_are_refused_in_a_sentence(solver):
    points = points_of(solver)
    for name, value in solver.options.items():
        with pytest.raises((TypeError, ValueError), match=rf"^`{name}` must [^\n]*\.$"):
            solver(*points, **{name: str(value) if not isinstance(value, str) else "no such thing"})


def test_every_public_function_is_in_the_contract():
    public = {name for name in otdml.ot.__all__ if isinstance(getattr(otdml.ot, name), types.FunctionType)}
    lines = {solver.function.__name__ for solver in SOLVERS}
    assert lines | set(WITHOUT) == public
    assert not lines & set(WITHOUT)
    rest = set(otdml.ot.__all__) - public
    assert all(name.endswith("Result") for name in rest)


def test_waived_laws_exist_and_say_why():
    for solver in SOLVERS:
        assert set(solver.without) <= LAWS
        assert all(solver.without.values())


def test_names_are_unique():
    names = [solver.name for solver in SOLVERS]
    assert len(set(names)) == len(names)
