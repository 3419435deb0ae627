"""Batches: what an image's transform draws depends on its place in the epoch, and on nothing else."""

import os
import random

import numpy as np
import pytest
import torch

from otdml.dml import ClassBalancedBatchSampler, ProxyDML, embed
from otdml.dml.backbones import ConvNet
from otdml.dml.loading import EvaluationBatches, TrainingBatches, portions

LABELS = torch.arange(24) % 4


class Items:
    """Each item is its index, a draw of every global generator, and the process that made it."""

    labels, classes = LABELS, list("abcd")

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        draws = torch.rand(()), random.random(), np.random.rand()  # noqa: NPY002
        return torch.tensor([index, *draws, os.getpid()], dtype=torch.float64), int(LABELS[index])


def batches(workers=0, rank=0, world_size=1):
    sampler = ClassBalancedBatchSampler(LABELS, 4, 2, seed=3, rank=rank, world_size=world_size)
    return TrainingBatches(Items(), sampler, seed=3, workers=workers)


def epoch(source, number):
    source.set_epoch(number)
    return torch.stack([images for images, _ in source])


def test_draws_do_not_depend_on_the_workers():
    alone, helped = batches(), batches(workers=2)
    for number in (0, 1):
        assert torch.equal(epoch(alone, number)[..., :4], epoch(helped, number)[..., :4])


def test_workers_live_as_long_as_the_run():
    source = batches(workers=2)
    first, second = (set(epoch(source, number)[..., 4].flatten().tolist()) for number in (0, 1))
    assert first == second
    assert len(first) == 2
    assert os.getpid() not in first


def test_processes_draw_what_one_would():
    whole = epoch(batches(), 1)[..., :4]
    shares = [epoch(batches(rank=rank, world_size=2), 1)[..., :4] for rank in range(2)]
    assert torch.equal(torch.cat(shares, dim=1), whole)


def test_draws_differ_by_place_and_epoch():
    source = batches()
    draws = torch.cat([epoch(source, number)[..., 1:4].flatten(0, 1) for number in (0, 1)])
    assert all(len(column.unique()) == len(draws) for column in draws.T)


def test_draws_leave_the_global_generators():
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    epoch(batches(), 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_some_rows_in_order(workers):
    found = EvaluationBatches(Items(), batch_size=4, workers=workers, rows=range(5, 15))
    assert len(found) == 3
    assert torch.cat([images[:, 0] for images, _ in found]).tolist() == list(range(5, 15))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [ValueError("a.jpg is corrupt: so it is\nb.jpg: too"), FileNotFoundError("b.jpg")])
def test_an_error_says_the_same_with_and_without_workers(workers, error):
    class Damaged(Items):
        def __getitem__(self, index):
            raise error from type(error)("what it comes from")

    source = TrainingBatches(Damaged(), ClassBalancedBatchSampler(LABELS, 4, 2), seed=0, workers=workers)
    for broken in (source, EvaluationBatches(Damaged(), batch_size=4, workers=workers)):
        with pytest.raises(type(error)) as raised:
            next(iter(broken))
        assert str(raised.value) == str(error)


def test_what_sets_offer_is_declared():
    from otdml.data import ImageFiles, TensorImages
    from otdml.dml import protocols

    offered = {
        kind: {name for name in ("BatchedImages", "ShownImages") if issubclass(kind, getattr(protocols, name))}
        for kind in (ImageFiles, TensorImages)
    }
    assert offered == {ImageFiles: {"ShownImages"}, TensorImages: {"BatchedImages", "ShownImages"}}


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ((10, 3, 224, 224), [4, 4, 2]),
        ((300, 1, 28, 28), [256, 44]),
        ((2, 3, 999, 999), [1, 1]),
        ((500, 8), [500]),
        ((0, 3, 32, 32), [0]),
    ],
)
def test_portions_of_large_images_are_small_and_keep_their_order(shape, counts):
    images = torch.arange(shape[0], dtype=torch.uint8).view(-1, *[1] * (len(shape) - 1)).expand(shape)
    parts = portions(images)
    assert [len(part) for part in parts] == counts
    assert torch.equal(torch.cat(parts), images)


def test_other_devices_take_a_batch_at_once():
    assert [len(part) for part in portions(torch.empty(10, 3, 224, 224, device="meta"))] == [10]


def test_embeddings_are_computed_in_portions_and_are_those_of_the_whole():
    class Photographs:
        images = torch.rand(7, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        labels, classes = torch.zeros(7, dtype=torch.long), ["a"]

        def __len__(self):
            return 7

        def __getitem__(self, index):
            return self.images[index], 0

    sizes = []
    module = ProxyDML(2, dim=3, backbone=ConvNet((2,), in_channels=3), seed=0).eval()
    module.backbone.register_forward_hook(lambda _, inputs, output: sizes.append(len(inputs[0])))
    z = embed(module, Photographs(), batch_size=6)
    assert sizes == [4, 2, 1]
    with torch.no_grad():
        assert torch.allclose(z, module(Photographs.images), atol=1e-6)


class InTurn(Items):
    """Each item is the epoch that it was told."""

    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        return torch.tensor([self.epoch]), int(LABELS[index])


@pytest.mark.parametrize("workers", [0, 1])
def test_items_in_turn_are_of_the_epoch_in_every_process(workers):
    sampler = ClassBalancedBatchSampler(LABELS, 4, 2, seed=3)
    source = TrainingBatches(InTurn(), sampler, seed=3, workers=workers)
    for number in (2, 0, 1):
        assert epoch(source, number).unique().tolist() == [number]
