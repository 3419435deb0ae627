"""Batches of a training run, which depend on the seed and the epoch alone, also after the run is resumed."""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, SequentialSampler

from otdml._checks import argument_error, check_integer
from otdml._training import as_float
from otdml.dml.protocols import BatchedImages, ImagesInTurn, LabelledImages, queries
from otdml.dml.sampling import ClassBalancedBatchSampler

__all__ = [
    "Augment",
    "EvaluationBatches",
    "OrderedCrops",
    "TrainingBatches",
    "epoch_seed",
    "loaded_places",
    "loaded_queries",
    "portions",
    "seeded",
]

# Pixels of a portion: four images of 224 by 224.
PIXELS = 4 * 224**2

Augment = Callable[[Tensor, torch.Generator], Tensor]


class TrainingBatches:
    """Class-balanced batches of a data set; those of an epoch depend on the seed and its number alone.

    What a random transform draws for an item depends on the item's place in the epoch as well, and on nothing else: not
    on the number of workers, which live as long as this object, nor on the number of processes that share a batch.

    Args:
        dataset: The images. Where they have ``batch``, whole batches are taken; else items, through worker processes.
        sampler: Which images make a batch.
        seed: Of the random transforms.
        workers: Processes that load items.
    """

    def __init__(self, dataset: LabelledImages, sampler: ClassBalancedBatchSampler, *, seed: int, workers: int) -> None:
        self.dataset, self.sampler = dataset, sampler
        batched = isinstance(dataset, BatchedImages)
        items = _Items(dataset, in_turn=isinstance(dataset, ImagesInTurn))
        self.loader = None if batched else _loader(items, _Places(sampler, seed), workers)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs."""
        self.sampler.set_epoch(epoch)
        if isinstance(self.dataset, ImagesInTurn):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        return map(self.dataset.batch, self.sampler) if self.loader is None else _own_errors(self.loader)  # type: ignore[attr-defined]


def _loader(items: "_Items", places: "_Places", workers: int) -> DataLoader[Any]:
    return DataLoader(
        items,
        batch_sampler=places,
        num_workers=workers,
        # The loader draws a base seed; without a generator of its own it would advance the global one.
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def _own_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; an error of a worker process is raised with its own message, without the worker's traceback."""
    try:
        yield from batches
    except Exception as error:
        _, remote, trace = str(error).rpartition("Traceback (most recent call last):")
        if not remote:
            raise
        # The lines of a traceback are indented; its message, which may have several lines, begins after the type.
        message = re.split(rf"^[\w.]*{type(error).__name__}: ", trace, maxsplit=1, flags=re.MULTILINE)[-1]
        raise type(error)(message.strip()) from error


class _Places:
    """The batches of a sampler, each image with the seed of its place in the global batch."""

    def __init__(self, sampler: ClassBalancedBatchSampler, seed: int) -> None:
        self.sampler, self.seed = sampler, seed

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        for number, batch in enumerate(self.sampler, self.sampler.start):
            first = (number * self.sampler.world_size + self.sampler.rank) * len(batch)
            yield [(i, (self.seed, self.sampler.epoch, 0, first + k)) for k, i in enumerate(batch)]


class _Items(Dataset[tuple[Any, int]]):
    """Items by index and entropy, from which all that their transforms draw starts.

    Where items come in turn, a worker process learns the epoch from the entropy, which is (seed, epoch, ...) then.
    """

    def __init__(self, dataset: LabelledImages, *, in_turn: bool = False) -> None:
        self.dataset, self.in_turn, self.epoch = dataset, in_turn, -1

    def __getitem__(self, place: tuple[int, tuple[int, ...]]) -> tuple[Any, int]:
        index, entropy = place
        if self.in_turn and entropy[1] != self.epoch:
            self.epoch = entropy[1]
            self.dataset.set_epoch(self.epoch)  # type: ignore[attr-defined]
        with _states_kept():
            _seed_cpu(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            return self.dataset[index]


class EvaluationBatches:
    """Images of a data set in their order.

    Args:
        dataset: The images, as in :class:`TrainingBatches`.
        batch_size: Images at a time.
        workers: Processes that load items.
        rows: Which images; all if None.
    """

    def __init__(
        self, dataset: LabelledImages, *, batch_size: int, workers: int = 0, rows: range | None = None
    ) -> None:
        self.dataset, self.workers = dataset, check_integer("workers", workers, least=0)
        batch_size = check_integer("batch_size", batch_size)
        self.batches = torch.tensor(range(len(dataset)) if rows is None else rows, device="cpu").split(batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.dataset, BatchedImages):
            yield from map(self.dataset.batch, self.batches)
        else:
            loader = DataLoader(
                _as_dataset(self.dataset),
                # A generator, because lists of all indices take more memory than the tensor.
                batch_sampler=(batch.tolist() for batch in self.batches),
                num_workers=self.workers,
                pin_memory=torch.cuda.is_available(),
            )
            yield from _own_errors(loader)


class OrderedCrops:
    """Images of a data set in their order, cut and distorted at random, the same in every pass of the same number.

    Args:
        dataset: The images, as in :class:`TrainingBatches`.
        number: All that is drawn depends on it, and on the place of an image.
        augment: Distorts a batch of images, as for :func:`otdml.dml.fit`.
        batch_size: Images at a time.
        workers: Processes that load items.
        device: Where images are distorted and returned.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        number: int,
        *,
        augment: Augment | None = None,
        batch_size: int = 64,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset, self.number, self.augment, self.workers = dataset, number, augment, workers
        self.device = torch.device(device)
        self.batches = torch.arange(len(dataset), device="cpu").split(batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if isinstance(self.dataset, BatchedImages):
            loaded: Iterable[Any] = map(self.dataset.batch, self.batches)
        else:
            places: Any = [[(i, (self.number, i)) for i in batch.tolist()] for batch in self.batches]
            loaded = _own_errors(_loader(_Items(self.dataset), places, self.workers))
        for place, (images, _) in enumerate(loaded):
            floats = as_float(images.to(self.device))
            generator = torch.Generator(self.device).manual_seed(epoch_seed(self.number, place))
            yield floats if self.augment is None else self.augment(floats, generator)


def portions(images: Tensor) -> tuple[Tensor, ...]:
    """Parts of a batch, one after the other, where that is faster than all at once: on a CPU.

    Maps of few images stay in its cache and in memory that the process has already. Those of a hundred photographs are
    new pages of the system for every layer, which can take longer than the network.
    """
    if images.ndim < 4 or images.device.type != "cpu":
        return (images,)
    return images.split(max(1, PIXELS // max(1, images.shape[-2] * images.shape[-1])))


def loaded_places(loader: Any, count: int) -> Tensor | None:
    """Places in its set of the first ``count`` items that this process gets from a loader of PyTorch.

    Args:
        loader: The loader. That of a distributed sampler repeats items, so that all processes get equally many.
        count: Items.

    Returns:
        Shape (count,); None where they cannot be told, as of a loader that draws a new order in each pass.
    """
    batches = getattr(loader, "batch_sampler", None)
    sampler = batches.sampler if type(batches) is BatchSampler else None
    # Subclasses may draw a new order in each pass.
    known = type(sampler) in (SequentialSampler, DistributedSampler)
    return torch.tensor(list(islice(sampler, count)), device="cpu") if known else None  # type: ignore[arg-type]


def loaded_queries(loader: Any, index: Tensor | None) -> Tensor | None:
    """Whether each sample at these places of a loader's set is a query; None where its protocol has none."""
    asked = queries(getattr(loader, "dataset", None))
    if asked is not None and index is None:
        remedy = "Leave out `shuffle`, `sampler` and `batch_sampler`."
        raise argument_error("val_dataloaders", "read a set with queries in its order", type(loader).__name__, remedy)
    return None if asked is None or index is None else asked.to(index.device)[index]


def epoch_seed(seed: int, epoch: int, stream: int = 0, rank: int = 0) -> int:
    """Seed of an epoch on a process; mixed, not added, as seed 0 in epoch 1 must not be seed 1 in epoch 0."""
    entropy = [seed, epoch, stream, rank] if rank else [seed, epoch, stream]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


@contextmanager
def seeded() -> Iterator[Callable[[int], None]]:
    """A function that seeds every global generator; when the block ends, the caller's states are back."""
    with _states_kept(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield _seed_all


@contextmanager
def _states_kept() -> Iterator[None]:
    """The global generators of the CPU, left as they were found."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (users' transforms draw from it)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)


def _seed_all(seed: int) -> None:
    _seed_cpu(seed)
    torch.manual_seed(seed)


def _seed_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    # Not torch.manual_seed, which initialises the GPU, in a worker process too.
    torch.default_generator.manual_seed(seed)


def _as_dataset(dataset: Any) -> Dataset[Any]:
    return dataset
