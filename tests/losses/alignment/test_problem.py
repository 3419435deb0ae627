import torch

from otdml.losses.alignment.problem import directions, factors
from otdml.sphere import unit


def test_directions_and_their_derivatives_are_those_of_unit():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(directions(z, 0.3), unit(z) / 0.3)
    assert torch.autograd.gradcheck(lambda z: directions(z, 0.3), z)
    assert torch.autograd.gradgradcheck(lambda z: directions(z, 0.3), z)


def test_zero_row_stays_zero_with_the_gradient_of_the_identity():
    z = torch.zeros(1, 2, requires_grad=True)
    x = directions(z, 0.5)
    assert torch.equal(x, torch.zeros(1, 2))
    (grad,) = torch.autograd.grad(x, z, torch.tensor([[3.0, 1.0]]))
    assert torch.equal(grad, torch.tensor([[6.0, 2.0]]))


def test_the_length_of_a_row_is_immaterial():
    lengths = torch.tensor([[1e-30], [1.0], [1e30]])
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x = (lengths * z).requires_grad_()
    torch.testing.assert_close(directions(x, 0.3), unit(z) / 0.3)
    (grad,) = torch.autograd.grad(directions(x, 0.3)[:, 0].sum(), x)
    z = z.requires_grad_()
    (expected,) = torch.autograd.grad(unit(z)[:, 0].sum() / 0.3, z)
    torch.testing.assert_close(grad * lengths, expected)


def test_products_of_factors_are_cosines_over_the_temperature():
    z1, z2 = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    for eps in (0.1, torch.tensor(0.1)):
        x, y = factors(z1, z2, eps, joint=False)
        torch.testing.assert_close(x @ y.mT, torch.tensor([[6.0]]))
        x, y = factors(z1, z2, eps, joint=True)
        assert x is y
        torch.testing.assert_close(x @ y.mT, torch.tensor([[10.0, 6.0], [6.0, 10.0]]))
