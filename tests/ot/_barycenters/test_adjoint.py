"""The linear solve and the implicit derivative, against equations whose solution is known."""

import pytest
import torch

from otdml.ot._barycenters.adjoint import implicit, krylov_solution


def test_solves_a_batch_of_systems_that_are_not_symmetric(generator):
    A = torch.eye(7, dtype=torch.float64) + 0.3 * torch.randn(3, 7, 7, generator=generator, dtype=torch.float64)
    rhs = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    found = krylov_solution(lambda u: (A @ u[..., None])[..., 0], rhs, tol=1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(A, rhs))


def test_leaves_out_what_the_operator_does_not_see():
    D = torch.tensor([2.0, 1.0, 1e-9], dtype=torch.float64)
    found = krylov_solution(lambda u: D * u, torch.ones(3, dtype=torch.float64), tol=1e-4)
    torch.testing.assert_close(found[:2], torch.tensor([0.5, 1.0], dtype=torch.float64), rtol=1e-3, atol=1e-3)
    assert found[2].abs() < 1e4 < 1e9


def test_a_right_hand_side_of_zero_has_the_solution_zero():
    assert torch.equal(krylov_solution(lambda u: 2 * u, torch.zeros(2, 3), tol=1e-6), torch.zeros(2, 3))


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 1e35])
def test_right_hand_sides_of_any_size_are_solved(scale):
    D = torch.tensor([2.0, 4.0, 3.0])
    found = krylov_solution(lambda u: D * u, scale * torch.ones(3), tol=1e-6)
    torch.testing.assert_close(found / scale, 1 / D)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_right_hand_side_that_is_not_finite_has_no_solution_and_leaves_others_theirs(bad):
    D = torch.tensor([2.0, 4.0, 3.0])
    found = krylov_solution(lambda u: D * u, torch.tensor([[1.0, 1.0, 1.0], [1.0, bad, 1.0]]), tol=1e-6)
    torch.testing.assert_close(found[0], 1 / D)
    assert found[1].isnan().all()


def test_derivative_of_a_root():
    theta = torch.tensor([2.0, 5.0], dtype=torch.float64, requires_grad=True)
    root = implicit(theta.detach() ** (1 / 3), lambda s, t: s**3 - t, theta, tol=1e-12)
    assert torch.equal(root.detach(), theta.detach() ** (1 / 3))
    (found,) = torch.autograd.grad(root.sum(), theta, create_graph=True)
    torch.testing.assert_close(found.detach(), theta.detach() ** (-2 / 3) / 3)
    with pytest.raises(NotImplementedError, match="have no second derivatives"):
        torch.autograd.grad(found.sum(), theta)
