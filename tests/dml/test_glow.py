"""The reference flow against autograd, its equation and its published size."""

import math

import pytest
import torch
from torch.nn import functional as F

zuko = pytest.importorskip("zuko")

from draws import seeded  # noqa: E402
from flows import random_flow  # noqa: E402

from otdml.dml import reference_flow  # noqa: E402
from otdml.dml.glow import GlowCouplings  # noqa: E402


def test_reference_flow_has_the_published_size():
    flow = reference_flow(128)
    assert sum(p.numel() for p in flow.parameters()) == 1_402_880
    # d = 64: ten networks 32 + 64 -> 128 (x 7) -> 64.
    assert sum(p.numel() for p in reference_flow(64).parameters()) == 10 * (97 * 128 + 6 * 129 * 128 + 129 * 64)


@pytest.mark.parametrize("dim", [2, 7, 8, 33])
def test_the_flow_is_invertible(dim, generator):
    transform = random_flow(dim)(torch.randn(20, dim, generator=generator)).transform
    x = torch.randn(20, dim, generator=generator)
    u = transform(x)
    assert (u - x).abs().max() > 0.1
    torch.testing.assert_close(transform.inv(u), x, rtol=1e-5, atol=1e-5)


def test_the_flow_of_the_default_size_is_invertible(generator):
    with torch.no_grad():
        transform = reference_flow(128, generator=generator)(torch.randn(20, 128, generator=generator)).transform
        x = F.normalize(torch.randn(20, 128, generator=generator), dim=-1)
        torch.testing.assert_close(transform.inv(transform(x)), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [2, 7, 8])
def test_log_determinant_is_that_of_autograd(dim, generator):
    flow = random_flow(dim).double()
    x, c = torch.randn(2, 5, dim, generator=generator, dtype=torch.float64)
    u, log_det = flow(c).transform.call_and_ladj(x)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(flow(c[i : i + 1]).transform, x[i : i + 1])
        assert log_det[i].item() == pytest.approx(jacobian[0, :, 0].slogdet().logabsdet.item(), rel=1e-9)
    assert log_det.abs().max() > 0.1
    transform = flow(c).transform
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, u), log_det)
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(u, x), -log_det)


def test_couplings_read_like_their_equation(generator):
    couplings = GlowCouplings(5, hidden=(4,), clamp=1.5).double()
    x, c = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    a, b = x[:, :2], x[:, 2:]
    r, t = couplings.first(torch.cat([b, c], -1)).chunk(2, -1)
    a = torch.exp(1.5 * 0.636 * torch.atan(r)) * a + t
    r, t = couplings.second(torch.cat([a, c], -1)).chunk(2, -1)
    b = torch.exp(1.5 * 0.636 * torch.atan(r)) * b + t
    torch.testing.assert_close(couplings(c)(x), torch.cat([a, b], -1))


def test_the_clamp_bounds_the_log_determinant(generator):
    flow = random_flow(8, gain=20.0)
    z, c = torch.randn(2, 50, 8, generator=generator)
    log_det = flow(c).transform.log_abs_det_jacobian(z, z)
    assert log_det.abs().max() < 2 * 8 * 3  # clamp · features · blocks
    assert log_det.abs().max() > 2 * 8


def test_permutations_depend_on_the_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (reference_flow(32, generator=seeded(s)).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    orders = [key for key, value in a.items() if value.dtype == torch.long]
    assert len(orders) == 5
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(torch.equal(a[key].sort().values, torch.arange(32)) for key in orders)
    assert not any(torch.equal(a[key], c[key]) for key in orders)
    assert len({tuple(a[key].tolist()) for key in orders}) == 5


def test_initial_weights_are_those_of_linear_layers():
    flow = reference_flow(16, generator=seeded())
    networks = [m for m in flow.modules() if isinstance(m, zuko.nn.MLP)]
    assert len(networks) == 10
    for network in networks:
        for layer in (m for m in network if hasattr(m, "weight")):
            bound = 1 / math.sqrt(layer.weight.shape[1])
            for parameter in (layer.weight, layer.bias):
                assert 0.7 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize("option", [{"blocks": 0}, {"layers": 1}, {"width": 0}, {"clamp": 0.0}, {"dim": 1}])
def test_sizes_of_the_flow_are_checked(option):
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` must be"):
        reference_flow(**{"dim": 8, **option})
