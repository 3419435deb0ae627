"""ProxyNCA++ against its definition, written as loops, and against pytorch-metric-learning."""

import math

import pytest
import torch
from torch.nn import functional as F

from otdml.dml import ProxyNCA, proxy_nca


def angles(z, p):
    return (F.normalize(z, dim=-1) @ F.normalize(p, dim=-1).mT).tolist()


def nca_by_loops(z, proxies, labels, temperature):
    total = 0.0
    for i, row in enumerate(angles(z, proxies)):
        weights = [math.exp(-(2 - 2 * s) / temperature) for s in row]
        total -= math.log(weights[labels[i]] / sum(weights))
    return total / len(z)


@pytest.mark.parametrize("temperature", [1 / 9, 1.0, 10.0])
def test_proxy_nca_is_its_definition(batch, temperature):
    assert proxy_nca(*batch, temperature=temperature).item() == pytest.approx(
        nca_by_loops(*batch, temperature), rel=1e-12
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_value_and_gradient_are_the_peers(batch, agree):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z, proxies, labels = batch
    peer = losses.ProxyNCALoss(5, 6, softmax_scale=9).double()

    def theirs(z, proxies):
        return torch.func.functional_call(peer, {"proxies": proxies}, (z, labels))

    agree(lambda z, proxies: proxy_nca(z, proxies, labels), theirs, z, proxies)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_proxy_nca_keeps_the_samples_the_peer_leaves_out():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    proxies = torch.tensor([[-1.0, 0.1], [1.0, 0.0]])
    labels = torch.tensor([0, 0])
    peer = losses.ProxyNCALoss(2, 2, softmax_scale=100)
    peer.proxies.data = proxies.clone()
    cosines = F.normalize(z.detach(), dim=-1) @ F.normalize(proxies, dim=-1).T
    each = F.cross_entropy(200 * cosines, labels, reduction="none")
    assert each[0] > 300  # its probability underflows in float32
    assert peer(z.detach(), labels).item() == pytest.approx(each[1].item(), abs=1e-3)
    value = proxy_nca(z, proxies, labels, temperature=0.01)
    assert value.item() == pytest.approx(each.mean().item(), rel=1e-5)
    value.backward()
    assert z.grad[0].norm() > 1


def test_a_single_class_has_nothing_to_tell_apart(generator):
    assert ProxyNCA(1, 8, generator=generator)(torch.randn(3, 8, generator=generator), torch.zeros(3).long()) == 0


def test_initial_proxies_have_the_published_scale(generator):
    assert ProxyNCA(200, 500, generator=generator).proxies.std().item() == pytest.approx(1 / 8, rel=0.02)
