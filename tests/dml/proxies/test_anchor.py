"""Proxy-anchor against its definition, written as loops, and against pytorch-metric-learning."""

import math

import pytest
import torch
from torch.nn import functional as F

from otdml.dml import ProxyAnchor, proxy_anchor


def angles(z, p):
    return (F.normalize(z, dim=-1) @ F.normalize(p, dim=-1).mT).tolist()


def anchor_by_loops(z, proxies, labels, alpha, delta):
    s, n, classes = angles(z, proxies), len(z), len(proxies)
    positive, negative = [], []
    for p in range(classes):
        own = [math.exp(-alpha * (s[i][p] - delta)) for i in range(n) if labels[i] == p]
        if own:
            positive.append(math.log1p(sum(own)))
        negative.append(math.log1p(sum(math.exp(alpha * (s[i][p] + delta)) for i in range(n) if labels[i] != p)))
    return sum(positive) / len(positive) + sum(negative) / classes


@pytest.mark.parametrize(("alpha", "delta"), [(32.0, 0.1), (1.0, 0.0), (4.0, 0.5)])
def test_proxy_anchor_is_its_definition(batch, alpha, delta):
    value = proxy_anchor(*batch, alpha=alpha, delta=delta)
    assert value.item() == pytest.approx(anchor_by_loops(*batch, alpha, delta), rel=1e-12)


def test_proxy_anchor_averages_over_classes_not_samples():
    # One class with two equal samples, one with a single sample: a mean over samples would weigh them 2 to 1.
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    value = proxy_anchor(z, torch.eye(2), torch.tensor([0, 0, 1]), alpha=1.0, delta=0.0)
    positive = (math.log1p(2 / math.e) + math.log1p(1 / math.e)) / 2
    negative = (math.log1p(1) + math.log1p(2)) / 2
    assert value.item() == pytest.approx(positive + negative, rel=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_value_and_gradient_are_the_peers(batch, agree):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z, proxies, labels = batch
    peer = losses.ProxyAnchorLoss(5, 6, margin=0.1, alpha=32).double()

    def theirs(z, proxies):
        return torch.func.functional_call(peer, {"proxies": proxies}, (z, labels))

    agree(lambda z, proxies: proxy_anchor(z, proxies, labels), theirs, z, proxies)


def test_initial_proxies_have_the_published_scale(generator):
    assert ProxyAnchor(200, 500, generator=generator).proxies.std().item() == pytest.approx(0.1, rel=0.02)
