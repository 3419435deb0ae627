"""Factors that do not agree are made to."""

import torch

from otdml.ot._low_rank.coupling import rounded
from otdml.ot._low_rank.hubs import Cloud


def cloud(n, seed):
    generator = torch.Generator().manual_seed(seed)
    points, scores = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (2, 3))
    w = torch.rand(n, generator=generator, dtype=torch.float64)
    found = Cloud(points, w / w.sum())
    return found, found.shares(scores, torch.zeros(3, dtype=torch.float64))


def test_shares_are_those_of_a_softmax():
    x, shares = cloud(6, 0)
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    offsets = torch.tensor([0.0, 700.0, -700.0], dtype=torch.float64)
    found = x.shares(scores, offsets)
    torch.testing.assert_close(found.conditional, (scores + offsets).softmax(-1))
    torch.testing.assert_close(found.logs, (scores + offsets).logsumexp(-1))
    q = x.weights[:, None] * shares.conditional
    torch.testing.assert_close(shares.masses, q.sum(0))
    torch.testing.assert_close(shares.means, (q.mT @ x.points) / q.sum(0)[:, None])


def test_curvature_is_the_second_derivative():
    x, _ = cloud(6, 0)
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    offsets = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    found = x.shares(scores, offsets)
    torch.testing.assert_close(
        found.curvature(),
        torch.autograd.functional.hessian(lambda s: (x.weights * (scores + s).logsumexp(-1)).sum(), offsets),
    )


def test_masses_of_hubs_agree_and_little_is_moved():
    (x, q), (y, r) = cloud(6, 0), cloud(5, 1)
    rows, columns, g = rounded(q, r)
    assert (rows >= 0).all()
    torch.testing.assert_close(rows.sum(-1), torch.ones(6, dtype=g.dtype))
    torch.testing.assert_close(x.weights @ rows, g)
    torch.testing.assert_close(y.weights @ columns, g)
    moved = (x.weights[:, None] * (rows - q.conditional)).abs().sum()
    assert moved <= (q.masses - r.masses).abs().sum() + 1e-12
