"""Options may be numbers of NumPy: they are what the numbers of Python are."""

import pickle

import numpy as np
import pytest
import torch
from draws import seeded

from otdml.dml import ClassBalancedBatchSampler, ProxyAnchor, ProxyNCA, SoftTriple, retrieval_metrics
from otdml.kmeans import kmeans
from otdml.losses import (
    MMD,
    ContrastiveAlignment,
    EntropicOT,
    FusedGromovWasserstein,
    GromovMongeGap,
    KernelDispersion,
    KoLeo,
    LloydDispersion,
    MMDToUniform,
    MongeGap,
    SinkhornDivergence,
    SlicedDispersion,
    SlicedWasserstein,
    contrastive_alignment,
    entropic_ot,
    gromov_monge_gap,
    kernel_dispersion,
    koleo,
    lloyd_dispersion,
    mmd,
    mmd_to_uniform,
    monge_gap,
    sinkhorn_divergence,
    sliced_dispersion,
    sliced_wasserstein,
)
from otdml.losses.dispersion import spherical_code
from otdml.neighbors import nearest_neighbors
from otdml.ot import gromov, semidiscrete, sinkhorn, sinkhorn_matrix, sliced, wasserstein_1d

X, Y, Z = (torch.randn(6, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])

FUNCTIONS = {
    "contrastive_alignment": (contrastive_alignment, (X, Y), {"eps": 0.5, "q": 0.5, "lam": 0.25, "max_iter": 50}),
    "entropic_ot": (entropic_ot, (X, Y), {"eps": 0.5, "rho": 2.0, "tol": 0.0009765625, "max_iter": 500}),
    "sinkhorn_divergence": (sinkhorn_divergence, (X, Y), {"eps": 0.5, "max_iter": 500}),
    "gromov_monge_gap": (gromov_monge_gap, (X, Y), {"eps": 0.5, "max_iter": 50}),
    "monge_gap": (monge_gap, (X, Y), {"eps": 0.5, "max_iter": 500}),
    "mmd": (mmd, (X, Y), {"bandwidth": 0.5}),
    "sliced_wasserstein": (sliced_wasserstein, (X, Y), {"n_projections": 4, "p": 1.5, "generator": seeded}),
    "kernel_dispersion": (kernel_dispersion, (Z,), {"gamma": 0.5}),
    "kernel_dispersion riesz": (kernel_dispersion, (Z,), {"kernel": "riesz", "s": 0.5}),
    "mmd_to_uniform": (mmd_to_uniform, (Z,), {"kernel": "laplacian", "gamma": 0.5}),
    "koleo": (koleo, (Z,), {"k": 2}),
    "lloyd_dispersion": (lloyd_dispersion, (Z,), {"n_samples": 16, "generator": seeded}),
    "sliced_dispersion": (sliced_dispersion, (Z,), {"n_projections": 4, "generator": seeded}),
    "spherical_code": (spherical_code, (4, 3), {"restarts": 1, "steps": 5, "generator": seeded}),
    "sinkhorn": (lambda *t, **o: sinkhorn(*t, **o).value, (X, Y), {"eps": 0.5, "rho": (2.0, 0.5), "max_iter": 500}),
    "sinkhorn_matrix": (lambda *t, **o: sinkhorn_matrix(*t, **o).value, (X @ Y.T,), {"eps": 0.5, "max_iter": 500}),
    "gromov": (lambda *t, **o: gromov(*t, **o).value, (X, Y), {"eps": 0.5, "max_iter": 50}),
    "semidiscrete": (
        lambda *t, **o: semidiscrete(*t, **o).value,
        (X, Y),
        {"n_samples": 16, "n_steps": 3, "generator": seeded},
    ),
    "sliced": (sliced, (X, Y), {"n_projections": 4, "p": 1.5, "generator": seeded}),
    "wasserstein_1d": (wasserstein_1d, (X[:, 0], Y[:, 0]), {"p": 1.5}),
    "kmeans": (lambda *t, **o: kmeans(*t, **o)[0], (X,), {"k": 2, "max_iter": 3, "generator": seeded}),
    "nearest_neighbors": (lambda *t, **o: nearest_neighbors(*t, **o)[0], (X, Y), {"k": 2}),
    "retrieval_metrics": (
        lambda *t, **o: torch.tensor(list(retrieval_metrics(*t, **o).values())),
        (Z, LABELS),
        {"ks": (1, 2), "seed": 3},
    ),
}
MODULES = {
    "ContrastiveAlignment": (ContrastiveAlignment, {"eps": 0.5, "q": 0.5, "lam": 0.25, "max_iter": 50}),
    "EntropicOT": (EntropicOT, {"eps": 0.5, "rho": 2.0, "max_iter": 500}),
    "SinkhornDivergence": (SinkhornDivergence, {"eps": 0.5, "max_iter": 500}),
    "FusedGromovWasserstein": (FusedGromovWasserstein, {"eps": 0.5, "rho": 2.0, "max_iter": 50}),
    "GromovMongeGap": (GromovMongeGap, {"eps": 0.5, "max_iter": 50}),
    "MongeGap": (MongeGap, {"eps": 0.5, "max_iter": 500}),
    "MMD": (MMD, {"bandwidth": 0.5}),
    "SlicedWasserstein": (SlicedWasserstein, {"n_projections": 4, "p": 1.5}),
    "KernelDispersion": (KernelDispersion, {"gamma": 0.5}),
    "KernelDispersion riesz": (KernelDispersion, {"kernel": "riesz", "s": 0.5}),
    "MMDToUniform": (MMDToUniform, {"gamma": 0.5}),
    "KoLeo": (KoLeo, {"k": 2}),
    "LloydDispersion": (LloydDispersion, {"n_samples": 16}),
    "SlicedDispersion": (SlicedDispersion, {"n_projections": 4}),
    "ProxyAnchor": (ProxyAnchor, {"num_classes": 3, "dim": 4, "alpha": 2.0, "delta": 0.5}),
    "ProxyNCA": (ProxyNCA, {"num_classes": 3, "dim": 4, "temperature": 0.5}),
    "SoftTriple": (SoftTriple, {"num_classes": 3, "dim": 4, "centres": 2, "lam": 2.0, "delta": 0.5}),
}


def of_numpy(value):
    if isinstance(value, tuple):
        return tuple(map(of_numpy, value))
    return np.int64(value) if isinstance(value, int) else np.float32(value) if isinstance(value, float) else value


def fresh(options):
    return {name: value() if value is seeded else value for name, value in options.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    function, given, options = FUNCTIONS[name]
    expected = function(*given, **fresh(options))
    converted = {name: of_numpy(value) for name, value in fresh(options).items()}
    torch.testing.assert_close(function(*map(of_numpy, given), **converted), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_modules_keep_numbers_of_python(name):
    kind, options = MODULES[name]
    plain, module = kind(**options), kind(**{name: of_numpy(value) for name, value in options.items()})
    assert repr(module) == repr(plain)
    # Solvers check these again.
    kept = {name for name, value in vars(module).items() if isinstance(value, np.generic)} - {"rho", "fixed_eps"}
    assert not kept
    pickle.loads(pickle.dumps(module))


def test_a_sampler_of_numpy_numbers():
    labels = np.array([0, 0, 1, 1, 2, 2], dtype=np.uint8)
    plain = ClassBalancedBatchSampler(torch.from_numpy(labels).long(), 2, 2, seed=3)
    other = ClassBalancedBatchSampler(labels, np.int64(2), np.int32(2), seed=np.int64(3))
    assert list(plain) == list(other)
