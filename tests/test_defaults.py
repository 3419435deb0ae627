"""Inputs decide the dtype and the device, whatever torch's default ones are."""

import pytest
import torch
from draws import seeded

from otdml import losses, ot
from otdml._training import drawn_rows
from otdml.disentanglement import mutual_information_gap
from otdml.dml import ClassBalancedBatchSampler, CrossBatchMemory, ProxyAnchor, TripletMargin, retrieval_metrics
from otdml.kmeans import kmeans
from otdml.losses.dispersion import uniform_baseline
from otdml.neighbors import nearest_neighbors
from otdml.sphere import great_circles

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
    "sliced_dispersion, axes": lambda: losses.sliced_dispersion(torch.cat([X, Y], 1), axis_aligned=True),
}
LABELS = torch.arange(6) % 2
FOUND = {
    "sinkhorn, does not converge": lambda: ot.sinkhorn(X, Y, A, eps=1e-3, max_iter=2).value,
    "gromov, penalties": lambda: ot.gromov(X, Y, rho=1.0).value,
    "kernel_dispersion, geodesic": lambda: losses.mmd_to_uniform(X, kernel="laplacian", distance="geodesic"),
    "uniform_baseline": lambda: uniform_baseline(6, 3, generator=seeded(), device=X.device),
    "kmeans": lambda: kmeans(X, 3, generator=seeded())[1],
    "nearest_neighbors": lambda: nearest_neighbors(X, Y, 2)[1],
    "retrieval_metrics": lambda: retrieval_metrics(X, LABELS, gallery=Y, gallery_labels=LABELS, extra=("mrr",)),
    "batches": lambda: list(ClassBalancedBatchSampler(LABELS, 2, 2)),
    "batches, repeated": lambda: list(ClassBalancedBatchSampler(LABELS, 2, 5, replacement=True)),
    "great_circles": lambda: great_circles(2, X, axis_aligned=True, generator=seeded())[0],
    "drawn_rows": lambda: drawn_rows(X, 3, seeded()),
    "mutual_information_gap": lambda: mutual_information_gap(X, LABELS[:, None]),
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


@pytest.mark.filterwarnings("ignore:.*stopped")
@pytest.mark.parametrize("call", [*CALLS.values(), *FOUND.values()], ids=[*CALLS, *FOUND])
def test_results_are_on_the_device_of_the_inputs_where_another_is_the_default(call):
    # The meta device, whose tensors have no numbers, stands for one that the inputs are not on.
    torch.manual_seed(0)
    expected = call()
    torch.manual_seed(0)
    with torch.device("meta"):
        found = call()
    if isinstance(expected, torch.Tensor):
        assert found.device == expected.device
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


def test_modules_train_on_their_own_device_where_another_is_the_default():
    proxy, memory = ProxyAnchor(2, 2), CrossBatchMemory(TripletMargin(), 2)
    z = X.clone().requires_grad_()
    with torch.device("meta"):
        (proxy(z, LABELS) + memory(z, LABELS)).backward()
    assert z.grad.isfinite().all()
