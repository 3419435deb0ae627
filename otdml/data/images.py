"""Reading and cropping images with Pillow."""

import math
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from otdml._checks import (
    argument_error,
    check_fraction,
    check_integer,
    check_number,
    check_positive,
    check_several,
    check_share,
)
from otdml.data.channels import REMEDY, image_name, remedy, three_channels

__all__ = [
    "DAMAGE",
    "CenterCrop",
    "RandomResizedCrop",
    "as_rgb",
    "open_image",
    "standard_crop",
    "thumbnail",
    "transformed",
    "unreadable",
]

# ImageNet statistics, which pretrained backbones expect.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What Pillow raises for damaged files: SyntaxError for broken PNG chunks, RuntimeError for AVIF, TypeError for TIFF.
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, RuntimeError, TypeError, LookupError,
    ArithmeticError, struct.error, zlib.error,
)  # fmt: skip

# Entries of `Image.info` that may hold an orientation: EXIF, early or late in a PNG, and XMP.
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
# An entry of our own: pixels are taken as stored.
_AS_STORED = "otdml: as stored"

# How the orientations of EXIF become the first one, upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Box = tuple[float, float, float, float]


def open_image(
    file: str | Path | IO[bytes], *, upright: bool = True, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """The image in a file, not decoded yet.

    Args:
        file: Its path, or a file that is open for reading, which stays open until the image is decoded.
        upright: Whether the orientation in its EXIF or XMP counts, or else pixels lie as they are stored.
        formats: Pillow's names of the formats to try; None for all.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, or no regular file; the message names it.
    """
    named = isinstance(file, str | Path)
    try:
        if isinstance(file, str | Path) and not stat.S_ISREG(os.stat(file).st_mode):
            # Opening a pipe would block until another process writes to it.
            raise OSError("no regular file")
        with _metadata_unwarned():
            image = Image.open(file, formats=formats)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        if named:
            raise ValueError(f"{file} cannot be read as an image ({error}). {REMEDY}") from error
        # Pillow's message would show the address of the file object.
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"this cannot be read as an image ({reason}).") from error
    if not upright:
        image.info[_AS_STORED] = True
    return image


@contextmanager
def _metadata_unwarned() -> Iterator[None]:
    """Pillow warns of damaged metadata, with which an image may be whole."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Corrupt EXIF data")
        yield


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes an undecoded image upright, from its EXIF or XMP."""
    stored, own = image.info.get(_AS_STORED), getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation)
    if stored or own is not None:
        # Pillow turns TIFFs by itself as it decodes them. The way back is another one for quarter turns alone.
        return _TURNS.get({6: 8, 8: 6}.get(own, own)) if stored and own is not None else None
    if image.format == "PNG":
        # The EXIF of a PNG may follow the pixels.
        _decode(image)
    try:
        with _metadata_unwarned():
            return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE:
        return None


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turn = _turn(image)
    sideways = turn is not None and turn not in (_TURNS[2], _TURNS[3], _TURNS[4])
    return (image.height, image.width) if sideways else image.size


def as_rgb(image: Image.Image) -> Image.Image:
    """The decoded image, upright and with three channels.

    Grey is repeated, 12 and 16 bits are reduced to 8, floating point in [0, 1] becomes 8 bits, CMYK and palettes are
    converted, alpha is dropped.

    Raises:
        ValueError: If the file is truncated or damaged, or its numbers have no known white; the message names it.
    """
    turn = _turn(image)
    _decode(image)
    found = three_channels(image)
    # So that the image is not rotated a second time.
    for key in _ORIENTED:
        found.info.pop(key, None)
    found.info[_AS_STORED] = True
    return found if turn is None else found.transpose(turn)


def _decode(image: Image.Image) -> None:
    try:
        _load(image)
    except DAMAGE as error:
        raise ValueError(f"{image_name(image)} cannot be read as an image ({error}).{remedy(image)}") from error


def _load(image: Image.Image) -> None:
    """Decode an image, a TIFF from memory: Pillow maps its file with the sides that it has once it is turned."""
    name = getattr(image, "filename", "")
    if image.format == "TIFF":
        image.filename = ""  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        image.filename = name  # type: ignore[attr-defined]


def unreadable(paths: Sequence[str | Path], workers: int | None = None) -> dict[str, str]:
    """The files among ``paths`` that cannot be decoded, with the reason; every one is read to its end.

    Pillow decodes without the interpreter's lock, so that threads help; JPEGs are decoded at an eighth of their size.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        reasons = pool.map(_damage, paths)
        return {str(path): reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _damage(path: str | Path) -> str:
    try:
        with open_image(path) as image:
            image.draft("RGB", (1, 1))
            as_rgb(image)
    except ValueError as error:
        # The message of Pillow, without the name of the file.
        return str(error.__cause__ or error)
    except DAMAGE as error:
        return str(error) or type(error).__name__
    return ""


class RandomResizedCrop:
    """A random part of an image at a random aspect ratio, resized to a square, perhaps mirrored, normalised.

    The field's augmentation for training. Large JPEGs are decoded at a half, a quarter or an eighth of their size
    where the part drawn still has enough pixels, which is several times faster. Randomness is torch's global one,
    which a data-loading worker seeds for itself.

    Args:
        size: Pixels per side.
        scale: Least and largest share of the image's area.
        ratio: Least and largest width over height.
        flip: Probability of mirroring.
        mean: Subtracted from each channel, in [0, 1].
        std: Each channel is divided by it.

    Returns:
        Called with a Pillow image: float32 of shape (3, size, size).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> image = Image.new("RGB", (300, 200), "white")
        >>> RandomResizedCrop(224)(image).shape
        torch.Size([3, 224, 224])
    """

    def __init__(
        self,
        size: int = 224,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        mean: Iterable[float] = MEAN,
        std: Iterable[float] = STD,
    ) -> None:
        self.size = check_integer("size", size)
        self.scale = check_several("scale", scale, check_fraction)
        self.ratio = check_several("ratio", ratio, check_positive)
        for name, range_of in (("scale", self.scale), ("ratio", self.ratio)):
            if len(range_of) != 2 or range_of[0] > range_of[1]:
                raise argument_error(name, "be two numbers, the smaller one first", range_of)
        self.flip, self.statistics = check_share("flip", flip), _statistics(mean, std)

    def __call__(self, image: Image.Image) -> Tensor:
        flip = bool(torch.rand(()) < self.flip)
        return _normalized(_cut(image, self._box(*_upright_size(image)), self.size, flip), *self.statistics)

    def _box(self, width: int, height: int) -> Box:
        """The first of ten draws that fits into the image; else as much of its middle as the ratio allows."""
        draws = torch.rand(10, 2, dtype=torch.float64)
        area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, 0])
        low, high = (math.log(value) for value in self.ratio)
        ratio = torch.exp(low + (high - low) * draws[:, 1])
        sides = torch.stack([area * ratio, area / ratio], dim=1).sqrt()
        fits = (sides <= torch.tensor([width, height])).all(1).nonzero()
        if len(fits):
            w, h = sides[fits[0, 0]].tolist()
            across, down = torch.rand(2, dtype=torch.float64).tolist()
            left, top = across * (width - w), down * (height - h)
        else:
            w, h = min(width, height * self.ratio[1]), min(height, width / self.ratio[0])
            left, top = (width - w) / 2, (height - h) / 2
        return left, top, left + w, top + h


class CenterCrop:
    """The middle of an image: its shorter side resized to ``resize``, the central square cut out, normalised.

    The field's transform for evaluation, in one resampling step. JPEGs are decoded at a fraction of their size only
    where at least twice the pixels needed remain, so that the result hardly differs from full decoding.

    Args:
        size: Pixels per side.
        resize: Length of the shorter side before cutting; ``size`` × 256 / 224 if None.
        mean: Subtracted from each channel, in [0, 1].
        std: Each channel is divided by it.

    Returns:
        Called with a Pillow image: float32 of shape (3, size, size).

    Raises:
        ValueError: If ``resize`` is less than ``size``.

    Example:
        >>> image = Image.new("L", (300, 200), "white")
        >>> CenterCrop(2, mean=(0, 0, 0), std=(1, 1, 1))(image)[0]
        tensor([[1., 1.],
                [1., 1.]])
    """

    def __init__(
        self,
        size: int = 224,
        resize: int | None = None,
        *,
        mean: Iterable[float] = MEAN,
        std: Iterable[float] = STD,
    ) -> None:
        self.size = size = check_integer("size", size)
        self.resize = round(size * 256 / 224) if resize is None else check_integer("resize", resize, least=size)
        self.statistics = _statistics(mean, std)

    def __call__(self, image: Image.Image) -> Tensor:
        width, height = _upright_size(image)
        side = min(width, height) * self.size / self.resize
        left, top = (width - side) / 2, (height - side) / 2
        cut = _cut(image, (left, top, left + side, top + side), self.size, spare=2)
        return _normalized(cut, *self.statistics)


def standard_crop(
    split: str, size: int, *, resize: int | None = None, least_area: float = 0.08
) -> RandomResizedCrop | CenterCrop:
    """The field's transform for a split: random parts to train on, the middle to evaluate on.

    Args:
        split: One of the four splits.
        size: Pixels per side.
        resize: Of the middle, as :class:`CenterCrop` has it.
        least_area: Least share of the image's area that a random part has.
    """
    least_area, middle = check_fraction("least_area", least_area), CenterCrop(size, resize)
    return RandomResizedCrop(size, scale=(least_area, 1.0)) if split in ("train", "trainval") else middle


def transformed(image: Image.Image, transform: Callable[[Image.Image], Any]) -> Any:
    """The transform applied to an image that is not decoded yet.

    The crops of this module get it as it is, to decode no more than they need; any other callable gets a decoded RGB
    image.
    """
    crops = isinstance(transform, RandomResizedCrop | CenterCrop)
    return transform(image if crops else as_rgb(image))


def thumbnail(image: Image.Image, size: int = 96) -> np.ndarray:
    """The middle of an image that is not decoded yet, uint8 of shape (size, size, 3), for pictures."""
    crop = CenterCrop(size, size, mean=(0, 0, 0), std=(1, 1, 1))
    return crop(image).mul_(255).round_().byte().permute(1, 2, 0).numpy()


def _statistics(mean: Iterable[float], std: Iterable[float]) -> tuple[Tensor, Tensor]:
    """Offset and scale of pixels in [0, 255], shape (3, 1, 1) each."""
    given = check_several("mean", mean, check_number), check_several("std", std, check_positive)
    for name, values in zip(("mean", "std"), given, strict=True):
        if len(values) != 3:
            raise argument_error(name, "hold three numbers, one per channel", values)
    offset, scale = (255 * torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in given)
    return offset, scale


def _cut(image: Image.Image, box: Box, size: int, flip: bool = False, spare: float = 1.0) -> Image.Image:
    """The part of an image in ``box``, resized to a square; decoded no larger than needed."""
    width, height = _upright_size(image)
    needed = spare * size / min(box[2] - box[0], box[3] - box[1])
    if needed < 1:
        image.draft("RGB", (math.ceil(image.width * needed), math.ceil(image.height * needed)))
    decoded = as_rgb(image)
    across, down = decoded.width / width, decoded.height / height
    left, top = max(0.0, box[0] * across), max(0.0, box[1] * down)
    right, bottom = min(decoded.width, box[2] * across), min(decoded.height, box[3] * down)
    cut = decoded.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut


def _normalized(image: Image.Image, offset: Tensor, scale: Tensor) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).sub_(offset).div_(scale)
