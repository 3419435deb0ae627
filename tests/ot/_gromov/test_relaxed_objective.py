"""The objective of plans with free marginals, by sums over all quadruples."""

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.ot._gromov.centred_cost import centred
from otdml.ot._gromov.feature_cost import between_features
from otdml.ot._gromov.objective import GromovObjective
from otdml.ot._gromov.plans import FactoredPlan, MatrixPlan, PairedPlan
from otdml.ot._gromov.relaxed_objective import RelaxedObjective


def objective(cost, cost_features=None, n=7, m=5, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y, u, v = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((n, d), (m, d), (n, 2), (m, 2)))
    a, b, P = (torch.rand(*s, generator=generator, dtype=torch.float64) for s in ((n,), (m,), (n, m)))
    x, y, a, b = x + 1, y - 2, a / a.sum(), 1.3 * b / b.sum()
    features = None if cost_features is None else between_features(u, v, cost_features, 0.3, u.dtype)
    found = GromovObjective(centred("x", x, a, cost), centred("y", y, b, cost), a, b, features)
    return (
        RelaxedObjective(found),
        cost_matrix(x, x, cost),
        cost_matrix(y, y, cost),
        cost_matrix(u, v, cost_features or "inner"),
        P,
    )


def gradient(A, B, P):
    return torch.einsum("ijkl,kl->ij", (A[:, None, :, None] - B[None, :, None, :]).square(), P)


def full(cost):
    return cost.block(slice(None)) + cost.u[:, None] + cost.v


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", "inner", "euclidean"])
@pytest.mark.parametrize("d", [3, 9])
def test_gradient_and_value_are_those_of_the_definition(cost, d):
    relaxed, A, B, _, P = objective(cost, d=d)
    reading = relaxed.read(MatrixPlan(P))
    expected = gradient(A, B, P)
    torch.testing.assert_close(full(relaxed.gradient(reading)), expected)
    torch.testing.assert_close(relaxed.value(MatrixPlan(P)), 0.5 * (expected * P).sum())
    other = torch.rand(P.shape, dtype=P.dtype, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(relaxed.pairing(reading, relaxed.read(MatrixPlan(other))), (expected * other).sum())
    # The gradient is linear, and what it is measured by is a bound of its root mean square.
    a, b = relaxed.centred.a, relaxed.centred.b
    mean = (a @ expected.square() @ b / (a.sum() * b.sum())).sqrt()
    assert mean <= relaxed.size(reading) * (1 + 1e-9)
    torch.testing.assert_close(relaxed.size(reading.scaled(torch.tensor(2.0))), 2 * relaxed.size(reading))


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("cost_features", ["sqeuclidean", "cosine", "euclidean"])
def test_features_are_added(cost, cost_features):
    relaxed, A, B, M, P = objective(cost, cost_features)
    expected = gradient(A, B, P)
    torch.testing.assert_close(full(relaxed.gradient(relaxed.read(MatrixPlan(P)))), expected + 0.3 * M)
    torch.testing.assert_close(relaxed.value(MatrixPlan(P)), 0.5 * (expected * P).sum() + 0.3 * (M * P).sum())


def test_plans_are_read_alike_in_any_form():
    relaxed, *_ = objective("sqeuclidean", n=5)
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.rand(5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    for plan in (FactoredPlan(left, right), PairedPlan(relaxed.centred.a)):
        for found, expected in zip(
            vars(relaxed.read(plan)).values(), vars(relaxed.read(MatrixPlan(plan.plan))).values(), strict=True
        ):
            torch.testing.assert_close(found, expected)
