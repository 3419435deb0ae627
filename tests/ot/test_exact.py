"""Exact transport against assignments, closed forms and finite differences."""

import pickle

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from otdml.costs import cost_matrix
from otdml.ot import exact, exact_matrix


def clouds(n, m, d=3, batch=()):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*batch, k, d, dtype=torch.float64, generator=generator) for k in (n, m))
    a, b = (torch.rand(*batch, k, dtype=torch.float64, generator=generator) for k in (n, m))
    return x, y, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_equal_weights_are_an_assignment(cost):
    x, y, _, _ = clouds(20, 20)
    C = cost_matrix(x, y, cost)
    rows, columns = linear_sum_assignment(C.numpy())
    result = exact(x, y, cost=cost)
    torch.testing.assert_close(result.value, C[rows, columns].mean())
    assert result.plan.argmax(-1).tolist() == columns.tolist()


def test_potentials_solve_the_dual():
    x, y, a, b = clouds(9, 7)
    result = exact(x, y, a, b)
    slack = cost_matrix(x, y) - result.f[:, None] - result.g
    assert slack.min() > -1e-12
    torch.testing.assert_close((a * result.f).sum() + (b * result.g).sum(), result.value)
    torch.testing.assert_close((a * result.f).sum(), (b * result.g).sum())
    torch.testing.assert_close(result.marginals[0], a)
    torch.testing.assert_close(result.marginals[1], b)


def test_gradients_of_points_and_weights():
    x, y, a, b = clouds(5, 6, batch=(2,))
    # Weights may move only along their simplex.
    p, q = (torch.eye(k, dtype=x.dtype) - 1 / k for k in (5, 6))

    def value(x, y, s, t):
        return exact(x, y, a + s @ p, b + t @ q).value

    inputs = [t.requires_grad_() for t in (x, y, torch.zeros_like(a), torch.zeros_like(b))]
    assert torch.autograd.gradcheck(value, inputs)


def test_batch_is_loop():
    x, y, a, b = clouds(5, 6, batch=(2, 3))
    values = exact(x, y, a, b).value
    assert values.shape == (2, 3)
    torch.testing.assert_close(values[1, 2], exact(x[1, 2], y[1, 2], a[1, 2], b[1, 2]).value)


def test_half_precision_and_barycentric_map():
    x = torch.tensor([[0.0], [4.0]], dtype=torch.float16)
    result = exact(x, x.flip(0) + 1)
    assert result.value.dtype == torch.float32
    torch.testing.assert_close(result.barycentric_map(), torch.tensor([[1.0], [5.0]]))


def test_errors_name_the_argument():
    x, y, a, b = clouds(5, 6)
    with pytest.raises(ValueError, match="`b` must have the mass of `a`"):
        exact(x, y, a, 2 * b)
    with pytest.raises(ValueError, match="`x` must give finite costs"):
        exact(x * float("nan"), y)


def with_empty_bins(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, 2, dtype=torch.float64, generator=generator) for k in (7, 6))
    a, b = (torch.rand(k, dtype=torch.float64, generator=generator) for k in (7, 6))
    a[:2], b[:2] = 0, 0
    return x, y, a / a.sum(), b / b.sum()


@pytest.mark.parametrize("seed", range(20))
def test_derivative_along_mass_that_moves_into_an_empty_bin(seed):
    x, y, a, b = with_empty_bins(seed)
    a.requires_grad_()
    b.requires_grad_()
    value = exact(x, y, a, b).value
    da, db = torch.autograd.grad(value, (a, b))
    step = 1e-7
    for w, slope, full in ((a, da, 4), (b, db, 4)):
        for empty in (0, 1):
            move = torch.zeros_like(w)
            move[empty], move[full] = step, -step
            moved = exact(x, y, a + move, b) if w is a else exact(x, y, a, b + move)
            torch.testing.assert_close((moved.value - value) / step, slope[empty] - slope[full], rtol=1e-5, atol=1e-6)


def test_empty_rows_go_to_their_cheapest_column():
    x, y, a, b = with_empty_bins(0)
    result = exact(x, y, a, b)
    mapped = result.barycentric_map()
    cheapest = (cost_matrix(x, y) - result.g)[:2, 2:].argmin(1) + 2
    torch.testing.assert_close(mapped[:2], y[cheapest])
    # The limit of a little mass.
    less = a * (1 - 1e-9)
    less[0] = 1e-9
    torch.testing.assert_close(exact(x, y, less, b).barycentric_map()[0], mapped[0])


def test_no_mass_at_all_costs_nothing():
    x, y, a, b = clouds(5, 6, batch=(2,))
    a, b = a.clone(), b.clone()
    a[0], b[0] = 0, 0
    result = exact(x, y, a, b)
    torch.testing.assert_close(result.value, torch.stack([a.new_zeros(()), exact(x[1], y[1], a[1], b[1]).value]))
    assert result.barycentric_map().isfinite().all()
    assert (result.marginal_error < 1e-12).all()
    assert exact(x[:0], y[:0]).value.shape == (0,)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_costs_and_weights_of_any_scale(scale):
    x, y, a, b = clouds(9, 7)
    result, expected = exact(scale * x, y * scale, a / scale, b / scale), exact(x, y, a, b)
    torch.testing.assert_close(result.value, expected.value * scale, rtol=1e-9, atol=0)
    torch.testing.assert_close(result.plan * scale, expected.plan)
    torch.testing.assert_close(result.f / scale**2, expected.f)


def test_a_given_matrix_is_the_problem_of_points():
    x, y, a, b = clouds(5, 6, batch=(2,))
    C = cost_matrix(x, y).requires_grad_()
    result, expected = exact_matrix(C, a, b), exact(x, y, a, b)
    torch.testing.assert_close(result.value, expected.value)
    torch.testing.assert_close(result.f, expected.f)
    (slope,) = torch.autograd.grad(result.value.sum(), C)
    torch.testing.assert_close(slope, expected.plan)
    with pytest.raises(ValueError, match="`y` must be given where the solver compared costs"):
        result.barycentric_map()
    torch.testing.assert_close(exact_matrix(C[0], a[0], b).value[0], result.value[0])


def test_forbidden_pairs():
    C = torch.tensor([[0.0, 1.0, 5.0], [torch.inf, 3.0, 4.0], [2.0, torch.inf, 9.0]], requires_grad=True)
    result = exact_matrix(C)
    torch.testing.assert_close(result.value, torch.tensor((1.0 + 4.0 + 2.0) / 3))
    (slope,) = torch.autograd.grad(result.value, C)
    torch.testing.assert_close(slope, torch.tensor([[0, 1.0, 0], [0, 0, 1], [1, 0, 0]]) / 3)
    with pytest.raises(ValueError, match="`C` must allow some plan, got forbidden pairs"):
        exact_matrix(torch.tensor([[0.0, torch.inf], [0.0, torch.inf]]))
    with pytest.raises(ValueError, match="`C` must hold numbers, or plus infinity"):
        exact_matrix(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]))


def test_weights_of_any_layout():
    x, y, a, _b = clouds(5, 6)
    strided, shared = torch.stack([a, a], 1)[:, 0], torch.full((), 1 / 6, dtype=x.dtype).expand(6)
    torch.testing.assert_close(exact(x, y, strided, shared).value, exact(x, y, a).value)


def test_a_result_can_be_pickled():
    x, y, a, b = clouds(5, 6)
    result = exact(x.requires_grad_(), y, a, b)
    twin = pickle.loads(pickle.dumps(result))
    for name in ("value", "plan", "f", "g"):
        torch.testing.assert_close(getattr(twin, name), getattr(result, name))
    torch.testing.assert_close(twin.barycentric_map(), result.barycentric_map())


def test_what_is_read_is_read_in_full_precision():
    x, y, a, b = (t.float() for t in clouds(30, 40))
    result = exact(x, y, a, b)
    expected = result.apply(y), result.apply_transpose(x), result.marginals[0], result.barycentric_map()
    with torch.autocast("cpu", torch.bfloat16):
        found = result.apply(y), result.apply_transpose(x), result.marginals[0], result.barycentric_map()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert result.apply(y.bfloat16()).dtype == torch.float32


def test_second_derivatives_in_points_are_right_and_others_refused():
    x, y, a, b = clouds(4, 5)
    assert torch.autograd.gradgradcheck(lambda x: exact(x, y, a, b).value, x.requires_grad_())
    (slope,) = torch.autograd.grad(exact(x, y, a.requires_grad_(), b).value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives that involve the weights"):
        slope.sum().backward()
