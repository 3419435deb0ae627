"""The laws that every pair loss obeys, and its values against pytorch-metric-learning."""

import copy
import inspect
import math
import pickle
from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import otdml.dml.pairs
from otdml.dml import (
    CrossBatchMemory,
    MultiSimilarity,
    RecallAtK,
    TripletMargin,
    hard_triplets,
    multi_similarity,
    multi_similarity_pairs,
    recall_at_k,
    semi_hard_triplets,
    triplet_margin,
)
from otdml.dml.losses import LOSSES


def public():
    """What the files of pair losses export."""
    for file in iter_modules(otdml.dml.pairs.__path__):
        if not file.name.startswith("_"):
            module = import_module(f"otdml.dml.pairs.{file.name}")
            yield from (getattr(module, name) for name in module.__all__)


# A memory is one of these losses against more points, see test_memory.py.
MODULES = [kind for kind in public() if inspect.isclass(kind) and kind is not CrossBatchMemory]
FUNCTIONS = [multi_similarity, recall_at_k, triplet_margin]
MINERS = [hard_triplets, semi_hard_triplets, multi_similarity_pairs]
LABELS = torch.tensor([0, 0, 0, 0, 3, 3, 1, 1, 1, 7])


@pytest.fixture
def peer():
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses, miners

    return losses, miners


def agree(ours, theirs, *points):
    found = []
    for loss in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in points]
        value = loss(*leaves)
        found.append((value.detach(), *torch.autograd.grad(value, leaves)))
    assert found[1][1].abs().max() > 1e-3
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


PEERS = {
    MultiSimilarity: lambda losses: (MultiSimilarity(), losses.MultiSimilarityLoss()),
    TripletMargin: lambda losses: (TripletMargin(margin=0.3), losses.TripletMarginLoss(margin=0.3)),
}
# Losses that pytorch-metric-learning has not, and what they are held to.
WITHOUT_PEER = {RecallAtK: "hard recall in the limit, see test_recall.py"}


def test_every_pair_loss_and_miner_is_in_the_contract():
    assert all(issubclass(kind, nn.Module) for kind in MODULES)
    assert set(MODULES) == set(PEERS) | set(WITHOUT_PEER)
    assert {loss.kind for loss in LOSSES.values() if not loss.has_proxies} <= set(MODULES)
    assert {one for one in public() if inspect.isfunction(one)} == {*FUNCTIONS, *MINERS}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", PEERS)
def test_value_and_gradient_are_the_peers(kind, peer, z, reference):
    ours, theirs = PEERS[kind](peer[0])
    agree(lambda z: ours(z, LABELS), lambda z: theirs(z, LABELS), z)
    points, labels = reference
    agree(
        lambda z, y: ours(z, LABELS, None, y, labels),
        lambda z, y: theirs(z, LABELS, ref_emb=y, ref_labels=labels),
        z,
        points,
    )


def as_set(tuples):
    if len(tuples) == 4:
        return as_set(tuples[:2]), as_set(tuples[2:])
    return set(zip(*(part.tolist() for part in tuples), strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("within", [True, False], ids=["batch", "reference"])
def test_miners_find_what_the_peers_find(peer, z, reference, within):
    others = () if within else reference
    pairs = [
        (multi_similarity_pairs, peer[1].MultiSimilarityMiner(epsilon=0.1)),
        (semi_hard_triplets, peer[1].TripletMarginMiner(margin=0.2, type_of_triplets="semihard")),
        (hard_triplets, peer[1].BatchHardMiner()),
    ]
    for ours, theirs in pairs:
        found = ours(z, LABELS, *others)
        assert len(found[0])
        assert as_set(found) == as_set(theirs(z, LABELS, *others))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("within", [True, False], ids=["batch", "reference"])
def test_given_distances_are_mined_as_by_the_peer(peer, z, reference, within):
    """Distances of half precision have ties and others than those of the embeddings, and so other triplets."""
    others = () if within else reference
    z, *others = (v.half() if v.is_floating_point() else v for v in (z, *others))
    for ours, theirs in [
        (semi_hard_triplets, peer[1].TripletMarginMiner(margin=0.2, type_of_triplets="semihard")),
        (hard_triplets, peer[1].BatchHardMiner()),
    ]:
        distances = theirs.distance(z, *others[:1])
        assert distances.dtype == torch.half
        found = as_set(ours(z, LABELS, *others, distances=distances))
        assert found == as_set(theirs(z, LABELS, *others))
        assert found != as_set(ours(z, LABELS, *others, distances=1 / (1 + distances)))


@pytest.mark.parametrize("miner", [hard_triplets, semi_hard_triplets])
def test_given_distances_are_checked(miner, z):
    with pytest.raises(ValueError, match=r"`distances` must hold one distance for each anchor .*\(\d+, 3\)"):
        miner(z, LABELS, distances=torch.ones(len(z), 3))
    with pytest.raises(ValueError, match="`distances` must be finite"):
        miner(z, LABELS, distances=torch.full((len(z), len(z)), torch.nan))
    with pytest.raises(TypeError, match="`distances` must be of floating point"):
        miner(z, LABELS, distances=torch.ones(len(z), len(z), dtype=torch.long))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("miner", MINERS)
def test_mined_tuples_mean_the_same_to_both(kind, miner, peer, z):
    ours, theirs = PEERS[kind](peer[0])
    tuples = miner(z, LABELS)
    agree(lambda z: ours(z, LABELS, tuples), lambda z: theirs(z, LABELS, tuples), z)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.5])
def test_epsilon_is_the_miner_of_the_peer(peer, z, epsilon):
    miner, loss = peer[1].MultiSimilarityMiner(epsilon), peer[0].MultiSimilarityLoss()
    ours = MultiSimilarity(epsilon=epsilon)
    agree(lambda z: ours(z, LABELS), lambda z: loss(z, LABELS, miner(z, LABELS)), z)


def test_a_single_pair_of_each_kind_has_its_value():
    """In which it is not the peer, that takes one pair for none."""
    z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, -0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    tuples = tuple(torch.tensor([i]) for i in (0, 1, 0, 2))
    loss = MultiSimilarity(alpha=1.0, beta=1.0, base=0.0)
    expected = (math.log1p(math.exp(-0.8)) + math.log1p(math.exp(0.6))) / 3
    assert float(loss(z, labels, tuples)) == pytest.approx(expected)


def test_pairs_are_all_triplets_that_they_make(generator):
    """In any order, some of them twice, and anchors with pairs of one kind alone."""
    z = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    drawn = torch.randint(0, 6, (4, 40), generator=generator)
    pairs = drawn[0], drawn[1], drawn[2, :25] // 2, drawn[3, :25]
    triplets = [
        (a, p, n)
        for a, p in zip(*(part.tolist() for part in pairs[:2]), strict=True)
        for b, n in zip(*(part.tolist() for part in pairs[2:]), strict=True)
        if a == b
    ]
    labels = torch.zeros(6, dtype=torch.long)
    expected = triplet_margin(z, labels, tuples=torch.tensor(triplets).unbind(1), margin=0.3)
    torch.testing.assert_close(triplet_margin(z, labels, tuples=pairs, margin=0.3), expected)
    # As a matrix of all pairs of pairs these would take ten gigabytes.
    many, ends = torch.arange(100_000), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    options = {"reference": ends, "reference_labels": torch.tensor([0, 1]), "margin": 0.5}
    one = torch.zeros_like(many)
    side = torch.tensor([[0.0, 1.0]]).expand(100_000, 2)
    assert triplet_margin(side, one, tuples=(many, one, many, one + 1), **options) == 0.5


def test_easy_triplets_leave_the_mean():
    z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.9, 0.1]])
    unit = F.normalize(z, dim=-1)
    d = torch.cdist(unit, unit)
    value = triplet_margin(z, torch.tensor([0, 0, 1, 2]), margin=0.05)
    terms = [d[0, 1] - d[0, 3] + 0.05, d[0, 1] - d[1, 3] + 0.05]
    assert len([t for t in terms if t > 0]) == 2
    assert value.item() == pytest.approx(sum(float(t) for t in terms) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", MODULES)
def test_gradients_are_those_of_finite_differences(kind, z, reference):
    loss = kind()
    points, labels = reference
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), z.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda y: loss(z, LABELS, None, y, labels), points.clone().requires_grad_())


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("labels", [[2], [2, 2, 2], [0, 1, 2]], ids=["one sample", "one class", "no positives"])
def test_small_batches_are_finite(kind, labels, generator):
    z = torch.randn(len(labels), 8, generator=generator, requires_grad=True)
    value = kind()(z, torch.tensor(labels))
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()
    if len(labels) == 1:
        assert value.item() == 0


@pytest.mark.parametrize("kind", MODULES)
def test_coincident_samples_have_a_gradient(kind):
    z = torch.ones(4, 3, requires_grad=True)
    kind()(z, torch.tensor([0, 0, 1, 1])).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", MODULES)
def test_precision_and_order(kind, half, z):
    loss, order = kind(), torch.tensor([3, 1, 9, 0, 2, 5, 4, 8, 7, 6])
    value = loss(z, LABELS)
    torch.testing.assert_close(loss(100 * z[order], LABELS[order]), value)
    assert value.dtype == torch.float64
    short = z.to(half)
    with torch.autocast("cpu", dtype=half):
        assert torch.equal(loss(short, LABELS.int()), loss(short.float(), LABELS))


@pytest.mark.parametrize("kind", MODULES)
def test_survives_copies(kind, z):
    loss = kind()
    assert torch.equal(copy.deepcopy(loss)(z, LABELS), loss(z, LABELS))
    assert torch.equal(pickle.loads(pickle.dumps(loss))(z, LABELS), loss(z, LABELS))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("miner", [None, *MINERS])
def test_not_a_number_is_not_hidden(kind, miner, z):
    z[4, 0] = torch.nan
    assert not kind()(z, LABELS, miner and miner(z, LABELS)).isfinite()
    if kind is MultiSimilarity:
        assert not kind(epsilon=0.1)(z, LABELS).isfinite()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_errors_say_what_to_do(function, z):
    with pytest.raises(ValueError, match=r"`labels` must have shape \(10,\)"):
        function(z, LABELS[:3])
    with pytest.raises(ValueError, match=r"`z` must have shape \(n, d\), got \(1, 10, 6\). Flatten"):
        function(z[None], LABELS)
    with pytest.raises(ValueError, match="`reference_labels` must be given with the other"):
        function(z, LABELS, reference=z)
    with pytest.raises(ValueError, match="`reference` must have the features of `z`, 6, got 5"):
        function(z, LABELS, reference=z[:, :5], reference_labels=LABELS)
    for tuples in ((LABELS, LABELS), "hard", LABELS):
        with pytest.raises((TypeError, ValueError), match="`tuples` must hold three or four tensors"):
            function(z, LABELS, tuples=tuples)
    one, two, far = torch.tensor([1]), torch.tensor([0, 1]), torch.tensor([10])
    for tuples in ((two, one, one), (two, one, two, two), (one, one, two, one), (one[:, None],) * 3):
        with pytest.raises(
            ValueError, match=r"`tuples` must hold as many anchors as points of each kind, shape \(k,\)"
        ):
            function(z, LABELS, tuples=tuples)
    for tuples in ((far, one, one), (one, one, far - 11), (one, far, one, one), (one, one, far, one)):
        with pytest.raises(ValueError, match="`tuples` must hold indices of 10 anchors and of 10 points"):
            function(z, LABELS, tuples=tuples)
    with pytest.raises(TypeError, match="`tuples` must be a tensor of integers"):
        function(z, LABELS, tuples=(z[:, 0],) * 3)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_tuples_may_be_arrays_and_lists(function, z):
    for tuples in (([0, 4], [1, 5], [2, 6]), ([0, 4], [1, 5], [2], [6])):
        expected = function(z, LABELS, tuples=tuple(map(torch.tensor, tuples)))
        assert function(z, LABELS, tuples=tuples) == function(z, LABELS, tuples=list(map(np.array, tuples))) == expected


def test_hyper_parameters_are_checked():
    for make in (
        lambda: MultiSimilarity(alpha=0),
        lambda: MultiSimilarity(beta=-1),
        lambda: MultiSimilarity(epsilon=0),
        lambda: MultiSimilarity(base=float("nan")),
        lambda: RecallAtK(k=0),
        lambda: RecallAtK(eps=0),
        lambda: TripletMargin(margin=-0.1),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()
