"""The table of conventions: problems of other libraries, in our terms. Entropic transport of points is in tests/ot."""

import warnings

import numpy as np
import ot as pot
import pytest
import torch

from otdml.costs import cost_matrix
from otdml.losses import entropic_ot, sinkhorn_divergence
from otdml.ot import gromov, sinkhorn, sinkhorn_matrix

TIGHT = {"tol": 1e-9, "max_iter": 20_000}


def clouds():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 2, generator=generator, dtype=torch.float64) for n in (12, 9))
    a, b = (torch.rand(n, generator=generator, dtype=torch.float64) + 0.5 for n in (12, 9))
    return x, y, a / a.sum(), b / b.sum()


@pytest.mark.parametrize("reach", [None, 0.8])
@pytest.mark.parametrize("p", [1, 2])
def test_blur_and_reach_of_geomloss(p, reach):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from geomloss import SamplesLoss

    x, y, a, b = clouds()
    options = {"p": p, "blur": 0.3, "reach": reach, "scaling": 0.99, "debias": False, "backend": "tensorized"}
    theirs = float(SamplesLoss("sinkhorn", **options)(a, x, b, y))
    cost, factor = {1: ("euclidean", 1), 2: ("sqeuclidean", 2)}[p]
    rho = None if reach is None else factor * reach**p
    ours = sinkhorn(x, y, a, b, cost=cost, eps=factor * 0.3**p, rho=rho, **TIGHT)
    # A schedule without a stopping rule: two digits is what it reaches.
    assert float(ours.value) == pytest.approx(factor * theirs, rel=0.02)


@pytest.mark.parametrize("debias", [False, True])
def test_mass_term_of_geomloss(debias):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from geomloss import SamplesLoss

    (x, y, a, b), m, eps = clouds(), 3.0, 2 * 0.3**2
    options = {"p": 2, "blur": 0.3, "scaling": 0.99, "debias": debias, "backend": "tensorized"}
    theirs = 2 * float(SamplesLoss("sinkhorn", **options)(m * a, x, m * b, y))
    ours = float((sinkhorn_divergence if debias else entropic_ot)(x, y, m * a, m * b, eps=eps, **TIGHT))
    assert ours == pytest.approx(theirs + (0 if debias else eps * (m**2 - m)), rel=0.02)


def test_tau_of_ott():
    """Its entropy is not relative to the weights, which is a matter of the cost where the marginals are free."""
    pytest.importorskip("ott")
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    x, y, a, b = clouds()
    eps, tau = 0.2, 0.75
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        geometry = pointcloud.PointCloud(x.numpy(), y.numpy(), epsilon=eps)
        problem = linear_problem.LinearProblem(geometry, a=a.numpy(), b=b.numpy(), tau_a=tau, tau_b=tau)
        theirs = np.asarray(ott_sinkhorn.Sinkhorn(threshold=1e-6)(problem).matrix)
    cost = cost_matrix(x, y) + eps * (a[:, None] * b).log()
    ours = sinkhorn_matrix(cost, a, b, eps=eps, rho=tau / (1 - tau) * eps, **TIGHT)
    np.testing.assert_allclose(ours.plan.numpy(), theirs, atol=1e-5)


def test_gromov_of_pot_has_twice_our_value_at_twice_our_temperature():
    x, y, a, b = clouds()
    A, B, eps = cost_matrix(x, x), cost_matrix(y, y), 0.02
    plan, log = pot.gromov.entropic_gromov_wasserstein(
        *(t.numpy() for t in (A, B, a, b)), epsilon=2 * eps, log=True, max_iter=5000, tol=1e-12
    )
    ours = gromov(x, y, a, b, eps=eps, tol=1e-8, max_iter=5000, init=torch.from_numpy(plan))
    np.testing.assert_allclose(ours.plan.numpy(), plan, atol=1e-6)
    assert 2 * float(ours.value) == pytest.approx(float(log["gw_dist"]), rel=1e-6)
