"""The linearised optimality conditions."""

import pytest
import torch

from otdml.ot import sinkhorn, sinkhorn_matrix
from otdml.ot._linearised import adjoint, tangent

DOUBLE = torch.float64


@pytest.mark.parametrize("rho", [None, 0.7, (1.0, None), (0.01, 0.3)])
def test_the_tangent_map_is_the_transpose_of_the_adjoint_one(rho):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, dtype=DOUBLE, generator=generator)

    a, b = drawn(2, 5).softmax(-1), drawn(2, 4).softmax(-1)
    result = sinkhorn_matrix(drawn(2, 5, 4), a, b, eps=0.4, rho=rho, tol=1e-12, max_iter=20000)
    posed, (f, g) = result._coupling.posed, result._coupling.reduced
    df, dg, rows, columns = drawn(2, 5), drawn(2, 4), drawn(2, 5), drawn(2, 4)
    if rho is None:
        # Neither map is determined along the constant that goes from one potential to the other.
        dg = dg + ((df.sum(-1) - dg.sum(-1)) / 4)[:, None]
        columns = columns + ((a * rows).sum(-1) - (b * columns).sum(-1))[:, None]
    lam, mu = adjoint(posed, f, g, df, dg)
    over_rows, over_columns = tangent(posed, f, g, rows, columns)
    left = (lam * rows).sum(-1) + (mu * columns).sum(-1)
    torch.testing.assert_close(left, (df * over_rows).sum(-1) + (dg * over_columns).sum(-1))


def test_the_tangent_map_reaches_points_without_weight():
    C = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0]], dtype=DOUBLE)
    b = torch.tensor([0.5, 0.5, 0.0], dtype=DOUBLE)
    result = sinkhorn_matrix(C, None, b, eps=0.5, tol=1e-12)
    posed, (f, g) = result._coupling.posed, result._coupling.reduced
    only = torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE)
    rows, columns = tangent(posed, f, g, torch.zeros(2, dtype=DOUBLE), only)
    # Nothing follows from it.
    torch.testing.assert_close(rows, torch.zeros_like(rows))
    torch.testing.assert_close(columns, only)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize(
    "read", [lambda r: r.f, lambda r: r.plan, lambda r: r.barycentric_map()], ids=["f", "plan", "map"]
)
def test_cotangents_that_are_not_finite_have_gradients_that_are_not_and_leave_others_theirs(read, bad):
    # As a scaler of gradients expects it, which skips such a step.
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, n, 2, dtype=DOUBLE, generator=generator).requires_grad_() for n in (5, 4))
    found = read(sinkhorn(x, y, eps=0.5))
    ones = torch.ones_like(found)
    expected = torch.autograd.grad(found, (x, y), ones, retain_graph=True)
    gradients = torch.autograd.grad(found, (x, y), torch.stack([ones[0], bad * ones[1]]))
    for gradient, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient[0], right[0])
        assert not gradient[1].isfinite().any()
