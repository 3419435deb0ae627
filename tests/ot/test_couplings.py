"""Pairs drawn from plans: those of the assignment, and frequencies that are the plan's entries."""

import itertools

import pytest
import torch
from draws import seeded
from scipy.optimize import linear_sum_assignment

from otdml.costs import cost_matrix
from otdml.ot import couple, exact, sinkhorn


def clouds(n=9, m=9, d=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(k, d, generator=generator, dtype=torch.float64).to(dtype) for k in (n, m))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_exact_pairs_are_the_assignment(dtype):
    x0, x1 = clouds(dtype=dtype)
    i, j = couple(x0, x1, generator=seeded())
    _, expected = linear_sum_assignment(cost_matrix(x0.double(), x1.double()).numpy())
    assert i.tolist() == list(range(9))
    assert j.tolist() == expected.tolist()


def frequencies(i, j, n, m):
    return torch.bincount(i * m + j, minlength=n * m).view(n, m) / len(i)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", lambda x, y: torch.cdist(x, y)])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_entropic_pairs_have_the_frequencies_of_the_plan(backend, cost):
    x0, x1 = clouds(5, 4)
    options = {"cost": cost, "eps": 0.5, "backend": backend, "tol": 1e-9}
    i, j = couple(x0, x1, method="sinkhorn", n_pairs=100_000, generator=seeded(), **options)
    plan = sinkhorn(x0, x1, **options).plan
    found = frequencies(i, j, 5, 4)
    # Five standard deviations.
    assert ((found - plan).abs() <= 5 * (plan / 100_000).sqrt() + 1e-9).all()


def test_one_pair_for_each_point_has_the_conditional_frequencies():
    x0, x1 = clouds(5, 4)
    i, j = couple(x0.repeat(4000, 1), x1, method="sinkhorn", eps=0.5, tol=1e-9, generator=seeded())
    assert (i == torch.arange(20_000)).all()
    plan = sinkhorn(x0, x1, eps=0.5, tol=1e-9).plan
    found = frequencies(i % 5, j, 5, 4)
    assert ((found - plan).abs() <= 5 * (plan / 20_000).sqrt() + 1e-9).all()


def test_unbalanced_pairs_leave_outliers_out():
    x0, x1 = clouds(20, 20)
    x0[3] = 100.0
    i, _ = couple(x0, x1, method="unbalanced", rho=1.0, eps=0.2, n_pairs=2000, generator=seeded())
    assert 3 not in i
    assert len(couple(x0, x1, method="unbalanced", rho=1.0, generator=seeded())[0]) == 20


def test_partial_pairs_are_the_cheapest():
    import ot

    x0, x1 = clouds(8, 8)
    i, j = couple(x0, x1, method="partial", mass=0.5, generator=seeded())
    C, a = cost_matrix(x0, x1).numpy(), [1 / 8] * 8
    plan = torch.from_numpy(ot.partial.partial_wasserstein(a, a, C, m=0.5))
    pairs = set(zip(i.tolist(), j.tolist(), strict=True))
    assert pairs == set(map(tuple, (plan > 1e-6).nonzero().tolist()))
    drawn = couple(x0, x1, method="partial", mass=0.5, n_pairs=500, generator=seeded())
    assert set(zip(*(t.tolist() for t in drawn), strict=True)) <= pairs


def test_cells_of_the_second_points_have_their_mass():
    x0 = torch.linspace(0, 1, 2000)[:, None]
    x1 = torch.tensor([[0.1], [0.2], [0.9], [1.0]])
    i, j = couple(x0, x1, method="semidiscrete", generator=seeded())
    assert (i == torch.arange(2000)).all()
    assert ((torch.bincount(j) / 2000 - 0.25).abs() < 0.03).all()
    assert (j[1:] >= j[:-1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "optimal"}, "`method` must be one of 'exact'"),
        ({"method": "unbalanced"}, "`rho` must be given with method='unbalanced'"),
        ({"rho": 1.0}, "`rho` must be None with method='exact', got 1.0"),
        ({"method": "sinkhorn", "mass": 0.5}, "`mass` must be None with method='sinkhorn', got 0.5"),
        ({"eps": 0.1}, "`eps` must be None with method='exact', got 0.1"),
        ({"method": "partial", "mass": 1.5}, "`mass` must lie in"),
        ({"n_pairs": 0}, "`n_pairs` must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    x0, x1 = clouds()
    with pytest.raises(ValueError, match=message):
        couple(x0, x1, **options)


def test_options_that_the_method_leaves_aside_are_refused():
    x0, x1 = clouds()
    for method, option in itertools.product(
        ("exact", "partial", "semidiscrete"), ("tol", "max_iter", "backend", "rho")
    ):
        value = {"tol": 1e-3, "max_iter": 100, "backend": "dense", "rho": 1.0}[option]
        with pytest.raises(ValueError, match=f"`{option}` must be None with method='{method}'"):
            couple(x0, x1, method=method, **{option: value})


@pytest.mark.parametrize("option", [{"tol": "tight"}, {"max_iter": 0}, {"backend": "fast"}])
def test_options_of_the_solver_are_checked(option):
    x0, x1 = clouds()
    with pytest.raises((TypeError, ValueError), match=f"`{next(iter(option))}` must"):
        couple(x0, x1, method="sinkhorn", **option)


def test_points_are_called_what_they_are_called():
    with pytest.raises(TypeError, match=r"`x0` must be a torch.Tensor, got list"):
        couple([[0.0]], torch.zeros(1, 1))
    with pytest.raises(ValueError, match="`x1` must have the features of `x0`, 2, got 1"):
        couple(torch.zeros(3, 2), torch.zeros(3, 1))


def test_batches_are_an_error():
    with pytest.raises(ValueError, match="Couple one batch at a time"):
        couple(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1))


def test_exact_pairs_of_clouds_of_different_sizes_have_the_frequencies_of_the_plan():
    x0, x1 = clouds(5, 4)
    i, j = couple(x0, x1, n_pairs=100_000, generator=seeded())
    plan = exact(x0, x1).plan
    assert ((frequencies(i, j, 5, 4) - plan).abs() <= 5 * (plan / 100_000).sqrt() + 1e-9).all()


def test_costs_that_are_not_finite_are_named():
    x0, x1 = clouds()
    x0[0] = torch.nan
    with pytest.raises(ValueError, match="`x0` must give finite costs"):
        couple(x0, x1)


@pytest.mark.parametrize("method", ["exact", "sinkhorn", "unbalanced", "partial", "semidiscrete"])
def test_errors_name_the_arguments_of_this_function(method):
    x0 = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    x1 = torch.full_like(x0, torch.nan)
    rho = 1.0 if method == "unbalanced" else None
    with pytest.raises(ValueError, match=r"^`x0` must give finite costs, got .* in `x0`, `x1` and weights"):
        couple(x0, x1, method=method, rho=rho)
