"""Inputs decide the dtype, whatever torch's default one is."""

import pytest
import torch

from otdml import losses, ot

X, Y = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
A = torch.full((6,), 1 / 6)
CALLS = {
    "sinkhorn": lambda: ot.sinkhorn(X, Y, A).value,
    "sinkhorn, batch": lambda: ot.sinkhorn(X[None], Y[None]).value,
    "sinkhorn, partial": lambda: ot.sinkhorn(X, Y, mass=0.5).value,
    "sinkhorn, penalties": lambda: ot.sinkhorn(X, Y, rho=(1.0, None)).value,
    "sinkhorn_matrix": lambda: ot.sinkhorn_matrix(torch.cdist(X, Y)).value,
    "exact": lambda: ot.exact(X, Y).value,
    "gromov": lambda: ot.gromov(X, Y).value,
    "low_rank_sinkhorn": lambda: ot.low_rank_sinkhorn(X, Y, rank=2).value,
    "semidiscrete": lambda: ot.semidiscrete(X, Y, n_steps=5, n_samples=32).value,
    "barycenter": lambda: ot.sinkhorn_barycenter(torch.stack([X, Y])).points,
    "sliced": lambda: ot.sliced(X, Y),
    "wasserstein_1d": lambda: ot.wasserstein_1d(X[:, 0], Y[:, 0], A),
    "soft_rank": lambda: ot.soft_rank(X[:, 0], eps=0.1),
    "soft_topk": lambda: ot.soft_topk(X[:, 0], 2, eps=0.1),
    "sinkhorn_divergence": lambda: losses.sinkhorn_divergence(X, Y),
    "monge_gap": lambda: losses.monge_gap(X, Y),
    "gromov_monge_gap": lambda: losses.gromov_monge_gap(X, Y),
    "fused_gromov_wasserstein": lambda: losses.fused_gromov_wasserstein(X, Y),
    "mmd": lambda: losses.mmd(X, Y, kernel="energy"),
    "mmd_to_uniform": lambda: losses.mmd_to_uniform(X),
    "mmd_to_gaussian": lambda: losses.mmd_to_gaussian(X),
    "InfoNCE": lambda: losses.InfoNCE()(X, Y),
    "GCAUOT": lambda: losses.GCAUOT()(X, Y),
    "kernel_dispersion": lambda: losses.kernel_dispersion(X),
    "koleo": lambda: losses.koleo(X),
    "lloyd_dispersion": lambda: losses.lloyd_dispersion(X),
    "sliced_dispersion": lambda: losses.sliced_dispersion(X),
    "sigreg": lambda: losses.sigreg(X),
    "sliced_wasserstein_to_uniform": lambda: losses.sliced_wasserstein_to_uniform(X),
}


@pytest.mark.filterwarnings("ignore:.*stopped")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_single_precision_stays_where_double_is_the_default(call):
    torch.manual_seed(0)
    expected = call()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        found = call()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
