"""One problem of one size for each of many features, value and gradient, beside other libraries.

The other tables ask how times grow; this one shows, for the table of features, that a thing exists, is right and takes
about so long. Every contender is asked for the same quantity; quality is its relative distance from ours in float64.
Iterations are stopped by each library's own rule at the same tolerance, or end at its default number.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from otdml.benchmarks.speed.harness import Measurement, Wanted, every_case, measure
from otdml.dml import CrossBatchMemory, MultiSimilarity, TripletMargin, retrieval_metrics
from otdml.losses import sinkhorn_divergence, sliced_wasserstein
from otdml.ot import exact, low_rank_sinkhorn, sinkhorn, sinkhorn_barycenter

__all__ = ["FEATURES", "Feature", "measurements"]

# A value of points, or of points and labels; gradients are taken in the first.
Value = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Feature:
    """A feature, and the contenders that compute it.

    Attributes:
        n: Number of points, or of rows of a batch.
        d: Number of features.
        ours: Our value.
        peers: Those of others: the module that must be installed, and what makes the value.
        labels: Whether the second argument is labels, and not points.
        gradient: Whether the gradient is asked for.
        error: Largest relative distance from ours in float64.
        beside: Other ways of ours to the same value, by name.
    """

    n: int
    d: int
    ours: Value
    peers: dict[str, tuple[str, Callable[[], Value]]]
    labels: bool = False
    gradient: bool = True
    error: float = 1e-3
    beside: dict[str, Value] = field(default_factory=dict)


def measurements(quick: bool, wanted: Wanted = every_case) -> Iterator[Measurement]:
    """Every feature, a quarter as large where it is to be quick; quality is the relative distance from ours."""
    for name, feature in FEATURES.items():
        n = feature.n // (4 if quick else 1)
        case = {"feature": name, "n": n, "d": feature.d}
        if not wanted(case):
            continue
        x, y = _data(n, feature)
        expected = float(feature.ours(x.double(), y if feature.labels else y.double()))
        contenders = [("otdml", feature.ours), *((f"otdml {name}", value) for name, value in feature.beside.items())]
        with warnings.catch_warnings():
            # Peers warn of too few iterations and of deprecated calls.
            warnings.simplefilter("ignore")
            for library, (module, make) in feature.peers.items():
                if importlib.util.find_spec(module):
                    contenders.append((library, _quiet(make)))
            for contender, value in contenders:
                run = _run(value, x, y, feature.gradient)
                yield measure(
                    case, contender, run, judge=_distance(expected), accept=_within(feature.error), budget=20.0
                )


def _data(n: int, feature: Feature) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, feature.d, generator=generator)
    if feature.labels:
        labels = torch.arange(n) // 4
        return 1.5 * x + torch.randn(n, feature.d, generator=generator)[labels], labels
    return x, y + 0.5 / feature.d**0.5


def _quiet(make: Callable[[], Value]) -> Value:
    with contextlib.redirect_stdout(io.StringIO()):
        return make()


def _run(value: Value, x: Tensor, y: Tensor, gradient: bool) -> Callable[[], float]:
    def run() -> float:
        points = x.clone().requires_grad_(gradient)
        found = value(points, y)
        if gradient:
            found.backward()
        return float(found)

    return run


def _distance(expected: float) -> Callable[[float], float]:
    return lambda found: abs(found - expected) / abs(expected)


def _within(error: float) -> Callable[[float], bool]:
    return lambda found: found <= error


# Transport

# The temperature of divergences, and the number of slices.
_EPS, _SLICES = 0.4, 100


def _pot_exact() -> Value:
    import ot

    return lambda x, y: ot.emd2(*_uniform(x, y), ot.dist(x, y), numItermax=10**7)


def _uniform(*clouds: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_full((len(x),), 1 / len(x)) for x in clouds)


def _pot_divergence() -> Value:
    from ot.bregman import empirical_sinkhorn2

    def term(x: Tensor, y: Tensor) -> Tensor:
        # Its value leaves the entropy out, whose terms do not cancel, so that of the dual is taken.
        _, log = empirical_sinkhorn2(x, y, reg=_EPS, stopThr=1e-3 / len(x) ** 0.5, method="sinkhorn_log", log=True)
        return _EPS * (log["log_u"].mean() + log["log_v"].mean())

    return lambda x, y: term(x, y) - 0.5 * term(x, x) - 0.5 * term(y, y)


def _ott_divergence() -> Value:
    import jax
    from ott.geometry.pointcloud import PointCloud
    from ott.tools.sinkhorn_divergence import sinkhorn_divergence as divergence

    solve = {"solve_kwargs": {"threshold": 1e-3}}
    compiled = jax.jit(jax.value_and_grad(lambda x, y: divergence(PointCloud, x, y, epsilon=_EPS, **solve)[0]))
    return _of_jax(compiled)


def _of_jax(value_and_gradient: Callable[[Any, Any], Any]) -> Value:
    import jax

    class _Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
            value, slope = value_and_gradient(*(jax.numpy.asarray(t.detach().numpy()) for t in (x, y)))
            ctx.save_for_backward(torch.from_dlpack(slope))
            return torch.from_dlpack(value)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return grad * ctx.saved_tensors[0], None

    return lambda x, y: _Call.apply(x, y)


def _directions(x: Tensor) -> Tensor:
    theta = torch.randn(_SLICES, x.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x)
    return theta / theta.norm(dim=1, keepdim=True)


def _sliced(x: Tensor, y: Tensor) -> Tensor:
    return sliced_wasserstein(x, y, projections=_directions(x))


def _pot_sliced() -> Value:
    import ot

    return lambda x, y: ot.sliced_wasserstein_distance(x, y, projections=_directions(x).T) ** 2


def _free_barycenter(x: Tensor, y: Tensor) -> Tensor:
    """The mean square of the entropic barycentre's points."""
    found = sinkhorn_barycenter(torch.stack([x, y]), init=x.detach(), eps=_EPS, debias=False)
    return found.points.square().mean()


def _pot_free_barycenter() -> Value:
    from ot.bregman import free_support_sinkhorn_barycenter

    def value(x: Tensor, y: Tensor) -> Tensor:
        # The marginal errors, which it does not relate to the mass, are those of ours.
        options = {"stopThr": 1e-6 * len(x), "numInnerItermax": 100, "warn": False}
        points = free_support_sinkhorn_barycenter([x, y], [*_uniform(x, y)], x, _EPS, **options)
        return points.square().mean()

    return value


def _supported_barycenter(x: Tensor, y: Tensor) -> Tensor:
    """The mean square of the entropic barycentre on the points of both clouds."""
    support = torch.cat([x, y])
    found = sinkhorn_barycenter(torch.stack([x, y]), support=support, eps=_EPS, debias=False)
    return found.weights @ support.square().mean(1)


def _pot_supported_barycenter() -> Value:
    import ot

    def value(x: Tensor, y: Tensor) -> Tensor:
        support, n = torch.cat([x, y]), len(x)
        A = torch.block_diag(torch.full((n, 1), 1 / n), torch.full((n, 1), 1 / n)).to(x)
        weights = ot.barycenter(A, ot.dist(support, support), _EPS, method="sinkhorn_log", stopThr=1e-3)
        return weights @ support.square().mean(1)

    return value


# Plans of low rank: the cost of a coarse plan, and a temperature at which an entropic one costs the same.
_RANK, _COARSE = 10, 0.7


def _low_rank(x: Tensor, y: Tensor) -> Tensor:
    return low_rank_sinkhorn(x, y, rank=_RANK, tol=1e-2).value


def _streamed(x: Tensor, y: Tensor) -> Tensor:
    sent = sinkhorn(x, y, eps=_COARSE, tol=1e-2, backend="streamed").apply(y)
    return x.square().sum(1).mean() + y.square().sum(1).mean() - 2 * (x * sent).sum()


# Metric learning


def _peer_loss(name: str, **options: Any) -> Value:
    from pytorch_metric_learning import losses

    return getattr(losses, name)(**options)


def _remembered(memory: Callable[[int], Any], x: Tensor, labels: Tensor) -> Tensor:
    """The loss of a second batch against a memory that holds the first."""
    loss, half = memory(x.shape[1]).to(x), len(x) // 2
    # Both halves have some of every class.
    order = torch.arange(len(x)).view(-1, 2).T.flatten()
    loss(x[order[:half]].detach(), labels[order[:half]])
    return loss(x[order[half:]], labels[order[half:]])


def _peer_memory() -> Value:
    from pytorch_metric_learning.losses import CrossBatchMemory as Memory
    from pytorch_metric_learning.losses import MultiSimilarityLoss

    return partial(_remembered, lambda d: Memory(MultiSimilarityLoss(), d, memory_size=4096))


def _map_at_r(z: Tensor, labels: Tensor) -> Tensor:
    return torch.tensor(retrieval_metrics(z, labels)["map@r"])


def _peer_metrics() -> Value:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    name = "mean_average_precision_at_r"
    names = (name, "precision_at_1", "r_precision")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    # Ours compares directions.
    return lambda z, labels: torch.tensor(calculator.get_accuracy(normalize(z, dim=1), labels)[name])


_PML = "pytorch-metric-learning", "pytorch_metric_learning"

FEATURES: dict[str, Feature] = {
    "exact transport": Feature(1000, 2, lambda x, y: exact(x, y).value, {"pot": ("ot", _pot_exact)}),
    "Sinkhorn divergence": Feature(
        1000,
        16,
        partial(sinkhorn_divergence, eps=_EPS),
        {"pot": ("ot", _pot_divergence), "ott": ("ott", _ott_divergence)},
        error=1e-2,
    ),
    "barycentre of free points": Feature(
        400, 2, _free_barycenter, {"pot": ("ot", _pot_free_barycenter)}, gradient=False, error=1e-2
    ),
    "barycentre on a support": Feature(
        1000, 2, _supported_barycenter, {"pot": ("ot", _pot_supported_barycenter)}, gradient=False, error=1e-2
    ),
    "plans of low rank": Feature(
        16384,
        2,
        _low_rank,
        # OTT's solver, with settings that lead to as low a cost, had not ended after ten minutes at this size.
        {},
        gradient=False,
        error=0.05,
        beside={"streamed sinkhorn": _streamed},
    ),
    "sliced transport": Feature(4096, 16, _sliced, {"pot": ("ot", _pot_sliced)}),
    "multi-similarity": Feature(
        512, 128, MultiSimilarity(), {_PML[0]: (_PML[1], partial(_peer_loss, "MultiSimilarityLoss"))}, labels=True
    ),
    "triplets": Feature(
        256,
        128,
        TripletMargin(margin=0.3),
        {_PML[0]: (_PML[1], partial(_peer_loss, "TripletMarginLoss", margin=0.3))},
        labels=True,
    ),
    "memory of batches": Feature(
        1024,
        128,
        partial(_remembered, lambda d: CrossBatchMemory(MultiSimilarity(), d, size=4096)),
        {_PML[0]: (_PML[1], _peer_memory)},
        labels=True,
    ),
    "retrieval metrics": Feature(
        4096, 128, _map_at_r, {_PML[0]: (_PML[1], _peer_metrics)}, labels=True, gradient=False
    ),
}
