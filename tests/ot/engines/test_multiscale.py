"""The engine that GeomLoss starts: the answers of the streamed one, and what it says where it cannot work."""

import sys

import pytest
import torch

from otdml.costs import Bilinear, ground
from otdml.ot import sinkhorn
from otdml.ot._problem import Problem, SolverOptions
from otdml.ot._sinkhorn import entropic
from otdml.ot.engines import Multiscale, cells, engine

# One dtype and one number of features: every other pair compiles its own formulas.
compiled = [pytest.mark.keops, pytest.mark.xdist_group("keops")]


@pytest.fixture(autouse=True)
def libraries():
    for name in ("pykeops", "geomloss"):
        pytest.importorskip(name, reason=f"backend='multiscale' needs {name}")


def clouds(n=70, m=90, d=2):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, d, dtype=torch.float64, generator=generator) for k in (n, m))
    a, b = (torch.rand(k, dtype=torch.float64, generator=generator) + 0.1 for k in (n, m))
    return x, y + 0.5, a / a.sum(), b / b.sum()


def solve(inputs, backend, **options):
    inputs = [t.detach().requires_grad_() for t in inputs]
    result = sinkhorn(*inputs, tol=1e-10, backend=backend, **options)
    gradients = torch.autograd.grad(result.value, inputs, retain_graph=True)
    assert result.converged
    return [t.detach() for t in (result.value, result.f, result.apply(inputs[1]), *gradients)]


def assert_same(inputs, **options):
    for found, expected in zip(solve(inputs, "multiscale", **options), solve(inputs, "dense", **options), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


class TestCompiled:
    pytestmark = compiled

    @pytest.mark.parametrize("eps", [None, 0.02, 30.0])
    def test_squared_distances(self, eps):
        assert_same(clouds(), eps=eps)

    @pytest.mark.parametrize("cost", ["cosine", "inner"])
    def test_other_bilinear_costs(self, cost):
        assert_same(clouds(), cost=cost, eps=0.1)

    @pytest.mark.parametrize("shift", [0.0, 1e3])
    def test_distances_near_and_far(self, shift):
        x, y, a, b = clouds()
        assert_same((x, y + shift, a, b), cost="euclidean", eps=0.3)

    def test_points_without_weight_and_doubled_ones(self):
        x, y, a, b = clouds()
        x = torch.cat([x, x[:5]])
        a = torch.cat([torch.zeros(3, dtype=a.dtype), a[3:], a[:5]])
        assert_same((x, y, a / a.sum(), b), eps=0.3)

    @pytest.mark.parametrize(("cost", "eps"), [("sqeuclidean", 0.02), ("euclidean", 0.005)])
    def test_iterations_on_few_pairs_leave_few_on_all(self, cost, eps, monkeypatch):
        monkeypatch.setattr(cells, "LEAST", 16)
        x, y, a, b = clouds(700, 900)
        few, all_pairs = (
            sinkhorn(x, y, a, b, cost=cost, eps=eps, backend=backend) for backend in ("multiscale", "streamed")
        )
        assert 2 * few.n_iter < all_pairs.n_iter
        torch.testing.assert_close(few.value, all_pairs.value, rtol=1e-5, atol=0)

    def test_grad_mode_is_left_as_it_was(self):
        x, y, _, _ = clouds()
        with torch.no_grad():
            assert not sinkhorn(x.requires_grad_(), y, backend="multiscale").value.requires_grad
            assert not torch.is_grad_enabled()
            soft = engine(ground(x, y), 0.1, "multiscale")
            soft.initial_potential(torch.full((70,), 1 / 70), torch.full((90,), 1 / 90), balanced=True)
            assert not torch.is_grad_enabled()

    def test_second_derivatives_are_those_of_the_streamed_engine(self):
        x, y, a, b = clouds(20, 30)

        def product(backend):
            z = x.detach().requires_grad_()
            value = sinkhorn(z, y, a, b, eps=0.5, tol=1e-10, backend=backend).value
            (gradient,) = torch.autograd.grad(value, z, create_graph=True)
            return torch.autograd.grad((gradient * y[:20]).sum(), z)[0]

        torch.testing.assert_close(product("multiscale"), product("streamed"), rtol=1e-7, atol=1e-9)

    def test_identical_points_and_a_single_one(self):
        """GeomLoss raises where all points are one."""
        x = torch.ones(5, 2, dtype=torch.float64)
        torch.testing.assert_close(sinkhorn(x, x[:3] + 2, backend="multiscale").value, x.new_tensor(8.0))
        torch.testing.assert_close(sinkhorn(x, x, backend="multiscale").value, x.new_tensor(0.0))
        torch.testing.assert_close(
            sinkhorn(x[:1], x[:1] + 30, eps=1e-3, backend="multiscale").value, x.new_tensor(1800.0)
        )


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"cost": "geodesic"}, "for this cost"),
        ({"cost": lambda x, y: torch.cdist(x, y)}, "for this cost"),
        ({"d": 4}, "for more than 3 features, here 4"),
        ({"batch": (2,)}, r"for a batch, here \(2,\)"),
    ],
)
def test_what_geomloss_cannot_do_is_an_error(options, where):
    batch, d = options.pop("batch", ()), options.pop("d", 3)
    x = torch.randn(*batch, 5, d, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=f"`backend` must be 'dense' or 'streamed' {where}, got 'multiscale'"):
        sinkhorn(x, x + 1, backend="multiscale", **options)


@pytest.mark.parametrize("rho", [1.0, (None, 1.0)])
def test_penalties_are_an_error(rho):
    x, y, a, b = clouds()
    with pytest.raises(ValueError, match="`rho` must be None with backend='multiscale'"):
        sinkhorn(x, y, a, b, rho=rho, backend="multiscale")


def test_forbidden_pairs_are_an_error():
    x, y, a, b = clouds()
    mask = torch.zeros(7, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="where pairs are forbidden"):
        entropic(Problem(ground(x, y), a, b, 1.0, mask=lambda i, j: mask[i, j]), SolverOptions(backend="multiscale"))


def test_points_that_are_not_finite_are_an_error():
    x, y, _, _ = clouds()
    x = x.clone()
    x[1, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        sinkhorn(x, y, eps=1.0, backend="multiscale")


@pytest.mark.parametrize("name", ["geomloss", "pykeops.torch"])
def test_a_missing_library_is_said_with_the_remedy(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    x, y, _, _ = clouds()
    with pytest.raises(ImportError, match="pip install geomloss pykeops"):
        sinkhorn(x, y, backend="multiscale")


def test_factors_of_any_origin_are_split_evenly():
    q, k = clouds()[:2]
    soft = Multiscale(Bilinear(100 * q, k))
    x, y = soft.points
    torch.testing.assert_close(x.square().mean(), y.square().mean())
    torch.testing.assert_close(x @ y.mT, 100 * q @ k.mT)
