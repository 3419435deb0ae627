"""Corruptions of photographs, each of which makes a domain of its own."""

import torch
from torch import Tensor
from torch.nn import functional as F

from otdml._arguments import argument_error, check_choice
from otdml._checks import check_generator, check_images, check_pixels, device_of_draws

__all__ = ["CORRUPTIONS", "corrupted"]

CORRUPTIONS = ("none", "noise", "blur", "contrast", "pixels")


def corrupted(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Pictures corrupted in one way, as those of CIFAR-10-C are :cite:p:`hendrycks:19`.

    Args:
        images: In [0, 1], shape (n, channels, h, w).
        kind: ``"none"``; ``"noise"``: Gaussian, of standard deviation 0.15; ``"blur"``: the mean of 3 × 3 pixels, two
            times; ``"contrast"``: three tenths of it; ``"pixels"``: squares of 2 × 2 pixels have their mean, for which
            height and width must be even.
        generator: Of the noise, on the device of the images or any other.

    Returns:
        The pictures, in [0, 1].

    Example:
        >>> import torch
        >>> corrupted(torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), "pixels", torch.Generator()).flatten()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    check_choice("kind", kind, CORRUPTIONS), check_generator(generator)
    check_pixels("images", check_images("images", images))
    if kind == "pixels" and (images.shape[-1] % 2 or images.shape[-2] % 2):
        raise argument_error("images", "have an even height and width", tuple(images.shape))
    if kind == "noise":
        noise = torch.randn(images.shape, generator=generator, device=device_of_draws(generator))
        images = images + 0.15 * noise.to(images)
    elif kind == "blur":
        for _ in range(2):
            images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    elif kind == "contrast":
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + 0.3 * (images - mean)
    elif kind == "pixels":
        images = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2)
    return images.clamp(0, 1)
