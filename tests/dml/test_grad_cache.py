"""GradCache: the gradient of the whole batch, from pieces of it."""

import pytest
import torch
from processes import in_two_processes
from torch import nn

from otdml.distributed import gather
from otdml.dml import GradCache, MultiSimilarity

LABELS = torch.arange(40) % 6


def images():
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def network(*, dropout=0.0, norm=False):
    torch.manual_seed(2)
    layers = [nn.Linear(8, 32), nn.BatchNorm1d(32) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(32, 4))


def gradients(encoder, x=None, labels=LABELS):
    encoder.zero_grad()
    value = MultiSimilarity()(encoder(images() if x is None else x), labels)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in encoder.parameters())]


@pytest.mark.parametrize("size", [1, 7, 8, 40, 100])
def test_gradient_is_that_of_the_whole_batch(size):
    expected = gradients(network())
    found = gradients(GradCache(network(), size=size))
    assert expected[1].norm() > 1e-3
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual - wanted).norm() <= 1e-6 * wanted.norm().clamp_min(1e-3)


def test_gradient_of_the_input():
    x, y = images().requires_grad_(), images().requires_grad_()
    encoder = network()
    MultiSimilarity()(encoder(x), LABELS).backward()
    MultiSimilarity()(GradCache(encoder, size=7)(y), LABELS).backward()
    assert (y.grad - x.grad).norm() <= 2e-6 * x.grad.norm()


def in_pieces(encoder, size):
    """The same pieces with all their activations, which draw the same numbers."""
    return torch.cat([encoder(piece) for piece in images().split(size)])


def test_random_states_are_replayed():
    encoder = network(dropout=0.5)
    torch.manual_seed(5)
    MultiSimilarity()(in_pieces(encoder, 7), LABELS).backward()
    expected = [p.grad.clone() for p in encoder.parameters()]
    after = torch.rand(3)
    encoder.zero_grad()
    torch.manual_seed(5)
    MultiSimilarity()(GradCache(encoder, size=7)(images()), LABELS).backward()
    assert torch.equal(torch.rand(3), after)
    for parameter, wanted in zip(encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)
    torch.manual_seed(6)
    assert not torch.allclose(gradients(GradCache(encoder, size=7))[1], expected[0])


def test_running_statistics_are_updated_once():
    plain, cached = network(norm=True), network(norm=True)
    MultiSimilarity()(in_pieces(plain, 8), LABELS).backward()
    MultiSimilarity()(GradCache(cached, size=8)(images()), LABELS).backward()
    assert plain[1].num_batches_tracked == 5
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(cached.named_buffers())[name], buffer)
    for one, other in zip(plain.parameters(), cached.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_buffers_that_decide_what_is_embedded_are_replayed():
    def with_spectral_norm():
        torch.manual_seed(3)
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16)), nn.Tanh(), nn.Linear(16, 4))

    plain, cached = with_spectral_norm(), with_spectral_norm()
    MultiSimilarity()(in_pieces(plain, 7), LABELS).backward()
    MultiSimilarity()(GradCache(cached, size=7)(images()), LABELS).backward()
    for one, other in zip(plain.parameters(), cached.parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 1e-6 * one.grad.norm()
    for one, other in zip(plain.buffers(), cached.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_two_losses_of_one_batch_have_a_gradient_each():
    encoder = network(dropout=0.5, norm=True)
    z, parameters = GradCache(encoder, size=8)(images()), list(encoder.parameters())
    losses = MultiSimilarity()(z, LABELS), z.square().mean()
    both = torch.autograd.grad(sum(losses), parameters, retain_graph=True)
    each = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    for found, one, other in zip(both, *each, strict=True):
        torch.testing.assert_close(one + other, found)
    assert encoder[1].num_batches_tracked == 5


def saved(encoder):
    """Numbers that the graph of a batch's embeddings keeps, and the largest piece that the encoder saw."""
    kept, seen = [], []
    network_ = encoder.encoder if isinstance(encoder, GradCache) else encoder
    network_.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        encoder(images())
    return sum(kept), max(seen)


def test_activations_are_dropped():
    whole, cached = saved(network()), saved(GradCache(network(), size=5))
    assert whole[1] == 40
    assert cached[1] == 5
    assert cached[0] < whole[0] / 4


def test_without_gradient_nothing_is_embedded_twice():
    encoder, calls = network(), []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        z = GradCache(encoder, size=16)(images())
    assert len(calls) == 3
    torch.testing.assert_close(z, encoder(images()))


def test_autocast_is_the_same_both_times():
    encoder = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = in_pieces(encoder, 8)
        found = GradCache(encoder, size=8)(images())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    MultiSimilarity()(found, LABELS).backward()
    gradient = encoder[0].weight.grad.clone()
    encoder.zero_grad()
    MultiSimilarity()(expected, LABELS).backward()
    torch.testing.assert_close(gradient, encoder[0].weight.grad)


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match=r"`encoder` must be an nn\.Module, got function"):
        GradCache(lambda x: x)
    with pytest.raises(ValueError, match="`size` must be an integer >= 1"):
        GradCache(network(), size=0)


def work(rank, folder):
    net = nn.parallel.DistributedDataParallel(GradCache(network(), size=7))
    rows = slice(0, 22) if rank == 0 else slice(22, 40)
    for _ in range(2):
        net.zero_grad()
        MultiSimilarity()(gather(net(images()[rows])), gather(LABELS[rows])).backward()
    torch.save([p.grad for p in net.parameters()], f"{folder}/{rank}.pt")


def test_two_processes_are_one(tmp_path):
    in_two_processes(work, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for actual, expected in zip(found, gradients(network())[1:], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-8)
