"""Small problems of points of equal weights on a CPU: as the dense engine solves them, and nothing is lost by it."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from otdml.ot import sinkhorn
from otdml.ot._small import _SmallCoupling
from otdml.ot._solution import EntropicSolution


def clouds(n: int = 40, m: int = 30, d: int = 5, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size, d, generator=generator, dtype=dtype) for size in (n, m))
    return [x.requires_grad_(), (y + 0.5).requires_grad_()]


def is_small(result) -> bool:
    return isinstance(result._coupling, _SmallCoupling)


@pytest.mark.parametrize("eps", [None, 5.0, 1.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (1, 7, 3), (40, 30, 5), (128, 256, 2), (200, 200, 64)])
def test_value_and_derivatives_are_those_of_the_dense_engine(n, m, d, dtype, eps):
    x, y = clouds(n, m, d, dtype=dtype)
    tol = 1e-6 if dtype == torch.float64 else 3e-5
    fast, slow = (sinkhorn(x, y, eps=eps, tol=tol, backend=backend) for backend in ("auto", "dense"))
    assert fast.converged
    assert fast.marginal_error <= tol
    torch.testing.assert_close(fast.value, slow.value, rtol=20 * tol, atol=0)
    torch.testing.assert_close(fast.plan, slow.plan, rtol=1e-2, atol=5 * tol / min(n, m))
    assert (fast.plan - slow.plan).abs().sum() <= 5 * tol
    for got, want in zip(torch.autograd.grad(fast.value, (x, y)), torch.autograd.grad(slow.value, (x, y)), strict=True):
        assert (got - want).norm() <= 50 * tol * want.norm()
        assert got.dtype == dtype


@pytest.mark.parametrize(("n", "m", "d", "eps"), [(40, 30, 5, 1.0), (128, 128, 2, 0.2), (128, 128, 16, 1.6)])
def test_problems_of_training_are_solved_by_it(n, m, d, eps):
    assert is_small(sinkhorn(*clouds(n, m, d, dtype=torch.float32), eps=eps))


def test_what_it_does_not_solve_is_left_to_the_engines():
    x, y = clouds()
    a = torch.full((40,), 1 / 40, dtype=x.dtype)
    others = [
        sinkhorn(x, y, a),
        sinkhorn(x, y, cost="euclidean"),
        sinkhorn(x, y, rho=1.0),
        sinkhorn(x, y, backend="dense"),
        sinkhorn(x[None], y[None]),
        sinkhorn(x, y, eps=1e6),
        sinkhorn(x, y, eps=1e-4),
        sinkhorn(*clouds(300, 300)),
    ]
    assert not any(map(is_small, others))
    with pytest.warns(RuntimeWarning, match="max_iter"):
        assert not sinkhorn(x, y, max_iter=2, tol=1e-9).converged


def test_derivatives_of_the_value_are_right_to_second_order():
    x, y = clouds(6, 5, 2)
    assert is_small(sinkhorn(x, y, eps=2.0, tol=1e-12))

    def value(x: Tensor, y: Tensor) -> Tensor:
        return sinkhorn(x, y, eps=2.0, tol=1e-12).value

    assert torch.autograd.gradcheck(value, (x, y))
    assert torch.autograd.gradgradcheck(value, (x, y))


def test_derivatives_of_what_else_is_read_are_right():
    x, y = clouds(6, 5, 2)

    def readings(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        result = sinkhorn(x, y, eps=2.0, tol=1e-12)
        return result.f, result.g, result.plan, result.barycentric_map(), result.apply(y), result.apply_transpose(x)

    assert torch.autograd.gradcheck(readings, (x, y))


def test_one_tensor_as_both_clouds():
    x, _ = clouds(6, 5, 2)

    def value(x: Tensor) -> Tensor:
        return sinkhorn(x, x, eps=2.0, tol=1e-12).value

    assert is_small(sinkhorn(x, x, eps=2.0, tol=1e-12))
    assert torch.autograd.gradcheck(value, (x,))
    assert torch.autograd.gradgradcheck(value, (x,))


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_in_one_cloud_alone(which):
    points = clouds()
    want = torch.autograd.grad(sinkhorn(*points, backend="dense", tol=1e-8).value, points[which])[0]
    points[1 - which].requires_grad_(False)
    value = sinkhorn(*points, tol=1e-8).value
    torch.testing.assert_close(torch.autograd.grad(value, points[which])[0], want, rtol=1e-5, atol=1e-8)


def test_what_is_read_after_the_points_were_changed_in_place_is_of_the_old_ones():
    x, y = (t.detach() for t in clouds())
    want = sinkhorn(x, y, eps=1.0, backend="dense").plan
    result = sinkhorn(x, y, eps=1.0)
    x.zero_()
    torch.testing.assert_close(result.plan, want, rtol=1e-3, atol=1e-7)


def test_derivatives_after_the_points_were_changed_in_place_are_refused():
    x, y = clouds()
    result = sinkhorn(x, y, eps=1.0)
    want = result.plan.detach()
    other = sinkhorn(x, y, eps=1.0)
    with torch.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="inplace"):
        other.value.backward()
    plan = other.plan
    torch.testing.assert_close(plan.detach(), want)
    with pytest.raises(RuntimeError, match="changed in place"):
        plan.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_in_which_nothing_has_a_graph(mode):
    x, y = clouds()
    with mode():
        result = sinkhorn(x, y, eps=1.0)
    assert is_small(result)
    assert not any(t.requires_grad for t in (result.value, result.f, result.plan))
    want = sinkhorn(x, y, eps=1.0, backend="dense")
    torch.testing.assert_close(result.plan, want.plan.detach(), rtol=1e-3, atol=1e-7)
    assert all(t.is_inference() == (mode is torch.inference_mode) for t in (result.value, result.f))


def test_what_is_read_in_inference_mode_serves_outside_of_it():
    x, y = (t.detach() for t in clouds())
    result = sinkhorn(x, y, eps=1.0)
    with torch.inference_mode():
        result.f.sum()
        result.plan.sum()
    assert not result.f.is_inference()
    assert not result.plan.is_inference()


def test_copies_and_pickles():
    x, y = (t.detach() for t in clouds())
    result = sinkhorn(x, y, eps=1.0)
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert isinstance(other._coupling, EntropicSolution)
        assert torch.equal(other.value, result.value)
        torch.testing.assert_close(other.f, result.f)
        torch.testing.assert_close(other.plan, result.plan)


def test_views_and_other_layouts():
    x, y = (t.detach() for t in clouds(40, 30, 6))
    want = sinkhorn(x, y, eps=1.0)
    for layout in (lambda t: t.mT.contiguous().mT, lambda t: t.repeat_interleave(2, 0)[::2]):
        got = sinkhorn(layout(x), layout(y), eps=1.0)
        torch.testing.assert_close(got.f, want.f)
    negated = torch.imag(torch.complex(x, -x).conj())
    assert negated.is_neg()
    torch.testing.assert_close(sinkhorn(negated, y, eps=1.0).f, want.f, rtol=1e-3, atol=1e-3)


def test_clouds_that_nothing_but_one_pair_links_keep_their_plan():
    # Two blocks of different masses: mass has to pass from one to the other, at a cost of 400 temperatures.
    x = torch.cat([torch.randn(3, 2) * 0.1, torch.randn(2, 2) * 0.1 + 20])
    y = torch.cat([torch.randn(2, 2) * 0.1, torch.randn(3, 2) * 0.1 + 20])
    result = sinkhorn(x, y, eps=1.0)
    assert result.converged
    plan = result.plan.double()
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 0.2, dtype=torch.float64), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(plan[:3, 2:].sum(), torch.tensor(0.2, dtype=torch.float64), rtol=1e-2, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_points_that_are_no_numbers_are_an_error(value):
    x, y = (t.detach().float() for t in clouds())
    x[3, 1] = value
    with pytest.raises(ValueError, match="finite"):
        sinkhorn(x, y)


@pytest.mark.filterwarnings("ignore:Sinkhorn stopped")
@pytest.mark.parametrize("eps", [1e-30, 1e300])
def test_temperatures_at_the_ends_of_all_numbers(eps):
    x, y = (t.detach() for t in clouds(5, 4, 2))
    fast, slow = (sinkhorn(x, y, eps=eps, tol=0.5, backend=backend) for backend in ("auto", "dense"))
    assert fast.converged == slow.converged
    torch.testing.assert_close(fast.value, slow.value)


def test_costs_that_vanish_are_refused_as_elsewhere():
    x, y = (t.detach() * 3e-21 for t in clouds(dtype=torch.float32))
    with pytest.raises(ValueError, match="Rescale them"):
        sinkhorn(x, y)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_far_from_the_origin_the_plan_that_has_derivatives_is_that_which_was_found(offset):
    """Centres are rounded there, and differently by every way of summing."""
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, 4, generator=generator) + offset for n in (26, 32))
    result = sinkhorn(x.requires_grad_(), y, eps=1.5)
    assert is_small(result)
    plan = result.plan.detach().double()
    error = (plan.sum(1) - 1 / 26).abs().sum() + (plan.sum(0) - 1 / 32).abs().sum()
    assert error <= 1.5 * result.marginal_error + 1e-6
    torch.testing.assert_close(result.f.mean() + result.g.mean(), result.value, rtol=1e-5, atol=1e-5)
    given = sinkhorn(x, y, torch.full((26,), 1 / 26), torch.full((32,), 1 / 32), eps=1.5)
    torch.testing.assert_close(result.plan, given.plan, rtol=1e-2, atol=1e-6)
