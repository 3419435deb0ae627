"""The data sets that the benchmarks and the command line know by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from otdml._arguments import check_known

__all__ = ["DATASETS", "NamedDataset", "named_dataset", "without_folder"]


@dataclass(frozen=True)
class NamedDataset:
    """An entry of :data:`DATASETS`.

    Attributes:
        title: What reports call it.
        home: Module and name of its class, which is imported where it is used: names are known without torch.
        library: What it comes with, for sets that are in no folder.
        ink: Pixels per side, for drawings of one channel in which ink is one and paper zero; None for photographs.
        listed: Whether annotation files list its images, as for all subclasses of
            :class:`~otdml.data.ProtocolImages`, which share their options.
    """

    title: str
    home: str
    library: str = ""
    ink: int | None = None
    listed: bool = False

    @property
    def module(self) -> ModuleType:
        """The module of its class."""
        return import_module(f"otdml.data.{self.home.partition(':')[0]}")

    @property
    def name(self) -> str:
        """The name of its class in :mod:`otdml.data`."""
        return self.home.partition(":")[2]

    @property
    def kind(self) -> Any:
        """Its class, which is called with ``(root, split, transform, **options)``."""
        return getattr(self.module, self.name)


DATASETS: Mapping[str, NamedDataset] = {
    "glyphs": NamedDataset("letters of the DejaVu fonts", "glyphs:Glyphs", library="Matplotlib", ink=28),
    "digits": NamedDataset("scikit-learn's digits", "digits:Digits", library="scikit-learn", ink=8),
    "omniglot": NamedDataset("Omniglot", "omniglot:Omniglot", ink=28),
    "cub": NamedDataset("CUB-200-2011", "cub:CUB200", listed=True),
    "cars": NamedDataset("Cars196", "cars:Cars196", listed=True),
    "sop": NamedDataset("Stanford Online Products", "sop:StanfordOnlineProducts", listed=True),
    "inshop": NamedDataset("In-Shop Clothes Retrieval", "inshop:InShop", listed=True),
    "folder": NamedDataset("Images of your own", "folder:ClassFolders"),
}


def named_dataset(name: str) -> NamedDataset:
    """The data set of that name.

    Raises:
        ValueError: There is none; the message lists those there are.

    Example:
        >>> named_dataset("cub").title
        'CUB-200-2011'
    """
    return DATASETS[check_known("data set", name, DATASETS)]


def without_folder(name: str, root: object) -> bool:
    """Whether the data set of that name is in no folder.

    Raises:
        ValueError: It is in none, and ``root`` is given.
    """
    library = named_dataset(name).library
    if library and root:
        raise ValueError(f"--root {root}: {name} come with {library}, and are in no folder.")
    return bool(library)
