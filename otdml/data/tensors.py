"""Image sets that fit into memory as one tensor."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from otdml._checks import argument_error, check_images, check_integer, check_labels, check_nonnegative

__all__ = ["TensorImages", "crop_to_ink", "downscale", "rotated_classes"]


class TensorImages(Dataset[tuple[Any, int]]):
    """Labelled images in one tensor, item by item or whole batches at a time.

    Items are ``(image, label)``, the image in float32 in [0, 1], after ``transform`` where one is given. A training
    run that finds :meth:`batch` takes whole batches instead, and augments them on the device: at 28 pixels that is
    an order of magnitude faster than item by item.

    Args:
        images: Shape (n, channels, height, width), uint8.
        labels: Shape (n,), integers in [0, len(classes)).
        classes: Names of the classes.
        transform: Called on each item's image, if given.

    Raises:
        ValueError: If shapes disagree, a label is out of range, or a class has no image.

    Example:
        >>> import torch
        >>> images = TensorImages(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([0, 1]), ["a", "b"])
        >>> images[1][0].max(), images[1][1]
        (tensor(1.), 1)
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        *,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise argument_error("images", "be uint8 of shape (n, c, h, w)", f"{images.dtype} {tuple(images.shape)}")
        self.images, self.classes, self.transform = images, list(classes), transform
        self.labels = check_labels("labels", labels, len(images), len(self.classes)).long()
        counts = self.labels.bincount(minlength=len(self.classes))
        if empty := [name for name, count in zip(self.classes, counts.tolist(), strict=True) if not count]:
            raise argument_error("labels", "name an image or more of every class", f"no image of {', '.join(empty)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index].float() / 255
        return (self.transform(image) if self.transform else image), int(self.labels[index])

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """The images as they are stored, uint8, and the labels of ``indices``; ``transform`` is not applied."""
        index = torch.as_tensor(indices, device="cpu")
        return self.images[index], self.labels[index]

    def thumbnail(self, index: int) -> np.ndarray:
        """The image as it is stored, uint8, of shape (height, width) or (height, width, 3), for pictures."""
        image = self.images[index].permute(1, 2, 0).numpy(force=True)
        return image[..., 0] if image.shape[-1] == 1 else image


def downscale(images: Tensor, size: int) -> Tensor:
    """Square images of ``size`` pixels by anti-aliased bilinear resampling: each new pixel averages what it covers.

    Args:
        images: Shape (n, channels, height, width), uint8.
        size: Pixels per side.

    Returns:
        Shape (n, channels, size, size), uint8.

    Example:
        >>> import torch
        >>> checks = torch.tensor([[0, 200], [200, 0]], dtype=torch.uint8).tile(2, 2)[None, None]
        >>> downscale(checks, 1).item()
        100
    """
    size = check_integer("size", size)
    _check_stored(images)
    if images.shape[-2:] == (size, size):
        return images
    # In pieces: in float32 the full set at 105 pixels takes a gigabyte.
    parts = (F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True) for part in images.split(1024))
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])


def _check_stored(images: Tensor) -> None:
    """Raise unless images are stored as bytes, and there are some."""
    if check_images("images", images, stored=True).dtype != torch.uint8:
        raise argument_error("images", "be bytes", images.dtype, "Write `(255 * images).round().byte()`.", TypeError)


def crop_to_ink(images: Tensor, size: int, *, margin: float = 0.08, least: int = 1) -> Tensor:
    """Square crops about what is drawn, resampled to ``size`` pixels: a drawing's place and scale no longer count.

    The crop is centred on the bounding box of the pixels that are not zero, and its side is the longer one of the box;
    beyond the image there is no ink. An empty image stays empty.

    Args:
        images: Shape (n, channels, height, width), uint8, zero where there is no ink.
        size: Pixels per side of the result.
        margin: Space on each side, as a share of the box's longer side.
        least: Longer side in pixels that a box has at least, so that a dot stays a dot.

    Returns:
        Shape (n, channels, size, size), uint8.

    Example:
        >>> import torch
        >>> image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> image[..., 5:7, 1:3] = 255
        >>> crop_to_ink(image, 2, margin=0)
        tensor([[[[255, 255],
                  [255, 255]]]], dtype=torch.uint8)
    """
    size, margin = check_integer("size", size), check_nonnegative("margin", margin)
    least = check_integer("least", least)
    _check_stored(images)
    (top, bottom), (left, right) = (_extent(images.amax((1, axis)) > 0) for axis in (3, 2))
    side = (1 + 2 * margin) * torch.maximum(bottom - top, right - left).clamp(min=least)
    found = []
    for part in torch.arange(len(images), device="cpu").split(512):
        rows = _resampling((top + bottom)[part] / 2, side[part], images.shape[-2], size)
        columns = _resampling((left + right)[part] / 2, side[part], images.shape[-1], size)
        crops = rows[:, None] @ images[part].float() @ columns[:, None].mT
        found.append(crops.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(found)


def _resampling(centre: Tensor, side: Tensor, length: int, size: int) -> Tensor:
    """Matrices (n, size, length) from the pixels of a line to those of the piece of length ``side`` about ``centre``.

    Each new pixel is a mean with triangular weights, as wide as a new or an old pixel, whichever is larger: bilinear
    interpolation where the piece is enlarged, and anti-aliased where it shrinks.
    """
    step = (side / size)[:, None, None]
    places = (centre - side / 2)[:, None, None] + step * (torch.arange(size, device=side.device) + 0.5)[:, None]
    # Weights beyond the line count in the mean, as pixels without ink.
    beyond = int((side / 2 + step[:, 0, 0].clamp(min=1)).max()) + 1
    pixels = torch.arange(-beyond, length + beyond, device=side.device) + 0.5
    weights = (1 - (pixels - places).abs() / step.clamp(min=1)).clamp(min=0)
    return (weights / weights.sum(dim=-1, keepdim=True))[..., beyond : beyond + length]


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First index and last index + 1 that is true, row by row; the whole width where none is."""
    empty, length = ~occupied.any(dim=1), occupied.shape[1]
    first, last = occupied.int().argmax(dim=1), length - occupied.flip(1).int().argmax(dim=1)
    return first.masked_fill(empty, 0), last.masked_fill(empty, length)


def rotated_classes(images: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[Tensor, Tensor, list[str]]:
    """Every class at 0, 90, 180 and 270 degrees as four classes of their own.

    A character on its side is another character: four times the classes from the same drawings.

    Args:
        images: Shape (n, channels, size, size).
        labels: Shape (n,).
        classes: The k class names.

    Returns:
        Images (4n, ...), labels (4n,) in [0, 4k), and the 4k names, the turned ones marked by their angle.

    Raises:
        ValueError: If images are not square.

    Example:
        >>> import torch
        >>> images, labels, classes = rotated_classes(torch.zeros(2, 1, 3, 3), torch.tensor([0, 1]), ["a", "b"])
        >>> labels.tolist(), classes[2:4]
        ([0, 1, 2, 3, 4, 5, 6, 7], ['a@90', 'b@90'])
    """
    if images.shape[-1] != images.shape[-2]:
        raise argument_error("images", "be square", tuple(images.shape))
    turned = torch.cat([images.rot90(quarter, (-2, -1)) for quarter in range(4)])
    names = [f"{name}@{90 * quarter}" if quarter else name for quarter in range(4) for name in classes]
    return turned, torch.cat([labels + quarter * len(classes) for quarter in range(4)]), names
