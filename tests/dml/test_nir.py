"""The NIR head: its flow against autograd, its objectives by hand, and what the options promise."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

zuko = pytest.importorskip("zuko")

from draws import seeded  # noqa: E402
from flows import random_flow  # noqa: E402

from otdml.dml import NIR, REFERENCE_PROXY_WEIGHTS, ProxyAnchor, SoftTriple, flow_nll, reference_flow  # noqa: E402


def identity_flow(dim):
    normal = zuko.distributions.DiagNormal
    return zuko.lazy.UnconditionalDistribution(normal, torch.zeros(dim), torch.ones(dim), buffer=True)


def shifted_flow(dim, log_scale):
    """u = exp(log_scale) z, whose likelihood is known."""
    scale = torch.full((dim,), log_scale, dtype=torch.float64).exp()
    affine = zuko.lazy.UnconditionalTransform(torch.distributions.AffineTransform, torch.zeros(dim), scale, buffer=True)
    return zuko.lazy.Flow([affine], identity_flow(dim))


@pytest.fixture
def pairs(generator):
    return torch.randn(6, 8, generator=generator), torch.randn(6, 8, generator=generator)


def test_a_checkpoint_restores_permutations_and_weights(pairs):
    nir, other = NIR(8, generator=seeded(1)), NIR(8, generator=seeded(2))
    assert not torch.allclose(nir(*pairs), other(*pairs))
    file = io.BytesIO()
    torch.save(nir.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(nir(*pairs), other(*pairs))


def test_copies_and_pickles(pairs):
    nir = NIR(8, objective="exp_nll", generator=seeded())
    nir(*pairs).sum().backward()
    for other in (copy.deepcopy(nir), pickle.loads(pickle.dumps(nir))):
        assert torch.equal(nir(*pairs), other(*pairs))
        assert repr(other) == repr(nir)


def test_objectives_by_hand():
    # u = exp(s) z with ‖z‖ = 1 in two dimensions: ‖u‖² = exp(2 s) and log|det J| = 2 s.
    z = torch.tensor([[3.0, 4.0], [0.0, 0.1]], dtype=torch.float64)
    for s in (-1.0, 0.0, 0.5):
        flow = shifted_flow(2, s).double()
        square = math.exp(2 * s)
        torch.testing.assert_close(flow_nll(z, z, flow), torch.full((2,), square - 2 * s).double())
        torch.testing.assert_close(
            flow_nll(z, z, flow, objective="exp_nll"), torch.full((2,), math.exp(square / 2 - 2 * s)).double()
        )


def test_objectives_are_likelihoods_up_to_the_stated_constants(pairs):
    flow = random_flow(8)
    z, p = (F.normalize(x, dim=-1) for x in pairs)
    code = -flow(p).log_prob(z) - 4 * math.log(2 * math.pi)
    torch.testing.assert_close(flow_nll(*pairs, flow, objective="exp_nll", cap=80.0).log(), code, rtol=1e-4, atol=1e-4)
    # The paper's: latents of variance one half.
    half = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(8), torch.full((8,), math.sqrt(0.5)), buffer=True
    )
    paper = -zuko.lazy.Flow(flow.transform, half)(p).log_prob(z) - 4 * math.log(math.pi)
    torch.testing.assert_close(flow_nll(*pairs, flow), paper, rtol=1e-4, atol=1e-4)


def test_embeddings_and_proxies_are_normalised(pairs):
    nir = NIR(8, generator=seeded())
    torch.testing.assert_close(nir(5 * pairs[0], 0.1 * pairs[1]), nir(*pairs))


def test_the_condition_matters(pairs):
    nir = NIR(8, generator=seeded())
    assert not torch.allclose(nir(pairs[0], pairs[1]), nir(pairs[0], -pairs[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cap", [20.0, 80.0])
def test_exp_nll_is_finite_from_minus_to_plus_one_thousand(dtype, cap):
    target = torch.tensor([-1e3, -200.0, -1.0, 0.0, 1.0, 19.0, 21.0, 100.0, 1e3], dtype=dtype, requires_grad=True)

    class Known(zuko.lazy.LazyDistribution):
        """A density with the negative log-likelihood ``target`` whatever the point."""

        def forward(self, c=None):
            return self

        def log_prob(self, z):
            return -target - 0.5 * z.shape[-1] * math.log(2 * math.pi)

    z = torch.ones(len(target), 2, dtype=dtype)
    values = flow_nll(z, z, Known(), objective="exp_nll", cap=cap)
    (gradient,) = torch.autograd.grad(values.sum(), target)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    x = target.detach().double()
    below = x <= cap
    rtol = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(values[below].double(), x[below].exp(), rtol=rtol, atol=1e-30)
    torch.testing.assert_close(gradient[below].double(), x[below].exp(), rtol=rtol, atol=1e-30)
    torch.testing.assert_close(values[~below].double(), math.exp(cap) * (1 + x[~below] - cap), rtol=rtol, atol=0)
    torch.testing.assert_close(gradient[~below].double(), torch.full_like(x[~below], math.exp(cap)), rtol=rtol, atol=0)


def test_a_wild_flow_has_finite_gradients(pairs):
    flow = random_flow(8, gain=3.5)
    z, p = (x.clone().requires_grad_() for x in pairs)
    values = flow_nll(z, p, flow, objective="exp_nll")
    assert flow_nll(z, p, flow).max() > 1e3
    values.mean().backward()
    assert values.isfinite().all()
    assert all(x.grad.isfinite().all() for x in (z, p, *flow.parameters()))


@pytest.mark.parametrize("objective", ["nll", "exp_nll"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(pairs, objective, dtype):
    nir = NIR(8, objective=objective, generator=seeded()).to(dtype)
    z, p = (x.to(dtype).requires_grad_() for x in pairs)
    values = nir(z, p)
    values.mean().backward()
    exact = copy.deepcopy(nir).float()(z.detach().float(), p.detach().float())
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, exact)
    for x in (z, p, *nir.parameters()):
        assert x.grad.dtype == dtype
        assert x.grad.isfinite().all()


def test_float64_embeddings_are_not_rounded(pairs):
    nir = NIR(8, generator=seeded())
    z, p = (x.double() for x in pairs)
    values = nir(z, p)
    assert values.dtype == torch.float64
    assert torch.equal(values, copy.deepcopy(nir).double()(z, p))
    values.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in nir.parameters())


@pytest.mark.parametrize("objective", ["nll", "exp_nll"])
def test_autocast_changes_nothing(pairs, objective):
    nir = NIR(8, objective=objective, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = nir(*pairs)
    assert torch.equal(values, nir(*pairs))


@pytest.mark.parametrize("objective", ["nll", "exp_nll"])
def test_gradients_are_those_of_finite_differences(objective, generator):
    flow = random_flow(4, gain=1.5).double()
    z, p = (torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda z, p: flow_nll(z, p, flow, objective=objective), (z, p))


@pytest.mark.parametrize("detach_embeddings", [False, True])
@pytest.mark.parametrize("detach_proxies", [False, True])
def test_detaching(pairs, detach_embeddings, detach_proxies):
    nir = NIR(8, detach_embeddings=detach_embeddings, detach_proxies=detach_proxies, generator=seeded())
    z, p = (x.clone().requires_grad_() for x in pairs)
    nir(z, p).sum().backward()
    assert (z.grad is None) == detach_embeddings
    assert (p.grad is None) == detach_proxies
    assert all(x.grad.abs().max() > 0 for x in nir.parameters())
    assert ("detach_embeddings" in repr(nir)) == detach_embeddings
    assert ("detach_proxies" in repr(nir)) == detach_proxies


@pytest.mark.parametrize(
    "make",
    [
        lambda: zuko.flows.NSF(8, 8, transforms=1, hidden_features=(16,)),
        lambda: zuko.flows.MAF(8, 8, transforms=2, hidden_features=(16,)),
        lambda: zuko.flows.NICE(8, 8, transforms=2, hidden_features=(16,)),
        lambda: zuko.flows.GF(8, 8, transforms=1, hidden_features=(16,)),
        lambda: zuko.mixtures.GMM(8, 8, components=2),
    ],
    ids=["NSF", "MAF", "NICE", "GF", "GMM"],
)
def test_any_lazy_distribution_can_be_the_head(make, pairs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = make()
    nir = NIR(8, flow=flow, objective="exp_nll", cap=80.0)
    z, p = (x.clone().requires_grad_() for x in pairs)
    values = nir(z, p)
    density = flow(F.normalize(p, dim=-1))
    expected = -density.log_prob(F.normalize(z, dim=-1)) - 4 * math.log(2 * math.pi)
    torch.testing.assert_close(values.log(), expected, rtol=1e-4, atol=1e-4)
    values.sum().backward()
    assert z.grad.isfinite().all()
    assert p.grad.abs().max() > 0


def test_training_the_flow_finds_the_residuals(generator):
    # Classes around two proxies, spread along one direction: the flow must beat the best isotropic normal.
    proxies = torch.eye(4)[:2]
    labels = torch.arange(256) % 2
    spread = torch.randn(256, 1, generator=generator) * torch.tensor([[0.0, 0.0, 0.3, 0.01]])
    z = F.normalize(proxies[labels] + spread, dim=-1)
    flow = reference_flow(4, blocks=2, layers=2, width=32, generator=generator)
    nir = NIR(4, flow=flow, detach_embeddings=True)
    first = nir(z, proxies[labels]).mean().item()
    optimizer = torch.optim.Adam(nir.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nir(z, proxies[labels]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        right, wrong = nir(z, proxies[labels]).mean().item(), nir(z, proxies[1 - labels]).mean().item()
    variance = (z - proxies[labels]).square().mean().item()
    # The isotropic normal in the same convention, latents of variance one half.
    isotropic = 4 * (0.5 + 0.5 * math.log(2 * variance))
    assert right < first - 2
    assert right < isotropic
    assert wrong > right + 5


def test_reference_weighting_is_a_factor_of_the_whole(pairs):
    labels = torch.arange(6) % 3
    loss, nir = ProxyAnchor(3, 8, generator=seeded(1)), NIR(8, objective="exp_nll", generator=seeded())
    z = pairs[0].clone().requires_grad_()
    w = REFERENCE_PROXY_WEIGHTS["cub"]
    assert dict(REFERENCE_PROXY_WEIGHTS) == {"cub": 0.0075, "cars": 0.01, "sop": 0.3}
    proxy_term, nir_term = loss(z, labels), nir(z, loss.class_proxies(z, labels)).mean()
    ours = torch.autograd.grad(proxy_term + nir_term / w, (z, loss.proxies), retain_graph=True)
    theirs = torch.autograd.grad(w * proxy_term + nir_term, (z, loss.proxies))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(w * a, b)


def test_every_proxy_loss_conditions_the_head(pairs):
    loss, nir = SoftTriple(3, 8, centres=2, generator=seeded(1)), NIR(8, generator=seeded())
    labels = torch.arange(6) % 3
    nir(pairs[0], loss.class_proxies(pairs[0], labels)).mean().backward()
    assert loss.proxies.grad.abs().max() > 0


def test_errors_say_what_to_do(pairs):
    z, p = pairs
    nir = NIR(8)
    with pytest.raises(ValueError, match=r"`proxies` must hold the proxy of every sample's class, shape \(6, 8\), got"):
        nir(z, p[:3])
    with pytest.raises(ValueError, match=r"`z` must have shape \(n, 8\), got \(6, 5\)"):
        nir(z[:, :5], p)
    with pytest.raises(ValueError, match=r"`z` must have shape .* got \(0, 8\)"):
        nir(z[:0], p[:0])
    with pytest.raises(ValueError, match=r"`z` must have shape \(n, d\), got \(1, 6, 8\)"):
        nir(z[None], p)
    with pytest.raises(ValueError, match="`objective` must be one of 'nll', 'exp_nll', got 'likelihood'"):
        NIR(8, objective="likelihood")
    with pytest.raises(ValueError, match="`dim` must be an integer >= 2"):
        NIR(1)
    with pytest.raises(ValueError, match="`cap` must be a positive number"):
        NIR(8, cap=0)
    with pytest.raises(ValueError, match="`generator` must be None where a `flow` is given"):
        NIR(8, flow=reference_flow(8), generator=seeded())
    with pytest.raises(TypeError, match=r"`flow` must be a zuko\.lazy\.LazyDistribution or None, got Linear"):
        NIR(8, flow=nn.Linear(8, 8))


@pytest.mark.parametrize(("features", "context"), [(7, 8), (8, 7), (8, 0)])
def test_a_flow_of_other_sizes_is_refused(features, context):
    with pytest.raises(ValueError, match=r"`flow` must be a distribution of 8 features given 8 context features"):
        NIR(8, flow=zuko.flows.NSF(features, context, transforms=1))


def test_nan_stays_nan(pairs):
    z = pairs[0].clone()
    z[2, 0] = float("nan")
    for objective in ("nll", "exp_nll"):
        values = NIR(8, objective=objective)(z, pairs[1])
        assert values.isnan().tolist() == [False, False, True, False, False, False]
