"""The memory of earlier batches: against pytorch-metric-learning, over processes, and across a checkpoint."""

import copy
import io

import pytest
import torch
from processes import in_two_processes
from torch import nn

from otdml.dml import (
    CrossBatchMemory,
    MultiSimilarity,
    ProxyDML,
    ProxyNCA,
    TripletMargin,
    hard_triplets,
    multi_similarity_pairs,
    semi_hard_triplets,
)

DIM, SIZE = 5, 24


def batches(count=6, n=9):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield (
            torch.randn(n, DIM, generator=generator, dtype=torch.float64),
            torch.randint(4, (n,), generator=generator),
        )


def run(loss, net, steps):
    """Values, and gradients of the network, batch by batch."""
    found = []
    for z, labels in steps:
        net.zero_grad()
        value = loss(net(z), labels)
        value.backward()
        found.append((value.detach(), *(p.grad.clone() for p in net.parameters())))
    return found


def network():
    torch.manual_seed(1)
    return nn.Linear(DIM, DIM).double()


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for actual, wanted in zip(one, other, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("miner", [None, "multi-similarity", "hard", "semi-hard"])
@pytest.mark.parametrize("kind", ["multi-similarity", "triplet"])
def test_values_are_the_peers(miner, kind):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    ours, theirs = {
        "multi-similarity": (MultiSimilarity(), losses.MultiSimilarityLoss()),
        "triplet": (TripletMargin(margin=0.4), losses.TripletMarginLoss(margin=0.4)),
    }[kind]
    mine, peer_miner = {
        None: (None, None),
        "multi-similarity": (multi_similarity_pairs, miners.MultiSimilarityMiner()),
        "hard": (hard_triplets, miners.BatchHardMiner()),
        "semi-hard": (semi_hard_triplets, miners.TripletMarginMiner(type_of_triplets="semihard")),
    }[miner]
    peer = losses.CrossBatchMemory(theirs, DIM, memory_size=SIZE, miner=peer_miner).double()
    expected = run(peer, network(), batches())
    assert_same(run(CrossBatchMemory(ours, DIM, size=SIZE, miner=mine).double(), network(), batches()), expected)
    # Their loss in our memory.
    assert_same(run(CrossBatchMemory(theirs, DIM, size=SIZE, miner=mine).double(), network(), batches()), expected)
    assert min(float(row[1].abs().max()) for row in expected[1:]) > 1e-6


def test_a_copy_and_a_checkpoint_go_on_with_the_memory():
    steps = list(batches())
    whole = run(CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE).double(), network(), steps)
    loss = CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE).double()
    run(loss, network(), steps[:4])
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE).double()
    other.load_state_dict(torch.load(file, weights_only=True))
    for one in (copy.deepcopy(loss), other):
        assert_same(run(one, network(), steps[4:]), whole[4:])
    other.start()
    assert_same(run(other, network(), steps[:2]), whole[:2])


def test_two_values_before_their_gradients():
    steps, loss, net = list(batches(2)), CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE).double(), network()
    sum(loss(net(z), labels) for z, labels in steps).backward()
    found = [p.grad.clone() for p in net.parameters()]
    one_by_one = run(CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE).double(), network(), steps)
    for k, gradient in enumerate(found, 1):
        torch.testing.assert_close(gradient, one_by_one[0][k] + one_by_one[1][k])


def test_trains_with_the_module():
    loss = CrossBatchMemory(MultiSimilarity(epsilon=0.1), 8, size=32)
    module = ProxyDML(3, backbone_options={"widths": (4, 8)}, dim=8, loss=loss, seed=0)
    images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    for _ in range(4):
        terms = module.losses(images, labels)
    assert terms["loss"].isfinite()
    assert module.state_dict()["loss.memory"].norm(dim=1).min() > 0
    assert module.state_dict()["loss._extra_state"] == {"next": 48 % 32, "filled": 32}


def test_what_a_miner_finds_is_checked():
    z, labels = torch.randn(3, 4), torch.tensor([0, 0, 1])
    memory = CrossBatchMemory(TripletMargin(), 4, size=8, miner=lambda *batch: None)
    with pytest.raises(ValueError, match="`tuples` must hold three or four tensors of indices, got NoneType"):
        memory(z, labels)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`size` must hold a batch of 5, got 4"):
        CrossBatchMemory(MultiSimilarity(), 2, size=4)(torch.randn(5, 2), torch.arange(5))
    with pytest.raises(TypeError, match=r"`loss` must be an nn\.Module"):
        CrossBatchMemory(lambda z, labels: 0, 2)
    with pytest.raises(TypeError, match=r"`loss` must take tuples, a reference .*, got ProxyNCA. Take a pair loss"):
        CrossBatchMemory(ProxyNCA(4, 3), 3)
    with pytest.raises(TypeError, match=r"`miner` must be a function .* or None, got 'hard'"):
        CrossBatchMemory(MultiSimilarity(), 2, miner="hard")
    with pytest.raises(TypeError, match="`gather` must be True or False, got 'no'"):
        CrossBatchMemory(MultiSimilarity(), 2, gather="no")
    with pytest.raises(ValueError, match="`z` must have the features of the memory, 3, got 2"):
        CrossBatchMemory(MultiSimilarity(), 3)(torch.randn(5, 2), torch.arange(5))


def test_a_memory_that_is_evaluated_in_inference_mode_goes_on_in_training():
    loss, (first, second) = CrossBatchMemory(TripletMargin(margin=0.3), DIM, size=SIZE), batches(2)
    with torch.inference_mode():
        # Double precision, for which the memory is made anew.
        loss(first[0].clone(), first[1])
    z = second[0].requires_grad_()
    value = loss(z, second[1])
    value.backward()
    other = CrossBatchMemory(TripletMargin(margin=0.3), DIM, size=SIZE)
    other(*first)
    torch.testing.assert_close(value, other(*second))
    assert z.grad.abs().max() > 0


def test_double_precision_is_kept_without_being_asked_for():
    found, expected = (
        run(loss, network(), batches())
        for loss in (
            CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE),
            CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE).double(),
        )
    )
    assert_same(found, expected)


def rows_of(rank):
    # Unequal parts.
    return slice(0, 5) if rank == 0 else slice(5, 9)


def work(rank, folder):
    net = nn.parallel.DistributedDataParallel(network())
    loss = CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE, miner=multi_similarity_pairs, gather=True).double()
    steps = [(z[rows_of(rank)], labels[rows_of(rank)]) for z, labels in batches()]
    torch.save((run(loss, net, steps), loss.state_dict()), f"{folder}/{rank}.pt")


def test_two_processes_are_one(tmp_path):
    in_two_processes(work, tmp_path)
    loss = CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE, miner=multi_similarity_pairs).double()
    expected = run(loss, network(), batches())
    for rank in range(2):
        found, state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_same(found, expected)
        torch.testing.assert_close(state["memory"], loss.memory)
        assert torch.equal(state["memory_labels"], loss.memory_labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_loaded_memory_keeps_its_digits(dtype):
    z = torch.randn(3, DIM, dtype=dtype, generator=torch.Generator().manual_seed(0))
    loss = CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE).to(dtype)
    loss(z, torch.arange(3))
    other = CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE)
    other.load_state_dict(loss.state_dict())
    assert other.memory.dtype == dtype
    assert torch.equal(other.memory, loss.memory)
    outer, kept = torch.nn.Sequential(other), torch.nn.Sequential(CrossBatchMemory(MultiSimilarity(), DIM, size=SIZE))
    kept.load_state_dict(outer.state_dict())
    assert torch.equal(kept[0].memory, loss.memory)
