"""Maximum mean discrepancy, value and gradient in the first cloud, beside the dense form and GeomLoss."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from otdml.benchmarks.speed.harness import FAILURES, Measurement, Wanted, every_case, measure
from otdml.losses._mmd import mmd

__all__ = ["measurements"]

_QUICK, _FULL = [(256, 64), (1024, 64), (2048, 3)], [(4096, 64), (10_000, 3), (10_000, 64), (50_000, 64)]
# Beyond these sizes the dense forms take gigabytes, and KeOps minutes on a CPU.
_DENSE, _ONLINE = 10_000, 10_000
# Rows at a time of the reference.
_BLOCK = 1024

Loss = Callable[[Tensor, Tensor], Tensor]

PROFILES: dict[str, Callable[[Tensor], Tensor]] = {"gaussian": lambda r: (-r.square() / 2).exp(), "energy": torch.neg}


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """Gaussian and energy kernels; quality is the relative error of the value against float64."""
    for n, d in _QUICK + ([] if quick else _FULL):
        cases = [{"n": n, "d": d, "kernel": kernel} for kernel in PROFILES]
        if not any(map(wanted, cases)):
            continue
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, n, d, generator=generator) / d**0.5
        y += 0.5 / d**0.5
        expected = _references(x, y)
        for case in filter(wanted, cases):
            kernel = str(case["kernel"])
            for name, loss in _contenders(x, y, kernel):
                run = partial(_error, loss, x, y, expected[kernel])
                yield measure(case, name, run, accept=lambda q: q < 1e-2, budget=3.0)


def _contenders(x: Tensor, y: Tensor, kernel: str) -> Iterator[tuple[str, Loss]]:
    yield "otdml", partial(mmd, kernel=kernel)
    if len(x) <= _DENSE:
        yield "torch, dense", partial(_dense, kernel=kernel)
    if len(x) <= _DENSE and find_spec("geomloss"):
        yield "geomloss tensorized", _geomloss(kernel, "tensorized")
    if len(x) <= _ONLINE and find_spec("geomloss") and find_spec("pykeops"):
        online = _geomloss(kernel, "online")
        # KeOps compiles for each number of features, before the measurement; a failure shows in the table.
        with suppress(*FAILURES):
            _error(online, x[:8], y[:8], 1.0)
        yield "geomloss online", online


def _error(loss: Loss, x: Tensor, y: Tensor, expected: float) -> float:
    x = x.clone().requires_grad_()
    value = loss(x, y)
    value.backward()
    return abs(float(value.detach()) - expected) / expected


def _kernel(x: Tensor, y: Tensor, kernel: str) -> Tensor:
    # The product form throughout, as in most code.
    r2 = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(1e-8)
    return (-r2 / 2).exp() if kernel == "gaussian" else -r2.sqrt()


def _dense(x: Tensor, y: Tensor, kernel: str) -> Tensor:
    return _kernel(x, x, kernel).mean() + _kernel(y, y, kernel).mean() - 2 * _kernel(x, y, kernel).mean()


def _geomloss(kernel: str, backend: str) -> Loss:
    from geomloss import SamplesLoss

    half = SamplesLoss(kernel, blur=1.0, backend=backend)
    return lambda x, y: 2 * half(x, y)


def _references(x: Tensor, y: Tensor) -> dict[str, float]:
    """The discrepancy under each kernel in float64, block by block, with each distance computed once."""
    x, y = x.double(), y.double()
    values = _means(x, x) + _means(y, y) - 2 * _means(x, y)
    return dict(zip(PROFILES, values.tolist(), strict=True))


def _means(p: Tensor, q: Tensor) -> Tensor:
    """The mean of each kernel over the pairs of two clouds, which may be one and the same."""
    total = torch.zeros(len(PROFILES), dtype=p.dtype)
    for i in range(0, len(p), _BLOCK):
        r = torch.cdist(p[i : i + _BLOCK], q[i:] if p is q else q)
        for k, profile in enumerate(PROFILES.values()):
            values = profile(r)
            # Within one cloud the blocks above the diagonal are counted twice.
            total[k] += 2 * values.sum() - values[:, :_BLOCK].sum() if p is q else values.sum()
    return total / (len(p) * len(q))
