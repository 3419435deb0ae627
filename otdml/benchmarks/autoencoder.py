"""A small β-VAE of sprites whose decoder is asked to keep the geometry of the codes, scored by DCI and MIG.

.. code-block:: console

   $ python -m otdml.benchmarks.autoencoder --seeds 0 1 2 --steps 600
   $ python -m otdml.benchmarks.autoencoder --data dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz
"""

import argparse
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from otdml.benchmarks.disentanglement import FACTORS, dci, load_dsprites, mutual_information_gap, sprites
from otdml.losses import Distortion, GromovMongeGap

__all__ = [
    "REGULARIZERS",
    "Scores",
    "SpriteVAE",
    "classifier",
    "compare",
    "fit",
    "ranges",
    "regularizer",
    "scores",
    "table",
]


def _gap() -> GromovMongeGap:
    # In the course of a training many plans would take hundreds of linearisations to settle.
    return GromovMongeGap(tol=1e-2, max_iter=40)


# What is asked of the decoder, as a map from codes to images, and how much it weighs beside the other terms.
REGULARIZERS: dict[str, tuple[Callable[[], nn.Module], float] | None] = {
    "none": None,
    "distortion, 3": (Distortion, 3.0),
    "distortion, 30": (Distortion, 30.0),
    "Gromov-Monge gap, 300": (_gap, 300.0),
}


def regularizer(name: str) -> tuple[nn.Module | None, float]:
    """The regularizer of that name, and its weight."""
    chosen = REGULARIZERS[name]
    return (None, 0.0) if chosen is None else (chosen[0](), chosen[1])


# Images to fit to; those of which trees learn to tell the factors from the codes, and those on which they are tested.
IMAGES, TRAIN, TEST = 20_000, 4000, 1000
# Rounds of the boosted trees, each of which costs a tree per value of a factor; so factors of more values than these
# are cut into as many equal ranges.
ROUNDS, VALUES = 20, 8


class SpriteVAE(nn.Module):
    """A convolutional encoder to a Gaussian posterior and its mirror image, for square pictures of one channel.

    Args:
        codes: Number of latent codes.
        size: Height and width of the pictures, a multiple of 8.
        width: Channels of the first layer.
    """

    def __init__(self, *, codes: int = 10, size: int = 32, width: int = 16) -> None:
        super().__init__()
        side, deep = size // 8, 2 * width
        self.encoder = nn.Sequential(
            *_down(1, width), *_down(width, deep), *_down(deep, deep), nn.Flatten(), nn.Linear(deep * side**2, 128)
        )
        self.posterior = nn.Sequential(nn.ReLU(), nn.Linear(128, 2 * codes))
        self.decoder = nn.Sequential(
            nn.Linear(codes, 128), nn.ReLU(), nn.Linear(128, deep * side**2), nn.ReLU(),
            nn.Unflatten(1, (deep, side, side)), *_up(deep, deep), *_up(deep, width),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
        )  # fmt: skip

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means and log-variances, each of shape (n, codes)."""
        mean, log_variance = self.posterior(self.encoder(images)).chunk(2, -1)
        return mean, log_variance

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Codes drawn from the posterior, logits of their images, and the divergence from the prior of each row."""
        mean, log_variance = self.encode(images)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        codes = mean + (0.5 * log_variance).exp() * noise
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(-1)
        return codes, self.decoder(codes), divergence


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]


def fit(
    images: Tensor,
    regularizer: nn.Module | None = None,
    *,
    weight: float = 1.0,
    beta: float = 1.0,
    steps: int = 2000,
    batch: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
) -> SpriteVAE:
    r"""A β-VAE :cite:p:`higgins:17` fitted by Adam, its decoder regularised as in :cite:p:`uscidda:24`.

    .. math:: \mathbb{E} \, [ -\log p(x | z) ] + \beta \, \mathrm{KL}(q(z | x) \,|\, p(z)) + \lambda \, R(z, D(z))

    where R is a loss of a map: the decoder D, on the codes of a batch.

    Args:
        images: In [0, 1], shape (n, 1, size, size).
        regularizer: R, of codes (batch, codes) and images (batch, pixels); None for a plain β-VAE.
        weight: :math:`\lambda`.
        beta: :math:`\beta`.
        steps: Gradient steps.
        batch: Images per step.
        rate: Learning rate; it falls to zero along a half cosine.
        seed: Of the weights, batches and draws; two fits with one seed start from the same network and see the same.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SpriteVAE(size=images.shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        target = images[torch.randint(len(images), (batch,), generator=generator)]
        codes, logits, divergence = model(target, generator)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / batch
        loss = loss + beta * divergence.mean()
        if regularizer is not None:
            loss = loss + weight * regularizer(codes, logits.sigmoid().flatten(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@dataclass(frozen=True)
class Scores:
    """Of one model: three of DCI, MIG, the squared error of a picture, and both losses of the decoder as a map."""

    disentanglement: float
    completeness: float
    informativeness: float
    mig: float
    error: float
    distortion: float
    gap: float


@torch.no_grad()
def scores(model: SpriteVAE, images: Tensor, factors: Tensor, *, n_train: int = TRAIN, seed: int = 0) -> Scores:
    """Scores of the posterior means; distortion and gap are means over batches of 64 codes drawn from the posterior.

    DCI is that of scikit-learn's ``GradientBoostingClassifier`` with 20 rounds, fitted to ``n_train`` rows and
    tested on the others, for rotation and position in eight ranges each.
    """
    means = torch.cat([model.encode(part)[0] for part in images.split(500)])
    rest = images[n_train:]
    error = (model.decoder(means[n_train:]).sigmoid() - rest).square().sum((1, 2, 3)).mean()
    found = dci(means, ranges(factors), n_train=n_train, classifier=classifier)
    codes, logits, _ = model(images[:256], torch.Generator().manual_seed(seed))
    batches = codes.unflatten(0, (-1, 64)), logits.sigmoid().flatten(1).unflatten(0, (-1, 64))
    kept, gap = (float(loss(*batches).mean()) for loss in (Distortion(), _gap()))
    mig = mutual_information_gap(means, factors)
    return Scores(**asdict(found), mig=mig, error=float(error), distortion=kept, gap=gap)


def ranges(factors: Tensor) -> Tensor:
    """The factors of sprites with at most eight values each: longer ones are cut into eight equal ranges.

    Example:
        >>> import torch
        >>> ranges(torch.tensor([[2, 5, 39, 0, 17]]))
        tensor([[2, 5, 7, 0, 4]])
    """
    values = torch.tensor(list(FACTORS.values()))
    return torch.where(values > VALUES, factors * VALUES // values, factors)


def classifier() -> Any:
    """Boosted trees with few rounds, as each round costs one tree per value of a factor."""
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(n_estimators=ROUNDS, random_state=0)


def compare(
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
    seeds: Iterable[int],
    *,
    beta: float = 1.0,
    steps: int = 600,
) -> Iterator[tuple[int, str, Scores]]:
    """The seed, the name of the regularizer, and the scores, one after the other.

    Args:
        draw: Makes n images and their factors.
        seeds: Each draws other images and another network, the same ones for all regularizers.
        beta: Of :func:`fit`.
        steps: Of :func:`fit`.
    """
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        images, _ = draw(IMAGES, generator)
        held_out = draw(TRAIN + TEST, generator)
        for name in REGULARIZERS:
            asked, weight = regularizer(name)
            model = fit(images, asked, weight=weight, beta=beta, steps=steps, seed=seed)
            yield seed, name, scores(model, *held_out, n_train=TRAIN)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the archive of dSprites; without it, sprites are drawn")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training of each arm per seed")
    parser.add_argument("--steps", type=int, default=600, help="gradient steps of a training (600)")
    parser.add_argument("--beta", type=float, default=1.0, help="weight of the divergence from the prior (1)")
    parser.add_argument("--out", type=Path, help="a file of one row per run, to which these are added")
    given = parser.parse_args()
    if given.data is not None and not given.data.is_file():
        parser.error(f"argument --data: there is no file {given.data}; leave it out to draw sprites")
    return given


def table(rows: list[tuple[int, str, Scores]]) -> Iterator[str]:
    """Lines with the mean of each score over the seeds, ± its standard deviation where there are several."""
    names = ("DCI-D", "DCI-C", "DCI-I", "MIG", "error", "distortion", "gap")
    yield f"{'regularizer':24s}" + "".join(f"{name:>18s}" for name in names)
    for regularizer in REGULARIZERS:
        columns = zip(*(astuple(found) for _, name, found in rows if name == regularizer), strict=True)
        figures = [f"{fmean(c):.4f}" + (f" ± {stdev(c):.4f}" if len(c) > 1 else "") for c in columns]
        yield f"{regularizer:24s}" + "".join(f"{figure:>18s}" for figure in figures)


def main() -> None:
    """Print the scores of each run, and their mean ± standard deviation over the seeds."""
    given = _arguments()
    warnings.filterwarnings("ignore", "Gromov-Wasserstein stopped")

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if given.data is not None:
            return load_dsprites(given.data, n, generator=generator)
        return sprites(n, size=32, generator=generator)

    rows = []
    for row in compare(draw, given.seeds, steps=given.steps, beta=given.beta):
        rows.append(row)
        line = [str(row[0]), row[1], *(f"{value:.4f}" for value in astuple(row[2]))]
        print("; ".join(line), flush=True)
        if given.out is not None:
            with given.out.open("a") as file:
                print("; ".join(line), file=file)
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
