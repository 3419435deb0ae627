"""Scores of an autoencoder on pictures whose factors are known."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from otdml._arguments import check_known
from otdml._checks import check_fields, check_images, check_integer, check_pixels
from otdml.disentanglement.autoencoder import Autoencoder, divergence, drawn
from otdml.disentanglement.factors import coarse
from otdml.disentanglement.metrics import boosted_trees, dci, mutual_information_gap
from otdml.losses import Distortion, GromovMongeGap

__all__ = ["REGULARIZERS", "Scores", "Trees", "posterior", "regularizer", "scores"]


# Losses of a map that an encoder or decoder can be asked to keep small. During training many plans of the gap would
# need hundreds of linearisations to converge.
REGULARIZERS: dict[str, Callable[[str], nn.Module]] = {
    "distortion": lambda cost: Distortion(cost_x=cost, cost_y=cost),
    "gap": lambda cost: GromovMongeGap(cost_x=cost, cost_y=cost, tol=1e-2, max_iter=40),
}


def regularizer(name: str, cost: str = "cosine") -> nn.Module:
    """The loss of a map with that name, under a cost between points and the same one between their images.

    Args:
        name: ``"distortion"`` or ``"gap"``, the Gromov-Monge gap.
        cost: ``"cosine"``, ``"sqeuclidean"``, or another name of :func:`otdml.costs.ground`.
    """
    return REGULARIZERS[check_known("regularizer", name, REGULARIZERS)](cost)


@dataclass(frozen=True)
class Trees:
    """How DCI is measured: by scikit-learn's ``GradientBoostingClassifier``.

    Attributes:
        train: Rows that the trees are fitted to; the others test them.
        rounds: Trees per value of a factor.
        values: Factors of more values are cut into as many ranges, see :func:`~otdml.disentanglement.coarse`.
    """

    train: int = 4000
    rounds: int = 20
    values: int = 8

    def __post_init__(self) -> None:
        check_fields(self, train=check_integer, rounds=check_integer, values=check_integer)

    def __call__(self) -> Any:
        """A classifier that is not fitted yet."""
        return boosted_trees(self.rounds)


@dataclass(frozen=True)
class Scores:
    """Scores of one model.

    Attributes:
        disentanglement: Of DCI.
        completeness: Of DCI.
        informativeness: Of DCI: the mean accuracy of the trees.
        mig: Mutual information gap.
        error: Squared error of a picture, summed over its pixels.
        rate: Divergence of the posterior from the prior, in nats.
        active: Codes whose posterior tells something: a hundredth of a nat or more.
        distortion: Of the decoder as a map, under cosines; mean over batches of 64 codes drawn from the posterior.
        gap: The Gromov-Monge gap, likewise.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    mig: float
    error: float
    rate: float
    active: float
    distortion: float
    gap: float


def posterior(model: Autoencoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log-variances of many images, some at a time."""
    parts = [model.encode(part) for part in images.split(500)]
    means, log_variances = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(log_variances)


@torch.no_grad()
def scores(
    model: Autoencoder, images: Tensor, factors: Tensor, counts: Tensor, *, trees: Trees | None = None, seed: int = 0
) -> Scores:
    """Scores on pictures the model was not fitted to.

    Args:
        model: Its posterior means are what is scored.
        images: In [0, 1], shape (n, channels, size, size).
        factors: Indices, shape (n, factors).
        counts: Number of values of each factor.
        trees: How DCI is measured; the result depends on it. They are fitted to fewer rows than there are images.
        seed: Of the draws from the posterior.
    """
    trees, seed = trees or Trees(), check_integer("seed", seed, least=None)
    check_pixels("images", check_images("images", images))
    means, log_variances = posterior(model, images)
    found = dci(means, coarse(factors, counts, values=trees.values), n_train=trees.train, classifier=trees)
    rates = divergence(means, log_variances).mean(0)
    error = (model.decoder(means[:1000]).sigmoid() - images[:1000].to(means)).square().sum((1, 2, 3)).mean()
    codes = drawn(means[:256], log_variances[:256], torch.Generator().manual_seed(seed))
    pictures = model.decoder(codes).sigmoid().flatten(1)
    size = min(64, len(codes))
    batches = [tensor[: len(tensor) // size * size].unflatten(0, (-1, size)) for tensor in (codes, pictures)]
    kept, gap = (float(regularizer(name)(*batches).mean()) for name in ("distortion", "gap"))
    return Scores(
        found.disentanglement,
        found.completeness,
        found.informativeness,
        mutual_information_gap(means, factors),
        float(error),
        float(rates.sum()),
        float((rates > 0.01).sum()),
        kept,
        gap,
    )
