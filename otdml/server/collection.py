"""The images of an index by number, with their classes and neighbours: what a page may show, and nothing else."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from otdml._text import visible
from otdml.dml.index import GIVEN, EmbeddingIndex
from otdml.server.pictures import Picture, picture_of, state_of

__all__ = ["Collection", "Neighbor", "classes_of"]

# Number of images checked when a server starts: a million would take long on a network disk.
LOOKS = 1000


class Neighbor(NamedTuple):
    """An image of the collection by its number, and its cosine similarity to what was asked for."""

    number: int
    similarity: float


def classes_of(paths: Sequence[str]) -> list[str] | None:
    """The class of each image: its folder, below the folder that all share. None where all lie in one.

    Example:
        >>> classes_of(["/photos/cat/1.jpg", "/photos/dog/2.jpg"])
        ['cat', 'dog']
    """
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    shared = os.path.commonpath(folders) if folders else ""
    names = [visible(os.path.relpath(folder, shared)) for folder in folders]
    return names if len(set(names)) > 1 else None


def _resolved(paths: Sequence[str]) -> list[str]:
    """The paths, where folders among them that are links are what these lead to now.

    So a link that takes the place of a folder, or of an image, later is noticed and not followed.
    """
    real = cache(os.path.realpath)

    def one(path: str) -> str:
        folder, name = os.path.split(os.path.abspath(path))
        return os.path.join(real(folder), name)

    return list(map(one, paths))


class Collection:
    """The images of an index.

    Args:
        index: Their embeddings and paths.
        made: When the index was made, in seconds since 1970; an image that was changed later is no longer what was
            embedded.
    """

    def __init__(self, index: EmbeddingIndex, made: float) -> None:
        self.index, self.made = index, made
        # The names that the images were given by; the index has the files that links among them led to.
        self._given = index.about.get(GIVEN) or index.paths
        self._files = _resolved(index.paths)
        self.classes = classes_of(self._given)
        self._numbers = {path: number for number, path in reversed(list(enumerate(index.paths)))}

    def __len__(self) -> int:
        return len(self.index)

    def name(self, number: int) -> str:
        """The name of an image's file."""
        return visible(Path(self._given[number]).name)

    def path(self, number: int) -> str:
        """The path of an image, to be shown."""
        return visible(self._given[number])

    def label(self, number: int) -> str | None:
        """The class of an image, where there are several."""
        return None if self.classes is None else self.classes[number]

    def state(self, number: int) -> tuple[str, bool]:
        """Why an image cannot be shown, or nothing, and whether it was changed since it was embedded."""
        reason, changed = state_of(self._files[number])
        return reason, changed > self.made

    def picture(self, number: int) -> Picture:
        """The picture of an image.

        Raises:
            ValueError: It has moved, or cannot be read.
        """
        return picture_of(self._files[number])

    def nearest(self, z: Tensor, k: int) -> list[Neighbor]:
        """The ``k`` images most similar to an embedding, shape (1, d); best first."""
        found = [(self._numbers[path], value) for path, value in self.index.search(z, k)[0]]
        # A path that the index has twice is one image.
        return [Neighbor(number, value) for number, value in dict(reversed(found)).items()][::-1]

    def neighbors(self, number: int, k: int) -> list[Neighbor]:
        """The ``k`` images most similar to one of the collection, without itself; best first."""
        found = self.nearest(self.index.z[number : number + 1], k + 1)
        own = self._numbers[self.index.paths[number]]
        return [neighbor for neighbor in found if neighbor.number != own][:k]

    def some(self, k: int) -> list[int]:
        """Images to begin with, drawn at random, of classes as different as possible."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[: 100 * k].tolist()
        if self.classes is None:
            return order[:k]
        seen: dict[str, int] = {}
        turns = []
        for number in order:
            turns.append(seen.setdefault(self.classes[number], 0))
            seen[self.classes[number]] += 1
        return [order[place] for place in np.argsort(turns, kind="stable")[:k].tolist()]

    def missing(self) -> tuple[dict[str, str], int]:
        """Images that cannot be shown, by path with the reason, and how many were looked at: a thousand at most."""
        looked = self.some(LOOKS)
        reasons = {self.path(number): self.state(number)[0] for number in looked}
        return {path: reason for path, reason in reasons.items() if reason}, len(looked)
