"""Image sets with one split convention: classes seen in training are never tested on.

Names are imported on first use, so that a data set costs nothing but its own requirements.
"""

from otdml._exports import exports
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
__getattr__, __dir__ = exports(__name__, _HOMES)
