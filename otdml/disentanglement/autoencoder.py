"""Variational autoencoders with a penalty on the geometry of the encoder or the decoder."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from otdml._arguments import argument_error, check_choice
from otdml._checks import (
    check_boolean,
    check_fields,
    check_generator,
    check_images,
    check_integer,
    check_nonnegative,
    check_optional_function,
    check_pixels,
    check_points,
    check_positive,
    device_of_draws,
)
from otdml._precision import full_precision
from otdml._start import started, to_default_device
from otdml._training import inputs_of, learnt, minimised
from otdml.losses import MMD

__all__ = ["Autoencoder", "Objective", "Schedule", "fit", "total_correlation", "training"]

PRIORS = ("kl", "tc", "energy")
PLACES = ("decoder", "encoder", "posterior")


class Autoencoder(nn.Module):
    """A convolutional encoder to a Gaussian posterior and its mirror image, for square pictures.

    Args:
        codes: Number of latent codes.
        size: Height and width of the pictures, a multiple of 8.
        width: Channels of the first layer.
        channels: Of the pictures.
    """

    def __init__(self, *, codes: int = 10, size: int = 32, width: int = 16, channels: int = 1) -> None:
        super().__init__()
        codes, size = check_integer("codes", codes), check_integer("size", size, least=8)
        width, channels = check_integer("width", width), check_integer("channels", channels)
        if size % 8:
            raise argument_error("size", "be a multiple of 8", size)
        side, deep = size // 8, 2 * width
        self.channels, self.size = channels, size
        self.encoder = nn.Sequential(
            *_down(channels, width), *_down(width, deep), *_down(deep, deep),
            nn.Flatten(), nn.Linear(deep * side**2, 128),
        )  # fmt: skip
        self.posterior = nn.Sequential(nn.ReLU(), nn.Linear(128, 2 * codes))
        self.decoder = nn.Sequential(
            nn.Linear(codes, 128), nn.ReLU(), nn.Linear(128, deep * side**2), nn.ReLU(),
            nn.Unflatten(1, (deep, side, side)), *_up(deep, deep), *_up(deep, width),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )  # fmt: skip

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means and log-variances, each of shape (n, codes); images in [0, 1], shape (n, channels, h, w).

        They are moved to the device and the dtype of the weights.
        """
        check_images("images", images, channels=self.channels, sides=(self.size, self.size))
        mean, log_variance = self.posterior(self.encoder(inputs_of(self, images))).chunk(2, -1)
        return mean, log_variance

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Codes drawn from the posterior, logits of their images, and the divergence from the prior of each row."""
        mean, log_variance = self.encode(images)
        codes = drawn(mean, log_variance, generator)
        return codes, self.decoder(codes), divergence(mean, log_variance).sum(-1)


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]


def drawn(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw from each Gaussian posterior, differentiable in its parameters."""
    return mean + (0.5 * log_variance).exp() * _normal(mean, generator)


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Normal draws of the shape of ``like``, in its dtype and on its device, from a generator on any device."""
    return torch.randn(like.shape, generator=generator, device=device_of_draws(generator, like.device)).to(like)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each posterior from the standard normal law, code by code, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)


@full_precision
def total_correlation(codes: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Total correlation of the codes of a batch, estimated from the batch.

    .. math:: \mathrm{TC} = \mathbb{E} \Bigl[ \log \tfrac1n \sum_j q(z | x_j)
        - \sum_d \log \tfrac1n \sum_j q(z_d | x_j) \Bigr]

    the divergence of the law of the codes from the product of its marginals :cite:p:`chen:18`. Its gradient is that of
    the estimator by minibatch weights, which differs by a constant. Zero where all posteriors are equal.

    Args:
        codes: One draw from each posterior, shape (n, codes).
        mean: Of the posteriors, shape (n, codes).
        log_variance: Of the posteriors, shape (n, codes).

    Returns:
        One number, in nats.

    Example:
        >>> import torch
        >>> z = torch.tensor([[-9.0, -9.0], [9.0, 9.0]])  # Two far points: ln 2 nats that the two codes share.
        >>> total_correlation(z, z, torch.zeros(2, 2))
        tensor(0.6931)
    """
    if check_points("codes", codes).ndim != 2:
        raise argument_error("codes", "have shape (n, d)", tuple(codes.shape))
    for name, one in (("mean", mean), ("log_variance", log_variance)):
        if check_points(name, one).shape != codes.shape:
            raise argument_error(name, f"have the shape of `codes`, {tuple(codes.shape)}", tuple(one.shape))
    error = codes[:, None] - mean
    density = -0.5 * (error.square() * (-log_variance).exp() + log_variance)
    n = len(codes)
    joint = density.sum(-1).logsumexp(1) - math.log(n)
    marginals = density.logsumexp(1) - math.log(n)
    return (joint - marginals.sum(-1)).mean()


@dataclass(frozen=True)
class Objective:
    r"""What an autoencoder minimises.

    .. math:: \mathbb{E} \, [ -\log p(x | z) ] + \text{prior} + \lambda R

    Attributes:
        beta: :math:`\beta`, the weight of the prior.
        prior: ``"kl"``: :math:`\beta \, \mathrm{KL}(q(z | x) \,|\, p(z))` :cite:p:`higgins:17`. ``"tc"``: the same
            with β = 1 and :math:`(\beta - 1) \, \mathrm{TC}` on top :cite:p:`chen:18`. ``"energy"``: β times the
            energy distance of the means of a batch to draws from the prior, which holds all codes together to it and
            none by itself; the encoder has no noise then. Its force between close codes does not vanish, as that of
            a smooth kernel does, so that codes do not stay where they have collapsed.
        regularizer: R, a loss of a map: of points (n, d) and their images (n, e). Its parameters are trained with the
            network.
        weight: :math:`\lambda`, to be given with a regularizer.
        place: Which map: the ``"decoder"``, from codes to pictures, or the ``"encoder"``, from pictures to means
            :cite:p:`uscidda:24`, or the ``"posterior"``, from pictures to codes that are drawn from it.
        reconstruction: Without it no picture is decoded, and the first term is left out.

    Without a decoder, costs between means, the energy distance and the divergence's part of the means stay as they are
    when all means are rotated: of the factors of what minimises them none needs to be an axis. The noise of a posterior
    is drawn along the axes, and tells apart directions in which means vary unequally: under squared distances it is
    less where they vary more, and these directions become the axes (cosines leave noise along the radius free, which
    blurs that). Of factors of equal variance it finds no axes. The marginals of a total correlation do.

    Raises:
        ValueError: The objective would not reach the network: a regularised decoder that is not there, a posterior
            without noise, a regularizer without a weight, or a weight without a regularizer.
    """

    beta: float = 1.0
    prior: str = "kl"
    regularizer: nn.Module | None = None
    weight: float | None = None
    place: str = "decoder"
    reconstruction: bool = True

    def __post_init__(self) -> None:
        check_choice("prior", self.prior, PRIORS)
        check_choice("place", self.place, PLACES)
        check_fields(self, regularizer=check_optional_function)
        check_boolean("reconstruction", self.reconstruction)
        check_fields(self, beta=check_nonnegative)
        if self.weight is not None:
            check_fields(self, weight=check_nonnegative)
        if self.regularizer is not None and self.weight is None:
            raise argument_error("weight", "be given with a `regularizer`", self.weight)
        if self.regularizer is None and self.weight:
            raise argument_error("weight", "be None or zero without a `regularizer`", self.weight)
        if self.regularizer is not None and self.place == "decoder" and not self.reconstruction:
            raise argument_error("place", "be 'encoder' or 'posterior' where nothing is decoded", self.place)
        if self.regularizer is not None and self.place == "posterior" and not self.noisy:
            raise argument_error("place", "be 'encoder' where the prior is 'energy'", self.place, "It has no noise.")

    @property
    def noisy(self) -> bool:
        """Whether codes are drawn from the posterior; they are its means otherwise."""
        return self.prior != "energy"

    def __call__(self, model: Autoencoder, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The objective on a batch; images in [0, 1], shape (n, channels, size, size)."""
        mean, log_variance = model.encode(images)
        codes = drawn(mean, log_variance, generator) if self.noisy else mean
        loss = self._prior(codes, mean, log_variance, generator)
        maps = {"encoder": (images, mean), "posterior": (images, codes)}
        if self.reconstruction:
            logits = model.decoder(codes)
            error = nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
            loss = loss + error / len(images)
            maps["decoder"] = (codes, logits.sigmoid())
        if self.regularizer is not None and self.weight is not None:
            points, mapped = maps[self.place]
            loss = loss + self.weight * self.regularizer(points.flatten(1), mapped.flatten(1))
        return loss

    def _prior(self, codes: Tensor, mean: Tensor, log_variance: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.prior == "energy":
            return self.beta * MMD(kernel="energy")(codes, _normal(mean, generator))
        rate = divergence(mean, log_variance).sum(-1).mean()
        if self.prior == "kl":
            return self.beta * rate
        return rate + (self.beta - 1) * total_correlation(codes, mean, log_variance)


@dataclass(frozen=True)
class Schedule:
    """How long an autoencoder is fitted, and in which steps.

    Attributes:
        steps: Gradient steps.
        batch: Images per step.
        rate: Learning rate of Adam.
        cosine: Whether the rate falls to zero along a half cosine, or stays.
    """

    steps: int = 2000
    batch: int = 64
    rate: float = 1e-3
    cosine: bool = True

    def __post_init__(self) -> None:
        check_boolean("cosine", self.cosine)
        check_fields(self, steps=check_integer, batch=check_integer, rate=check_positive)


def training(
    model: Autoencoder, images: Tensor, objective: Objective, schedule: Schedule, generator: torch.Generator
) -> Iterator[int]:
    """Fit a model by Adam; the number of steps so far after each of them.

    Args:
        model: Changed in place.
        images: In [0, 1], or bytes in [0, 255], which take a quarter of the memory; shape (n, channels, size, size).
        objective: What is minimised.
        schedule: For how long.
        generator: Of the batches and draws.
    """

    check_generator(generator, needed=True)
    model.train()
    sides = model.size, model.size
    check_pixels("images", check_images("images", images, channels=model.channels, sides=sides, stored=True))

    def loss() -> Tensor:
        rows = torch.randint(len(images), (schedule.batch,), generator=generator, device=device_of_draws(generator))
        return objective(model, inputs_of(model, images[rows.to(images.device)]), generator)

    optimizer = torch.optim.Adam(learnt(model, objective.regularizer), lr=schedule.rate)
    return minimised(loss, optimizer, schedule.steps, cosine=schedule.cosine)


def fit(
    images: Tensor, objective: Objective | None = None, schedule: Schedule | None = None, *, seed: int = 0
) -> Autoencoder:
    """An autoencoder fitted to pictures.

    Args:
        images: In [0, 1], or bytes in [0, 255], shape (n, channels, size, size).
        objective: What is minimised; a plain variational autoencoder if None.
        schedule: For how long.
        seed: Of the weights, batches and draws; two fits with one seed start from the same network and see the same.
    """
    check_images("images", images, stored=True)
    model = seeded(seed, size=images.shape[-1], channels=images.shape[1])
    steps = training(
        model, images, objective or Objective(), schedule or Schedule(), torch.Generator().manual_seed(seed)
    )
    for _ in steps:
        pass
    return model


def seeded(seed: int, *, size: int = 32, width: int = 16, channels: int = 1, codes: int = 10) -> Autoencoder:
    """A new network whose weights depend on the seed alone; the global generator is left as it was."""
    with started(check_integer("seed", seed, least=None)):
        model = Autoencoder(size=size, width=width, channels=channels, codes=codes)
    to_default_device(model, seed)
    return model
