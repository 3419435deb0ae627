"""What is read of a result later: after weights, points or modes have changed, and in other processes."""

import gc
import io
import weakref

import pytest
import torch

from otdml.ot import sinkhorn, sinkhorn_matrix


def problem(n=6, m=7):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(k, 2, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.1 for k in (n, m))
    return x, y, a / a.sum(), b / b.sum()


def readings(result):
    return result.f, result.g, result.plan, *result.marginals, result.barycentric_map()


@pytest.mark.parametrize("rho", [None, 0.5])
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_weights_may_be_used_again(backend, linked, rho):
    x, y, a, b = problem()
    x.requires_grad_(linked)
    expected = sinkhorn(x, y, a.clone(), b.clone(), eps=0.1, rho=rho, backend=backend)
    expected_readings = readings(expected)
    result = sinkhorn(x, y, a, b, eps=0.1, rho=rho, backend=backend)
    a.fill_(1 / 6)
    a[0] = 5.0
    b.mul_(3)
    for found, right in zip(readings(result), expected_readings, strict=True):
        torch.testing.assert_close(found, right)
    if linked:
        (found,), (right,) = (torch.autograd.grad(r.value + r.f[0], x) for r in (result, expected))
        torch.testing.assert_close(found, right)


def test_weights_that_are_learnt_are_those_of_the_time():
    x, y, a, b = problem()
    a.requires_grad_()
    result = sinkhorn(x, y, a, b, eps=0.1)
    expected = sinkhorn(x, y, a.detach(), b, eps=0.1).plan
    result.value.backward()
    torch.optim.SGD([a], lr=0.1).step()
    torch.testing.assert_close(result.plan.detach(), expected)


@pytest.mark.parametrize("linked", [False, True])
def test_costs_that_were_changed_are_an_error(linked):
    C = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    result = sinkhorn_matrix(C.requires_grad_(linked))
    potential = result.f.detach().clone()
    with torch.no_grad():
        C.mul_(2)
    torch.testing.assert_close(result.f.detach(), potential)
    with pytest.raises(RuntimeError, match="changed in place"):
        _ = result.plan


def test_points_that_were_changed_are_an_error_where_the_plan_is_made_of_them():
    x, y, _, _ = problem()
    result = sinkhorn(x, y, cost="euclidean", backend="streamed")
    x.add_(1)
    with pytest.raises(RuntimeError, match="pass clones"):
        result.apply(y)


def test_potentials_whose_derivatives_would_be_of_other_points_are_an_error():
    x, y, _, _ = problem()
    result = sinkhorn(x.requires_grad_(), y, cost="euclidean", backend="streamed")
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="pass clones"):
        _ = result.f


@pytest.mark.parametrize("linked", [False, True])
def test_other_modes_later(linked):
    x, y, a, b = problem()
    x.requires_grad_(linked)
    expected = readings(sinkhorn(x, y, a, b, eps=0.1))
    result = sinkhorn(x, y, a, b, eps=0.1)
    with torch.inference_mode():
        found = readings(result)
    for s, t in zip(found, expected, strict=True):
        torch.testing.assert_close(s.detach(), t.detach())
    with torch.inference_mode():
        inside = sinkhorn(x, y, a, b, eps=0.1)
    torch.testing.assert_close(inside.plan.clone(), expected[2].detach())


def test_autocast_does_not_round_what_is_read_inside():
    x, y, _, _ = (t.float() for t in problem())
    result, expected = (sinkhorn(x, y, eps=0.1) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = result.plan
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan, expected.plan)


def test_results_can_be_saved():
    x, y, a, b = problem()
    result, file = sinkhorn(x, y, a, b, eps=0.1), io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    for found, expected in zip(readings(torch.load(file, weights_only=False)), readings(result), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rho", [None, 0.5])
def test_what_is_dropped_is_freed_at_once(rho):
    """Kernel matrices do not wait for Python to look for cycles, of which a graph must have none."""
    x, y, a, b = problem()
    gc.collect()
    gc.disable()
    try:
        result = sinkhorn(x.requires_grad_(), y, a, b, eps=0.1, rho=rho, backend="dense")
        kept = weakref.ref(result._coupling.posed.engine)
        result.value.backward()
        assert kept() is not None
        del result
        assert kept() is None
    finally:
        gc.enable()
