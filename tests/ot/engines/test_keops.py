"""The symbolic engine: the answers of the dense one, and what it says where it cannot work."""

import sys

import pytest
import torch

from otdml.costs import ground
from otdml.ot import sinkhorn
from otdml.ot._problem import Problem, SolverOptions
from otdml.ot._sinkhorn import entropic

compiled = [pytest.mark.keops, pytest.mark.xdist_group("keops")]


def clouds(batch=()):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*batch, k, 2, dtype=torch.float64, generator=generator) for k in (7, 9))
    a, b = (torch.rand(*batch, k, dtype=torch.float64, generator=generator) + 0.1 for k in (7, 9))
    return x, y + 0.5, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def solve(inputs, backend, **options):
    pytest.importorskip("pykeops")
    inputs = [t.detach().requires_grad_() for t in inputs]
    result = sinkhorn(*inputs, tol=1e-10, backend=backend, **options)
    gradients = torch.autograd.grad(result.value.sum(), inputs)
    return [t.detach() for t in (result.value, result.f, result.apply(inputs[1]), *gradients)]


def assert_same(inputs, **options):
    for found, expected in zip(solve(inputs, "keops", **options), solve(inputs, "dense", **options), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


class TestCompiled:
    pytestmark = compiled

    @pytest.mark.parametrize("rho", [None, 1.0])
    def test_bilinear_costs(self, rho):
        x, y, a, b = clouds()
        a = a.clone()
        a[2] = 0
        assert_same((x, y, a / a.sum(), b), eps=0.3, rho=rho)

    def test_batches(self):
        assert_same(clouds(batch=(2,)))

    @pytest.mark.parametrize("shift", [0.0, 1e3])
    def test_distances_near_and_far(self, shift):
        x, y, a, b = clouds()
        assert_same((x, y + shift, a, b), cost="euclidean", eps=0.3)

    def test_angles(self):
        assert_same(clouds(), cost="geodesic", eps=0.3)


def test_what_has_no_formula_is_an_error():
    x, y, a, b = clouds()
    with pytest.raises(ValueError, match="`backend` must be 'dense' or 'streamed' for a matrix or a function"):
        sinkhorn(x, y, cost=lambda x, y: torch.cdist(x, y), backend="keops")
    mask = torch.zeros(7, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="`backend` must be 'dense' or 'streamed' where pairs are forbidden"):
        entropic(Problem(ground(x, y), a, b, 1.0, mask=lambda i, j: mask[i, j]), SolverOptions(backend="keops"))


def test_a_missing_keops_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pykeops.torch", None)
    monkeypatch.setitem(sys.modules, "pykeops", None)
    with pytest.raises(ImportError, match="pip install pykeops"):
        sinkhorn(*clouds(), backend="keops")
