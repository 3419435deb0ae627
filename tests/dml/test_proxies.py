"""Proxy losses against their definitions, written as loops, and against pytorch-metric-learning."""

import copy
import io
import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from otdml.dml import ProxyAnchor, ProxyNCA, SoftTriple, proxy_anchor, proxy_nca, soft_triple

MODULES = [ProxyAnchor, ProxyNCA, SoftTriple]


@pytest.fixture
def batch(generator):
    """Embeddings of any norm, labels with unequal counts and absent classes, and proxies of five classes."""
    z = 3 * torch.randn(9, 6, generator=generator, dtype=torch.float64)
    proxies = 0.2 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    return z, proxies, torch.tensor([0, 0, 0, 0, 3, 3, 1, 1, 1])


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


def nca_by_loops(z, proxies, labels, temperature):
    total = 0.0
    for i, row in enumerate(angles(z, proxies)):
        weights = [math.exp(-(2 - 2 * s) / temperature) for s in row]
        total -= math.log(weights[labels[i]] / sum(weights))
    return total / len(z)


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


@pytest.mark.parametrize(("alpha", "delta"), [(32.0, 0.1), (1.0, 0.0), (4.0, 0.5)])
def test_proxy_anchor_is_its_definition(batch, alpha, delta):
    value = proxy_anchor(*batch, alpha=alpha, delta=delta)
    assert value.item() == pytest.approx(anchor_by_loops(*batch, alpha, delta), rel=1e-12)


@pytest.mark.parametrize("temperature", [1 / 9, 1.0, 10.0])
def test_proxy_nca_is_its_definition(batch, temperature):
    assert proxy_nca(*batch, temperature=temperature).item() == pytest.approx(
        nca_by_loops(*batch, temperature), rel=1e-12
    )


@pytest.mark.parametrize("centres", [1, 2, 4])
@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_soft_triple_is_its_definition(batch, generator, centres, tau):
    z, _, labels = batch
    w = torch.randn(5, centres, 6, generator=generator, dtype=torch.float64)
    options = {"lam": 5.0, "gamma": 0.3, "delta": 0.1, "tau": tau}
    expected = triple_by_loops(z, w, labels, **options)
    assert soft_triple(z, w, labels, **options).item() == pytest.approx(expected, rel=1e-12)


def test_proxy_anchor_averages_over_classes_not_samples():
    # One class with two equal samples, one with a single sample: a mean over samples would weigh them 2 to 1.
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    value = proxy_anchor(z, torch.eye(2), torch.tensor([0, 0, 1]), alpha=1.0, delta=0.0)
    positive = (math.log1p(2 / math.e) + math.log1p(1 / math.e)) / 2
    negative = (math.log1p(1) + math.log1p(2)) / 2
    assert value.item() == pytest.approx(positive + negative, rel=1e-6)


def peer_and_ours(name, z, proxies, labels):
    """Value and gradients of the peer's loss and of ours, with the arguments that make the definitions agree."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    peers = {
        "anchor": (losses.ProxyAnchorLoss, {"margin": 0.1, "alpha": 32}, lambda z, p: proxy_anchor(z, p, labels)),
        "nca": (losses.ProxyNCALoss, {"softmax_scale": 9}, lambda z, p: proxy_nca(z, p, labels)),
        "triple": (
            losses.SoftTripleLoss,
            {"centers_per_class": 3, "la": 20, "gamma": 0.1, "margin": 0.01},
            lambda z, p: soft_triple(z, p, labels, tau=0),
        ),
    }
    kind, options, ours = peers[name]
    peer = kind(len(proxies), z.shape[1], **options).double()
    parameter = next(peer.parameters())
    # Its SoftTriple keeps centres as the columns of one matrix.
    parameter.data = proxies.flatten(0, -2).T.contiguous() if name == "triple" else proxies.clone()
    z_peer = z.clone().requires_grad_()
    value = peer(z_peer, labels)
    value.backward()
    gradient = parameter.grad.T.reshape(proxies.shape) if name == "triple" else parameter.grad
    z_ours, p_ours = z.clone().requires_grad_(), proxies.clone().requires_grad_()
    mine = ours(z_ours, p_ours)
    mine.backward()
    return (value, z_peer.grad, gradient), (mine, z_ours.grad, p_ours.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["anchor", "nca", "triple"])
def test_value_and_gradient_are_the_peers(batch, generator, name):
    z, proxies, labels = batch
    if name == "triple":
        proxies = torch.randn(5, 3, 6, generator=generator, dtype=torch.float64)
    theirs, ours = peer_and_ours(name, z, proxies, labels)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


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


@pytest.mark.parametrize("kind", MODULES)
def test_gradients_are_those_of_finite_differences(kind, generator):
    loss = kind(3, 4, generator=generator).double()
    z = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0, 1])

    def value(z, proxies):
        return torch.func.functional_call(loss, {"proxies": proxies}, (z, labels))

    assert torch.autograd.gradcheck(value, (z, loss.proxies))


@pytest.mark.parametrize("kind", MODULES)
def test_only_directions_matter(kind, generator):
    loss = kind(4, 8, generator=generator)
    z, labels = torch.randn(6, 8, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])
    value = loss(z, labels)
    with torch.no_grad():
        loss.proxies *= 7
    torch.testing.assert_close(loss(100 * z, labels), value)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("labels", [[2], [2, 2, 2], [0, 0, 1]], ids=["one sample", "one class", "absent classes"])
def test_small_batches_are_finite(kind, labels, generator):
    loss = kind(3, 8, generator=generator)
    z = torch.randn(len(labels), 8, generator=generator, requires_grad=True)
    value = loss(z, torch.tensor(labels))
    with torch.autograd.detect_anomaly(check_nan=True):
        loss(z, torch.tensor(labels)).backward()
    assert value.ndim == 0
    assert value.isfinite()
    assert z.grad.isfinite().all()
    assert loss.proxies.grad.isfinite().all()
    assert z.grad.abs().max() > 0


@pytest.mark.parametrize("kind", MODULES)
def test_a_single_class(kind, generator):
    loss = kind(1, 8, generator=generator)
    z = torch.randn(3, 8, generator=generator, requires_grad=True)
    value = loss(z, torch.zeros(3, dtype=torch.long))
    value.backward()
    assert z.grad.isfinite().all()
    if kind is ProxyNCA:
        assert value.item() == 0  # nothing to tell apart


def test_coincident_centres_have_a_gradient(generator):
    loss = SoftTriple(2, 4, centres=3, generator=generator)
    with torch.no_grad():
        loss.proxies.copy_(torch.ones(2, 3, 4))
    loss(torch.randn(3, 4, generator=generator), torch.tensor([0, 1, 1])).backward()
    assert loss.proxies.grad.isfinite().all()


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(kind, dtype, generator):
    loss = kind(4, 16, generator=generator).to(dtype)
    z, labels = torch.randn(8, 16, generator=generator).to(dtype).requires_grad_(), torch.arange(8) % 4
    value = loss(z, labels)
    value.backward()
    exact = copy.deepcopy(loss).float()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact(z.detach().float(), labels).item(), rel=1e-5)
    assert z.grad.dtype == loss.proxies.grad.dtype == dtype
    assert z.grad.isfinite().all()
    assert loss.proxies.grad.isfinite().all()


@pytest.mark.parametrize("kind", MODULES)
def test_autocast_changes_nothing(kind, generator):
    loss = kind(4, 16, generator=generator)
    z, labels = torch.randn(8, 16, generator=generator), torch.arange(8) % 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, points = loss(z, labels), loss.class_proxies(z, labels)
    assert torch.equal(value, loss(z, labels))
    assert torch.equal(points, loss.class_proxies(z, labels))


@pytest.mark.parametrize("kind", MODULES)
def test_float64_embeddings_are_not_rounded(kind, generator):
    loss = kind(4, 16, generator=generator)
    z, labels = torch.randn(8, 16, generator=generator, dtype=torch.float64), torch.arange(8) % 4
    value = loss(z, labels)
    assert value.dtype == torch.float64
    assert torch.equal(value, copy.deepcopy(loss).double()(z, labels))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_type(kind, dtype, generator):
    loss = kind(4, 16, generator=generator)
    z, labels = torch.randn(8, 16, generator=generator), torch.arange(8) % 4
    assert torch.equal(loss(z, labels.to(dtype)), loss(z, labels))
    assert torch.equal(loss.class_proxies(z, labels.to(dtype)), loss.class_proxies(z, labels))


@pytest.mark.parametrize("kind", MODULES)
def test_order_of_samples_does_not_matter(kind, generator):
    loss = kind(4, 16, generator=generator).double()
    z, labels = torch.randn(8, 16, generator=generator, dtype=torch.float64), torch.arange(8) % 4
    order = torch.randperm(8, generator=generator)
    torch.testing.assert_close(loss(z[order], labels[order]), loss(z, labels))


@pytest.mark.parametrize("kind", MODULES)
def test_large_scales_stay_finite_in_float32(kind, generator):
    scale = {ProxyAnchor: {"alpha": 1e4}, ProxyNCA: {"temperature": 1e-4}, SoftTriple: {"lam": 1e4, "gamma": 1e-4}}
    loss = kind(4, 16, **scale[kind], generator=generator)
    z = torch.randn(8, 16, generator=generator, requires_grad=True)
    value = loss(z, torch.arange(8) % 4)
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("kind", MODULES)
def test_errors_say_what_to_do(kind):
    loss = kind(3, 8)
    z, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"`labels` must lie in \[0, 3\), got values from 0 to 3\..*Map class names"):
        loss(z, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"`labels` must lie in \[0, 3\), got values from -1 to 2"):
        loss(z, torch.tensor([0, 1, 2, -1]))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(4,\)"):
        loss(z, labels[:3])
    with pytest.raises(TypeError, match="`labels` must be a tensor of integers"):
        loss(z, labels.float())
    with pytest.raises(ValueError, match=r"`z` must have shape .* got \(0, 8\)"):
        loss(z[:0], labels[:0])
    with pytest.raises(ValueError, match=r"`z` must have the features of the proxies, 8, got 5"):
        loss(z[:, :5], labels)
    with pytest.raises(ValueError, match=r"`z` must have shape \(n, d\), got \(1, 4, 8\). Flatten"):
        loss(z[None], labels)
    with pytest.raises(ValueError, match="`labels` must lie in"):
        loss.class_proxies(z, labels + 1)
    with pytest.raises(ValueError, match="`num_classes` must be an integer >= 1"):
        kind(0, 8)
    with pytest.raises(ValueError, match="`dim` must be an integer >= 1"):
        kind(3, 0)


def test_hyper_parameters_are_checked():
    for make in (
        lambda: ProxyAnchor(2, 2, alpha=0),
        lambda: ProxyAnchor(2, 2, delta=-0.1),
        lambda: ProxyNCA(2, 2, temperature=0),
        lambda: SoftTriple(2, 2, centres=0),
        lambda: SoftTriple(2, 2, gamma=0),
        lambda: SoftTriple(2, 2, tau=-1),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_proxies_of_the_wrong_rank_are_named():
    z, labels = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"`proxies` must have shape \(num_classes, d\), got \(2, 1, 3\)"):
        proxy_anchor(z, torch.randn(2, 1, 3), labels)
    with pytest.raises(ValueError, match=r"`proxies` must have shape \(num_classes, centres, d\), got \(2, 3\)"):
        soft_triple(z, torch.randn(2, 3), labels)


@pytest.mark.parametrize("kind", MODULES)
def test_the_generator_decides_the_proxies(kind):
    state = torch.get_rng_state()
    a, b = (kind(10, 4, generator=torch.Generator().manual_seed(3)).proxies for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, kind(10, 4, generator=torch.Generator().manual_seed(4)).proxies)
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_proxies_have_the_published_scale(generator):
    assert ProxyAnchor(200, 500, generator=generator).proxies.std().item() == pytest.approx(0.1, rel=0.02)
    assert ProxyNCA(200, 500, generator=generator).proxies.std().item() == pytest.approx(1 / 8, rel=0.02)
    centres = SoftTriple(200, 64, centres=2, generator=generator).proxies
    assert centres.shape == (200, 2, 64)
    assert centres.abs().max().item() == pytest.approx(1 / 20, rel=0.01)
    assert centres.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("kind", [ProxyAnchor, ProxyNCA])
def test_class_proxies_are_the_unit_proxies(kind, generator):
    loss = kind(4, 8, generator=generator)
    labels = torch.tensor([3, 0, 3])
    points = loss.class_proxies(torch.randn(3, 8, generator=generator), labels)
    torch.testing.assert_close(points, F.normalize(loss.proxies, dim=-1)[labels])
    (points * torch.randn(3, 8, generator=generator)).sum().backward()
    assert loss.proxies.grad[[0, 3]].abs().sum(-1).min() > 0
    assert loss.proxies.grad[[1, 2]].abs().max() == 0


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


@pytest.mark.parametrize("kind", MODULES)
def test_survives_copies_and_checkpoints(kind, generator):
    loss = kind(4, 8, generator=generator)
    z, labels = torch.randn(6, 8, generator=generator), torch.arange(6) % 4
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = kind(4, 8)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(z, labels), loss(z, labels))
    assert torch.equal(copy.deepcopy(loss)(z, labels), loss(z, labels))
    assert [name for name, _ in loss.named_parameters()] == ["proxies"]
    assert "num_classes=4, dim=8" in repr(loss)


def test_proxy_losses_import_neither_flows_nor_lightning():
    code = (
        "import sys; from otdml.dml import ProxyAnchor, ProxyNCA, SoftTriple; "
        "print(sorted({'zuko', 'lightning', 'scipy', 'sklearn', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_list_the_right_ones():
    import otdml.dml

    with pytest.raises(AttributeError, match=r"no attribute 'ProxyAnker'.*ProxyAnchor"):
        otdml.dml.ProxyAnker  # noqa: B018
    assert {"ProxyAnchor", "NIR"} <= set(dir(otdml.dml))


def test_a_missing_library_is_named_with_its_remedy():
    code = "import sys; sys.modules['zuko'] = None; from otdml.dml import NIR"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ModuleNotFoundError: NIR needs zuko: pip install 'otdml[train]'" in done.stderr
