"""Baselines of a benchmark: the pixels of the images, and features of a pretrained network before training."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otdml._files import write_text
from otdml.benchmarks.runs import Run

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PIXELS", "UNTRAINED", "kept_baselines", "measure_baselines"]

FILE = "baselines.json"
UNTRAINED = "pretrained features, untrained"
PIXELS = "raw pixels, no network"
# Photographs are compared pixel by pixel at this side.
SIDE = 32
# The settings of a model on which its features before training depend.
NETWORK = ("backbone", "backbone_options", "pool")


def measure_baselines(out: Path, run: Run, root: str | None) -> None:
    """Measure on the test set of a run what needs no training, and keep it in the benchmark's folder ``out``.

    For sets of image files these are the pixels, of photographs at 32 × 32; for networks that start from published
    weights, their pooled features, compared by their cosines. Sets in memory have their pixels in every run already.
    What was measured before of the same images and the same network, at the same K, is not measured again.

    Args:
        out: Folder of the benchmark.
        run: Any of its runs.
        root: Folder of the data set.
    """
    from otdml.benchmarks.experiment import load_split
    from otdml.dml.fingerprint import fingerprint

    images = load_split(run.dataset, root, "test", run.data)
    ks = tuple(run.training.get("ks", (1, 2, 4, 8)))
    asked = [run.dataset, dict(run.data), {name: run.model.get(name) for name in NETWORK}, fingerprint(images), ks]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
    if _read(out).get("key") != key:
        found = {name: _metrics(z, images, ks) for name, z in _embeddings(run, images)}
        write_text(out / FILE, json.dumps({"key": key, "baselines": found}, indent=1))


def kept_baselines(out: Path) -> dict[str, Mapping[str, float]]:
    """Metrics by the name of a baseline, as :func:`measure_baselines` has left them; empty where it has not."""
    return dict(_read(out).get("baselines", {}))


def _read(out: Path) -> dict[str, Any]:
    try:
        found = json.loads((out / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _embeddings(run: Run, images: Any) -> Iterator[tuple[str, "Tensor"]]:
    """Name and rows of each baseline that the set and the network have."""
    from otdml.dml.protocols import ImagesInMemory

    options = run.model.get("backbone_options") or {}
    library = "/" in str(run.model.get("backbone"))
    if options.get("weights") is not None or (library and options.get("pretrained", True)):
        yield UNTRAINED, _features(run, images)
    if not isinstance(images, ImagesInMemory):
        yield PIXELS, _pixels(images)


def _features(run: Run, images: Any) -> "Tensor":
    from torch import nn

    from otdml.dml import ProxyDML
    from otdml.dml.evaluation import embed

    chosen = {name: run.model[name] for name in NETWORK if name in run.model}
    module = ProxyDML(2, dim=1, **chosen)
    # Pooled features, without the random projection.
    module.head.linear = nn.Identity()
    return embed(module, images)


def _pixels(images: Any) -> "Tensor":
    import torch

    rows = [torch.from_numpy(images.thumbnail(index, SIDE)).flatten() for index in range(len(images))]
    return torch.stack(rows).float()


def _metrics(z: "Tensor", images: Any, ks: tuple[int, ...]) -> dict[str, float]:
    from otdml.dml.evaluation import metrics_of

    return metrics_of(z, images, ks)
