"""Small pictures in folders of their classes, in a directory or an archive."""

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    They are made upright and RGB as those of :class:`~otdml.data.ImageFolder` are. There may be one folder around the
    splits.

    Args:
        path: The folder or archive.
        split: Its part, e.g. ``"train"``.

    Returns:
        Pictures as bytes, shape (n, 3, height, width); their labels, shape (n,); and the names of the classes.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If there are no such pictures, or in several places, or of several sizes, or one cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no folder and no archive {path}.")
    with _files(path, split) as found:
        if not found:
            raise argument_error("path", f"hold pictures {split}/CLASS/NAME.jpg or .png", str(path))
        if len(around := {name.rpartition(f"{split}/")[0] for name in found}) > 1:
            raise argument_error("path", f"hold one folder {split}", ", ".join(f"{a}{split}" for a in sorted(around)))
        names = sorted(found)
        pictures = [_decoded(name, found[name]) for name in names]
    if len(sizes := {picture.shape for picture in pictures}) > 1:
        raise argument_error("path", "hold pictures of one size", sorted(sizes))
    classes = sorted({name.split("/")[-2] for name in names})
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name in names])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), labels, classes


@contextmanager
def _files(path: Path, split: str) -> Iterator[dict[str, Callable[[], bytes]]]:
    """The pictures of a split by name, and how to read each. There may be one folder around the splits."""
    if path.is_dir():
        files = [*path.glob(f"{split}/*/*"), *path.glob(f"*/{split}/*/*")]
        names = {file.relative_to(path).as_posix(): file.read_bytes for file in files if file.is_file()}
        yield {name: read for name, read in names.items() if _is_picture(name, split)}
        return
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise argument_error("path", "be a folder or a zip archive", f"{path} ({error})") from error
    with archive:
        yield {name: partial(archive.read, name) for name in archive.namelist() if _is_picture(name, split)}


def _is_picture(name: str, split: str) -> bool:
    """Whether it is a picture of a class of the split; what is hidden, as editors and macOS leave it, is none."""
    parts = name.split("/")
    there = len(parts) in (3, 4) and parts[-3] == split and not any(part.startswith(".") for part in parts)
    return there and name.lower().endswith(SUFFIXES)


def _decoded(name: str, read: Callable[[], bytes]) -> np.ndarray:
    from otdml.data.images import DAMAGE, as_rgb, open_image

    try:
        with open_image(io.BytesIO(read())) as image:
            return np.asarray(as_rgb(image))
    except (*DAMAGE, zipfile.BadZipFile) as error:
        raise argument_error("path", "hold pictures that can be read", f"{name} ({error})") from error
