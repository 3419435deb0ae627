"""Image sets with one split convention: classes seen in training are never tested on.

Names are imported on first use, so that a data set costs nothing but its own requirements.
"""

from importlib import import_module
from typing import Any

from otdml.data.registry import DATASETS

# The module that holds each public name.
_HOMES = {
    **{known.name: known.home.partition(":")[0] for known in DATASETS.values()},
    "CenterCrop": "images",
    "check": "inventory",
    "Distort": "augment",
    "crop_to_ink": "tensors",
    "downscale": "tensors",
    "class_folds": "split",
    "held_out_classes": "split",
    "ImageFiles": "files",
    "ImageFolder": "files",
    "ProtocolImages": "protocol",
    "RandomResizedCrop": "images",
    "rotated_classes": "tensors",
    "split_classes": "split",
    "TensorImages": "tensors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
