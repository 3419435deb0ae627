"""Contrastive losses, forward and backward, beside pytorch-metric-learning and dense forms in torch.

The quality is the loss, and it must be that of the dense form or, where that has no room, of a streamed one in
float64: the peers compute the same function.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otdml.benchmarks.speed.harness import Case, Measurement, Wanted, every_case, measure
from otdml.losses import GCAINCE, InfoNCE, SupCon

__all__ = ["measurements"]

EPS = 0.1
DIM = 128
CLASSES = 100
# The matrices of pairs of pytorch-metric-learning grow with the square (SupCon) or the cube (NT-Xent) of the batch.
LARGEST = {"torch dense": 8192, "torch unrolled": 4096, "SupConLoss": 4096, "NTXentLoss": 512}
# Marginal error of the balanced forms.
TOL = 1e-3

Contender = Callable[[Tensor, Tensor, Tensor], Tensor]


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """InfoNCE one way and both, NT-Xent and SupCon on both views in one batch, and balanced InfoNCE."""
    # Losses are made once, as in training.
    one_way, two_way, joint = (_of_views(InfoNCE(eps=EPS, form=form)) for form in ("one-way", "two-way", "joint"))
    balanced, supcon = _of_views(GCAINCE(eps=EPS, tol=TOL)), SupCon(eps=EPS)
    for n in (128, 512, 2048) if quick else (128, 256, 512, 2048, 8192, 16384):
        peers = {"NTXentLoss": _pml("NTXentLoss")} | {"torch dense": _dense_joint}
        yield from _family("infonce", n, wanted, one_way, {"torch dense": _dense})
        yield from _family("clip", n, wanted, two_way, {"torch dense": _dense_two_way})
        yield from _family("ntxent", n // 2, wanted, joint, peers)
        yield from _family("supcon", n // 2, wanted, supcon, {"SupConLoss": _pml("SupConLoss")})
        yield from _family("gca-ince", n, wanted, balanced, {"torch unrolled": _unrolled})


def _family(name: str, n: int, wanted: Wanted, ours: Contender, peers: dict[str, Contender]) -> Iterator[Measurement]:
    case: Case = {"loss": name, "rows": 2 * n if name in ("ntxent", "supcon") else n, "d": DIM}
    if not wanted(case):
        return
    generator = torch.Generator().manual_seed(n)
    z1 = torch.randn(n, DIM, generator=generator)
    z2 = z1 + torch.randn(n, DIM, generator=generator)
    labels = torch.arange(n) % CLASSES
    with torch.no_grad():
        exact = float(ours(z1.double(), z2.double(), labels))
    near = partial(_near, exact)
    # The shortest steps are the noisiest.
    repeats = 5 if case["rows"] > 1024 else 100
    yield measure(case, "otdml", partial(_step, ours, z1, z2, labels), accept=near, repeats=repeats)
    for peer, contender in peers.items():
        present = peer.startswith("torch") or importlib.util.find_spec("pytorch_metric_learning") is not None
        if present and case["rows"] <= LARGEST[peer]:
            yield measure(case, peer, partial(_step, contender, z1, z2, labels), accept=near, repeats=repeats)


def _near(expected: float, value: float) -> bool:
    return abs(value - expected) < 1e-3 * abs(expected)


def _step(loss: Contender, z1: Tensor, z2: Tensor, labels: Tensor) -> float:
    first, second = (z.clone().requires_grad_() for z in (z1, z2))
    value = loss(first, second, labels)
    value.backward()
    return float(value.detach())


def _of_views(loss: nn.Module) -> Contender:
    return lambda z1, z2, labels: loss(z1, z2)


def _scores(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    scores = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).mT / EPS
    return scores, torch.arange(len(z1), device=z1.device)


def _dense(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(*_scores(z1, z2))


def _dense_two_way(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    scores, own = _scores(z1, z2)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.mT, own)) / 2


def _unrolled(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    """Sinkhorn's iterations in the log domain, differentiated through, until the columns are balanced, too."""
    scores, own = _scores(z1, z2)
    plan = scores.log_softmax(1)
    while (sums := plan.logsumexp(0)).detach().expm1().abs().mean() > TOL:
        plan = (plan - sums).log_softmax(1)
    return F.nll_loss(plan, own)


def _dense_joint(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scores = (z @ z.mT / EPS).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(len(z), device=z.device).roll(len(z1)))


def _pml(name: str) -> Contender:
    def contender(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
        groups = labels if name == "SupConLoss" else torch.arange(len(z1), device=z1.device)
        return _pml_loss(name)(torch.cat([z1, z2]), groups.repeat(2))

    return contender


@cache
def _pml_loss(name: str) -> nn.Module:
    from pytorch_metric_learning import losses

    return getattr(losses, name)(temperature=EPS)
