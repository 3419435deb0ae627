"""Batches of several classes with several images of each."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from otdml._checks import argument_error, check_boolean, check_integer, check_labels

__all__ = ["ClassBalancedBatchSampler"]


class ClassBalancedBatchSampler(Sampler[list[int]]):
    r"""Batches of P classes with K images each, for losses that compare images of a batch.

    No class and, without ``replacement``, no image occurs twice in a batch. Classes are dealt like cards: each comes
    once before any comes again, and so do the images of a class. An epoch has n / (P K) batches, rounded down, at
    least one, so it draws about as many images as there are; but as every class is drawn equally often, images of
    large classes are seen less often than those of small ones.

    The batches are a function of ``seed`` and the epoch alone. Call :meth:`set_epoch` before each epoch, as Lightning
    does by itself, or all epochs are alike. In distributed training every process works out the same global batch and
    takes its share of it, classes undivided where their number allows: the batches are those of one process, whatever
    the number of processes.

    Args:
        labels: Class of each image, integers, shape (n,).
        classes_per_batch: P, over all processes.
        samples_per_class: K.
        seed: Start of the random order.
        replacement: Whether a class with fewer than K images may repeat some within a batch.
        batches: Batches per epoch, instead of n / (P K).
        rank: Index of this process. That of ``torch.distributed`` if None, 0 where it is not in use.
        world_size: Number of processes, likewise.

    Raises:
        ValueError: If there are fewer than P classes, a class has fewer than K images (and no ``replacement``), or
            the processes cannot share a batch evenly.

    Example:
        >>> import torch
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> sampler = ClassBalancedBatchSampler(labels, 2, 2)
        >>> len(sampler), [labels[batch].unique().numel() for batch in sampler]
        (1, [2])
    """

    def __init__(
        self,
        labels: Tensor,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        seed: int = 0,
        replacement: bool = False,
        batches: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        labels = check_labels("labels", labels, len(labels)).cpu()
        self.classes_per_batch = check_integer("classes_per_batch", classes_per_batch)
        self.samples_per_class = check_integer("samples_per_class", samples_per_class)
        self.seed = check_integer("seed", seed, least=0)
        self.replacement = check_boolean("replacement", replacement)
        size = self.classes_per_batch * self.samples_per_class
        self.batches = max(1, len(labels) // size) if batches is None else check_integer("batches", batches)
        self.rank, self.world_size = _process(rank, world_size)
        if size % self.world_size:
            raise argument_error("classes_per_batch", f"share a batch among {self.world_size} processes", size)
        classes, counts = labels.unique(return_counts=True)
        self._images = labels.argsort(stable=True).split(counts.tolist())
        self._check_classes(classes, counts)
        self.set_epoch(0)

    def _check_classes(self, classes: Tensor, counts: Tensor) -> None:
        if len(classes) < self.classes_per_batch:
            must = f"be at most the number of classes, {len(classes)}"
            raise argument_error("classes_per_batch", must, self.classes_per_batch)
        small = classes[counts < self.samples_per_class].tolist()
        if small and not self.replacement:
            shown = ", ".join(map(str, small[:5])) + (", ..." if len(small) > 5 else "")
            must = f"be at most the images of every class, of which {len(small)} have fewer (labels {shown})"
            remedy = "Leave these classes out, or pass replacement=True to repeat their images."
            raise argument_error("samples_per_class", must, self.samples_per_class, remedy)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration runs, from batch ``start`` on to resume it in its middle."""
        self.epoch = check_integer("epoch", epoch, least=0)
        self.start = check_integer("start", start, least=0)

    @property
    def sampler(self) -> "ClassBalancedBatchSampler":
        """This sampler: Lightning calls ``set_epoch`` on a batch sampler's ``sampler``, never on itself."""
        return self

    def __len__(self) -> int:
        return max(0, self.batches - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        # Hashed, not added: seed 0 in epoch 1 must differ from seed 1 in epoch 0.
        mixed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(mixed)
        hands: list[list[int]] = [[] for _ in self._images]
        share = self.classes_per_batch * self.samples_per_class // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for number, classes in enumerate(self._class_batches(generator)):
            batch = [i for c in classes for i in self._draw(c, hands, generator)]
            if number >= self.start:
                yield batch[mine]

    def _class_batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        size, deck = self.classes_per_batch, list[int]()
        for _ in range(self.batches):
            if len(deck) < size:
                deck = _deal(deck, len(self._images), generator)
            yield deck[:size]
            deck = deck[size:]

    def _draw(self, c: int, hands: list[list[int]], generator: torch.Generator) -> list[int]:
        images, size = self._images[c], self.samples_per_class
        if len(images) < size:
            decks = [
                torch.randperm(len(images), generator=generator, device="cpu") for _ in range(-(-size // len(images)))
            ]
            return images[torch.cat(decks)[:size]].tolist()
        if len(hands[c]) < size:
            hands[c] = _deal(hands[c], len(images), generator)
        drawn, hands[c] = hands[c][:size], hands[c][size:]
        return images[drawn].tolist()


def _deal(rest: list[int], n: int, generator: torch.Generator) -> list[int]:
    """The rest of a deck, then a shuffled deck of 0, ..., n - 1 with the cards of the rest at its end.

    So any n consecutive cards that begin in the rest are different.
    """
    deck, held = torch.randperm(n, generator=generator, device="cpu").tolist(), set(rest)
    return rest + [c for c in deck if c not in held] + [c for c in deck if c in held]


def _process(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise argument_error("rank", "be given together with `world_size`", rank)
    if rank is None or world_size is None:
        active = dist.is_available() and dist.is_initialized()
        return (dist.get_rank(), dist.get_world_size()) if active else (0, 1)
    rank, world_size = check_integer("rank", rank, least=0), check_integer("world_size", world_size)
    if rank >= world_size:
        raise argument_error("rank", f"be below `world_size`, {world_size}", rank)
    return rank, world_size
