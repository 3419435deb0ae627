"""Recall at k as a loss, against hard recall in the limit; the laws of pair losses are in the contract beside."""

import pytest
import torch

from otdml.dml import CrossBatchMemory, GradCache, RecallAtK, recall_at_k, retrieval_metrics

LABELS = torch.tensor([0, 0, 0, 0, 3, 3, 1, 1, 1, 7])


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_is_one_less_recall_as_the_temperature_falls(k, generator):
    labels = torch.arange(12).repeat(5)
    centres = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    z = centres[labels] + torch.randn(60, 4, generator=generator, dtype=torch.float64)
    hard = retrieval_metrics(z, labels, ks=(k,))[f"recall@{k}"]
    assert 0.3 < hard < 0.97
    assert float(1 - recall_at_k(z, labels, k=k, eps=1e-6)) == pytest.approx(hard, abs=1e-6)
    # At a temperature that gives gradients it is still near.
    assert float(1 - recall_at_k(z, labels, k=k, eps=0.02)) == pytest.approx(hard, abs=0.08)


@pytest.mark.parametrize("k", [1, 3])
def test_against_a_reference_is_the_recall_within_a_gallery(k, z, reference):
    points, labels = reference
    asked = torch.isin(LABELS, labels)
    hard = retrieval_metrics(z[asked], LABELS[asked], gallery=points, gallery_labels=labels, ks=(k,))[f"recall@{k}"]
    value = recall_at_k(z, LABELS, k=k, eps=1e-6, reference=points, reference_labels=labels)
    assert float(1 - value) == pytest.approx(hard, abs=1e-6)


def test_value_by_hand():
    # One query at 1 and -1 of a positive and a negative: their shares of one place are sigmoids of the gap.
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    value = recall_at_k(z[:1], torch.tensor([0]), eps=1.0, reference=z[1:], reference_labels=torch.tensor([0, 1]))
    # The threshold is half-way, so the share of the positive is sigmoid(1).
    assert float(value) == pytest.approx(1 / (1 + torch.e), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 20])
def test_gradients_are_those_of_finite_differences(k, z, reference):
    loss = RecallAtK(k=k, eps=0.3)
    points, labels = reference
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), z.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(lambda z: loss(z, LABELS), z.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda y: loss(z, LABELS, None, y, labels), points.clone().requires_grad_())


def test_descent_raises_hard_recall(generator):
    labels = torch.arange(8).repeat(4)
    z = torch.randn(32, 5, generator=generator).requires_grad_()
    before = retrieval_metrics(z.detach(), labels, ks=(1,))["recall@1"]
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        recall_at_k(z, labels, eps=0.1).backward()
        optimizer.step()
    assert before < 0.4
    assert retrieval_metrics(z.detach(), labels, ks=(1,))["recall@1"] > 0.85


def test_places_for_all_find_all(z):
    assert recall_at_k(z, LABELS, k=9) < 1e-12
    assert recall_at_k(z, LABELS, k=100) < 1e-12


def test_coincident_samples_have_a_gradient():
    z = torch.ones(4, 3, requires_grad=True)
    value = RecallAtK()(z, torch.tensor([0, 0, 1, 1]))
    value.backward()
    # One place for three that tie.
    assert value.item() == pytest.approx(2 / 3, rel=1e-5)
    assert z.grad.isfinite().all()


def test_in_a_memory_an_anchor_does_not_find_itself(z):
    memory = CrossBatchMemory(RecallAtK(k=1, eps=1e-6), 6, size=20).double()
    first = memory(z, LABELS)
    torch.testing.assert_close(first, recall_at_k(z, LABELS, eps=1e-6))
    # Now earlier copies are there, which are found at once.
    assert memory(z, LABELS) < 1e-9


def test_in_parts_the_gradient_is_that_of_the_whole(generator):
    net = torch.nn.Linear(5, 3).double()
    images, labels = torch.randn(12, 5, generator=generator, dtype=torch.float64), torch.arange(12) % 4
    whole = recall_at_k(net(images), labels, eps=0.2)
    expected = torch.autograd.grad(whole, list(net.parameters()))
    loss = RecallAtK(eps=0.2)
    value = loss(GradCache(net, size=5)(images), labels)
    value.backward()
    torch.testing.assert_close(value.detach(), whole.detach())
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
