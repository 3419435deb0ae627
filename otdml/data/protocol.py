"""The published retrieval protocols: what their annotation files list, verified against the official counts."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image

from otdml._checks import argument_error, check_boolean, check_choice
from otdml.data.files import ImageFiles
from otdml.data.images import standard_crop
from otdml.data.split import SPLITS, check_fold, split_classes

__all__ = ["Entry", "Listing", "Protocol", "ProtocolImages", "differences", "find", "missing", "table"]


class Entry(NamedTuple):
    """One listed image: its path below the folder of images, its class, and its part of the protocol."""

    path: str
    name: str
    part: str


class Listing(NamedTuple):
    """The entries of annotation files, and the folder below which the images lie."""

    folder: Path
    entries: list[Entry]


@dataclass(frozen=True)
class Protocol:
    """A published data set and its retrieval protocol.

    Attributes:
        name: Its name.
        address: Where it is published.
        layout: What its folder holds, in words.
        counts: Official numbers of images and of classes of each part; ``"train"`` is one of the parts.
        read: Reads the annotation files below a folder; FileNotFoundError if they are not there.
    """

    name: str
    address: str
    layout: str
    counts: Mapping[str, tuple[int, int]]
    read: Callable[[Path], Listing]

    def listing(self, root: str | Path | None) -> Listing:
        """The entries that the folder ``root`` lists.

        Raises:
            FileNotFoundError: If the folder or its annotation files are not there; it says where to get them.
            ValueError: If the annotation files are damaged, or train and another part have a class in common.
        """
        where = f"{self.name} is published at {self.address}. Expected: {self.layout}."
        if root is None:
            raise argument_error("root", f"be the folder that holds {self.name}", None, where)
        if not Path(root).is_dir():
            raise FileNotFoundError(f"`root` must be the folder that holds {self.name}, but {root} is none. {where}")
        try:
            listing = self.read(Path(root))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}. {where}") from error
        except (KeyError, IndexError) as error:
            raise ValueError(f"The annotation files of {self.name} in {root} disagree about {error}.") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"An annotation file of {self.name} in {root} is not in UTF-8 ({error}).") from error
        seen = {entry.name for entry in listing.entries if entry.part == "train"}
        tested = dict.fromkeys(entry.name for entry in listing.entries if entry.part != "train")
        if both := [name for name in tested if name in seen]:
            where = f"in train and in another part: {_shown(both)}"
            raise ValueError(f"The annotation files of {self.name} in {root} have {len(both):,} classes {where}.")
        return listing


class ProtocolImages(ImageFiles):
    """One split of a published data set, in the order of its annotation files.

    Images are taken as they are stored, whatever their EXIF orientation, as those of the published figures were.

    Args:
        root: The folder that holds the set.
        split: ``"train"``, ``"val"`` (a fifth of the training classes), ``"trainval"``, ``"test"``, or a part of the
            protocol by its own name, e.g. ``"gallery"``.
        transform: As for :class:`~otdml.data.ImageFiles`; if None, random parts of the image for the training splits
            and its middle for the others.
        size: Pixels per side of those.
        resize: Length of the shorter side of which the middle is cut; ``size`` × 256 / 224 if None. Photographs that
            are cut to their objects already need no margin, ``resize=size``.
        least_area: Least share of an image's area that a random part of it has.
        fold: Let ``val`` be this one of :func:`~otdml.data.class_folds`, and ``train`` the other three.
        allow_partial: Whether to use what is there where it is not the whole official set.
        on_corrupt: ``"raise"`` an error that names an image that cannot be read, or ``"skip"`` such images.

    Raises:
        FileNotFoundError: If the set is not there; the message says where it is published, and its layout.
        ValueError: If it is not complete; the message names the differences.
    """

    protocol: ClassVar[Protocol]

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        size: int = 224,
        resize: int | None = None,
        least_area: float = 0.08,
        fold: int | None = None,
        allow_partial: bool = False,
        on_corrupt: str = "raise",
    ) -> None:
        check_boolean("allow_partial", allow_partial)
        fold = fold if fold is None else check_fold(fold)
        crop = standard_crop(split, size, resize=resize, least_area=least_area)
        check_choice("split", split, dict.fromkeys([*SPLITS, *self.protocol.counts]))
        listing = self.protocol.listing(root)
        if not allow_partial and (found := differences(self.protocol, listing)):
            remedy = "Pass allow_partial=True (--allow-partial) to use what is there."
            raise ValueError(f"{root} does not hold the whole {self.protocol.name}: {'; '.join(found)}. {remedy}")
        absent = set(missing(listing)) if allow_partial else set()
        entries = _selected(self.protocol, listing, split, absent, fold)
        present = {entry.name for entry in entries}
        # In the order of all parts, so that queries and gallery number their classes alike.
        names = dict.fromkeys(e.name for e in listing.entries if e.name in present and e.path not in absent)
        number = {name: label for label, name in enumerate(names)}
        queries = torch.tensor([entry.part == "query" for entry in entries])
        super().__init__(
            [listing.folder / entry.path for entry in entries],
            torch.tensor([number[entry.name] for entry in entries], dtype=torch.long),
            list(number),
            transform=transform or crop,
            is_query=queries if split == "test" and "query" in self.protocol.counts else None,
            on_corrupt=on_corrupt,
            upright=False,
        )


def _selected(protocol: Protocol, listing: Listing, split: str, absent: set[str], fold: int | None) -> list[Entry]:
    """The entries of a split. The classes of ``val`` are chosen among those listed, whatever images are there."""
    parts = _parts(protocol, split)
    names = list(dict.fromkeys(entry.name for entry in listing.entries if entry.part in parts))
    wanted = set(split_classes(split, names, names, fold=fold) if split in SPLITS else names)
    # An image that is listed again would be its own nearest neighbour.
    first: dict[str, Entry] = {}
    for entry in listing.entries:
        first.setdefault(entry.path, entry)
    return [e for e in first.values() if e.part in parts and e.name in wanted and e.path not in absent]


def _parts(protocol: Protocol, split: str) -> set[str]:
    if split in ("train", "val", "trainval"):
        return {"train"}
    return set(protocol.counts) - {"train"} if split == "test" else {split}


def differences(protocol: Protocol, listing: Listing) -> list[str]:
    """Differences between a copy and the official set, one phrase each; none if it is complete."""
    found = []
    for part, (images, classes) in protocol.counts.items():
        names = [entry.name for entry in listing.entries if entry.part == part]
        if (len(names), len(set(names))) != (images, classes):
            official = f"{images:,} of {classes:,}"
            found.append(f"{part} lists {len(names):,} images of {len(set(names)):,} classes, officially {official}")
    listed = Counter(entry.path for entry in listing.entries)
    if twice := [path for path, count in listed.items() if count > 1]:
        found.append(f"{len(twice):,} images are listed more than once: {_shown(twice)}")
    if absent := missing(listing):
        found.append(f"{len(absent):,} listed images are missing: {_shown(absent)}")
    return found


def missing(listing: Listing) -> list[str]:
    """The listed paths at which there is no file; one look per folder, not per image."""
    there: dict[str, set[str]] = {}
    absent = []
    for path, _, _ in listing.entries:
        folder, _, name = path.rpartition("/")
        if folder not in there:
            place = listing.folder / folder
            there[folder] = {entry.name for entry in os.scandir(place)} if place.is_dir() else set()
        if name not in there[folder]:
            absent.append(path)
    return absent


def _shown(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def find(root: Path, candidates: Sequence[str]) -> Path:
    """The first of the paths below ``root`` that exists.

    Raises:
        FileNotFoundError: If none does.
    """
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise FileNotFoundError(f"{root} holds no {candidates[0]}")


def table(path: Path, columns: int, header: str = "") -> Iterator[list[str]]:
    """Rows of a text file whose columns are separated by spaces; the last one may hold spaces.

    Args:
        path: The file.
        columns: Number of columns.
        header: First word of the titles of the columns. They are the first row or the second, after a count, or are
            not there, and what comes before them is no row.

    Raises:
        ValueError: If a row has fewer columns; the message names the line.
    """
    # Some editors begin a file with a byte-order mark.
    with path.open(encoding="utf-8-sig") as file:
        lines = list(file)
    titles = next((number for number, line in enumerate(lines[:2], 1) if line.split()[:1] == [header]), 0)
    for number, line in enumerate(lines, 1):
        if number <= titles or not line.strip():
            continue
        row = line.split(maxsplit=columns - 1)
        if len(row) != columns:
            raise ValueError(f"{path}, line {number}: expected {columns} columns, found {line.strip()!r}.")
        yield [*row[:-1], row[-1].rstrip()]
