"""Images of one's own: a folder for each class, and classes split by a seed or by folders."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from otdml._checks import argument_error, check_choice, check_fraction, check_integer
from otdml.data.files import ImageFiles, image_paths, said, shown_name
from otdml.data.images import standard_crop, unreadable
from otdml.data.report import Report
from otdml.data.split import SPLITS, check_fold, held_out_classes, split_classes

__all__ = ["ClassFolders", "check"]

# Folders that say what their classes are for; without the second there is no split.
PARTS = ("train", "val", "test")


class ClassFolders(ImageFiles):
    """Images of one's own, a folder for each class: trained on some classes, tested on others.

    Classes are split in one of two ways. Where the folder holds ``train/`` and ``test/``, the folders in these are the
    classes, and with a third one, ``val/``, its classes are validated on; they may be in capital letters. Otherwise all
    folders are classes, and a share of them, drawn from a seed and their names, is tested on. ``val`` is a fifth of
    the training classes unless it has a folder. Names say nothing: classes are drawn one by one, also where folders
    lie in folders.

    Files are read as :class:`~otdml.data.ImageFolder` reads them: every format that Pillow decodes, links followed,
    turned as the camera had it. What is passed over is counted, and said in a warning.

    Args:
        root: The folder.
        split: ``"train"``, ``"val"``, ``"trainval"`` or ``"test"``.
        transform: As for :class:`~otdml.data.ImageFiles`; if None, random parts of the image for the training splits
            and its middle for the others.
        size: Pixels per side of those.
        level: Which folder is the class of an image that lies in several: the ``"innermost"``, which is its own, or
            the ``"outermost"``, with everything below it.
        test_share: Share of the classes to test on, in (0, 1), unless folders say which.
        split_seed: Another one draws other classes.
        least: Classes of fewer images are left out.
        fold: Let ``val`` be this one of :func:`~otdml.data.class_folds`, and ``train`` the other three.
        on_corrupt: ``"raise"`` an error that names an image that cannot be read, or ``"skip"`` such images.

    Attributes:
        passed_over: How many files and classes are left out, by the reason.

    Raises:
        FileNotFoundError: If there is no such folder, or no image below it.
        ValueError: If there are too few classes, a class has a single image, or one is in two of the folders.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        size: int = 224,
        level: str = "innermost",
        test_share: float = 0.5,
        split_seed: int = 0,
        least: int = 1,
        fold: int | None = None,
        on_corrupt: str = "raise",
    ) -> None:
        check_choice("split", split, SPLITS)
        test_share, split_seed = check_fraction("test_share", test_share), check_integer("split_seed", split_seed, 0)
        fold, crop = fold if fold is None else check_fold(fold), standard_crop(split, size)
        found = _found(root, level, check_integer("least", least))
        if wrong := found.problems():
            raise ValueError(wrong[0])
        classes = found.classes(split, test_share, split_seed, fold)
        self.passed_over = found.over
        if found.over:
            warnings.warn(f"Passed over below {root}: {said(found.over)}.", stacklevel=2)
        super().__init__(
            [path for name in classes for path in found.images[name]],
            torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found.images[name]) for name in classes])),
            classes,
            transform=transform or crop,
            on_corrupt=on_corrupt,
        )


@dataclass(frozen=True)
class _Found:
    """What a folder holds: images by class, the classes of each part where folders say them, and what is left out."""

    root: Path
    images: Mapping[str, Sequence[str]]
    parts: Mapping[str, Sequence[str]]
    over: Counter[str] = field(default_factory=Counter)

    def classes(self, split: str, test_share: float, seed: int, fold: int | None) -> list[str]:
        """The classes of a split, in order of their names."""
        names = sorted(self.images)
        if self.parts:
            train, val, test = (self.parts[part] for part in PARTS)
            return split_classes(split, sorted([*train, *val]), test, val or None, fold, grouped=False)
        if test_share == 1:
            raise argument_error("test_share", "leave classes to train on", test_share)
        test = held_out_classes(names, fraction=test_share, seed=seed, grouped=False)
        return split_classes(split, [name for name in names if name not in test], test, fold=fold, grouped=False)

    def problems(self) -> list[str]:
        """Why the images cannot be used, with the remedy, a sentence or two each."""
        return [said for said in (self._too_few(), self._twice(), self._single()) if said]

    def _too_few(self) -> str:
        if not self.parts:
            if len(self.images) >= 4:
                return ""
            there = f"{len(self.images)}: {_shown(self.images)}" if self.images else "none"
            return (
                f"{self.root} must hold folders of four classes or more, two to train on and two to test on, and has "
                f"{there}. Put the images of each class into a folder of its own."
            )
        # A part without images is no part, but train and test have to be there.
        few = [part for part in PARTS if len(self.parts[part]) < 2 and (self.parts[part] or part != "val")]
        where = " and ".join(f"{self.root / part}" for part in few)
        return f"{where} must hold folders of two classes or more." if few else ""

    def _twice(self) -> str:
        counts = Counter(name for names in self.parts.values() for name in names)
        twice = [name for name, count in counts.items() if count > 1]
        if not twice:
            return ""
        return (
            f"{len(twice)} classes are in two of the folders train, val and test of {self.root}: {_shown(twice)}. A "
            "class is trained on or tested on, not both. Leave it in one of them, or put all classes beside each "
            "other, to be split by a seed."
        )

    def _single(self) -> str:
        single = [name for name, paths in self.images.items() if len(paths) == 1]
        if not single:
            return ""
        what = "Every class has" if len(single) == len(self.images) else f"{len(single)} classes have"
        return (
            f"{what} one image only: {_shown(single)}. Nothing could be found for it. Add images, or leave such "
            "classes out with least=2 (--set data.least=2)."
        )


def _found(root: str | Path | None, level: str, least: int) -> _Found:
    """The images below ``root`` by class.

    Raises:
        FileNotFoundError: There is no such folder, or no image below it.
        ValueError: One of the folders ``train`` and ``test`` is there without the other.
    """
    check_choice("level", level, ("innermost", "outermost"))
    if root is None:
        raise argument_error("root", "be a folder with a folder of images for each class", None)
    folder = Path(root)
    paths, over = image_paths(folder)
    within = [Path(path).relative_to(folder).parts for path in paths]
    apart = _apart(folder, within)
    images: dict[tuple[str, str], list[str]] = {}
    for path, (*above, _) in zip(paths, within, strict=True):
        part = above.pop(0).lower() if apart and above else ""
        if apart and part not in PARTS:
            over["images beside train and test"] += 1
        elif not above:
            over["images in no folder of a class"] += 1
        else:
            name = shown_name(Path(*above) if level == "innermost" else Path(above[0]))
            images.setdefault((part, name), []).append(path)
    if small := [key for key, own in images.items() if len(own) < least]:
        over[f"classes of fewer than {least} images"] += len(small)
    kept = {key: own for key, own in images.items() if len(own) >= least}
    parts = {part: sorted(name for where, name in kept if where == part) for part in PARTS} if apart else {}
    return _Found(folder, {name: own for (_, name), own in kept.items()}, parts, over)


def _apart(folder: Path, within: Sequence[Sequence[str]]) -> bool:
    """Whether folders say which classes are trained on and tested on."""
    there = {entry.name.lower(): entry.name for entry in folder.iterdir() if entry.is_dir()}
    train, test = there.get("train"), there.get("test")
    one = train or test
    if not (train and test) and any(parts[0] == one and len(parts) > 2 for parts in within):
        other = "test" if train else "train"
        raise ValueError(
            f"{folder} holds {one} and no {other}. Add {other} with folders of other classes, or give "
            f"{folder / str(one)} as the folder, whose classes are split by a seed."
        )
    return bool(train and test)


def _shown(names: Sequence[str] | Mapping[str, Any], most: int = 5) -> str:
    return ", ".join(list(names)[:most]) + (", ..." if len(names) > most else "")


def check(root: str | Path | None, *, decode: bool = True) -> Report:
    """What a folder of images holds: classes of each split, what is left out, and what stands in the way."""
    try:
        found = _found(root, "innermost", 1)
    except (FileNotFoundError, ValueError) as error:
        return Report("folder", str(root), wrong=[str(error)])
    paths = [path for own in found.images.values() for path in own]
    there = [f"{len(paths):,} images of {len(found.images):,} classes"]
    wrong = found.problems()
    if not wrong:
        how = "as train and test have them" if found.parts else "drawn from split_seed 0"
        for split in ("trainval", "test"):
            counts = [len(found.images[name]) for name in found.classes(split, 0.5, 0, None)]
            there.append(
                f"{split}, {how}: {sum(counts):,} images of {len(counts):,} classes, {min(counts):,} to "
                f"{max(counts):,} each"
            )
    if found.over:
        there.append(f"passed over: {said(found.over)}")
    damaged = unreadable(paths) if decode else {}
    wrong += [f"{path} cannot be read: {reason}" for path, reason in damaged.items()]
    remedy = "Images that cannot be read are left out with --skip-corrupt." if damaged else ""
    return Report("folder", str(root), there, wrong, remedy)
