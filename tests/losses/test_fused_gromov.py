"""Fused Gromov-Wasserstein as a loss: the solver's value, all of its options, and what descending it does."""

import itertools

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.losses import FusedGromovWasserstein, fused_gromov_wasserstein
from otdml.ot import gromov


def problem(n=6, m=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, 3), (m, 2), (n, 2), (m, 2)
    return tuple(torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.3, "eps": 2.0, "cost_x": "cosine", "cost_y": "inner", "cost_features": "euclidean"},
        {"mass": 0.7, "init": "product", "backend": "streamed"},
        {"rho": (3.0, 8.0), "eps": 1.0, "tol": 1e-4, "max_iter": 500},
    ],
)
def test_module_and_function_are_the_solver_s_value(options):
    x, y, u, v = problem()
    expected = gromov(x, y, features=(u, v), **options).value
    loss = FusedGromovWasserstein(**options)
    assert loss(x, y, features=(u, v)) == fused_gromov_wasserstein(x, y, features=(u, v), **options) == expected
    for name, value in options.items():
        shown = name in ("alpha", "eps", "rho", "mass", "cost_x", "cost_y")
        assert not shown or f"{name}={value!r}" in repr(loss)


def test_value_is_that_of_the_best_permutation():
    x, y, u, v = problem(6, 6)
    A, B, M = cost_matrix(x, x), cost_matrix(y, y), cost_matrix(u, v)
    values = []
    for order in map(list, itertools.permutations(range(6))):
        quadratic = (A - B[order][:, order]).square().mean()
        values.append(0.7 * M[range(6), order].mean() + 0.15 * quadratic)
    value = fused_gromov_wasserstein(x, y, features=(u, v), alpha=0.3, eps=0.01)
    torch.testing.assert_close(value, min(values), rtol=1e-3, atol=0)


def test_descent_gives_a_cloud_the_shape_and_the_features_of_another():
    x, _, u, _ = problem(8)
    generator = torch.Generator().manual_seed(5)
    y = torch.randn(8, 2, generator=generator, dtype=torch.float64) @ torch.randn(
        2, 2, dtype=x.dtype, generator=generator
    )
    v = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    moving = [y.clone().requires_grad_(), v.clone().requires_grad_()]
    optimiser = torch.optim.Adam(moving, lr=0.05)
    loss = FusedGromovWasserstein(eps=0.3)
    target = x[:, :2]
    first = float(loss(target, moving[0].detach(), features=(u, moving[1].detach())))
    for _ in range(60):
        optimiser.zero_grad()
        loss(target, moving[0], features=(u, moving[1])).backward()
        optimiser.step()
    assert float(loss(target, moving[0], features=(u, moving[1])).detach()) < 0.1 * first


def test_the_mass_has_a_derivative_under_transforms_too():
    x, y, u, v = problem(4, 3)

    def value(mass):
        return fused_gromov_wasserstein(x, y, features=(u, v), mass=mass, eps=3.0, tol=1e-8, init="product")

    masses = torch.tensor([0.4, 0.7], dtype=x.dtype)
    slopes = [torch.autograd.grad(value(m), m)[0] for m in masses.clone().requires_grad_().unbind()]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(value))(masses), torch.stack(slopes))


def test_without_features_it_is_gromov_wasserstein():
    x, y, _, _ = problem()
    assert FusedGromovWasserstein(eps=2.0)(x, y) == gromov(x, y, eps=2.0).value
    with pytest.raises(ValueError, match="`alpha` must be None without `features`"):
        FusedGromovWasserstein(alpha=0.5)(x, y)


def test_errors_name_the_argument():
    x, y, u, _ = problem()
    with pytest.raises(ValueError, match=r"`features` must be a pair of tensors .*, got Tensor"):
        fused_gromov_wasserstein(x, y, features=u)
    for options, match in [
        ({"alpha": 1.5}, r"`alpha` must lie in \(0, 1\]"),
        ({"rho": (1.0, None)}, "`rho` must be a positive number or a pair of them"),
        ({"mass": -1.0}, "`mass` must be a positive number"),
        ({"rho": 1.0, "mass": 0.5}, "`mass` must be None where `rho` is given"),
        ({"init": "random"}, "`init` must be one of"),
        ({"backend": "keops"}, "`backend` must be one of"),
        ({"cost_features": "manhattan"}, "`cost` must be one of"),
    ]:
        with pytest.raises(ValueError, match=match):
            FusedGromovWasserstein(**options)
