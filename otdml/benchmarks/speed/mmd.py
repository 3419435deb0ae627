"""Maximum mean discrepancy, value and gradient in the first cloud, beside the dense form and GeomLoss."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from otdml.benchmarks.speed.harness import Measurement, Wanted, every_case, measure
from otdml.losses.mmd import mmd

__all__ = ["measurements"]

_QUICK, _FULL = [(256, 64), (1024, 64), (2048, 3)], [(4096, 64), (10_000, 3), (10_000, 64), (50_000, 64)]
# Beyond these sizes the dense forms take gigabytes, and KeOps minutes on a CPU.
_DENSE, _ONLINE = 10_000, 10_000
# Rows at a time of the reference.
_BLOCK = 1024

Loss = Callable[[Tensor, Tensor], Tensor]


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """Gaussian and energy kernels; quality is the relative error of the value against float64."""
    for n, d in _QUICK + ([] if quick else _FULL):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, n, d, generator=generator) / d**0.5
        y += 0.5 / d**0.5
        for kernel in ("gaussian", "energy"):
            case = {"n": n, "d": d, "kernel": kernel}
            if not wanted(case):
                continue
            expected = _reference(x, y, kernel)
            for name, loss in _contenders(n, kernel):
                run = partial(_error, loss, x, y, expected)
                yield measure(case, name, run, accept=lambda q: q < 1e-2, budget=3.0)


def _contenders(n: int, kernel: str) -> Iterator[tuple[str, Loss]]:
    yield "otdml", partial(mmd, kernel=kernel)
    if n <= _DENSE:
        yield "torch, dense", partial(_dense, kernel=kernel)
        yield "geomloss tensorized", _geomloss(kernel, "tensorized")
    if n <= _ONLINE:
        yield "geomloss online", _geomloss(kernel, "online")


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


def _reference(x: Tensor, y: Tensor, kernel: str) -> float:
    def mean(p: Tensor, q: Tensor) -> float:
        distance = (torch.cdist(rows.double(), q.double()) for rows in p.split(_BLOCK))
        return math.fsum(float(_profile(r, kernel).sum()) for r in distance) / (len(p) * len(q))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def _profile(r: Tensor, kernel: str) -> Tensor:
    return (-r.square() / 2).exp() if kernel == "gaussian" else -r
