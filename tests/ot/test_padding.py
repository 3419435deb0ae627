"""Padded clouds are the clouds: values, gradients, and no gradient of the padding."""

import pytest
import torch

from otdml.losses import mmd, sinkhorn_divergence
from otdml.ot import exact, pad_clouds, sinkhorn


def ragged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_() for n in (4, 1, 7)]


LOSSES = {
    "sinkhorn_divergence": lambda x, y, a, b: sinkhorn_divergence(x, y, a, b, eps=0.5, tol=1e-9),
    "unbalanced": lambda x, y, a, b: sinkhorn_divergence(x, y, a, b, eps=0.5, rho=1.0, tol=1e-9),
    "default temperature": lambda x, y, a, b: sinkhorn(x, y, a, b, tol=1e-9).value,
    "mmd": mmd,
    "median bandwidth": lambda x, y, a, b: mmd(x, y, a, b, bandwidth="median"),
    "exact": lambda x, y, a, b: exact(x, y, a, b).value,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_padded_clouds_is_a_loop(name):
    xs, ys, loss = ragged(), ragged(1)[::-1], LOSSES[name]
    (x, a), (y, b) = pad_clouds(xs), pad_clouds(ys)
    found = loss(x, y, a, b)
    expected = torch.stack([loss(x, y, None, None) for x, y in zip(xs, ys, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    slopes = (torch.autograd.grad(v.sum(), xs) for v in (found, expected))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_given_weights_are_kept():
    points, mass = pad_clouds([torch.zeros(2, 1), torch.ones(3, 1)], [torch.tensor([0.2, 0.3]), None])
    torch.testing.assert_close(mass, torch.tensor([[0.2, 0.3, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    assert points.shape == (2, 3, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_clouds_have_mass_one(dtype):
    xs, ys = ([x.detach().to(dtype) for x in ragged(seed)] for seed in (0, 1))
    (x, a), (y, b) = pad_clouds(xs), pad_clouds(ys)
    assert x.dtype == dtype
    assert a.dtype == torch.float32
    torch.testing.assert_close(a.sum(-1), torch.ones(3))
    alone = torch.stack([exact(x, y).value for x, y in zip(xs, ys, strict=True)])
    torch.testing.assert_close(exact(x, y, a, b).value, alone)


def test_clouds_of_several_dtypes_have_the_finest():
    points, mass = pad_clouds([torch.zeros(2, 1), torch.ones(3, 1, dtype=torch.float64)], [torch.ones(2), None])
    assert points.dtype == mass.dtype == torch.float64


@pytest.mark.parametrize(
    ("clouds", "message"),
    [
        ([], "`clouds` must hold at least one cloud"),
        ([torch.zeros(2, 1), torch.zeros(2, 2)], r"`clouds\[1\]` must have shape"),
        ([torch.zeros(2, 2, 1)], r"`clouds\[0\]` must have shape"),
    ],
)
def test_bad_clouds_are_named(clouds, message):
    with pytest.raises(ValueError, match=message):
        pad_clouds(clouds)
    with pytest.raises(TypeError, match="`clouds` must be a list of tensors, got generator"):
        pad_clouds(x for x in clouds)
    with pytest.raises(ValueError, match="`masses` must hold one entry per cloud"):
        pad_clouds([torch.zeros(2, 1)], [])
