"""Exact transport against assignments, closed forms and finite differences."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from otdml.costs import cost_matrix
from otdml.ot import exact


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
