"""What training and evaluation require of a data set, and what it may offer besides."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

__all__ = [
    "BatchedImages",
    "FingerprintedImages",
    "ImagesInFiles",
    "ImagesInMemory",
    "ImagesInTurn",
    "LabelledImages",
    "QueriedImages",
    "ShownImages",
    "queries",
]


class LabelledImages(Protocol):
    """A data set for training and evaluation: items ``(image, label)``, all labels, and the names of the classes.

    A set may have more, and each of these is used where it is there:

    ============================  =====================================================================================
    :class:`BatchedImages`        ``batch(indices)``: loaded in whole batches
    :class:`ImagesInMemory`       ``images``: told from other sets by their pixels, which are a baseline of reports
    :class:`ImagesInFiles`        ``paths``: told from other sets by the content of the files
    :class:`FingerprintedImages`  ``fingerprint()``: told from other sets by a hash of its own
    :class:`QueriedImages`        ``is_query``: evaluated as its protocol has it
    :class:`ShownImages`          ``thumbnail(index)``: shown in reports
    :class:`ImagesInTurn`         ``set_epoch(epoch)``: other images in every epoch
    ============================  =====================================================================================
    """

    labels: Tensor
    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


@runtime_checkable
class BatchedImages(Protocol):
    """A set that returns whole batches as they are stored, which are then used instead of single items."""

    def batch(self, indices: Any, /) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class QueriedImages(Protocol):
    """A set that may have queries, searched in the gallery of all others: a boolean mask (n,), or None."""

    is_query: Tensor | None


@runtime_checkable
class ImagesInFiles(Protocol):
    """A set whose items are files, in order."""

    paths: Sequence[str]


@runtime_checkable
class ImagesInMemory(Protocol):
    """A set whose pixels are in memory, as they are stored: shape (n, channels, height, width)."""

    images: Tensor


@runtime_checkable
class FingerprintedImages(Protocol):
    """A set with a hash of its own content."""

    def fingerprint(self) -> str: ...


@runtime_checkable
class ImagesInTurn(Protocol):
    """A set whose images are others in every epoch."""

    def set_epoch(self, epoch: int, /) -> None: ...


@runtime_checkable
class ShownImages(Protocol):
    """A set with small pictures: uint8, shape (h, w) with ink as light, or (h, w, 3), all of one size."""

    def thumbnail(self, index: int, /) -> np.ndarray: ...


def queries(dataset: object) -> Tensor | None:
    """Which images of a set are queries; None where each image queries all others."""
    return dataset.is_query if isinstance(dataset, QueriedImages) else None
