"""Pairs for flow matching, one for each point of a batch of noise, beside torchcfm's sampler of plans.

The data lie near a space of 16 dimensions, as images do. Contenders are given one temperature and one penalty. Quality
is the relative error of what the pairs save over independent ones, against the plan in float64: 0 is right, and 1 is no
coupling at all. A draw of pairs has an error of a few hundredths.

torchcfm keeps the plan on the host and draws from all its entries at once. Its package asks for torchvision, which it
does not use for this: ``pip install --no-deps torchcfm`` is enough.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otdml.benchmarks.speed.harness import Measurement, Wanted, every_case, measure
from otdml.costs import cost_matrix
from otdml.ot import couple, exact, sinkhorn

__all__ = ["measurements"]

_QUICK, _FULL = [(256, 2), (256, 3072)], [(4096, 2), (4096, 3072)]
_METHODS = ("exact", "sinkhorn", "unbalanced")
# The intrinsic dimension of the data, and the temperature relative to the spread of what pairs can save.
_RANK, _EPS = 16, 0.1

Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A problem of coupling two batches.

    Attributes:
        x0: Noise, shape (n, d).
        x1: Data, shape (n, d).
        method: As for :func:`~otdml.ot.couple`.
        eps: Temperature.
        rho: Penalty.
    """

    x0: Tensor
    x1: Tensor
    method: str
    eps: float
    rho: float

    @property
    def options(self) -> dict[str, Any]:
        """Options of the solver; an exact plan has none."""
        found: dict[str, Any] = {} if self.method == "exact" else {"eps": self.eps}
        return found | ({"rho": self.rho} if self.method == "unbalanced" else {})


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """Three plans on noise and data; quality is the relative error of what the pairs save."""
    for n, d in _QUICK + ([] if quick else _FULL):
        cases = [{"n": n, "d": d, "method": method} for method in _METHODS]
        if not any(map(wanted, cases)):
            continue
        x0, x1 = _clouds(n, d)
        for case in filter(wanted, cases):
            task = _task(x0, x1, str(case["method"]))
            judge = partial(_missed, task, _gain(task))
            for name, pairs in _contenders(task):
                yield measure(case, name, pairs, judge=judge, accept=lambda q: q < 0.1, repeats=3, budget=60.0)


def _clouds(n: int, d: int) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    rank = min(d, _RANK)
    codes = torch.randn(n, rank, generator=generator) + 2 * torch.randint(2, (n, 1), generator=generator)
    basis = torch.randn(rank, d, generator=generator) / rank**0.5
    return torch.randn(n, d, generator=generator), codes @ basis


def _task(x0: Tensor, x1: Tensor, method: str) -> Task:
    """A temperature that resolves the costs, and a penalty at which most of the mass is moved."""
    x, y = x0[:256], x1[:256]
    saved = 2 * (x - x.mean(0)) @ (y - y.mean(0)).T
    return Task(x0, x1, method, _EPS * float(saved.std()), float(cost_matrix(x, y).mean()))


def _gain(task: Task) -> float:
    """The saving of the plan over independent pairs: twice the covariance of the points of a pair."""
    x0, x1 = task.x0.double(), task.x1.double()
    solve = exact if task.method == "exact" else partial(sinkhorn, tol=1e-4)
    result = solve(x0, x1, **task.options)
    sent = result.apply(x1 - x1.mean(0))
    return float(2 * ((x0 - x0.mean(0)) * sent).sum() / result.marginals[0].sum())


def _missed(task: Task, expected: float, pairs: Pairs) -> float:
    x0, x1 = (x[i] - x.mean(0) for x, i in zip((task.x0, task.x1), pairs, strict=True))
    return abs(float(2 * (x0 * x1).sum(1).mean()) / expected - 1)


def _contenders(task: Task) -> Iterator[tuple[str, Callable[[], Pairs]]]:
    yield "otdml", partial(_otdml, task)
    if importlib.util.find_spec("torchcfm"):
        yield "torchcfm", _torchcfm(task)


def _otdml(task: Task) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    return couple(task.x0, task.x1, method=task.method, generator=generator, **task.options)


def _torchcfm(task: Task) -> Callable[[], Pairs]:
    with contextlib.redirect_stdout(io.StringIO()):
        from torchcfm.optimal_transport import OTPlanSampler

    sampler = OTPlanSampler(method=task.method, reg=task.eps, reg_m=task.rho, warn=False)

    def run() -> Pairs:
        np.random.seed(0)  # noqa: NPY002 (it draws from the global state)
        # It prints both clouds where a plan is not finite, and POT warns where it has not converged.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            i, j = sampler.sample_map(sampler.get_map(task.x0, task.x1), len(task.x0))
        return torch.from_numpy(i), torch.from_numpy(j)

    return run
