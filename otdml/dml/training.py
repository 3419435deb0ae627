"""One training run in one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from otdml.dml.module import ProxyDML

__all__ = ["FitResult", "LabelledImages", "TrainingConfig", "embed", "evaluate", "fit"]

Augment = Callable[[Tensor, torch.Generator], Tensor]


class LabelledImages(Protocol):
    """What a run asks of a data set: items ``(image, label)``, and all labels at once."""

    labels: Tensor
    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


@dataclass(frozen=True)
class TrainingConfig:
    """How long, in which batches and on which device a run trains; with the module it determines the numbers."""

    epochs: int = 30
    classes_per_batch: int = 32
    samples_per_class: int = 4
    batches_per_epoch: int | None = None
    seed: int = 0
    ks: tuple[int, ...] = (1, 2, 4, 8)
    select: str = "map@r"
    val_every: int = 1
    test_every: int = 0
    eval_batch_size: int = 512
    workers: int = 0
    precision: str = "32-true"
    accelerator: str = "auto"
    compile: bool = False


@dataclass(frozen=True)
class FitResult:
    """What a run ends with: metrics of the last and of the selected epoch, keyed ``test/recall@1`` and so on."""

    last: dict[str, float]
    best: dict[str, float] | None
    best_epoch: int | None
    seconds: float
    folder: Path


def fit(
    module: ProxyDML,
    train: LabelledImages,
    *,
    folder: str | Path,
    val: LabelledImages | None = None,
    test: LabelledImages | None = None,
    config: TrainingConfig = TrainingConfig(),
    augment: Augment | None = None,
    resume: bool = True,
    progress: bool = True,
    on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
) -> FitResult:
    """Train ``module``, write ``curve.csv``, ``last.ckpt`` and ``best.ckpt`` (with ``val``) into ``folder``."""
    raise NotImplementedError


def embed(module: ProxyDML, dataset: LabelledImages, *, batch_size: int = 512, workers: int = 0) -> Tensor:
    """Unit embeddings (n, dim) of the data set, on the CPU."""
    raise NotImplementedError


def evaluate(
    module: ProxyDML, dataset: LabelledImages, *, ks: tuple[int, ...] = (1, 2, 4, 8), batch_size: int = 512
) -> dict[str, float]:
    """Retrieval metrics of the data set's embeddings, keyed as :func:`~otdml.dml.retrieval_metrics` does."""
    raise NotImplementedError
