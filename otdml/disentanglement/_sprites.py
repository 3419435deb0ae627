"""Sprites with known factors, drawn here or read from the archive of dSprites."""

from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

from otdml._arguments import argument_error
from otdml._checks import check_integer, check_pixels, check_positive, device_of_draws
from otdml.disentanglement.factors import FactorSet, random_factors

__all__ = ["FACTORS", "SPRITES", "load_dsprites", "sprites"]

# Names of the factors and the number of their values, in the order of dSprites.
FACTORS = {"shape": 3, "scale": 6, "rotation": 40, "x": 32, "y": 32}


def sprites(
    n: int,
    *,
    size: int = 64,
    supersampling: int = 2,
    radius: float = 0.095,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Images of random sprites, drawn anew: a square, an ellipse or a heart, scaled, rotated and moved.

    The factors and their ranges are those of dSprites :cite:p:`matthey:17`; the drawings are this library's own.

    Args:
        n: Number of images.
        size: Height and width in pixels.
        supersampling: Samples per pixel along each axis.
        radius: Of the smallest sprites, in units of the picture; each of the five larger scales adds a fifth.
        generator: Source of the factors.

    Returns:
        Images in [0, 1], shape (n, 1, size, size), and the indices of their factors, shape (n, 5).

    Example:
        >>> images, factors = sprites(2, size=16)
        >>> images.shape, factors.shape
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 5]))
    """
    n, size = check_integer("n", n), check_integer("size", size)
    supersampling = check_integer("supersampling", supersampling)
    radius = check_positive("radius", radius)
    factors = random_factors(FACTORS, n, generator)
    return torch.cat([_draw(part, size, supersampling, radius) for part in factors.split(512)]), factors


def _draw(factors: Tensor, size: int, supersampling: int, smallest: float) -> Tensor:
    shape, scale, rotation, x, y = factors.unbind(1)
    side = size * supersampling
    grid = (torch.arange(side) + 0.5) / side
    radius = smallest * (1 + scale / 5)[:, None, None]
    u = (grid[None, None, :] - (0.25 + 0.5 * x / 31)[:, None, None]) / radius
    v = ((0.25 + 0.5 * y / 31)[:, None, None] - grid[None, :, None]) / radius
    angle = (2 * torch.pi * rotation / 40)[:, None, None]
    u, v = angle.cos() * u + angle.sin() * v, angle.cos() * v - angle.sin() * u
    heart = ((1.2 * u).square() + (1.2 * v).square() - 1).pow(3) < (1.2 * u).square() * (1.2 * v).pow(3)
    inside = torch.stack([torch.maximum(u.abs(), v.abs()) < 0.85, u.square() + (2 * v).square() < 1.2, heart])
    chosen = inside[shape, torch.arange(len(shape))].float()
    return torch.nn.functional.avg_pool2d(chosen[:, None], supersampling)


def load_dsprites(path: str | Path, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Random images of the dSprites archive, as from :func:`sprites`.

    Args:
        path: The archive ``dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz``.
        n: Number of images.
        generator: Source of the choice.

    Returns:
        Images in [0, 1], shape (n, 1, 64, 64), and the indices of their factors, shape (n, 5).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds something else, or fewer images.
    """
    n = check_integer("n", n)
    device = device_of_draws(generator)
    images, classes = _archived(path)
    if images.ndim != 3 or classes.shape != (len(images), 1 + len(FACTORS)) or images.dtype != np.uint8:
        got = f"{images.dtype} of shape {images.shape} and classes of shape {classes.shape}"
        raise argument_error("path", f"hold bytes of shape (n, h, w), and {1 + len(FACTORS)} classes of each", got)
    if n > len(images):
        raise argument_error("n", f"be at most {len(images)}, the number of images", n)
    chosen = torch.randperm(len(images), generator=generator, device=device)[:n].cpu().numpy()
    # The first latent is the colour, of which there is one.
    pictures = check_pixels("path", torch.from_numpy(images[chosen])[:, None].float())
    return pictures, torch.from_numpy(classes[chosen, 1:]).long()


def _archived(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The images of the archive and their classes. Its metadata are pickled, and never read."""
    names = ("imgs", "latents_classes")
    # Any other file NumPy advises to unpickle, which runs the code in it.
    if Path(path).is_file() and not is_zipfile(path):
        raise argument_error("path", "be the archive of dSprites", f"{path}, which is no archive")
    try:
        with open(path, "rb") as file, np.load(file) as archive:
            if set(names) <= set(archive.files):
                return archive[names[0]], archive[names[1]]
    except FileNotFoundError:
        raise
    # NumPy has an error of its own for each way in which a file can be damaged, or another kind of file.
    except (OSError, ValueError, EOFError, BadZipFile, TypeError) as error:
        raise argument_error("path", "be the archive of dSprites", f"{path} ({error})") from error
    raise argument_error("path", f"hold the arrays {names[0]!r} and {names[1]!r}", f"{path}")


# The sprites as a set of pictures.
SPRITES = FactorSet(FACTORS, 1, sprites)
