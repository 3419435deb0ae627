"""Small pictures in folders of their classes, in a directory or an archive."""

import io
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from otdml._arguments import argument_error

__all__ = ["class_pictures"]

SUFFIXES = (".jpg", ".jpeg", ".png")


def class_pictures(path: str | Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """All pictures ``SPLIT/CLASS/NAME.jpg`` (or ``.png``) of a folder or zip archive, in order of their names.

    Args:
        path: The folder or archive.
        split: Its part, e.g. ``"train"``.

    Returns:
        Pictures as bytes, shape (n, 3, height, width); their labels, shape (n,); and the names of the classes.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If there are no such pictures, or they are of several sizes.
    """
    found = dict(_files(Path(path), split))
    if not found:
        raise argument_error("path", f"hold pictures {split}/CLASS/NAME.jpg or .png", str(path))
    names = sorted(found)
    pictures = [_decoded(found[name]) for name in names]
    if len(sizes := {picture.shape for picture in pictures}) > 1:
        raise argument_error("path", "hold pictures of one size", sorted(sizes))
    classes = sorted({name.split("/")[-2] for name in names})
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name in names])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), labels, classes


def _files(path: Path, split: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The name of each picture of a split, and how to read it."""
    if path.is_dir():
        for file in (path / split).glob("*/*"):
            if file.suffix.lower() in SUFFIXES:
                yield file.relative_to(path).as_posix(), file.read_bytes
        return
    archive = zipfile.ZipFile(path)
    for name in archive.namelist():
        parts = name.split("/")
        if len(parts) >= 3 and parts[-3] == split and name.lower().endswith(SUFFIXES):
            yield name, partial(archive.read, name)


def _decoded(read: Callable[[], bytes]) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(read())) as image:
        return np.asarray(image.convert("RGB"))
