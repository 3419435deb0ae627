"""Centred costs by value: two ways to the same numbers, and their digits where a cloud is small for its distance."""

import pytest
import torch

from otdml.ot._gromov.centred_cost import centred, cost_block

NAMED = ["sqeuclidean", "cosine", "inner"]


def cloud(n, d, batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, d, generator=generator, dtype=torch.float64) + 1
    a = torch.rand(*batch, n, generator=generator, dtype=torch.float64)
    return x, a / a.sum(-1, keepdim=True)


def parts(x, a, cost):
    """Mean, alpha and K in one vector."""
    found = centred("x", x, a, cost)
    K = found.sigma * (found.z @ found.z.mT) if found.matrix is None else found.matrix
    return torch.cat([found.mean[..., None], found.alpha, K.flatten(-2)], -1)


@pytest.mark.parametrize("cost", NAMED)
@pytest.mark.parametrize("d", [3, 9])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_parts_are_those_of_the_matrix(cost, d, batch):
    x, a = cloud(6, d, batch)
    x[..., 2, :] = 0
    A = cost_block("x", x, x, cost)
    if cost == "cosine":
        # The angle to the origin is undefined; all of its cosines are zero here.
        A[..., 2, 2] = 1
    row = (A @ a[..., None])[..., 0]
    mean = (a * row).sum(-1, keepdim=True)
    K = A - row[..., :, None] - row[..., None, :] + mean[..., None]
    torch.testing.assert_close(parts(x, a, cost), torch.cat([mean, row - mean, K.flatten(-2)], -1))


@pytest.mark.parametrize("cost", NAMED)
@pytest.mark.parametrize("d", [3, 9])
def test_gradient_of_the_parts(cost, d):
    x, a = cloud(5, d)
    assert torch.autograd.gradcheck(lambda x: parts(x, a, cost), x.requires_grad_())


@pytest.mark.parametrize("cost", NAMED)
@pytest.mark.parametrize("d", [20, 200])
def test_small_cloud_far_from_the_origin_keeps_its_digits(cost, d):
    x, a = cloud(40, d)
    x = (10 + 1e-3 * x).float()
    expected = parts(x.double(), a, cost)[..., 41:]
    found = parts(x, a.float(), cost)[..., 41:].double()
    # The entries of K are some 1e-6 of those of the cost at most, which single precision alone would not show.
    assert (found - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.parametrize("d", [3, 9])
def test_size_is_a_norm_of_the_eigenvalues(d):
    x, a = cloud(6, d)
    found = centred("x", x, a, "sqeuclidean")
    K = parts(x, a, "sqeuclidean")[7:].view(6, 6)
    eigenvalues = torch.linalg.eigvalsh(a.sqrt()[:, None] * K * a.sqrt())
    torch.testing.assert_close(found.size(a), (a[:, None] * a * K.square()).sum().sqrt())
    torch.testing.assert_close(found.size(a, 2), eigenvalues.norm(p=4))
