"""Labelled image files."""

import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from otdml._checks import argument_error, check_boolean, check_choice, check_integer, check_labels
from otdml.data.images import open_image, standard_crop, thumbnail, transformed, unreadable

__all__ = ["ImageFiles", "ImageFolder", "image_paths", "said", "shown_name", "suffixes"]

# Formats whose files Pillow recognises, and decodes with another program or not at all.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of the files that Pillow decodes here, such as ``".jpg"``."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in _NOT_DECODED)


class ImageFiles(Dataset[tuple[Any, int]]):
    """Labelled images in files, decoded on access.

    Args:
        paths: The files.
        labels: Shape (n,), integers in [0, len(classes)).
        classes: Names of the classes.
        transform: Called on each image. :class:`~otdml.data.RandomResizedCrop` and :class:`~otdml.data.CenterCrop`
            get it undecoded, to decode no more than they need; any other callable gets a decoded RGB Pillow image.
        is_query: For sets that search a gallery for queries: which images are queries, shape (n,). None where each
            image queries all others.
        on_corrupt: ``"raise"`` an error that names an image that cannot be read, when it is asked for, or ``"skip"``:
            decode all images now, which takes some minutes for a hundred thousand, and leave such images out.
        upright: Whether images are turned as the camera that made them wrote into their EXIF orientation, or are taken
            as they are stored.

    Attributes:
        paths: The files of the items, in order.
        skipped: Files that were left out, with the reason.

    Raises:
        ValueError: If shapes disagree, a label is out of range, or there is no image.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Tensor,
        classes: Sequence[str],
        *,
        transform: Callable[[Image.Image], Any],
        is_query: Tensor | None = None,
        on_corrupt: str = "raise",
        upright: bool = True,
    ) -> None:
        check_choice("on_corrupt", on_corrupt, ("raise", "skip"))
        check_boolean("upright", upright)
        labels = check_labels("labels", labels, len(paths), len(classes))
        files = [str(path) for path in paths]
        self.skipped = unreadable(files) if on_corrupt == "skip" else {}
        keep = torch.tensor([i for i, path in enumerate(files) if path not in self.skipped], dtype=torch.long)
        if not len(keep):
            raise argument_error("paths", "hold an image that can be read", f"{len(files)} files, none of them")
        self.paths = [files[i] for i in keep.tolist()]
        if empty := [classes[i] for i in sorted({*range(len(classes))} - {*labels.tolist()})]:
            raise argument_error("labels", "name an image or more of every class", f"no image of {', '.join(empty)}")
        # Labels stay 0, 1, ... where every image of a class was left out.
        present, self.labels = labels[keep].unique(return_inverse=True)
        self.classes = [classes[i] for i in present.tolist()]
        is_query = None if is_query is None else torch.as_tensor(is_query)
        if is_query is not None and (is_query.dtype != torch.bool or is_query.shape != (len(files),)):
            got = f"{is_query.dtype} of shape {tuple(is_query.shape)}"
            raise argument_error("is_query", f"be booleans of shape ({len(files)},)", got)
        self.is_query = None if is_query is None else is_query[keep]
        self.transform, self.upright = transform, upright

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        with open_image(self.paths[index], upright=self.upright) as image:
            return transformed(image, self.transform), int(self.labels[index])

    def thumbnail(self, index: int, size: int = 96) -> np.ndarray:
        """The middle of an image, uint8 of shape (size, size, 3), for pictures."""
        with open_image(self.paths[index], upright=self.upright) as image:
            return thumbnail(image, size)


class ImageFolder(ImageFiles):
    """All images below a folder, in order of their paths; the class of an image is the folder it lies in.

    For one's own images: to embed them, to search them, or to evaluate on them if folders are classes. Every format
    that Pillow decodes is read, and links to files and folders are followed. Hidden files are passed over, among them
    the ``._*`` files that some archives hold; what else is passed over is counted, and said in a warning.

    Args:
        root: The folder.
        transform: As for :class:`ImageFiles`; the standard crop for evaluation if None.
        size: Pixels per side of that crop.
        on_corrupt: ``"raise"`` or ``"skip"``.

    Attributes:
        passed_over: How many files are no images, by suffix, or are no regular files, or could not be looked at.

    Raises:
        FileNotFoundError: If there is no such folder, or no image below it.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        size: int = 224,
        on_corrupt: str = "raise",
    ) -> None:
        size, folder = check_integer("size", size), Path(root)
        paths, self.passed_over = image_paths(folder)
        if self.passed_over:
            warnings.warn(f"Passed over below {root}, as no images: {said(self.passed_over)}.", stacklevel=2)
        # Name by name: an array of strings is as wide as the longest of them.
        names = {
            above: shown_name(Path(above).relative_to(folder)) for above in dict.fromkeys(map(os.path.dirname, paths))
        }
        classes = sorted(set(names.values()))
        numbers = {above: classes.index(name) for above, name in names.items()}
        super().__init__(
            paths,
            torch.tensor([numbers[os.path.dirname(path)] for path in paths]),
            classes,
            transform=transform or standard_crop("test", size),
            on_corrupt=on_corrupt,
        )


def image_paths(folder: Path) -> tuple[list[str], Counter[str]]:
    """The images below a folder in order of their paths, and how many files were passed over, by what they are.

    Raises:
        FileNotFoundError: If there is no such folder, or no image below it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"`root` must be a folder of images, but {folder} is no folder.")
    over: Counter[str] = Counter()
    paths = list(_images("" if folder == Path() else str(folder), over, (_identity(folder),)))
    if not paths:
        found = f"passed over were {said(over)}" if over else "there is nothing but hidden files"
        raise FileNotFoundError(f"No image below {folder}: looked for {', '.join(sorted(suffixes()))}; {found}.")
    return paths, over


def said(over: Mapping[str, int]) -> str:
    """The files that were passed over, in words.

    Example:
        >>> said({".txt": 2, "broken links": 1})
        '2 .txt, 1 broken links'
    """
    return ", ".join(f"{count} {kind}" for kind, count in sorted(over.items()))


def shown_name(folder: Path) -> str:
    """The name of a folder as text that any file can hold, the same on every file system.

    Bytes that are no UTF-8 are escapes, and a letter and its accent are one character: some file systems take them
    apart, and classes that are drawn by their names would be others there.
    """
    return normalize("NFC", os.fsencode(folder.as_posix()).decode("utf-8", "backslashreplace"))


def _images(folder: str, over: Counter[str], above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """The images below a folder, in order of their paths; what is passed over is counted in ``over``.

    A link to one of the folders ``above`` would lead in circles, and is passed over.
    """
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: (normalize("NFC", entry.name), entry.name))
    except OSError:
        over["folders that cannot be read"] += 1
        return
    if not entries:
        over["empty folders"] += 1
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = os.path.join(folder, entry.name)
        try:
            mode = entry.stat().st_mode
        except OSError:
            over["broken links"] += 1
            continue
        if stat.S_ISDIR(mode):
            if (place := _identity(path)) in above:
                over["links in circles"] += 1
            else:
                yield from _images(path, over, (*above, place))
        elif not stat.S_ISREG(mode):
            over["pipes or devices"] += 1
        elif (suffix := Path(entry.name).suffix.lower()) in suffixes():
            yield path
        else:
            over[suffix or "files without suffix"] += 1


def _identity(folder: str | Path) -> tuple[int, int]:
    """An identifier of a folder that does not depend on the path by which it is reached."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino
