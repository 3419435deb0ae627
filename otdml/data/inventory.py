"""Checks of a data set on disk: what is there, what is missing, and where to get it."""

from pathlib import Path

from otdml._checks import check_boolean
from otdml.data.images import unreadable
from otdml.data.protocol import Protocol, differences, missing
from otdml.data.registry import named_dataset
from otdml.data.report import Report

__all__ = ["Report", "check"]


def check(name: str, root: str | Path | None = None, *, decode: bool = True) -> Report:
    """Look at a data set: its annotation files, the official counts, and every image.

    Args:
        name: A key of :data:`otdml.data.registry.DATASETS`, such as ``"cub"``.
        root: Its folder.
        decode: Whether to read every image to its end, to find damaged ones; some minutes for a hundred thousand.

    Returns:
        A report, which says in words what was found.

    Raises:
        ValueError: If there is no data set of that name.

    Example:
        >>> print(check("digits"))
        digits in scikit-learn: complete
          + trainval: 901 images of 5 classes
          + test: 896 images of 5 classes
    """
    known = named_dataset(name)
    check_boolean("decode", decode)
    if known.listed:
        return _check_listed(name, known.kind.protocol, root, decode)
    if hasattr(known.module, "check"):
        return known.module.check(root, decode=decode)
    sets = {split: known.kind(root, split=split) for split in ("trainval", "test")}
    there = [f"{split}: {len(found):,} images of {len(found.classes)} classes" for split, found in sets.items()]
    return Report(name, known.library or str(root), there)


def _check_listed(name: str, protocol: Protocol, root: str | Path | None, decode: bool) -> Report:
    where = f"{protocol.name} is published at {protocol.address}."
    try:
        listing = protocol.listing(root)
    except (FileNotFoundError, ValueError) as error:
        return Report(name, str(root), wrong=[str(error)])
    there = []
    for part in protocol.counts:
        names = [entry.name for entry in listing.entries if entry.part == part]
        there.append(f"{part}: {len(names):,} images of {len(set(names)):,} classes listed")
    wrong = differences(protocol, listing)
    if decode:
        absent = set(missing(listing))
        found = unreadable([listing.folder / entry.path for entry in listing.entries if entry.path not in absent])
        wrong += [f"{path} cannot be read: {reason}" for path, reason in found.items()]
    return Report(name, str(root), there, wrong, where)
