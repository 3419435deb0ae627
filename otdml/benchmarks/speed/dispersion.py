"""Dispersion on the sphere, value and gradient, beside the forms that keep the matrix of cosines, and POT."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from otdml.benchmarks.speed.harness import Measurement, Wanted, every_case, measure
from otdml.losses.dispersion import (
    kernel_dispersion,
    koleo,
    lloyd_dispersion,
    max_cosine,
    max_min_angle,
    mmd_to_uniform,
    sliced_dispersion,
    sliced_wasserstein_to_uniform,
)

__all__ = ["measurements"]

# Batches and tables of prototypes, then data sets and vocabularies.
_QUICK = [(128, 64), (128, 512), (1024, 64), (1024, 512), (4096, 64), (4096, 512)]
_FULL = [(10_000, 64), (10_000, 512), (100_000, 64), (100_000, 512)]
# Beyond this many points a matrix of cosines and its gradient take gigabytes.
_DENSE = 10_000
# On the largest clouds of many features only one loss of each kind is timed: each pass takes minutes.
_LARGEST = ("gaussian", "koleo", "sliced", "lloyd")

Loss = Callable[[Tensor], Tensor]

_OURS: dict[str, Loss] = {
    "gaussian": partial(kernel_dispersion, log=True),
    "laplacian": partial(kernel_dispersion, kernel="laplacian"),
    "riesz": partial(kernel_dispersion, kernel="riesz"),
    "geodesic riesz": partial(kernel_dispersion, kernel="riesz", distance="geodesic"),
    "log": partial(kernel_dispersion, kernel="log"),
    "mmd to uniform": mmd_to_uniform,
    "koleo": koleo,
    "max min angle": max_min_angle,
    "max cosine": max_cosine,
    "lloyd": lloyd_dispersion,
    "lloyd, 16,384 samples": partial(lloyd_dispersion, n_samples=16_384),
    "sliced": sliced_dispersion,
    "sliced, axis-aligned": partial(sliced_dispersion, axis_aligned=True),
    "sliced wasserstein": partial(sliced_wasserstein_to_uniform, n_projections=50),
}


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """Every regulariser; quality is its value, which peers must share.

    Where slices are drawn, values differ: 50 slices deviate by 8 percent, so two draws are let differ by 35.
    """
    for n, d in _QUICK + ([] if quick else _FULL):
        z = F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(0)), dim=1)
        for name, loss in _OURS.items():
            case = {"loss": name, "n": n, "d": d}
            if not wanted(case) or (n * d >= 10**7 and name not in _LARGEST):
                continue
            ours = measure(case, "otdml", partial(_value, loss, z), budget=3.0)
            yield ours
            for peer, other in _peers(name, n):
                near = partial(_near, ours.quality, 0.35 if name.startswith("sliced") else 1e-3)
                yield measure(case, peer, partial(_value, other, z), accept=near, budget=3.0)


def _value(loss: Loss, z: Tensor) -> float:
    z = z.clone().requires_grad_()
    value = loss(z)
    value.backward()
    return float(value.detach())


def _near(expected: float, tolerance: float, value: float) -> bool:
    return abs(value - expected) <= tolerance * abs(expected)


def _peers(name: str, n: int) -> Iterator[tuple[str, Loss]]:
    if n <= _DENSE and name in _DENSE_FORMS:
        yield "torch, dense", _DENSE_FORMS[name]
    if n <= _DENSE and name in _PDIST_FORMS:
        yield "torch, pdist", _PDIST_FORMS[name]
    if name == "koleo" and n > _DENSE:
        yield "torch, blocked", _blocked_koleo
    if name == "sliced wasserstein" and n <= _DENSE:
        yield "pot", _pot


def _mean(kernel: Loss, z: Tensor) -> Tensor:
    """Mean over pairs of a kernel of squared distances, from the matrix of cosines."""
    x = F.normalize(z, dim=1)
    # One on the diagonal, where no kernel is singular.
    k = kernel((2 - 2 * x @ x.T).clamp_min(1e-12) + torch.eye(len(z)))
    return (k.sum() - k.diagonal().sum()) / (len(z) * (len(z) - 1))


def _dense_koleo(z: Tensor) -> Tensor:
    x = F.normalize(z, dim=1)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
    return -F.pairwise_distance(x, x[nearest]).log().mean()


def _blocked_koleo(z: Tensor) -> Tensor:
    x = F.normalize(z, dim=1)
    nearest = []
    with torch.no_grad():
        for start in range(0, len(x), 1024):
            cosines = x[start : start + 1024] @ x.T
            cosines.diagonal(start).fill_(-1)
            nearest.append(cosines.argmax(1))
    return -F.pairwise_distance(x, x[torch.cat(nearest)]).log().mean()


def _pot(z: Tensor) -> Tensor:
    import ot

    # POT returns the root; its seed makes other slices than ours.
    return ot.sliced_wasserstein_sphere_unif(F.normalize(z, dim=1), n_projections=50, seed=0).square()


def _dense_cosines(z: Tensor) -> Tensor:
    x = F.normalize(z, dim=1)
    return (x @ x.T - 2 * torch.eye(len(x))).amax(1)


def _distances(z: Tensor) -> Tensor:
    """Losses over all pairs, as in the released code of most of them."""
    return torch.pdist(F.normalize(z, dim=1))


_PDIST_FORMS: dict[str, Loss] = {
    "gaussian": lambda z: _distances(z).square().mul(-2).exp().mean().log(),
    "laplacian": lambda z: _distances(z).mul(-2).exp().mean(),
    "riesz": lambda z: _distances(z).reciprocal().mean(),
    "log": lambda z: -_distances(z).log().mean(),
}
_DENSE_FORMS: dict[str, Loss] = {
    "gaussian": lambda z: _mean(lambda r2: r2.mul(-2).exp(), z).log(),
    "laplacian": lambda z: _mean(lambda r2: r2.sqrt().mul(-2).exp(), z),
    "riesz": lambda z: _mean(Tensor.rsqrt, z),
    "log": lambda z: _mean(Tensor.log, z) / -2,
    "koleo": _dense_koleo,
    "max min angle": lambda z: -_dense_cosines(z).acos().mean(),
    "max cosine": lambda z: _dense_cosines(z).mean(),
}
