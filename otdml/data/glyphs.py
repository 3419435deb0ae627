"""Characters of many scripts, drawn from the fonts that Matplotlib ships."""

import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from otdml._checks import check_integer
from otdml.data.augment import Distort
from otdml.data.split import split_classes
from otdml.data.tensors import TensorImages, crop_to_ink, downscale

__all__ = ["Glyphs"]

TRAIN = ("Latin", "Greek", "Cyrillic", "Arabic", "Lisu", "Coptic")
TEST = ("Armenian", "Georgian", "Hebrew", "Lao", "Tifinagh")
# The upright and slanted, light and bold faces of DejaVu; a script is in some of them or in all.
FACES = [
    *("Sans", "Serif", "Sans-Bold", "Serif-Bold", "SansMono", "SansMono-Bold"),
    *("Sans-Oblique", "Serif-Italic", "Sans-BoldOblique", "Serif-BoldItalic", "SansMono-Oblique"),
    "SansMono-BoldOblique",
]
# Pixels of the drawing from which samples are taken, and of the em within it.
_CANVAS, _EM = 96, 56
# Mean difference in grey levels below which two characters are the same drawing.
_ALIKE = 10.0


class Glyphs(TensorImages):
    """Letters of eleven scripts in the faces of DejaVu, under random affine maps; other scripts are tested on.

    A class is a letter, its samples are drawings of it in different faces (light, bold, slanted, with and without
    serifs, of fixed width), each turned, stretched, slanted and shifted at random: pixels of two samples have little
    in common, and a network must learn what a letter keeps. The fonts are those that Matplotlib ships. The random maps
    of a letter depend on it and on the number of its samples alone. Letters that another letter looks like, as Greek
    and Cyrillic capitals do like Latin ones, and letters with accents are left out.

    Latin, Greek, Cyrillic, Arabic, Lisu and Coptic are ``trainval``, of which whole scripts are held out as ``val``;
    Armenian, Georgian, Hebrew, Lao and Tifinagh are the test classes.

    Args:
        root: Not needed, as the images are drawn; a folder is accepted, so that all sets are built alike.
        split: ``"train"``, ``"val"``, ``"trainval"`` or ``"test"``.
        transform: Called on each item's image, float32 in [0, 1] of shape (1, size, size), ink one, if given.
        size: Pixels per side.
        samples: Drawings of each letter.

    Raises:
        ValueError: If ``split`` is none of the four.

    Example:
        >>> test = Glyphs(split="test", samples=2)
        >>> test.classes[0], test[0][0].shape
        ('Armenian/Ա', torch.Size([1, 28, 28]))
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        transform: Callable[[Tensor], Any] | None = None,
        *,
        size: int = 28,
        samples: int = 12,
    ) -> None:
        size, samples = check_integer("size", size), check_integer("samples", samples)
        names = {f"{script}/{letter}": letter for script, letter in _letters()}
        classes = split_classes(split, train=_of(names, TRAIN), test=_of(names, TEST))
        images = torch.cat([downscale(_samples(names[name], samples), size) for name in classes])
        labels = torch.arange(len(classes)).repeat_interleave(samples)
        super().__init__(images, labels, classes, transform=transform)


def _of(names: dict[str, str], scripts: tuple[str, ...]) -> list[str]:
    return [name for script in scripts for name in names if name.startswith(f"{script}/")]


@cache
def _letters() -> list[tuple[str, str]]:
    """Script and letter of all classes, in order of the scripts and of Unicode, each drawing once."""
    found = [entry for script in TRAIN + TEST for entry in _candidates(script)]
    drawings = torch.stack([torch.from_numpy(_drawing(letter, FACES[0])) for _, letter in found])
    crops = crop_to_ink(drawings[:, None], 16).flatten(1).float()
    alike = torch.cdist(crops, crops, p=1) / crops.shape[1] < _ALIKE
    kept: list[int] = []
    for i in range(len(found)):
        if not alike[i, kept].any():
            kept.append(i)
    return [found[i] for i in kept]


def _candidates(script: str) -> Iterator[tuple[str, str]]:
    """The letters of a script that are not another with a mark, a ligature or a form of another."""
    for code in sorted(_characters(FACES[0])):
        letter = chr(code)
        if unicodedata.category(letter) in ("Lu", "Ll", "Lo") and not unicodedata.decomposition(letter):
            name = unicodedata.name(letter, "")
            if name.startswith(f"{script.upper()} ") and " WITH " not in name and "LIGATURE" not in name:
                yield script, letter


def _samples(letter: str, count: int) -> Tensor:
    """Drawings of a letter (count, 1, size, size), uint8, in one face after the other."""
    faces = [face for face in FACES if ord(letter) in _characters(face)]
    drawn = torch.from_numpy(np.stack([_drawing(letter, face) for face in faces]))
    images = drawn[torch.arange(count) % len(faces), None].float() / 255
    distort = Distort(degrees=20, scale=0.25, shear=0.3, translate=0.08)
    moved = distort(images, torch.Generator().manual_seed(ord(letter)))
    return (255 * moved).round_().clamp_(0, 255).to(torch.uint8)


def _drawing(letter: str, face: str) -> np.ndarray:
    """The letter in the middle of a square, ink 255."""
    font = _font(face)
    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (_CANVAS, _CANVAS))
    place = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
    ImageDraw.Draw(image).text(place, letter, fill=255, font=font)
    return np.array(image)


@cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    # With the basic layout the drawing does not depend on whether Pillow was built with text shaping.
    return ImageFont.truetype(_file(face), _EM, layout_engine=ImageFont.Layout.BASIC)


@cache
def _characters(face: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_file(face)).get_charmap())


def _file(face: str) -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVu{face}.ttf")
