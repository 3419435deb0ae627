"""Entropic transport and the Sinkhorn divergence against closed forms, translations and the plain solver."""

import pytest
import torch

from otdml.costs import cost_matrix, ground
from otdml.losses import (
    EntropicOT,
    SinkhornDivergence,
    entropic_ot,
    sinkhorn_divergence,
    sinkhorn_divergence_matrix,
    sinkhorn_self_term,
)
from otdml.ot import sinkhorn
from otdml.ot._problem import Problem, SolverOptions, check_rho
from otdml.ot._sinkhorn import entropic


def clouds(seed=0, n=7, m=5, d=3):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.5 for k in (n, m))
    return x, y, a / a.sum(), b / b.sum()


def test_two_diracs_cost_what_they_cost():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    for eps in (0.01, 1.0, 100.0):
        assert entropic_ot(x, y, eps=eps) == 25
        assert sinkhorn_divergence(x, y, eps=eps) == 25


@pytest.mark.parametrize("eps", [0.3, 3.0, 30.0])
def test_translation_costs_its_square(eps):
    x, _, a, _ = clouds()
    t = torch.tensor([1.0, -2.0, 2.0], dtype=x.dtype)
    value = sinkhorn_divergence(x, x + t, a, a, eps=eps, tol=1e-9)
    torch.testing.assert_close(value, x.new_tensor(9.0), rtol=1e-7, atol=0)


def test_divergence_of_gaussians_is_near_its_closed_form():
    # Between N(0, s^2) and N(m, s^2) the divergence is m^2 whatever s and eps are; between N(0, s^2) and N(0, t^2)
    # the entropic cost is the formula below (Janati et al. 2020, in one dimension, at eps = 2 sigma^2).
    s, t, eps = 1.0, 2.0, 1.5
    quantiles = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    z = torch.special.ndtri(quantiles)[:, None]

    def cost(s, t):
        root = (4 * s**2 * t**2 + (eps / 2) ** 2) ** 0.5
        return s**2 + t**2 - root + eps / 2 * (1 - torch.tensor(eps).log() + torch.tensor(eps / 2 + root).log())

    expected = cost(s, t) - 0.5 * cost(s, s) - 0.5 * cost(t, t)
    found = sinkhorn_divergence(s * z, t * z, eps=eps, tol=1e-6)
    torch.testing.assert_close(float(found), float(expected), rtol=0.02, atol=0)


def test_large_eps_is_half_an_energy_form():
    # At an infinite temperature the plan is independent, and the divergence is the squared distance of the means.
    x, y, a, b = clouds()
    value = sinkhorn_divergence(x, y, a, b, eps=1e6, tol=1e-9)
    torch.testing.assert_close(value, (a @ x - b @ y).square().sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rho", [None, 0.5, 20.0])
@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", "euclidean"])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_symmetric_solver_finds_the_plain_solver_s_value(rho, cost, backend):
    x, _, a, _ = clouds(n=20)
    a = 2 * a
    plain = sinkhorn(x, x, a, a, cost=cost, eps=0.3, rho=rho, tol=1e-9, max_iter=20000, backend=backend)
    problem = Problem(ground(x, x, cost), a, a, 0.3, check_rho(rho))
    symmetric = entropic(problem, SolverOptions(1e-9, 20000, backend), symmetric=True)
    torch.testing.assert_close(symmetric.value, plain.value)
    torch.testing.assert_close(symmetric.plan, plain.plan, rtol=0, atol=1e-8)


def test_symmetric_solver_needs_few_iterations():
    x, _, a, _ = clouds(n=40)
    result = entropic(Problem(ground(x, x), a, a, 0.05), SolverOptions(1e-4), symmetric=True)
    assert result.converged
    assert result.n_iter <= 10


def test_unbalanced_divergence_of_different_masses_is_positive_and_zero_on_equal_measures():
    x, y, a, b = clouds()
    options = {"eps": 1.0, "rho": 2.0, "tol": 1e-9}
    assert sinkhorn_divergence(x, y, a, 3 * b, **options) > 0
    assert sinkhorn_divergence(x, x, a, 3 * a, **options) > 0
    assert abs(float(sinkhorn_divergence(x, x.flip(0), 3 * a, 3 * a.flip(0), **options))) < 1e-9


def test_two_diracs_of_different_mass():
    # KL(p | a) of masses in closed form: the plan's mass s minimises the sum of its four terms.
    a, b, c, eps, rho = 1.0, 3.0, 2.0, 0.7, 1.3

    def kl(s, t):
        return s * torch.log(s / t) - s + t

    def cost(a, b, c):
        s = torch.linspace(0.01, 6, 600001, dtype=torch.float64)
        return (
            s * c + eps * kl(s, torch.tensor(a * b)) + rho * kl(s, torch.tensor(a)) + rho * kl(s, torch.tensor(b))
        ).min()

    expected = cost(a, b, c) - 0.5 * cost(a, a, 0) - 0.5 * cost(b, b, 0) + 0.5 * eps * (a - b) ** 2
    x = torch.zeros(1, 2, dtype=torch.float64)
    y = torch.ones(1, 2, dtype=torch.float64)
    weights = [torch.tensor([w], dtype=torch.float64) for w in (a, b)]
    found = sinkhorn_divergence(x, y, *weights, eps=eps, rho=rho, tol=1e-10)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_unequal_penalties_are_zero_on_equal_measures():
    x, _, a, _ = clouds()
    value = sinkhorn_divergence(x, x.clone(), a, a, eps=1.0, rho=(0.5, None), tol=1e-9)
    assert abs(float(value)) < 1e-9


@pytest.mark.parametrize("rho", [None, 2.0])
def test_default_temperature_follows_the_cost(rho):
    x, y, a, b = clouds()
    scaled = None if rho is None else 9 * rho
    torch.testing.assert_close(
        sinkhorn_divergence(3 * x, 3 * y, a, b, rho=scaled, tol=1e-8),
        9 * sinkhorn_divergence(x, y, a, b, rho=rho, tol=1e-8),
    )


def test_known_second_term_changes_nothing_but_the_work():
    x, y, a, b = clouds()
    x = x.requires_grad_()
    options = {"eps": 1.0, "rho": 2.0, "tol": 1e-9}
    plain = sinkhorn_divergence(x, y, a, b, **options)
    short = sinkhorn_divergence(x, y, a, b, second=sinkhorn_self_term(y, b, **options), **options)
    torch.testing.assert_close(short, plain)
    torch.testing.assert_close(torch.autograd.grad(short, x), torch.autograd.grad(plain, x))


def test_flow_reaches_the_target():
    x, y, _, _ = clouds(n=5, m=5)
    x = x.requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(sinkhorn_divergence(x, y, eps=0.2, tol=1e-4), x)
        with torch.no_grad():
            x -= 2.0 * gradient
    assert torch.cdist(x, y).amin(0).max() < 0.02


def test_hessian_is_that_of_finite_differences():
    x, y, a, b = clouds(n=4, m=3, d=2)
    x = x.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: sinkhorn_divergence(x, y, a, b, eps=2.0, tol=1e-12), x, eps=1e-5, atol=1e-5, rtol=1e-3
    )


def test_errors_name_the_argument():
    x, y, a, b = clouds()
    with pytest.raises(ValueError, match="`b` must have the mass of `a`"):
        sinkhorn_divergence(x, y, a, 2 * b, eps=1.0)
    with pytest.raises(ValueError, match="`eps` must be a number where `second` is given"):
        sinkhorn_divergence(x, y, second=torch.zeros(()))
    with pytest.raises(ValueError, match="`eps` must be a number where `cache_second` is on"):
        SinkhornDivergence(cache_second=True)
    with pytest.raises(ValueError, match="`eps` must be a positive number, got -1"):
        EntropicOT(eps=-1.0)
    with pytest.raises(ValueError, match="`rho` must be a positive number, got -1"):
        EntropicOT(rho=(1.0, -1.0))
    with pytest.raises(ValueError, match="`rho` must be a number, a pair of numbers, or None"):
        SinkhornDivergence(rho=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="`cost` must be one of 'sqeuclidean'"):
        EntropicOT(cost="squared")
    with pytest.raises(ValueError, match="`backend` must be one of 'auto'"):
        EntropicOT(backend="fast")
    with pytest.raises(ValueError, match="`y` must have the features of `x`, 3, got 2"):
        entropic_ot(x, y[:, :2])


@pytest.mark.parametrize("rho", [None, 2.0, (1.0, None)])
@pytest.mark.parametrize("eps", [None, 0.05])
def test_the_divergence_of_matrices_is_that_of_the_points_they_are_of(rho, eps):
    x, y, a, b = clouds()
    x, y = x[None] * torch.tensor([1.0, 2.0]).to(x)[:, None, None], y
    points = [t.clone().requires_grad_() for t in (x, y, a, b)]
    options = {"eps": eps, "rho": rho, "tol": 1e-9, "max_iter": 20000}
    expected = sinkhorn_divergence(*points, **options)
    matrices = cost_matrix(points[0], points[1].expand(2, -1, -1)), *(cost_matrix(t, t) for t in points[:2])
    found = sinkhorn_divergence_matrix(*matrices, *points[2:], **options)
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([1.0, 3.0]).to(x)
    slopes = [torch.autograd.grad(value @ weights, points, retain_graph=True) for value in (found, expected)]
    for slope, right in zip(*slopes, strict=True):
        # The gradients in weights of equal mass are known up to a constant.
        free = rho is None and slope.ndim == 1
        torch.testing.assert_close(slope - slope.mean() * free, right - right.mean() * free, rtol=1e-5, atol=1e-6)


def test_matrices_within_that_do_not_fit_are_named():
    C, C_x, C_y = torch.rand(3, 2), torch.zeros(3, 3), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"`C_x` must have shape \(..., 3, 3\), as `C` says, got \(2, 2\)"):
        sinkhorn_divergence_matrix(C, C_y, C_y)
    with pytest.raises(ValueError, match=r"`C_y` must be symmetric and finite"):
        sinkhorn_divergence_matrix(C, C_x, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    with pytest.raises(ValueError, match=r"`C_y` must have shape \(..., 2, 2\), as `C` says, got NoneType"):
        sinkhorn_divergence_matrix(C, C_x, None)


def test_a_self_term_without_mass_names_the_weights_that_were_given():
    y, b = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match="`b` must have mass"):
        sinkhorn_self_term(y, b, eps=0.1)
    assert abs(float(sinkhorn_self_term(y, b, eps=0.1, rho=1.0))) < 1e-12


def test_errors_of_the_self_term_name_its_argument():
    with pytest.raises(ValueError, match=r"^`y` must give finite costs"):
        sinkhorn_self_term(torch.full((3, 2), torch.nan), eps=0.1)


@pytest.mark.parametrize("eps", [1e-4, 1.0])
def test_the_divergence_of_matrices_has_their_dtype(eps):
    x, y = (t.float() for t in clouds()[:2])
    C, C_x, C_y = (cost_matrix(p, q, "sqeuclidean") for p, q in ((x, y), (x, x), (y, y)))
    assert sinkhorn_divergence_matrix(C, C_x, C_y, eps=eps).dtype == torch.float32


@pytest.mark.parametrize("matrices", [False, True])
@pytest.mark.parametrize("rho", [None, 1.0])
def test_large_masses_in_single_precision(rho, matrices):
    x, y, a, b = clouds(n=30, m=25)
    b = b if rho is None else 0.8 * b

    def divergence(x, y, a, b):
        options = {"eps": 0.05, "rho": rho, "tol": 1e-6}
        if not matrices:
            return sinkhorn_divergence(x, y, a, b, **options)
        pairs = ((x, y), (x, x), (y, y))
        return sinkhorn_divergence_matrix(*(cost_matrix(p, q, "sqeuclidean") for p, q in pairs), a, b, **options)

    # The terms are as large as 1e12, and differ by as much as 1e6.
    double = [x, y, 1e6 * a.requires_grad_(), 1e6 * b]
    single = [t.detach().float().requires_grad_(t.requires_grad) for t in double]
    expected, found = divergence(*double), divergence(*single)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=0)
    slopes = [torch.autograd.grad(value, weights)[0] for value, weights in ((expected, double[2]), (found, single[2]))]
    torch.testing.assert_close(slopes[1], slopes[0].float(), rtol=1e-4, atol=1e-4 * float(slopes[0].abs().max()))


def test_a_second_term_that_is_none_is_named():
    x, y, _, _ = clouds()
    with pytest.raises(TypeError, match=r"`second` must be a torch\.Tensor, got float"):
        sinkhorn_divergence(x, y, eps=1.0, second=0.5)
    with pytest.raises(ValueError, match=r"`second` must have the batch dimensions of the points, \(\), or none"):
        sinkhorn_divergence(x, y, eps=1.0, second=torch.zeros(3))
