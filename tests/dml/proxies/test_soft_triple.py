"""SoftTriple against its definition, written as loops, and against pytorch-metric-learning."""

import importlib
import math

import pytest
import torch
from torch.nn import functional as F

from otdml.dml import SoftTriple, soft_triple


def angles(z, p):
    return (F.normalize(z, dim=-1) @ F.normalize(p, dim=-1).mT).tolist()


def triple_by_loops(z, centres, labels, lam, gamma, delta, tau):
    classes, k, _ = centres.shape
    per_class = [angles(z, c) for c in centres]
    total = 0.0
    for i, y in enumerate(labels.tolist()):
        logits = []
        for c in range(classes):
            weights = [math.exp(s / gamma) for s in per_class[c][i]]
            similarity = sum(w * s for w, s in zip(weights, per_class[c][i], strict=True)) / sum(weights)
            logits.append(math.exp(lam * (similarity - delta * (c == y))))
        total -= math.log(logits[y] / sum(logits))
    unit = F.normalize(centres, dim=-1)
    pairs = [(c, i, j) for c in range(classes) for i in range(k) for j in range(i)]
    spread = sum(math.sqrt((unit[c, i] - unit[c, j]).square().sum().item() + 1e-5) for c, i, j in pairs)
    return total / len(z) + (tau * spread / (classes * k * (k - 1)) if k > 1 else 0.0)


@pytest.mark.parametrize("centres", [1, 2, 4])
@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_soft_triple_is_its_definition(batch, generator, centres, tau):
    z, _, labels = batch
    w = torch.randn(5, centres, 6, generator=generator, dtype=torch.float64)
    options = {"lam": 5.0, "gamma": 0.3, "delta": 0.1, "tau": tau}
    expected = triple_by_loops(z, w, labels, **options)
    assert soft_triple(z, w, labels, **options).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_value_and_gradient_are_the_peers(batch, agree, generator):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z, _, labels = batch
    centres = torch.randn(5, 3, 6, generator=generator, dtype=torch.float64)
    peer = losses.SoftTripleLoss(5, 6, centers_per_class=3, la=20, gamma=0.1, margin=0.01).double()

    def theirs(z, centres):
        # It keeps centres as the columns of one matrix.
        return torch.func.functional_call(peer, {"fc": centres.flatten(0, 1).T}, (z, labels))

    agree(lambda z, centres: soft_triple(z, centres, labels, tau=0), theirs, z, centres)


def test_coincident_centres_have_a_gradient(generator):
    loss = SoftTriple(2, 4, centres=3, generator=generator)
    with torch.no_grad():
        loss.proxies.copy_(torch.ones(2, 3, 4))
    loss(torch.randn(3, 4, generator=generator), torch.tensor([0, 1, 1])).backward()
    assert loss.proxies.grad.isfinite().all()


def test_class_proxies_of_soft_triple_are_the_nearest_centres():
    loss = SoftTriple(2, 2, centres=2)
    centres = torch.tensor([[[2.0, 0.0], [0.0, 5.0]], [[-1.0, 0.0], [0.0, -3.0]]])
    with torch.no_grad():
        loss.proxies.copy_(centres)
    z = torch.tensor([[0.9, 0.5], [0.2, 0.5], [-0.1, 0.3]], requires_grad=True)
    points = loss.class_proxies(z, torch.tensor([0, 0, 1]))
    assert torch.equal(points, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    # The condition of a density is held fixed in z, and trains its centre only.
    weights = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    (z_grad,) = torch.autograd.grad((points * weights).sum(), z, retain_graph=True, allow_unused=True)
    assert z_grad is None
    (gradient,) = torch.autograd.grad((points * weights).sum(), loss.proxies)
    assert gradient[0, 0].norm() > 0
    assert gradient[1, 1].norm() == 0


def test_initial_centres_have_the_published_scale(generator):
    centres = SoftTriple(200, 64, centres=2, generator=generator).proxies
    assert centres.shape == (200, 2, 64)
    assert centres.abs().max().item() == pytest.approx(1 / 20, rel=0.01)
    assert centres.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("block", [1, 2**17])
def test_many_classes_change_nothing(batch, generator, monkeypatch, block):
    """Value, gradient and second derivatives of the form for many classes."""
    z, _, labels = batch
    centres = torch.randn(5, 3, 6, generator=generator, dtype=torch.float64)

    def found(constant=None):
        pair = [x.clone().requires_grad_(x is not constant) for x in (z, centres)]
        leaves = [x for x in pair if x.requires_grad]
        value = soft_triple(*pair, labels, lam=5.0, gamma=0.3)
        first = torch.autograd.grad(value, leaves, create_graph=True)
        plain = torch.autograd.grad(value, leaves, retain_graph=True)
        second = torch.autograd.grad(sum(part.square().sum() for part in first), leaves)
        return [value, *first, *plain, *second]

    few = [found(constant) for constant in (None, z, centres)]
    assert few[0][-1].abs().max() > 1e-4
    module = importlib.import_module("otdml.dml.proxies._softened")
    monkeypatch.setattr(module, "_MANY", 1)
    monkeypatch.setattr(module, "_BLOCK", block)
    for constant, expected in zip((None, z, centres), few, strict=True):
        torch.testing.assert_close(found(constant), expected, rtol=1e-9, atol=1e-12)
