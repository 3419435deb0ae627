"""RetrievalMetrics: the function on everything that all processes have seen."""

import pytest
import torch
from processes import in_two_processes

from otdml.dml import RetrievalMetrics, retrieval_metrics
from otdml.dml.evaluation import protocol_metrics

N = 41
OPTIONS = {"ks": (1, 3), "extra": ("mrr", "precision"), "average": "classes"}


def samples():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(N, 4, generator=generator)
    # Equal rows, whose order decides who is found first.
    z[30:] = z[:11]
    return z, torch.randint(6, (N,), generator=generator), torch.rand(N, generator=generator) < 0.3


def fed(rows, *, with_index, with_queries=False, size=4):
    z, labels, queries = samples()
    metric = RetrievalMetrics(**OPTIONS)
    for batch in torch.as_tensor(rows).split(size):
        more = {"index": batch} if with_index else {}
        more |= {"is_query": queries[batch]} if with_queries else {}
        metric.update(z[batch], labels[batch], **more)
    return metric


def test_value_is_that_of_the_function():
    z, labels, queries = samples()
    assert fed(range(N), with_index=False).compute() == retrieval_metrics(z, labels, **OPTIONS)
    expected = retrieval_metrics(
        z[queries], labels[queries], gallery=z[~queries], gallery_labels=labels[~queries], **OPTIONS
    )
    assert fed(range(N), with_index=False, with_queries=True).compute() == expected


def test_index_orders_and_counts_once():
    z, labels, _ = samples()
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    repeated = torch.cat([shuffled, shuffled[:7]])
    expected = retrieval_metrics(z, labels, **OPTIONS)
    assert fed(repeated, with_index=True).compute() == expected
    assert fed(repeated, with_index=False).compute() != expected


def test_a_call_takes_in_a_batch_even_one_without_a_pair():
    z, labels, _ = samples()
    metric = RetrievalMetrics(**OPTIONS)
    assert [metric(z[i : i + 1], labels[i : i + 1]) for i in range(N)] == [{}] * N
    assert metric.compute() == retrieval_metrics(z, labels, **OPTIONS)


def test_reset_forgets():
    metric = fed(range(N), with_index=False)
    metric.reset()
    with (
        pytest.raises(ValueError, match="Call `update` before `compute`"),
        pytest.warns(UserWarning, match="before the"),
    ):
        metric.compute()
    z, labels, _ = samples()
    metric.update(z[:9], labels[:9])
    assert metric.compute() == retrieval_metrics(z[:9], labels[:9], **OPTIONS)


def test_errors_name_the_argument():
    metric = fed(range(8), with_index=True)
    z, labels, _ = samples()
    with pytest.raises(ValueError, match="`index` must be in all batches or none"):
        metric.update(z, labels)
    with pytest.raises(ValueError, match=r"`labels` must have shape \(41,\)"):
        metric.update(z, labels[:3], index=torch.arange(N))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ks": (0,)}, "`ks` must be an integer >= 1"),
        ({"extra": ("precison",)}, "`extra` must be one of"),
        ({"average": "images"}, "`average` must be one of"),
        ({"similarity": "cosin"}, "`similarity` must be one of"),
    ],
)
def test_options_are_checked_before_anything_is_embedded(option, message):
    with pytest.raises(ValueError, match=message):
        RetrievalMetrics(**option)


def work(rank, folder):
    # As a distributed sampler deals: in turn, and the first samples once more where the last are missing.
    dealt = [*range(N), 0][rank::2]
    found = {
        "halves": fed(range(N)[:17] if rank == 0 else range(N)[17:], with_index=False).compute(),
        "dealt": fed(dealt, with_index=True).compute(),
        "queries": fed(dealt, with_index=True, with_queries=True).compute(),
    }
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_processes_are_one(tmp_path):
    in_two_processes(work, tmp_path)
    z, labels, queries = samples()
    whole = retrieval_metrics(z, labels, **OPTIONS)
    searched = retrieval_metrics(
        z[queries], labels[queries], gallery=z[~queries], gallery_labels=labels[~queries], **OPTIONS
    )
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == {"halves": whole, "dealt": whole, "queries": searched}


def test_places_and_queries_are_one_for_each_sample():
    z, labels, queries = samples()
    for wrong in ({"index": torch.arange(4)}, {"index": torch.arange(N).float()}, {"is_query": queries[:4]}):
        metric = RetrievalMetrics(**OPTIONS)
        (name,) = wrong
        with pytest.raises((ValueError, TypeError), match=f"`{name}` must"):
            metric.update(z, labels, **wrong)
        metric.update(z, labels)
        assert metric.compute() == retrieval_metrics(z, labels, **OPTIONS)
    metric = RetrievalMetrics(**OPTIONS)
    with pytest.raises(ValueError, match="`is_query` must"):
        metric.update(z, labels, index=torch.arange(N), is_query=queries[:4])
    metric.update(z, labels, index=torch.arange(N))
    with pytest.raises(ValueError, match=r"`index` must have shape \(41,\), got \(4,\)"):
        protocol_metrics(z, labels, index=torch.arange(4))


def test_a_gallery_may_hold_copies_of_all_queries():
    """A collapsed network's, say: the two parts have no sample in common all the same."""
    z, labels = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([0, 1, 0, 1])
    asked = torch.tensor([True, True, False, False])
    assert protocol_metrics(z, labels, is_query=asked, ks=(1,))["recall@1"] == 1.0
