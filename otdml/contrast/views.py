"""Random views of pictures, and their corruptions."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from otdml._arguments import argument_error, check_choice
from otdml._checks import (
    check_fields,
    check_fraction,
    check_generator,
    check_images,
    check_pixels,
    check_positive,
    check_several,
    check_share,
    device_of_draws,
)
from otdml._training import as_float

__all__ = ["SPOILS", "Views", "spoiled"]

SPOILS = ("wrong", "noise")


@dataclass(frozen=True)
class Views:
    """A crop of random place, size and shape, mirrored or not, in changed colours, as SimCLR takes :cite:p:`chen:20`.

    All pictures of a batch are resampled in one call.

    Attributes:
        crop: Smallest and largest share of the picture's area.
        ratio: Largest ratio of the sides of a crop.
        colour: Largest relative change of brightness, contrast and saturation, in [0, 1]: beyond, colours would be
            inverted.
        grey: Share of views without colour.

    Example:
        >>> import torch
        >>> still = Views(crop=(1.0, 1.0), ratio=1.0, colour=0.0, grey=0.0)
        >>> images = torch.rand(2, 3, 8, 8)
        >>> view = still(images, torch.Generator().manual_seed(0))
        >>> all(torch.allclose(v, x, atol=1e-5) or torch.allclose(v, x.flip(-1), atol=1e-5)
        ...     for v, x in zip(view, images))
        True
    """

    crop: tuple[float, float] = (0.2, 1.0)
    ratio: float = 4 / 3
    colour: float = 0.4
    grey: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self, ratio=check_positive, colour=check_share, grey=check_share)
        check_fields(self, crop=partial(check_several, check=check_fraction))
        if len(self.crop) != 2 or self.crop[0] > self.crop[1]:
            raise argument_error("crop", "be two shares of the area in (0, 1], the smaller one first", self.crop)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each picture, in single precision or better; images in [0, 1], shape (n, 3, h, w)."""
        # Places of points are not numbers of half precision.
        images = as_float(check_pixels("images", check_images("images", images, channels=3)))
        check_generator(generator)
        crops = self._crops(len(images), generator).to(images)
        grid = F.affine_grid(crops, list(images.shape), align_corners=False)
        return self._coloured(F.grid_sample(images, grid, padding_mode="border", align_corners=False), generator)

    def _crops(self, n: int, generator: torch.Generator) -> Tensor:
        """Affine maps from the points of a view to those of its picture, shape (n, 2, 3)."""
        area, shape, right, down, flip = torch.rand(5, n, generator=generator, device=device_of_draws(generator))
        low, high = self.crop
        area = low + (high - low) * area
        root = (area * torch.tensor(self.ratio) ** (2 * shape - 1)).sqrt()
        # A crop lies within the picture and keeps its area; an aspect ratio that does not fit is reduced.
        width = torch.maximum(root.clamp(max=1), area)
        height = area / width
        x, y = (1 - width) * (2 * right - 1), (1 - height) * (2 * down - 1)
        zero, mirrored = torch.zeros_like(width), torch.where(flip < 0.5, -width, width)
        return torch.stack([torch.stack([mirrored, zero, x], -1), torch.stack([zero, height, y], -1)], -2)

    def _coloured(self, images: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(4, len(images), 1, 1, 1, generator=generator, device=device_of_draws(generator))
        draws = draws.to(images.device)
        brightness, contrast, saturation = 1 + self.colour * (2 * draws[:3] - 1)
        luma = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        saturation = torch.where(draws[3] < self.grey, 0.0, saturation)
        images = luma + saturation * (images - luma)
        mean = luma.mean((2, 3), keepdim=True)
        return (brightness * (mean + contrast * (images - mean))).clamp(0, 1)


def spoiled(views: Tensor, kind: str, share: float, generator: torch.Generator) -> Tensor:
    """Views some of which are of another picture, or of none.

    Args:
        views: Shape (n, channels, h, w).
        kind: ``"wrong"``: the view of the picture before it in the batch. ``"noise"``: uniform noise.
        share: Probability that a view is spoiled, in [0, 1].
        generator: Source of randomness, on the device of the views or any other.

    Returns:
        The views, shape (n, channels, h, w).

    Example:
        >>> import torch
        >>> views = torch.arange(3.0).view(3, 1, 1, 1)
        >>> spoiled(views, "wrong", 1.0, torch.Generator()).flatten()
        tensor([2., 0., 1.])
    """
    check_choice("kind", kind, SPOILS)
    check_images("views", views)
    share = check_share("share", share)
    check_generator(generator)
    if kind == "wrong" and share and len(views) < 2:
        raise argument_error("views", "be of two pictures or more, as those of others are taken", len(views))
    source = device_of_draws(generator)
    bad = (torch.rand(len(views), 1, 1, 1, generator=generator, device=source) < share).to(views.device)
    if kind == "wrong":
        return torch.where(bad, views.roll(1, 0), views)
    return torch.where(bad, torch.rand(views.shape, generator=generator, device=source).to(views), views)
