"""A small residual encoder of photographs, and its training on pairs of views."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._arguments import argument_error
from otdml._checks import (
    check_choice,
    check_fields,
    check_generator,
    check_images,
    check_integer,
    check_labels,
    check_pixels,
    check_positive,
    check_several,
    check_share,
    device_of_draws,
)
from otdml._precision import multiplies_in_bfloat16
from otdml._start import started, to_default_device
from otdml._training import as_float, evaluating, inputs_of, learnt, minimised
from otdml.contrast.views import SPOILS, Views, spoiled
from otdml.dml.backbones import ResNet

__all__ = ["Encoder", "Pairs", "training"]


class Encoder(nn.Module):
    """A residual network with one block per width, and a head that the loss sees and that is then thrown away.

    Each square of 2 × 2 pixels enters as one point of twelve channels, which takes a quarter of the time that
    convolutions of all pixels would take.

    Args:
        seed: Of its weights; the global generator is left as it was.
        widths: Channels of each stage; every stage but the first halves height and width.
        dim: Coordinates of the head.

    Example:
        >>> import torch
        >>> encoder = Encoder(seed=0, widths=(4, 8), dim=3)
        >>> images = torch.zeros(2, 3, 8, 8)
        >>> encoder(images).shape, encoder.features(images).shape
        (torch.Size([2, 3]), torch.Size([2, 8]))
    """

    def __init__(self, *, seed: int, widths: tuple[int, ...] = (16, 32, 64, 128), dim: int = 64) -> None:
        super().__init__()
        seed, dim = check_integer("seed", seed, least=None), check_integer("dim", dim)
        widths = check_several("widths", widths, check_integer)
        if not widths:
            raise argument_error("widths", "be one or more", widths)
        with started(seed):
            network = ResNet(in_channels=12, widths=widths, depths=(1,) * len(widths), small_images=True)
            self.trunk = nn.Sequential(nn.PixelUnshuffle(2), network)
            self.head = nn.Sequential(
                nn.Linear(widths[-1], widths[-1]), nn.BatchNorm1d(widths[-1]), nn.ReLU(), nn.Linear(widths[-1], dim)
            )
        to_default_device(self, seed)

    def pooled(self, images: Tensor) -> Tensor:
        """The mean of the maps over their points, shape (n, widths[-1]); images in [0, 1], shape (n, 3, h, w).

        They are moved to the device and the dtype of the weights.
        """
        if any(side % 2 for side in check_images("images", images, channels=3).shape[2:]):
            raise argument_error("images", "have an even height and width", tuple(images.shape))
        standard = ((inputs_of(self, images) - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        return self.trunk(standard).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings for the loss, shape (n, dim)."""
        return self.head(self.pooled(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features to evaluate: pooled maps of undistorted pictures, uint8 or float, in evaluation mode, in batches."""
        check_pixels("images", check_images("images", images, channels=3, stored=True))
        with evaluating(self), half(_device(self)):
            return torch.cat([self.pooled(as_float(part)).float() for part in images.split(500)])


@dataclass(frozen=True)
class Pairs:
    """How pairs of views are made.

    Attributes:
        views: Of both.
        spoil: What the second view of some pairs is, see :func:`~otdml.contrast.spoiled`.
        share: Of such pairs.
    """

    views: Views = field(default_factory=Views)
    spoil: str = "wrong"
    share: float = 0.0

    def __post_init__(self) -> None:
        check_choice("spoil", self.spoil, SPOILS)
        if not callable(self.views):
            raise argument_error("views", "be a function of images and a generator", repr(self.views), kind=TypeError)
        check_fields(self, share=check_share)

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of each picture, of which the second may be spoiled."""
        first, second = self.views(images, generator), self.views(images, generator)
        return first, spoiled(second, self.spoil, self.share, generator)


def training(
    encoder: Encoder,
    images: Tensor,
    loss: Callable[..., Tensor],
    pairs: Pairs,
    *,
    steps: int,
    batch: int,
    rate: float,
    domains: Tensor | None = None,
    generator: torch.Generator,
) -> Iterator[int]:
    """Train an encoder on pairs of views by Adam, whose rate falls to zero like a cosine; the steps so far, after each.

    The encoder computes in bfloat16 where its device multiplies in it, and the loss in float32. Batches and views
    depend on the generator alone, so that losses can be compared on the same ones.

    Args:
        encoder: Changed in place. Batches are moved to its device and dtype.
        images: Bytes, shape (n, 3, h, w), on any device.
        loss: Of the two views of a batch, each of shape (batch, dim), and of its domains where there are any. If it is
            a module its parameters, such as a temperature, are trained too.
        pairs: How views are made.
        steps: Number of batches.
        batch: Pictures in each.
        rate: The first learning rate.
        domains: Of the pictures, or any label that the loss takes, shape (n,).
        generator: Of batches and views.
    """

    check_generator(generator, needed=True)
    check_pixels("images", check_images("images", images, channels=3, stored=True))
    if domains is not None:
        domains = check_labels("domains", domains, len(images))
    encoder.train()
    steps, batch, rate = check_integer("steps", steps), check_integer("batch", batch), check_positive("rate", rate)

    def value() -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=generator, device=device_of_draws(generator))
        with half(_device(encoder)):
            z = encoder(torch.cat(pairs(inputs_of(encoder, images[rows.to(images.device)]), generator)))
        first, second = F.normalize(z.float(), dim=-1).chunk(2)
        if domains is None:
            return loss(first, second)
        return loss(first, second, domains[rows.to(domains.device)].to(first.device))

    return minimised(value, torch.optim.Adam(learnt(encoder, loss), lr=rate), steps)


def half(device: torch.device) -> AbstractContextManager[object]:
    """Convolutions in bfloat16 where the device multiplies in it, which takes half the time; as they are elsewhere."""
    return torch.autocast(device.type, torch.bfloat16) if multiplies_in_bfloat16(device) else nullcontext()


def _device(encoder: nn.Module) -> torch.device:
    return next(encoder.parameters()).device
