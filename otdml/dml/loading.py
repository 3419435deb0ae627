"""How a training run gets its batches: the same in every epoch of the same number, however often it is resumed."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from otdml.dml.sampling import ClassBalancedBatchSampler

__all__ = ["Augment", "EvaluationBatches", "LabelledImages", "TrainingBatches", "as_float", "epoch_seed", "seeded"]

Augment = Callable[[Tensor, torch.Generator], Tensor]


class LabelledImages(Protocol):
    """What a run asks of a data set: items ``(image, label)``, all labels at once, and the classes' names.

    A set may also have ``batch(indices) -> (images, labels)``, which is then used instead of single items.
    """

    labels: Tensor
    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


class TrainingBatches:
    """Class-balanced batches of a data set; those of an epoch depend on the seed and its number alone.

    Args:
        dataset: The images. Where they have ``batch``, whole batches are taken; else items, through worker processes.
        sampler: Which images make a batch.
        seed: Of the random transforms in the workers.
        workers: Processes that load items.
    """

    def __init__(self, dataset: LabelledImages, sampler: ClassBalancedBatchSampler, *, seed: int, workers: int) -> None:
        self.dataset, self.sampler, self.seed, self.workers = dataset, sampler, seed, workers

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        if hasattr(self.dataset, "batch"):
            yield from map(self.dataset.batch, self.sampler)
            return
        # Workers start anew in each epoch: their random states would else depend on where a run was resumed.
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.sampler.epoch))
        yield from DataLoader(
            _as_dataset(self.dataset),
            batch_sampler=self.sampler,
            num_workers=self.workers,
            generator=generator,
            pin_memory=torch.cuda.is_available(),
        )


class EvaluationBatches:
    """All images of a data set in their order.

    Args:
        dataset: The images, as in :class:`TrainingBatches`.
        batch_size: Images at a time.
        workers: Processes that load items.
    """

    def __init__(self, dataset: LabelledImages, *, batch_size: int, workers: int = 0) -> None:
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if hasattr(self.dataset, "batch"):
            yield from map(self.dataset.batch, torch.arange(len(self.dataset)).split(self.batch_size))
        else:
            yield from DataLoader(_as_dataset(self.dataset), self.batch_size, num_workers=self.workers)


def as_float(images: Tensor) -> Tensor:
    """Stored pixels, uint8, in [0, 1]; what is floating already, as it is."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def epoch_seed(seed: int, epoch: int, stream: int = 0) -> int:
    """Seed of an epoch; mixed, not added, as seed 0 in epoch 1 must not be seed 1 in epoch 0."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1)[0])


@contextmanager
def seeded() -> Iterator[Callable[[int], None]]:
    """A function that seeds every global generator; when the block ends, the caller's states are back."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (users' transforms draw from it)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield _seed_all
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def _as_dataset(dataset: Any) -> Dataset[Any]:
    return dataset
