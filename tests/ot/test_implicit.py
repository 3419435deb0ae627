"""Derivatives of the value, of potentials and of plans: of first and second order, in the memory of a block."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from otdml.ot import sinkhorn, sinkhorn_matrix
from otdml.ot.engines import base

BACKENDS = ["dense", "streamed"]
TIGHT = {"eps": 0.5, "tol": 1e-13, "max_iter": 20000}
RHO = [None, 1.0, (None, 0.7)]


def clouds(n=4, m=5, d=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, d, dtype=dtype, generator=generator) for k in (n, m))
    u, v = (0.5 * torch.randn(k, dtype=dtype, generator=generator) for k in (n, m))
    return [t.requires_grad_() for t in (x, y + 0.5, u, v)]


def from_logits(u, v, rho):
    """Weights of equal mass, or any for a penalty."""
    return (u.softmax(-1), v.softmax(-1)) if rho is None else (u.exp(), v.exp())


@pytest.mark.parametrize(
    ("cost", "backend"),
    [*((cost, backend) for cost in ("sqeuclidean", "cosine") for backend in BACKENDS), ("euclidean", "dense")],
)
@pytest.mark.parametrize("rho", RHO)
def test_second_derivatives_are_finite_differences_of_first_ones(cost, rho, backend):
    def value(x, y, u, v):
        return sinkhorn(x, y, *from_logits(u, v, rho), cost=cost, rho=rho, backend=backend, **TIGHT).value

    inputs = clouds()
    assert torch.autograd.gradcheck(value, inputs, rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradgradcheck(value, inputs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("rho", RHO)
def test_derivatives_of_potentials_and_maps_are_finite_differences(cost, rho, backend):
    def outputs(x, y, u, v):
        result = sinkhorn(x, y, *from_logits(u, v, rho), cost=cost, rho=rho, backend=backend, **TIGHT)
        return result.f, result.g, result.barycentric_map(), result.apply_transpose(x)

    assert torch.autograd.gradcheck(outputs, clouds(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rho", [1.0, (1.0, 0.3), (None, 1.0)])
def test_potentials_of_mass_that_is_given_up_have_derivatives(rho, backend):
    """Where next to nothing of the mass is moved the potentials are large, and their derivatives ordinary."""

    def potentials(x, y, shift):
        # Potentials of some hundreds of temperatures are rounded to some 1e-14 of one.
        options = {"eps": 0.5, "tol": 1e-11 if x.dtype == torch.float64 else 1e-4}
        result = sinkhorn(x, y + shift, rho=rho, backend=backend, **options)
        return result.f / 100, result.g / 100

    x, y, _, _ = clouds()
    assert torch.autograd.gradcheck(lambda x, y: potentials(x, y, 12.0), (x, y), rtol=1e-5, atol=1e-6)
    # Multipliers of the order of exp(60) would have squares beyond single precision.
    exact, single = ([t.detach().to(dtype).requires_grad_() for t in (x, y)] for dtype in (x.dtype, torch.float32))
    found, expected = (torch.autograd.grad(potentials(*t, 9.0)[0].sum(), t) for t in (single, exact))
    for s, t in zip(found, expected, strict=True):
        torch.testing.assert_close(s.double(), t, rtol=1e-3, atol=1e-3)


def test_a_pair_that_gives_up_its_mass_leaves_the_derivatives_of_others_as_they_are():
    """The ratio of the shares of mass that two columns keep, exp(-144), is no number in single precision."""
    C = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    C[-1], C[:, -1], C[-1, -1] = 200.0, 200.0, 100.0
    options = {"eps": 0.5, "rho": 0.1, "tol": 1e-3}
    far, near = (torch.zeros_like(C).requires_grad_() for _ in range(2))
    (expected,) = torch.autograd.grad(sinkhorn_matrix(C + near, **options).f[0], near)
    (found,) = torch.autograd.grad(sinkhorn_matrix((C + far).float(), **options).f[0], far)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("rho", [None, 1.0])
def test_a_point_without_weight_has_a_potential_with_a_derivative(rho):
    a = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)

    def potential(x, y):
        result = sinkhorn(x, y, a, rho=rho, **TIGHT)
        return result.f - result.f[0] if rho is None else result.f

    assert torch.autograd.gradcheck(potential, clouds()[:2], rtol=1e-5, atol=1e-7)


def derivative_of(output, x, y, **options):
    result = sinkhorn(x, y, eps=0.5, tol=1e-6, backend="streamed", **options)
    (gradient,) = torch.autograd.grad(output(result), x, create_graph=True)
    return gradient


LINEAR = [
    pytest.param(lambda r: r.f.square().sum(), {}, id="potential"),
    pytest.param(lambda r: r.f[0], {}, id="one potential"),
    pytest.param(lambda r: r.barycentric_map().sum(), {}, id="map"),
    pytest.param(lambda r: r.value, {"cost": "euclidean"}, id="value of a pointwise cost"),
]


@pytest.mark.parametrize(("output", "options"), LINEAR)
def test_a_derivative_that_does_not_exist_is_an_error_where_it_is_asked_for(output, options):
    x, y, _, _ = clouds()
    gradient = derivative_of(output, x, y, **options)
    assert gradient.requires_grad
    result = sinkhorn(x, y, eps=0.5, tol=1e-6, backend="streamed", **options)
    torch.testing.assert_close(gradient, torch.autograd.grad(output(result), x)[0])
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()


def test_third_derivatives_are_an_error():
    x, y, _, _ = clouds()
    gradient = derivative_of(lambda r: r.value, x, y)
    (second,) = torch.autograd.grad(gradient[0, 0], x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third ones"):
        second.sum().backward()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.size = max(self.size, t.untyped_storage().nbytes() // t.element_size())
        return out


@pytest.mark.parametrize("rho", [None, 1.0])
@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", "euclidean", "geodesic"])
def test_streamed_derivatives_make_no_tensor_larger_than_a_block(cost, rho, monkeypatch):
    monkeypatch.setitem(base.BLOCK, "cpu", 2**14)
    x, y, _, _ = clouds(300, 280, dtype=torch.float32)
    a, b = (torch.full((len(t),), 1 / len(t), requires_grad=True) for t in (x, y))
    with Largest() as largest:
        result = sinkhorn(x, y, a, b, cost=cost, eps=0.1, rho=rho, backend="streamed")
        smooth = result.value + result.f.square().sum() + result.g.square().sum()
        torch.autograd.grad(smooth + result.barycentric_map().square().sum(), (x, y, a, b), retain_graph=True)
        if cost in ("sqeuclidean", "cosine"):
            (gradient,) = torch.autograd.grad(result.value, x, create_graph=True)
            torch.autograd.grad(gradient.square().sum(), (x, y, a, b))
    assert 2**13 < largest.size <= 2**14


HEAP = """
import resource, torch
from otdml.ot import sinkhorn
x, y = torch.randn(8192, 2).requires_grad_(), torch.randn(8192, 2)
def resident(n):
    result = sinkhorn(x[:n], y[:n], eps=8.0, backend="streamed")
    {step}
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = resident(64)
print(resident(8192) - before)
"""


@pytest.mark.parametrize(
    "step",
    [
        "result.apply(torch.cat([y, y], 1)[:n])",
        "torch.autograd.grad(result.barycentric_map().square().sum(), x)",
        "torch.autograd.grad(torch.autograd.grad(result.value, x, create_graph=True)[0].square().sum(), x)",
    ],
    ids=["product", "gradient of the map", "second derivative"],
)
def test_blocks_leave_no_holes_in_the_heap(step):
    """Small tensors that outlive their block make the C library take fresh memory for the next, up to the matrix."""
    run = subprocess.run([sys.executable, "-c", HEAP.format(step=step)], capture_output=True, text=True, check=True)
    # In KiB; the matrix takes 256 MiB, a block two.
    assert int(run.stdout) < 2**15
