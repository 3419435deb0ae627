"""Every transform of ``torch.func`` and forward mode, by value: those of a loop, and finite differences."""

from dataclasses import dataclass

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from transforms import TRANSFORMS

from otdml.losses import (
    distortion,
    entropic_ot,
    fused_gromov_wasserstein,
    gromov_monge_gap,
    monge_gap,
    sinkhorn_divergence,
)
from otdml.ot import sinkhorn, sinkhorn_matrix

TIGHT = {"eps": 0.2, "tol": 1e-11}


def clouds(*batch, n=5, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*batch, n, d, generator=generator, dtype=torch.float64)


Y, W = clouds(n=6, seed=1), torch.softmax(clouds(n=6, seed=2)[:, 0], 0)
VALUES = {
    "divergence": lambda x: sinkhorn_divergence(x, Y, None, W, **TIGHT),
    "unbalanced": lambda x: sinkhorn_divergence(x, Y, None, 2 * W, rho=0.5, **TIGHT),
    "euclidean": lambda x: entropic_ot(x, Y, cost="euclidean", backend="dense", **TIGHT),
    "monge gap": lambda x: monge_gap(x, Y[:5], **TIGHT),
    "matrix": lambda x: sinkhorn_matrix((x[:, None] - Y).norm(dim=-1), None, W, **TIGHT).value,
    "weights": lambda x: entropic_ot(Y[:5], Y, torch.softmax(x[:, 0], 0), W, **TIGHT),
}


def moved(function, x, t, step=1e-4):
    return (function(x + step * t) - function(x - step * t)) / (2 * step)


@TRANSFORMS
@pytest.mark.parametrize("name", VALUES)
class TestValues:
    def test_gradient(self, name):
        x, t = clouds(), clouds(seed=3)
        function = VALUES[name]
        torch.testing.assert_close((grad(function)(x) * t).sum(), moved(function, x, t), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(jacrev(function)(x), grad(function)(x))

    def test_forward_mode(self, name):
        x, t = clouds(), clouds(seed=3)
        function = VALUES[name]
        value, tangent = jvp(function, (x,), (t,))
        torch.testing.assert_close(value, function(x))
        torch.testing.assert_close(tangent, moved(function, x, t), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(jacfwd(function)(x), grad(function)(x))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(function(forward_ad.make_dual(x, t)))
            torch.testing.assert_close(dual.tangent, tangent)

    def test_second_derivatives(self, name):
        x, t = clouds(), clouds(seed=3)
        function = VALUES[name]
        product = torch.einsum("ijkl,kl->ij", hessian(function)(x), t)
        torch.testing.assert_close(product, moved(grad(function), x, t), rtol=1e-3, atol=1e-4)

    def test_batches_are_loops(self, name):
        many = clouds(3)
        function = VALUES[name]
        torch.testing.assert_close(vmap(function)(many), torch.stack([function(x) for x in many]))
        torch.testing.assert_close(vmap(grad(function))(many), torch.stack([grad(function)(x) for x in many]))
        torch.testing.assert_close(vmap(vmap(function))(many[None])[0], vmap(function)(many))
        torch.testing.assert_close(vmap(function, in_dims=2)(many.permute(1, 2, 0)), vmap(function)(many))


@TRANSFORMS
def test_no_second_derivatives_of_gromov_problems_is_an_error():
    def gap(x):
        return gromov_monge_gap(x, Y[:5], eps=0.1, tol=1e-6)

    x = clouds().requires_grad_()
    torch.testing.assert_close(grad(gap)(x), torch.autograd.grad(gap(x), x)[0])
    with pytest.raises(RuntimeError, match="Gromov problems have no second derivatives"):
        hessian(gap)(x)


def stretched(s):
    return lambda x, y: s * (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)


@dataclass(frozen=True)
class Multiple:
    scale: torch.Tensor
    cost: str = "sqeuclidean"


OF_A_SCALE = {
    "divergence": lambda s, x: sinkhorn_divergence(x, Y, cost=stretched(s), rho=1.0, **TIGHT),
    "streamed": lambda s, x: entropic_ot(x, Y, cost=stretched(s), backend="streamed", **TIGHT),
    "plan": lambda s, x: sinkhorn(x, Y, cost=stretched(s), **TIGHT).plan[0, 0],
    "distortion": lambda s, x: distortion(x, Y[:5], cost_y=Multiple(s)),
    "gap": lambda s, x: gromov_monge_gap(x, Y[:5], cost_x=stretched(s), eps=0.1, tol=1e-8),
    "features": lambda s, x: fused_gromov_wasserstein(
        x, Y, features=(x, Y), cost_features=stretched(s), eps=0.1, tol=1e-8
    ),
}


@TRANSFORMS
@pytest.mark.parametrize("name", OF_A_SCALE)
def test_what_a_cost_refers_to_has_no_derivative_under_a_transform(name):
    # The solver sees it as a constant there, so the derivative would be zero.
    function, s, x, many = OF_A_SCALE[name], torch.tensor(2.0).double(), clouds(), clouds(2)
    learnt = s.clone().requires_grad_()
    ways = {
        "grad": lambda: grad(function)(s, x),
        "jvp": lambda: jvp(lambda s: function(s, x), (s,), (s,)),
        "vmap": lambda: vmap(function, in_dims=(0, None))(torch.stack([s, s]), x),
        "grad of vmap": lambda: grad(lambda s: vmap(lambda x: function(s, x))(many).sum())(s),
        "backward of vmap": lambda: vmap(lambda x: function(learnt, x))(many),
    }
    for call in ways.values():
        # The streamed engine refuses parameters with gradients by itself.
        with pytest.raises((RuntimeError, ValueError), match=r"none in parameters of a cost|or detach the parameters"):
            call()
    torch.testing.assert_close(vmap(lambda x: function(s, x))(many), torch.stack([function(s, x) for x in many]))


@TRANSFORMS
def test_constants_of_a_transformed_function_may_be_in_a_cost():
    def loss(x):
        return OF_A_SCALE["streamed"](2 * torch.ones((), dtype=x.dtype), x)

    torch.testing.assert_close(grad(loss)(clouds()), grad(lambda x: OF_A_SCALE["streamed"](2.0, x))(clouds()))
    with torch.no_grad():
        learnt = torch.tensor(2.0, dtype=torch.float64).requires_grad_()
        torch.testing.assert_close(vmap(lambda x: OF_A_SCALE["streamed"](learnt, x))(clouds(2)), vmap(loss)(clouds(2)))


def test_tangents_of_what_a_cost_refers_to_are_refused_beside_those_of_points():
    with forward_ad.dual_level():
        s, x = (forward_ad.make_dual(t, torch.ones_like(t)) for t in (torch.tensor(2.0).double(), clouds()))
        with pytest.raises(RuntimeError, match="in its arguments only"):
            OF_A_SCALE["divergence"](s, x)


READINGS = {
    "f": lambda result: result.f,
    "plan": lambda result: result.plan,
    "map": lambda result: result.barycentric_map(),
    "marginal": lambda result: result.apply(Y),
}


@pytest.mark.parametrize("name", READINGS)
def test_what_is_read_of_a_result(name):
    def reading(x):
        return READINGS[name](sinkhorn(x, Y, None, W, **TIGHT))

    x, t = clouds(), clouds(seed=3)
    value, pull = vjp(reading, x)
    cotangent = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    expected = (moved(reading, x, t) * cotangent).sum()
    torch.testing.assert_close((pull(cotangent)[0] * t).sum(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(vmap(reading)(clouds(3)), torch.stack([reading(x) for x in clouds(3)]))
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        jvp(reading, (x,), (t,))


def test_results_tell_convergence():
    def solved(x):
        result = sinkhorn(x, Y, **TIGHT)
        return result.converged, result.marginal_error

    converged, error = vmap(solved)(clouds(3))
    assert converged.all()
    assert (error <= TIGHT["tol"]).all()


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "function"])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
@pytest.mark.parametrize("shared", ["nothing", "first", "second"])
def test_rows_of_a_jacobian_at_once(cost, backend, shared):
    def value(x, y):
        return entropic_ot(x, y, cost=c, backend=backend, **TIGHT)

    c = cost if cost != "function" else lambda x, y: (x[..., :, None, :] - y[..., None, :, :]).abs().sum(-1)
    x, y = clouds(*() if shared == "first" else (3,)), clouds(*() if shared == "second" else (3,), n=4, seed=1)
    one_by_one = torch.autograd.functional.jacobian(value, (x, y))
    torch.testing.assert_close(torch.autograd.functional.jacobian(value, (x, y), vectorize=True), one_by_one)


def test_rows_of_a_jacobian_at_once_of_small_problems():
    def values(x):
        return torch.stack([sinkhorn(x, Y).value, sinkhorn(Y, 2 * x).value])

    rows = torch.autograd.functional.jacobian(values, clouds(), vectorize=True)
    torch.testing.assert_close(rows, torch.autograd.functional.jacobian(values, clouds()))


def test_several_gradients_at_once_of_what_is_read_are_refused_in_a_sentence():
    x = clouds().requires_grad_()
    images = sinkhorn(x, Y, **TIGHT).barycentric_map()
    several = torch.ones(2, *images.shape, dtype=images.dtype)
    with pytest.raises(RuntimeError, match=r"has no gradients for several incoming ones at once\. Leave"):
        torch.autograd.grad(images, x, several, is_grads_batched=True)


@TRANSFORMS
@pytest.mark.parametrize("given", ["f", "g", "both"])
def test_potentials_to_start_from_are_batches_as_well(given):
    many, start = clouds(3), sinkhorn(clouds(), Y, None, W, **TIGHT)
    f, g = (start.f if given != "g" else None), (start.g if given != "f" else None)

    def plan(x, f, g):
        return sinkhorn(x, Y, None, W, init=(f, g), **TIGHT).plan

    expected = sinkhorn(many, Y, None, W, **TIGHT).plan
    torch.testing.assert_close(vmap(lambda x: plan(x, f, g))(many), expected)
    each = [None if h is None else h + torch.randn(3, 1, dtype=h.dtype) for h in (f, g)]
    in_dims = (0, *(None if h is None else 0 for h in each))
    torch.testing.assert_close(vmap(plan, in_dims=in_dims)(many, *each), expected)
    C = torch.cdist(many, Y).square()
    values = vmap(lambda C: sinkhorn_matrix(C, None, W, init=(f, g), **TIGHT).value)(C)
    torch.testing.assert_close(values, sinkhorn_matrix(C, None, W, **TIGHT).value)


@TRANSFORMS
def test_solutions_do_not_depend_on_the_potentials_to_start_from():
    x = clouds()
    g = sinkhorn(x, Y, **TIGHT).g
    value, tangent = jvp(lambda g: sinkhorn(x, Y, init=(None, g), **TIGHT).value, (g,), (g,))
    torch.testing.assert_close(value, sinkhorn(x, Y, **TIGHT).value)
    assert tangent == 0
    assert (grad(lambda g: sinkhorn(x, Y, init=(None, g), **TIGHT).value)(g) == 0).all()
