"""Second derivatives of potentials, plans and maps, where the matrix is kept."""

import pytest
import torch

from otdml.ot import sinkhorn, sinkhorn_matrix, soft_rank

TIGHT = {"eps": 0.5, "tol": 1e-13, "max_iter": 20000}
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
RHO = [None, 0.7, (1.0, None)]
# The offsets of inner products are computed from their factors.
COSTS = ["sqeuclidean", "cosine", "inner", "euclidean", "geodesic"]
DOUBLE = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def outputs(result):
    return result.f, result.g, result.plan, result.barycentric_map(), *result.marginals


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("rho", RHO)
def test_second_derivatives_are_finite_differences_of_first_ones(cost, rho):
    def read(x, y, u, v):
        weights = (u.softmax(-1), v.softmax(-1)) if rho is None else (u.exp(), v.exp())
        return outputs(sinkhorn(x, y, *weights, cost=cost, rho=rho, backend="dense", **TIGHT))

    inputs = drawn(3, 2), drawn(4, 2, seed=1), drawn(3, seed=2), drawn(4, seed=3)
    assert torch.autograd.gradgradcheck(read, inputs, **CLOSE)


@pytest.mark.parametrize("rho", RHO)
def test_points_without_weight_and_forbidden_pairs_are_no_exception(rho):
    a, b = torch.tensor([0.5, 0.0, 0.5], dtype=DOUBLE), torch.tensor([0.25, 0.25, 0.0, 0.5], dtype=DOUBLE)
    forbidden = torch.zeros(3, 4, dtype=DOUBLE)
    forbidden[0, 1] = torch.inf

    def potentials(C):
        result = sinkhorn_matrix(C + forbidden, a, b, rho=rho, **TIGHT)
        # Of hard constraints only the sums are determined.
        shift = result.f[0] if rho is None else 0
        return result.f - shift, result.g + shift, result.plan

    assert torch.autograd.gradgradcheck(potentials, drawn(3, 4), **CLOSE)


def test_a_batch_has_those_of_its_problems():
    def value(C):
        result = sinkhorn_matrix(C, **TIGHT)
        return (result.plan.square().sum((-2, -1)) + result.f.square().sum(-1)).sum()

    C = drawn(2, 3, 4)
    together = torch.autograd.functional.hessian(value, C)
    for i in range(2):
        one = torch.autograd.functional.hessian(value, C[i].detach())
        torch.testing.assert_close(together[i, :, :, i], one)
        assert together[i, :, :, 1 - i].abs().max() == 0


def test_the_second_derivative_of_two_points_is_that_of_a_sigmoid():
    # Two points to themselves at the cost c: a share s of the mass stays, with log(s / (1 - s)) = c / eps.
    c = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    matrix = torch.stack([torch.stack([0 * c, c]), torch.stack([c, 0 * c])])
    share = 2 * sinkhorn_matrix(matrix, **TIGHT).plan[0, 0]
    (first,) = torch.autograd.grad(share, c, create_graph=True)
    (second,) = torch.autograd.grad(first, c)
    s = torch.sigmoid(c.detach() / 0.5)
    torch.testing.assert_close(first.detach(), s * (1 - s) / 0.5)
    torch.testing.assert_close(second, s * (1 - s) * (1 - 2 * s) / 0.25)


@pytest.mark.parametrize("rho", RHO)
def test_values_of_a_matrix_have_third_derivatives(rho):
    def gradient(C, u):
        a = u.softmax(-1)
        return torch.autograd.grad(sinkhorn_matrix(C, a, rho=rho, **TIGHT).value, (C, u), create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, (drawn(3, 4), drawn(3, seed=1)), **CLOSE)


def test_third_derivatives_of_potentials_are_an_error():
    C = drawn(3, 4)
    (first,) = torch.autograd.grad(sinkhorn_matrix(C, **TIGHT).f.square().sum(), C, create_graph=True)
    (second,) = torch.autograd.grad(first[0, 0], C, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third derivatives"):
        second.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("rho", RHO)
@pytest.mark.parametrize("cost", COSTS)
def test_gradients_with_a_graph_are_those_without(cost, rho, dtype):
    x, y, u = (t.detach().to(dtype).requires_grad_() for t in (drawn(6, 2), drawn(5, 2, seed=1), drawn(6, seed=2)))
    b = torch.full((5,), 0.2, dtype=dtype)
    result = sinkhorn(x, y, u.softmax(-1), b, cost=cost, eps=0.3, rho=rho, tol=1e-5)
    smooth = sum(t.square().sum() for t in outputs(result))
    plain, linked = (
        torch.autograd.grad(smooth, (x, y, u), create_graph=graph, retain_graph=True) for graph in (False, True)
    )
    for expected, found in zip(plain, linked, strict=True):
        # Entries are sums of larger ones, of which either way leaves another rounding.
        rounding = 64 * torch.finfo(dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=rounding)


def test_ranks_have_second_derivatives():
    assert torch.autograd.gradgradcheck(lambda x: soft_rank(x, eps=0.5, tol=1e-13, backend="dense"), drawn(6), **CLOSE)
