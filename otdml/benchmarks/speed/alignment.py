"""Contrastive losses, forward and backward, beside pytorch-metric-learning and a dense InfoNCE in torch.

The quality is the loss, and it must be that of the dense form or, where that has no room, of a streamed one in
float64: the peers compute the same function.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from otdml.benchmarks.speed.harness import Case, Measurement, Wanted, every_case, measure
from otdml.losses import GCAINCE, InfoNCE, SupCon

__all__ = ["measurements"]

EPS = 0.1
DIM = 128
CLASSES = 100
# The matrices of pairs of pytorch-metric-learning grow with the square (SupCon) or the cube (NT-Xent) of the batch.
LARGEST = {"torch dense": 8192, "SupConLoss": 4096, "NTXentLoss": 512}

Contender = Callable[[Tensor, Tensor, Tensor], Tensor]


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """InfoNCE one-way, NT-Xent and SupCon on both views in one batch, and balanced InfoNCE."""
    for n in (512, 2048) if quick else (512, 2048, 8192, 16384):
        joint = {"NTXentLoss": _pml("NTXentLoss")} | {"torch dense": _dense_joint}
        yield from _family("infonce", n, wanted, _one_way, {"torch dense": _dense})
        yield from _family("ntxent", n // 2, wanted, _joint, joint)
        yield from _family("supcon", n // 2, wanted, _supcon, {"SupConLoss": _pml("SupConLoss")})
        yield from _family("gca-ince", n, wanted, _balanced, {})


def _family(name: str, n: int, wanted: Wanted, ours: Contender, peers: dict[str, Contender]) -> Iterator[Measurement]:
    case: Case = {"loss": name, "rows": n if name in ("infonce", "gca-ince") else 2 * n, "d": DIM}
    if not wanted(case):
        return
    generator = torch.Generator().manual_seed(n)
    z1 = torch.randn(n, DIM, generator=generator)
    z2 = z1 + torch.randn(n, DIM, generator=generator)
    labels = torch.arange(n) % CLASSES
    with torch.no_grad():
        exact = float(ours(z1.double(), z2.double(), labels))
    near = partial(_near, exact)
    yield measure(case, "otdml", partial(_step, ours, z1, z2, labels), accept=near)
    for peer, contender in peers.items():
        present = importlib.util.find_spec("pytorch_metric_learning") is not None or peer == "torch dense"
        if present and case["rows"] <= LARGEST[peer]:
            yield measure(case, peer, partial(_step, contender, z1, z2, labels), accept=near)


def _near(expected: float, value: float) -> bool:
    return abs(value - expected) < 1e-3 * abs(expected)


def _step(loss: Contender, z1: Tensor, z2: Tensor, labels: Tensor) -> float:
    first, second = (z.clone().requires_grad_() for z in (z1, z2))
    value = loss(first, second, labels)
    value.backward()
    return float(value.detach())


def _one_way(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    return InfoNCE(eps=EPS)(z1, z2)


def _joint(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    return InfoNCE(eps=EPS, form="joint")(z1, z2)


def _supcon(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    return SupCon(eps=EPS)(z1, z2, labels)


def _balanced(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    return GCAINCE(eps=EPS)(z1, z2)


def _dense(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    scores = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).mT / EPS
    return F.cross_entropy(scores, torch.arange(len(z1), device=z1.device))


def _dense_joint(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scores = (z @ z.mT / EPS).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(len(z), device=z.device).roll(len(z1)))


def _pml(name: str) -> Contender:
    def contender(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
        from pytorch_metric_learning import losses

        groups = labels if name == "SupConLoss" else torch.arange(len(z1), device=z1.device)
        return getattr(losses, name)(temperature=EPS)(torch.cat([z1, z2]), groups.repeat(2))

    return contender
