"""The laws that every proxy loss obeys: a loss of the registry joins by itself."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from otdml.dml import PotentialField, ProxyAnchor, ProxyNCA, SoftTriple, proxy_anchor, soft_triple
from otdml.dml.losses import LOSSES

MODULES = [loss.kind for loss in LOSSES.values() if loss.has_proxies]
# Hyper-parameters of losses whose defaults are mild.
EXTREME = {
    ProxyAnchor: {"alpha": 1e4},
    ProxyNCA: {"temperature": 1e-4},
    SoftTriple: {"lam": 1e4, "gamma": 1e-4},
    PotentialField: {"alpha": 12.0},
}


@pytest.mark.parametrize("kind", MODULES)
def test_gradients_are_those_of_finite_differences(kind, generator):
    loss = kind(3, 4, generator=generator).double()
    z = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0, 1])

    def value(z, proxies):
        return torch.func.functional_call(loss, {"proxies": proxies}, (z, labels))

    assert torch.autograd.gradcheck(value, (z, loss.proxies))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("scale", [100, 1e-30, 1e30])
def test_only_directions_matter(kind, scale, generator):
    loss = kind(4, 8, generator=generator)
    z, labels = torch.randn(6, 8, generator=generator), [0, 1, 2, 3, 0, 1]
    value = loss(z, torch.tensor(labels))
    with torch.no_grad():
        loss.proxies *= 0.07 * scale
    torch.testing.assert_close(loss(scale * z, labels), value)


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
    assert value.isfinite()


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


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", MODULES)
def test_autocast_changes_nothing(kind, half, generator):
    loss = kind(4, 16, generator=generator)
    z, labels = torch.randn(8, 16, generator=generator), torch.arange(8) % 4
    with torch.autocast("cpu", dtype=half):
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
    loss = kind(4, 16, **EXTREME.get(kind, {}), generator=generator)
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


@pytest.mark.parametrize("kind", [ProxyAnchor, ProxyNCA])
def test_class_proxies_are_the_unit_proxies(kind, generator):
    loss = kind(4, 8, generator=generator)
    labels = torch.tensor([3, 0, 3])
    points = loss.class_proxies(torch.randn(3, 8, generator=generator), labels)
    torch.testing.assert_close(points, F.normalize(loss.proxies, dim=-1)[labels])
    (points * torch.randn(3, 8, generator=generator)).sum().backward()
    assert loss.proxies.grad[[0, 3]].abs().sum(-1).min() > 0
    assert loss.proxies.grad[[1, 2]].abs().max() == 0


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
