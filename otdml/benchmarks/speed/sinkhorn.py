"""Entropic transport between two Gaussian clouds, to a marginal error of 1e-3, beside GeomLoss, POT and OTT.

Every contender is given the settings with which it gets there, found before the clock runs; for GeomLoss, which has
no stopping rule, that is the schedule. The error is that of both marginals, in float64, from what was returned. One
that would take too long, judged from a quarter of the points, is left out, and so is the gradient of one that misses
the tolerance without it.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otdml.benchmarks.speed.harness import Case, Measurement, Wanted, every_case, measure
from otdml.ot import sinkhorn

__all__ = ["PEERS", "marginal_error", "measurements", "problem"]

TOLERANCE = 1e-3
# A peer is left out of a case where it would take longer than so many seconds.
PATIENCE = 6.0
# Only beyond so many points is that judged before.
LARGE = 256

Potentials = tuple[Tensor, ...]
# Potentials, or a function that computes them, untimed, where value and gradient come without them.
Solver = Callable[[], Potentials | Callable[[], Potentials]]
# (x, y, eps, gradient) -> one solver per setting, the cheapest first.
Contender = Callable[[Tensor, Tensor, float, bool], Iterator[Solver]]


def problem(n: int, d: int, level: float) -> tuple[Tensor, Tensor, float]:
    """Two clouds of standard normal points, and ``level`` times their mean squared distance."""
    generator = torch.Generator().manual_seed(n + d)
    x, y = (torch.randn(n, d, generator=generator) for _ in range(2))
    return x, y, level * 2 * d


def marginal_error(x: Tensor, y: Tensor, potentials: Potentials, eps: float) -> float:
    """The larger L1 error of the two marginals of the plan that the potentials define, in float64."""
    x, y, f, g = (t.double() for t in (x, y, *potentials))
    n, m = len(x), len(y)
    h, columns, worst = (g - y.square().sum(-1)) / eps - math.log(n * m), y.new_zeros(m), 0.0
    for i in range(0, n, 512):
        rows = slice(i, i + 512)
        plan = torch.addmm(h, x[rows] * (2 / eps), y.mT)
        plan.add_(((f[rows] - x[rows].square().sum(-1)) / eps)[:, None]).exp_()
        columns += plan.sum(0)
        worst += float((plan.sum(1) - 1 / n).abs().sum())
    error = max(worst, float((columns - 1 / m).abs().sum()))
    return error if math.isfinite(error) else math.inf


def _otdml(x: Tensor, y: Tensor, eps: float, gradient: bool) -> Iterator[Solver]:
    def solve() -> Any:
        points = x.clone().requires_grad_(gradient)
        result = sinkhorn(points, y, eps=eps, tol=TOLERANCE)
        if gradient:
            result.value.backward()
            # The potentials are asked for to be judged; with the gradient they are no part of what is.
            return lambda: (result.f.detach(), result.g.detach())
        return result.f, result.g

    yield solve


def _geomloss(backend: str) -> Contender:
    def contender(x: Tensor, y: Tensor, eps: float, gradient: bool) -> Iterator[Solver]:
        from geomloss import SamplesLoss

        for scaling in (0.5, 0.8, 0.95, 0.99):
            options = {"p": 2, "blur": math.sqrt(eps / 2), "scaling": scaling, "debias": False, "backend": backend}
            value = SamplesLoss("sinkhorn", **options)
            potentials = SamplesLoss("sinkhorn", potentials=True, **options)

            def tell(potentials: Any = potentials) -> Potentials:
                return tuple(2 * h.detach().flatten() for h in potentials(x, y))

            def solve(value: Any = value, tell: Callable[[], Potentials] = tell) -> Any:
                if not gradient:
                    return tell()
                value(x.clone().requires_grad_(), y).backward()
                return tell

            yield solve

    return contender


def _pot(method: str) -> Contender:
    def contender(x: Tensor, y: Tensor, eps: float, gradient: bool) -> Iterator[Solver]:
        with contextlib.redirect_stdout(io.StringIO()):
            import ot

        # POT stops on the L2 norm of the error, which for errors of one size is the L1 norm over sqrt(n).
        for factor in (1.2, 0.8, 0.3):
            tol = factor * TOLERANCE / math.sqrt(len(x))

            def solve(tol: float = tol) -> Potentials:
                points = x.clone().requires_grad_(gradient)
                p, q = (points, y) if gradient else (x.numpy(), y.numpy())
                cost = ot.dist(p, q)
                frozen, nothing = (cost.detach(), x.new_empty(0)) if gradient else (cost, [])
                plan, log = ot.sinkhorn(nothing, nothing, frozen, eps, method, 2000, tol, log=True, warn=False)
                if gradient:
                    (plan * cost).sum().backward()
                if "log_u" in log:
                    return tuple(eps * torch.as_tensor(log[k]) + eps * math.log(len(x)) for k in ("log_u", "log_v"))
                return tuple(eps * torch.as_tensor(log[k]).log() + eps * math.log(len(x)) for k in ("u", "v"))

            yield solve

    return contender


def _pot_sample(x: Tensor, y: Tensor, eps: float, gradient: bool) -> Iterator[Solver]:
    with contextlib.redirect_stdout(io.StringIO()):
        import ot

    for factor in (1.2, 0.8, 0.3):
        tol = factor * TOLERANCE / math.sqrt(len(x))

        def solve(tol: float = tol) -> Potentials:
            points = x.clone().requires_grad_(gradient)
            p, q = (points, y) if gradient else (x.numpy(), y.numpy())
            result = ot.solve_sample(p, q, reg=eps, max_iter=2000, tol=tol, grad="envelope")
            if gradient:
                result.value.backward()
            # With reg_type="KL" the weights are part of the reference measure, and not of the potentials.
            return tuple(eps * (torch.as_tensor(h).detach() + math.log(len(x))) for h in result.potentials)

        yield solve


def _ott(x: Tensor, y: Tensor, eps: float, gradient: bool) -> Iterator[Solver]:
    import jax
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    def transport(p: Any, q: Any) -> Any:
        problem = linear_problem.LinearProblem(pointcloud.PointCloud(p, q, epsilon=eps))
        result = sinkhorn.Sinkhorn(threshold=TOLERANCE)(problem)
        return result.reg_ot_cost, (result.f, result.g)

    run = jax.jit(jax.value_and_grad(transport, has_aux=True) if gradient else transport)
    p, q = jax.numpy.asarray(x.numpy()), jax.numpy.asarray(y.numpy())
    compiled = run.lower(p, q).compile()

    def solve() -> Potentials:
        found = jax.block_until_ready(compiled(p, q))
        f, g = found[0][1] if gradient else found[1]
        # The weights are in OTT's potentials.
        return tuple(torch.from_numpy(np.array(h)) + eps * math.log(len(x)) for h in (f, g))

    yield solve


PEERS: dict[str, tuple[str, Contender]] = {
    "geomloss tensorized": ("geomloss", _geomloss("tensorized")),
    "pot sinkhorn": ("ot", _pot("sinkhorn")),
    "pot sinkhorn_log": ("ot", _pot("sinkhorn_log")),
    "pot solve_sample": ("ot", _pot_sample),
    "ott": ("ott", _ott),
    # Last, because it compiles, which must not disturb the other contenders.
    "geomloss online": ("geomloss", _geomloss("online")),
}


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """Forward, and forward with the gradient in the points, over sizes, dimensions and temperatures."""
    contenders = {"otdml": _otdml} | {k: c for k, (module, c) in PEERS.items() if importlib.util.find_spec(module)}
    sizes = (128, 512, 1024) if quick else (128, 512, 1024, 4096, 10000)
    for n, d, level in itertools.product(sizes, (2, 16, 64, 256), (0.05, 0.01)):
        missed: dict[str, float] = {}
        for gradient in (False, True):
            case = {"n": n, "d": d, "eps": level, "gradient": gradient}
            for name, contender in contenders.items() if wanted(case) else ():
                if name in missed:
                    yield _absent(case, name, f"left out: an error of {missed[name]:.1g} without gradient")
                    continue
                found = _contend(case, name, contender)
                if not gradient and name != "otdml" and found.quality > 2 * TOLERANCE:
                    missed[name] = found.quality
                yield found


def _contend(case: Case, name: str, contender: Contender) -> Measurement:
    """The first setting that reaches the tolerance, or else the last."""
    x, y, eps = problem(case["n"], case["d"], case["eps"])
    first = 0
    if case["n"] > LARGE and name != "otdml":
        first, expected = _judged(contender, x, y, eps, case["gradient"])
        if expected > PATIENCE:
            return _absent(case, name, f"left out: some {expected:.0f} s")
    result = _absent(case, name, "no settings")
    for solver in itertools.islice(contender(x, y, eps, case["gradient"]), first, None):
        result = _measured(case, name, solver, (x, y, eps))
        if result.correct or not result.seconds < PATIENCE / 3:
            break
    return result


def _judged(contender: Contender, x: Tensor, y: Tensor, eps: float, gradient: bool) -> tuple[int, float]:
    """The first setting to be tried, and the seconds it may take, from one run on a quarter of the points."""
    x, y = x[::4], y[::4]
    number, expected = 0, 0.0
    for number, solver in enumerate(contender(x, y, eps, gradient)):  # noqa: B007
        found = _measured({}, "", solver, (x, y, eps))
        # A contender that fails on a quarter of the points is reported on the whole.
        expected = 0.0 if math.isnan(found.seconds) else 16 * found.seconds
        if not expected <= PATIENCE or not found.quality > 3 * TOLERANCE:
            break
    return number, expected


def _measured(case: Case, name: str, solver: Solver, data: tuple[Tensor, Tensor, float]) -> Measurement:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = functools.partial(_error, data=data)
        return measure(case, name, solver, judge=judge, accept=_close, budget=2.0, least=0.2)


def _close(error: float) -> bool:
    return error <= 1.1 * TOLERANCE


def _error(found: Potentials | Callable[[], Potentials], data: tuple[Tensor, Tensor, float]) -> float:
    x, y, eps = data
    return marginal_error(x, y, found() if callable(found) else found, eps)


def _absent(case: Case, name: str, note: str) -> Measurement:
    return Measurement(case, name, math.nan, math.nan, math.nan, False, note)
