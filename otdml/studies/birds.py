"""Does it help a classifier of a hundred birds in few coordinates to part its prototypes, and by which regulariser?"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otdml.data import CUB200
from otdml.data.images import CenterCrop
from otdml.dml.backbones import efficientnet_lite0
from otdml.dml.fingerprint import fingerprint
from otdml.dml.loading import EvaluationBatches, portions
from otdml.dml.prototypes import PrototypeClassifier
from otdml.studies.protocol import Arm, Reading, Score, Study
from otdml.studies.prototypes import SHARED, arm, chosen, fitted, tried

__all__ = ["STUDIES", "run"]

SCORES = (
    Score("accuracy", "accuracy", digits=4),
    Score("smallest", "smallest angle", 0, 2),
    Score("median", "median nearest angle", 0, 2),
    Score("train", "accuracy on training photographs"),
)
# Half of the photographs of a class are known; 1,000 batches of 128 are 43 passes over 3,000.
BIRDS = {**SHARED, "known": 30, "steps": 1000, "rate": 1e-3}
# The best of each in the study of weights, which has 4 coordinates.
CHOSEN = {
    "koleo": 0.03, "max-min-angle": 0.3, "max-cosine": 0.3, "uniformity": 0.03,
    "riesz": 0.03, "mmd": 1.0, "lloyd": 0.1, "sliced": 0.3,
}  # fmt: skip
DECAY = 1.0
SIZE = 160


def run(settings: Mapping[str, Any], seed: int, data: Path | None = None) -> Iterator[Reading]:
    """Train one classifier of frozen features, and score it on the way; arms of one seed start alike, on one split.

    Args:
        settings: As in ``BIRDS``.
        seed: Of the split, the linear map, prototypes, batches and draws.
        data: Folder of CUB-200-2011, or of some classes of it.
    """
    features, labels = _features(Path(data or "."))
    model = PrototypeClassifier(int(labels.max()) + 1, settings["dim"], seed=seed, features=features.shape[1])
    return fitted(model, features, labels, settings, seed)


@cache
@torch.no_grad()
def _features(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean features of every photograph from weights of ImageNet, and its class."""
    network = efficientnet_lite0(weights="installed").eval()
    features, labels, classes = [], [], 0
    for photographs in _photographs(folder):
        for images, numbers in EvaluationBatches(photographs, batch_size=64):
            features += [network(part).mean((2, 3)) for part in portions(images)]
            labels.append(numbers + classes)
        classes += len(photographs.classes)
    return torch.cat(features), torch.cat(labels)


def _photographs(folder: Path) -> list[CUB200]:
    """Both halves of the classes."""
    return [CUB200(folder, half, CenterCrop(SIZE, SIZE), allow_partial=True) for half in ("trainval", "test")]


def _study(name: str, question: str, arms: Iterable[Arm], seeds: tuple[int, ...]) -> Study:
    return Study(
        name=name,
        question=question,
        method=f"The species of CUB-200-2011 that are there, {BIRDS['known']} photographs of each to train on and"
        f" the others to test on, {SIZE} × {SIZE} pixels. Frozen features of EfficientNet-Lite0, trained on ImageNet,"
        " a linear map, cosines with learnt prototypes times a learnt scale, cross-entropy.",
        arms=tuple(arms),
        seeds=seeds,
        scores=SCORES,
        run=run,
        needs="the folder of CUB-200-2011, whole or in part",
        data_hash=lambda path: " ".join(fingerprint(photographs) for photographs in _photographs(path or Path("."))),
    )


def _weights() -> Study:
    question = "Which weight of each regulariser of prototypes of birds is best in 4 coordinates?"
    return _study("birds-weights", question, tried(partial(arm, shared=BIRDS, dim=4)), (100, 101, 102))


def _coordinates(dim: int) -> Study:
    question = f"Does parting the prototypes of 100 birds help in {dim} coordinates?"
    return _study(
        f"birds-{dim}", question, chosen(partial(arm, shared=BIRDS, dim=dim), DECAY, CHOSEN), tuple(range(10))
    )


STUDIES = {study.name: study for study in (_weights(), *(_coordinates(dim) for dim in (4, 8, 16, 32)))}
