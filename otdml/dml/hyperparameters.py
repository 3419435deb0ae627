"""Hyper-parameters in checkpoints: plain types, without the source of the initial weights."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from otdml.dml.backbones import LIBRARIES

__all__ = ["plain", "without_start"]


def without_start(settings: dict[str, Any]) -> dict[str, Any]:
    """Remove the source of the initial weights from the settings, and return it: a checkpoint contains the weights.

    A checkpoint must neither ask again for a file of weights, nor download those of another library. A folder of
    transformers stays: it says what the network is.
    """
    name, options = str(settings.get("backbone")), dict(settings.get("backbone_options") or {})
    library = name.partition("/")[0]
    start = {}
    if options.get("weights") is not None:
        start["weights"] = Path(options["weights"]).name
        if library == "hf":
            return start
    options.pop("weights", None)
    if library in LIBRARIES:
        start["pretrained"] = options.get("pretrained", True)
        options["pretrained"] = False
    if options or settings.get("backbone_options"):
        settings["backbone_options"] = options
    return start


def plain(value: Any) -> Any:
    """``value`` as dicts, lists, strings and numbers, which a checkpoint holds without pickled types.

    Modules and generators within are left out.
    """
    if isinstance(value, Mapping):
        kept = {key: entry for key, entry in value.items() if not isinstance(entry, nn.Module | torch.Generator)}
        return {str(key): plain(entry) for key, entry in kept.items()}
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, os.PathLike) else value
