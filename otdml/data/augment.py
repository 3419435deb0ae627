"""Random distortions of whole batches of images, on their device."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from otdml._checks import argument_error, check_images, check_nonnegative, check_share, device_of_draws
from otdml._training import as_float

__all__ = ["Distort"]


class Distort:
    r"""Random affine maps, elastic waves and stroke widths, drawn anew for every image of a batch.

    All images are resampled in one call on their device, so that it costs little beside a training step. Numbers are
    the largest magnitudes of uniform draws; at zero a distortion is left out. No flips: a mirrored character is
    another character.

    Args:
        degrees: Rotation.
        scale: Relative change of the sides of what is shown, e.g. .15 for 85 % to 115 % of the image.
        shear: Horizontal shift per unit of height.
        translate: Shift, as a share of the side.
        elastic: Standard deviation of a smooth displacement, drawn on a 4 × 4 grid, as a share of half the side.
        strokes: Share of the way to the image dilated, or eroded, by one pixel.

    Raises:
        ValueError: If a magnitude is negative or too large.

    Example:
        >>> import torch
        >>> images = torch.rand(2, 1, 8, 8)
        >>> still = Distort(degrees=0, scale=0, shear=0, translate=0)
        >>> torch.allclose(still(images, torch.Generator()), images, atol=1e-5)
        True
    """

    def __init__(
        self,
        *,
        degrees: float = 15.0,
        scale: float = 0.15,
        shear: float = 0.2,
        translate: float = 0.08,
        elastic: float = 0.0,
        strokes: float = 0.0,
    ) -> None:
        self.degrees = check_nonnegative("degrees", degrees)
        self.scale = check_nonnegative("scale", scale)
        if self.scale >= 1:
            raise argument_error("scale", "be below 1, or images would be mirrored", scale)
        self.shear = check_nonnegative("shear", shear)
        self.translate = check_nonnegative("translate", translate)
        self.elastic = check_nonnegative("elastic", elastic)
        self.strokes = check_share("strokes", strokes)

    def __repr__(self) -> str:
        return f"Distort({', '.join(f'{name}={value:g}' for name, value in vars(self).items())})"

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Distorted ``images`` (n, c, h, w), in single precision or better; nothing comes in from outside.

        The ``generator`` is on their device or any other.
        """
        # Places of points are not numbers of half precision.
        images = as_float(check_images("images", images))
        grid = F.affine_grid(self._affine(images, generator), list(images.shape), align_corners=False)
        if self.elastic:
            waves = _drawn(torch.randn, (len(images), 2, 4, 4), images, generator)
            smooth = F.interpolate(waves, images.shape[-2:], mode="bicubic", align_corners=False)
            grid = grid + self.elastic * smooth.permute(0, 2, 3, 1)
        images = F.grid_sample(images, grid, align_corners=False)
        return self._restroked(images, generator) if self.strokes else images

    def _affine(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Affine maps from points of the new image to the old one, (n, 2, 3): rotation × shear × scale, and a shift."""
        draws = _drawn(torch.rand, (6, len(images)), images, generator) * 2 - 1
        angle, shear = draws[0] * math.radians(self.degrees), draws[1] * self.shear
        width, height = 1 + self.scale * draws[2:4]
        right, down = 2 * self.translate * draws[4:6]
        cos, sin = angle.cos(), angle.sin()
        # Coordinates run from -1 to 1 along both sides, of whatever length: turns are those of pixels.
        slim = images.shape[-2] / images.shape[-1]
        rows = (
            [cos * width, (cos * shear - sin) * height * slim, right],
            [sin * width / slim, (sin * shear + cos) * height, down],
        )
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

    def _restroked(self, images: Tensor, generator: torch.Generator) -> Tensor:
        draw = _drawn(torch.rand, (len(images), 1, 1, 1), images, generator)
        share = self.strokes * (2 * draw - 1)
        thick, thin = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
        return torch.lerp(images, torch.where(share > 0, thick, thin), share.abs())


def _drawn(law: Callable[..., Tensor], shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Draws in the dtype and on the device of the images."""
    source = device_of_draws(generator, images.device)
    return law(shape, generator=generator, device=source, dtype=images.dtype).to(images.device)
