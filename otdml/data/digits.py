"""Scikit-learn's scanned digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otdml._checks import check_boolean
from otdml.data.split import split_classes
from otdml.data.tensors import TensorImages, rotated_classes

__all__ = ["Digits"]


class Digits(TensorImages):
    """1,797 handwritten digits of 8 × 8 pixels, embedded in scikit-learn: trained on 0-4, tested on 5-9.

    Classes 0, 1, 2 train, 3 and 4 validate, 0-4 are ``trainval``, and 5-9 (896 images) are the test classes.

    Args:
        root: Not needed, as scikit-learn holds the images; a folder is accepted, so that all sets are built alike.
        split: ``"train"``, ``"val"``, ``"trainval"`` or ``"test"``.
        transform: Called on each item's image, float32 in [0, 1] of shape (1, 8, 8), if given.
        rotations: Whether training digits turned by 90, 180 and 270 degrees are classes of their own, which makes
            four times as many. Splits ``val`` and ``test`` are never turned.

    Raises:
        ValueError: If ``split`` is none of the four.

    Example:
        >>> test = Digits(split="test")
        >>> len(test), test.classes
        (896, ['5', '6', '7', '8', '9'])

    Source: Alpaydin and Kaynak, optical recognition of handwritten digits :cite:p:`alpaydin:98`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        transform: Callable[[Tensor], Any] | None = None,
        *,
        rotations: bool = False,
    ) -> None:
        from sklearn.datasets import load_digits

        check_boolean("rotations", rotations)
        classes = split_classes(split, train="01234", test="56789", val="34")
        found = load_digits()
        keep = np.isin(found.target, [int(name) for name in classes])
        # Pixels are integers from 0 to 16.
        images = torch.from_numpy((found.images[keep] * (255 / 16)).round().astype(np.uint8))[:, None]
        labels = torch.from_numpy(found.target[keep]).long() - int(classes[0])
        if rotations and split in ("train", "trainval"):
            images, labels, classes = rotated_classes(images, labels, classes)
        super().__init__(images, labels, classes, transform=transform)
