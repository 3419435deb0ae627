"""Half-steps and whole solutions of entropic transport on a GPU, engine by engine, beside FlashSinkhorn and GeomLoss.

Times are medians by device events, after one run to warm up, over several sets of points in turn. Beside a half-step
stands its floor: its multiplications at the rate of a large matrix product in single precision, or its bytes at the
rate of a large copy, both measured on the spot, whichever takes longer. Without a GPU the table runs on the CPU.
"""

import importlib.util
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from otdml.benchmarks.speed import sinkhorn as table
from otdml.benchmarks.speed.harness import FAILURES, Case, Measurement, Wanted, every_case, peak_memory
from otdml.costs import ground
from otdml.ot import sinkhorn
from otdml.ot.engines import engine

__all__ = ["Rates", "measurements"]

SIZES, QUICK_SIZES, DIMS = (512, 4096, 16384, 65536), (512, 2048), (2, 16, 64, 256)
LEVEL = 0.05
# Sets of points that are taken in turn, and seconds and repetitions for each contender of a case.
SETS, BUDGET, REPEATS = 8, 0.5, 30
# Pairs up to which a dense matrix is tried.
DENSE = 2**29

Points = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rates:
    """Multiplications and additions, and bytes, per second, of one device."""

    arithmetic: float
    bandwidth: float

    @classmethod
    def measured(cls, device: torch.device) -> "Rates":
        """Measured by a product of square matrices and a copy, of sizes beyond the caches of the device."""
        n, entries = (8192, 2**28) if device.type == "cuda" else (1024, 2**22)
        a, b = torch.randn(2, n, n, device=device)
        source = torch.randn(entries, device=device)
        target = torch.empty_like(source)
        product = statistics.median(timed(lambda _: a @ b, 1, device))
        copy = statistics.median(timed(lambda _: target.copy_(source), 1, device))
        return cls(2 * n**3 / product, 2 * source.nbytes / copy)

    def floor(self, n: int, d: int) -> float:
        """Seconds below which no half-step between n and n points of d features can be."""
        return max(2 * n * n * d / self.arithmetic, 4 * (2 * n * d + 2 * n) / self.bandwidth)


def timed(run: Callable[[int], object], sets: int, device: torch.device) -> list[float]:
    """Seconds of repetitions of ``run(i)``, i going around the sets, after one of each to warm up."""
    for i in range(sets):
        run(i)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    found: list[float] = []
    began = time.perf_counter()
    for i in itertools.islice(itertools.cycle(range(sets)), REPEATS):
        found.append(_by_events(partial(run, i)) if cuda else _by_clock(partial(run, i)))
        if time.perf_counter() - began > BUDGET:
            break
    return found


def _by_clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _by_events(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """Half-steps, then solutions without and with their gradient, over sizes and dimensions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates: Rates | None = None
    for n, d in itertools.product(QUICK_SIZES if quick else SIZES, DIMS[:2] if quick else DIMS):
        steps: tuple[str, ...] = ("half-step", "value", "gradient")
        cases = [case for step in steps if wanted(case := {"step": step, "n": n, "d": d})]
        if not cases:
            continue
        rates = rates or Rates.measured(device)
        sets = [_points(n, d, i, device) for i in range(SETS)]
        for case in cases:
            yield from _half_steps(case, sets, rates) if case["step"] == "half-step" else _solutions(case, sets)


def _points(n: int, d: int, seed: int, device: torch.device) -> Points:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, d, generator=generator).to(device)
    return x, y


def _backends(case: Case, device: torch.device) -> Iterator[str]:
    if case["n"] ** 2 <= DENSE:
        yield "dense"
    yield "streamed"
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        yield "triton"


def _half_steps(case: Case, sets: list[Points], rates: Rates) -> Iterator[Measurement]:
    """The soft minima over the columns, evaluated anew from the points; dense: the log-sum-exp of a matrix in torch."""
    n, d = case["n"], case["d"]
    eps, device = LEVEL * 2 * d, sets[0][0].device
    h = torch.full((n,), -math.log(n), device=device)
    # Some rows in double precision are enough to judge by.
    x, y = (t.double() for t in sets[0])
    reduced = ground(x, y).scaled(1 / eps).block(slice(0, 256))
    exact = -torch.logsumexp(h.double() - reduced, -1)
    for name in _backends(case, device):
        costs = [ground(x, y) for x, y in sets]
        if name == "dense":
            scaled = [cost.scaled(1 / eps) for cost in costs]
            runs = [partial(_dense_softmin, cost, h) for cost in scaled]
        else:
            runs = [partial(engine(cost, eps, name).row_softmin, h) for cost in costs]
        judge = partial(_difference, exact)
        label = "torch dense" if name == "dense" else f"otdml {name}"
        note = f"floor {rates.floor(n, d) * 1e3:.3g} ms"
        yield _measured(case, label, runs, judge, lambda error: error < 1e-3, note, device)


def _dense_softmin(cost: Any, h: Tensor) -> Tensor:
    return -torch.logsumexp(h - cost.block(slice(None)), -1)


def _difference(exact: Tensor, found: Tensor) -> float:
    return float((found[: len(exact)].double() - exact).abs().max())


def _solutions(case: Case, sets: list[Points]) -> Iterator[Measurement]:
    """To a marginal error of 1e-3; where a contender has no rule to stop, the first of its settings that gets there."""
    device, gradient = sets[0][0].device, case["step"] == "gradient"
    contenders = {f"otdml {name}": _ours(name) for name in _backends(case, device)}
    if device.type == "cuda" and importlib.util.find_spec("flash_sinkhorn") is not None:
        contenders["flash-sinkhorn"] = _flash
    if device.type == "cuda" and case["n"] <= 16384:
        contenders["geomloss online"] = table.PEERS["geomloss online"][1]
    eps = LEVEL * 2 * case["d"]
    for name, contender in contenders.items():
        solvers = [contender(x, y, eps, gradient) for x, y in sets]
        found = None
        for runs in zip(*solvers, strict=False):
            judge = partial(_error, points=sets[0], eps=eps)
            found = _measured(case, name, list(runs), judge, lambda error: error <= 1.1e-3, "", device)
            if found.correct or not found.seconds < BUDGET:
                break
        if found is not None:
            yield found


def _error(found: Any, points: Points, eps: float) -> float:
    return table.marginal_error(*points, found() if callable(found) else found, eps)


def _ours(backend: str) -> table.Contender:
    def contender(x: Tensor, y: Tensor, eps: float, gradient: bool) -> Iterator[table.Solver]:
        def solve() -> Any:
            points = x.clone().requires_grad_(gradient)
            result = sinkhorn(points, y, eps=eps, tol=table.TOLERANCE, backend=backend)
            if gradient:
                result.value.backward()
            return lambda: (result.f.detach(), result.g.detach())

        yield solve

    return contender


def _flash(x: Tensor, y: Tensor, eps: float, gradient: bool) -> Iterator[table.Solver]:
    """FlashSinkhorn at the same temperature and in full single precision, with as many iterations as it takes."""
    from flash_sinkhorn import SamplesLoss

    for n_iters in (10, 20, 50, 100, 300):
        options = {"eps": eps, "n_iters": n_iters, "use_epsilon_scaling": False, "allow_tf32": False}
        value, potentials = SamplesLoss(**options), SamplesLoss(potentials=True, **options)

        def tell(potentials: Any = potentials) -> table.Potentials:
            return tuple(h.detach().flatten() for h in potentials(x, y))

        def solve(value: Any = value, tell: Callable[[], table.Potentials] = tell) -> Any:
            if not gradient:
                return tell()
            value(x.clone().requires_grad_(), y).backward()
            return tell

        yield solve


def _measured(
    case: Case,
    name: str,
    runs: Sequence[Callable[[], Any]],
    judge: Callable[[Any], float],
    accept: Callable[[float], bool],
    note: str,
    device: torch.device,
) -> Measurement:
    try:
        # Compilation happens here.
        runs[0]()
        found, peak = peak_memory(runs[0])
        quality = judge(found)
        del found
        seconds = statistics.median(timed(lambda i: runs[i](), len(runs), device))
    except FAILURES as error:
        return Measurement(case, name, math.nan, math.nan, math.nan, False, f"{type(error).__name__}: {error}")
    return Measurement(case, name, seconds, peak, quality, accept(quality), note)
