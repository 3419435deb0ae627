"""Labelled image files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from otdml._checks import argument_error, check_choice, check_labels
from otdml.data.images import CenterCrop, RandomResizedCrop, as_rgb, open_image, standard_crop, unreadable

__all__ = ["ImageFiles", "ImageFolder"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


class ImageFiles(Dataset[tuple[Any, int]]):
    """Labelled images in files, decoded when they are asked for.

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
        labels = check_labels("labels", labels, len(paths), len(classes))
        files = [str(path) for path in paths]
        self.skipped = unreadable(files) if on_corrupt == "skip" else {}
        keep = torch.tensor([i for i, path in enumerate(files) if path not in self.skipped], dtype=torch.long)
        if not len(keep):
            raise argument_error("paths", "hold an image that can be read", f"{len(files)} files, none of them")
        self.paths = [files[i] for i in keep.tolist()]
        # Labels stay 0, 1, ... where every image of a class was left out.
        present, self.labels = labels[keep].unique(return_inverse=True)
        self.classes = [classes[i] for i in present.tolist()]
        self.is_query = None if is_query is None else is_query[keep]
        self.transform, self.upright = transform, upright

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        crops = isinstance(self.transform, RandomResizedCrop | CenterCrop)
        with open_image(self.paths[index], upright=self.upright) as image:
            item = self.transform(image if crops else as_rgb(image))
        return item, int(self.labels[index])

    def thumbnail(self, index: int, size: int = 96) -> np.ndarray:
        """The middle of an image, uint8 of shape (size, size, 3), for pictures."""
        crop = CenterCrop(size, size, mean=(0, 0, 0), std=(1, 1, 1))
        with open_image(self.paths[index], upright=self.upright) as image:
            return crop(image).mul_(255).round_().byte().permute(1, 2, 0).numpy()


class ImageFolder(ImageFiles):
    """All images below a folder, in order of their paths; the class of an image is the folder it lies in.

    For one's own images: to embed them, to search them, or to evaluate on them if folders are classes. Hidden files
    are passed over, among them the ``._*`` files that some archives hold.

    Args:
        root: The folder.
        transform: As for :class:`ImageFiles`; the standard crop for evaluation if None.
        size: Pixels per side of that crop.
        on_corrupt: ``"raise"`` or ``"skip"``.

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
        folder = Path(root)
        if not folder.is_dir():
            raise FileNotFoundError(f"`root` must be a folder of images, but {root} is no folder.")
        found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        paths = sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))
        if not paths:
            raise FileNotFoundError(f"No image below {root}: looked for {', '.join(sorted(SUFFIXES))}.")
        names = [path.parent.relative_to(folder).as_posix() for path in paths]
        classes, labels = np.unique(names, return_inverse=True)
        super().__init__(
            paths,
            torch.from_numpy(labels).long(),
            classes.tolist(),
            transform=transform or standard_crop("test", size),
            on_corrupt=on_corrupt,
        )
