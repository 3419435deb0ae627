"""Class-balanced batches: what each batch holds, what an epoch covers, and what processes share."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from otdml.dml.sampling import ClassBalancedBatchSampler


def uneven(classes: int, least: int, most: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(least, most + 1, (classes,), generator=generator)
    labels = torch.arange(classes).repeat_interleave(sizes)
    return labels[torch.randperm(len(labels), generator=generator)]


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 12), st.data())
def test_each_batch_has_p_classes_of_k_different_images(classes, data):
    per_batch, samples = data.draw(st.integers(1, classes)), data.draw(st.integers(1, 5))
    labels = uneven(classes, samples, samples + 4, seed=data.draw(st.integers(0, 99)))
    sampler = ClassBalancedBatchSampler(labels, per_batch, samples, batches=20, seed=data.draw(st.integers(0, 99)))
    batches = list(sampler)
    assert len(batches) == len(sampler) == 20
    for batch in batches:
        assert len(set(batch)) == per_batch * samples
        assert sorted(Counter(labels[batch].tolist()).values()) == [samples] * per_batch
        assert labels[batch].view(per_batch, samples).unique(dim=1).shape == (per_batch, 1)  # Classes stay together.


def test_classes_and_images_are_dealt_like_cards():
    labels = torch.arange(7).repeat_interleave(6)
    sampler = ClassBalancedBatchSampler(labels, 3, 2, batches=7)
    drawn = [c for batch in sampler for c in labels[batch][::2].tolist()]
    assert all(set(drawn[i : i + 7]) == set(range(7)) for i in (0, 7, 14))
    # Every class was dealt three times with two images each: all six.
    assert Counter(itertools.chain.from_iterable(sampler)) == Counter(range(42))


def test_the_order_is_that_of_seed_and_epoch():
    labels = uneven(10, 4, 9)

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = ClassBalancedBatchSampler(labels, 4, 3, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    torch.manual_seed(5)
    assert order(0, 0) == list(ClassBalancedBatchSampler(labels, 4, 3))


def test_an_epoch_resumes_in_its_middle():
    sampler = ClassBalancedBatchSampler(uneven(10, 4, 9), 4, 2, batches=9)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, start=5)
    assert len(sampler) == 4
    assert list(sampler) == whole[5:]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_batches_of_one(world_size):
    labels = uneven(12, 4, 9)
    whole = list(ClassBalancedBatchSampler(labels, 8, 3, batches=6))
    ranks = [
        ClassBalancedBatchSampler(labels, 8, 3, batches=6, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    parts = zip(*ranks, strict=True)
    assert [[i for part in step for i in part] for step in parts] == whole


def test_an_epoch_is_as_long_as_the_data():
    assert len(ClassBalancedBatchSampler(torch.arange(10).repeat(10), 5, 4)) == 5
    assert len(ClassBalancedBatchSampler(torch.arange(10).repeat(3), 10, 3)) == 1
    assert len(ClassBalancedBatchSampler(torch.tensor([0, 1]), 2, 1)) == 1


def test_replacement_repeats_the_images_of_small_classes_only():
    labels = torch.tensor([0, 1, 1, 1, 1, 1])
    for batch in ClassBalancedBatchSampler(labels, 2, 4, replacement=True, batches=10):
        drawn = Counter(batch)
        assert drawn.pop(0) == 4
        assert set(drawn.values()) == {1}
    # A class of three that gives four: none is drawn a third time before all are drawn twice.
    for batch in ClassBalancedBatchSampler(torch.tensor([3, 3, 3]), 1, 4, replacement=True, batches=10):
        assert sorted(Counter(batch).values()) == [1, 1, 2]


def test_as_the_batch_sampler_of_a_loader():
    labels = torch.arange(6).repeat_interleave(5)
    loader = DataLoader(TensorDataset(labels), batch_sampler=ClassBalancedBatchSampler(labels, 3, 2))
    assert [len(batch.unique()) for (batch,) in loader] == [3] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes_per_batch": 5}, "`classes_per_batch` must be at most the number of classes, 3, got 5"),
        (
            {"samples_per_class": 3},
            r"`samples_per_class` must be at most the images of every class, of which 2 have fewer \(labels 4, 9\), "
            "got 3. Leave these classes out, or pass replacement=True",
        ),
        ({"labels": torch.tensor([0.0, 1.0])}, "`labels` must be a tensor of integers"),
        ({"labels": torch.tensor([], dtype=torch.long)}, "number of classes, 0"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
        ({"rank": 1}, "`rank` must be given together with `world_size`"),
        ({"rank": 2, "world_size": 2}, "`rank` must be below `world_size`, 2, got 2"),
        ({"rank": 0, "world_size": 3}, "share a batch among 3 processes, got 4"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    labels = torch.tensor([4, 4, 7, 7, 7, 9, 9])
    with pytest.raises((ValueError, TypeError), match=message):
        ClassBalancedBatchSampler(**{"labels": labels, "classes_per_batch": 2, "samples_per_class": 2} | arguments)
