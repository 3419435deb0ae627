"""What of a data set is there, what is missing, and where to get it."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from otdml._checks import check_known
from otdml.data.images import unreadable
from otdml.data.protocol import Protocol, differences, missing

__all__ = ["Report", "check"]

# Sets that come with a library: their class, and the library.
EMBEDDED = {"glyphs": ("Glyphs", "Matplotlib"), "digits": ("Digits", "scikit-learn")}
PROTOCOLS = {"cub": "cub", "cars": "cars", "sop": "sop", "inshop": "inshop"}


@dataclass(frozen=True)
class Report:
    """What a check found; printed, it is for reading.

    Attributes:
        name: Name of the data set.
        root: Where it was looked for.
        there: What is there, a line each.
        wrong: What is missing or damaged, a line each; empty if the set can be used as published.
        remedy: What to do about it.
    """

    name: str
    root: str
    there: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    remedy: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing or damaged."""
        return not self.wrong

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.root}: {'complete' if self.complete else 'not complete'}"]
        lines += [f"  + {line}" for line in self.there] + [f"  - {line}" for line in self.wrong]
        return "\n".join([*lines, self.remedy] if self.wrong and self.remedy else lines)


def check(name: str, root: str | Path | None = None, *, decode: bool = True) -> Report:
    """Look at a data set: its annotation files, the official counts, and every image.

    Args:
        name: ``"glyphs"``, ``"digits"``, ``"omniglot"``, ``"cub"``, ``"cars"``, ``"sop"`` or ``"inshop"``.
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
    check_known("data set", name, ["glyphs", "digits", "omniglot", *PROTOCOLS])
    if name in EMBEDDED:
        return _check_embedded(name)
    if name == "omniglot":
        return _check_omniglot(root)
    protocol: Protocol = import_module(f"otdml.data.{PROTOCOLS[name]}").PROTOCOL
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


def _check_embedded(name: str) -> Report:
    kind, home = EMBEDDED[name]
    sets = {split: getattr(import_module(f"otdml.data.{name}"), kind)(split=split) for split in ("trainval", "test")}
    there = [f"{split}: {len(found):,} images of {len(found.classes)} classes" for split, found in sets.items()]
    return Report(name, home, there)


def _check_omniglot(root: str | Path | None) -> Report:
    """Omniglot has two protocols. It is complete if one can be run, and nothing of the other is there by half."""
    from otdml.data.omniglot import ADDRESS, OFFICIAL, differences

    found: dict[str, list[str]] = {}
    absent: dict[tuple[str, str], str] = {}
    there = []
    for protocol, part in OFFICIAL:
        found.setdefault(protocol, [])
        try:
            wrong = differences(root, protocol, part)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, ValueError):
                wrong = [f"{protocol}, {part}: {error}"]
            else:
                absent[protocol, part], wrong = f"{protocol}, {part}: {error}", []
        found[protocol] += wrong
        if not wrong and (protocol, part) not in absent:
            images, characters, _ = OFFICIAL[protocol, part]
            name = "trainval" if part == "train" else "test"
            there.append(f"{protocol}, {name}: {images:,} images of {characters:,} classes")
    lost = {name: [absent[name, part] for part in ("train", "test") if (name, part) in absent] for name in found}
    runs = [name for name in found if not found[name] and not lost[name]]
    wrong = [line for lines in found.values() for line in lines]
    wrong += [
        line for name, lines in lost.items() if not (runs and len(lines) == 2 and not found[name]) for line in lines
    ]
    unused = [line for lines in lost.values() for line in lines if line not in wrong]
    return Report("omniglot", str(root), there + unused, wrong, f"Omniglot is published at {ADDRESS}.")
