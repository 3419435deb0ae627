"""The contract of engines: every one computes the soft minima, plans and products of a dense matrix in float64."""

import math
from dataclasses import dataclass

import pytest
import torch
from kernel_marks import INTERPRETED

from otdml.costs import Bilinear, Matrix, ground
from otdml.ot.engines import BACKENDS, Engine, base, engine

MARKS = {
    # On one worker, as each has a cache of compiled formulas of its own.
    "keops": [pytest.mark.keops, pytest.mark.xdist_group("keops")],
    "triton": INTERPRETED,
    # The interpreter multiplies TF32 in full, so that only the names and the ways there are tested.
    "triton-tf32x3": INTERPRETED,
    "triton-tf32": INTERPRETED,
    "triton-bf16": [*INTERPRETED, pytest.mark.skip(reason="the interpreter does not multiply bfloat16")],
}
ENGINES = [pytest.param(name, marks=MARKS.get(name, [])) for name in BACKENDS if name != "auto"]
COSTS = ("sqeuclidean", "cosine", "euclidean")
EPS = 0.3


@dataclass(frozen=True)
class Case:
    """A problem with its dimensionless reduced matrix in float64."""

    cost: object
    R: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor

    def potentials(self, dtype):
        generator = torch.Generator().manual_seed(5)
        f, g = (torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in (self.a, self.b))
        return f.to(dtype), g.to(dtype)


def case(cost="sqeuclidean", batch=(), n=13, m=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*batch, size, 2, generator=generator, dtype=torch.float64).to(dtype) for size in (n, m))
    a, b = (torch.rand(*batch, size, generator=generator, dtype=torch.float64) + 0.1 for size in (n, m))
    form = ground(x, y, cost)
    R = ground(x.double(), y.double(), cost).block(slice(0, n)) / EPS
    return Case(form, R, (a / a.sum(-1, keepdim=True)).to(dtype), (b / b.sum(-1, keepdim=True)).to(dtype))


def made(name, problem, mask=None) -> Engine:
    return engine(problem.cost, EPS, name, mask)


def close(found, expected, dtype):
    tight = dtype == torch.float64
    torch.testing.assert_close(found.double(), expected, rtol=1e-9 if tight else 2e-5, atol=1e-9 if tight else 2e-5)


def softmins(problem, h, k):
    return -torch.logsumexp(h[..., None, :] - problem.R, -1), -torch.logsumexp(k[..., :, None] - problem.R, -2)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setitem(base.BLOCK, "cpu", 40)


def skip_repeated_formulas(name, cost, dtype, prepared):
    if name == "keops" and (cost == "cosine" or dtype == torch.float32 or prepared):
        pytest.skip("a formula takes seconds to compile: one for each form of cost")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", ENGINES)
def test_soft_minima(name, cost, prepared, dtype):
    skip_repeated_formulas(name, cost, dtype, prepared)
    problem = case(cost, dtype=dtype)
    soft, (f, g) = made(name, problem), problem.potentials(dtype)
    if prepared:
        soft.prepare(g)
    h, k = g + problem.b.log(), f + problem.a.log()
    rows, columns = softmins(problem, h.double(), k.double())
    close(soft.row_softmin(h), rows, dtype)
    close(soft.column_softmin(k), columns, dtype)
    close(soft.mT.row_softmin(k), columns, dtype)
    found_f, found_columns = soft.sweep(h, problem.a.log(), lambda s, _: 0.5 * s)
    close(found_f, 0.5 * rows, dtype)
    close(found_columns, softmins(problem, h.double(), 0.5 * rows + problem.a.double().log())[1], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", ENGINES)
def test_plans_and_products(name, cost, prepared, dtype):
    skip_repeated_formulas(name, cost, dtype, prepared)
    problem = case(cost, dtype=dtype)
    soft, (f, g) = made(name, problem), problem.potentials(dtype)
    if prepared:
        soft.prepare(g)
    hf, hg = f + problem.a.log(), g + problem.b.log()
    plan = (hf.double()[..., None] + hg.double()[..., None, :] - problem.R).exp()
    close(torch.cat([block for _, block in soft.plan_blocks(hf, hg)], -2), plan, dtype)
    for width in (3,) if name == "keops" else (1, 3):
        v = torch.randn(10, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        close(soft.plan_product(hf, hg, v), plan @ v.double(), dtype)
        w = torch.randn(13, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
        close(soft.mT.plan_product(hg, hf, w), plan.mT @ w.double(), dtype)
        by_row, by_column = soft.plan_products(hf, hg, v, w)
        close(by_row, plan @ v.double(), dtype)
        close(by_column, plan.mT @ w.double(), dtype)
        weighted = torch.cat([block for _, block in soft.weighted_blocks(hf, hg, w, v)], -2)
        close(weighted, plan * (w.double() @ v.double().mT), dtype)
    product = soft.gram(hf, hg)
    for column in v.mT:
        close(product(column), plan.mT @ (plan @ column.double()), dtype)


@pytest.mark.parametrize("name", ENGINES)
def test_excess_keeps_digits_at_high_temperatures(name):
    problem = case()
    high = engine(problem.cost, 1e10, name)
    f = torch.zeros_like(problem.a)
    found = high.row_excess(f, torch.zeros_like(problem.b), problem.b)
    expected = (torch.expm1(-problem.R * EPS / 1e10) * problem.b).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ENGINES)
def test_points_without_weight(name):
    problem = case()
    soft, (f, g) = made(name, problem), problem.potentials(torch.float64)
    soft.prepare(g)
    h, k = g + problem.b.log(), f + problem.a.log()
    h[3], k[2] = -torch.inf, -torch.inf
    rows, columns = softmins(problem, h, k)
    close(soft.row_softmin(h), rows, torch.float64)
    close(soft.column_softmin(k), columns, torch.float64)
    found = soft.plan_product(k, h, torch.ones(10, 1, dtype=torch.float64))[:, 0]
    assert float(found[2]) == 0
    close(found, (k[:, None] + h - problem.R).exp().sum(-1), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("cost", "right"), [("cosine", 1.0), ("geodesic", math.pi / 2)])
@pytest.mark.parametrize("name", ENGINES)
def test_rows_of_zeros_are_at_a_right_angle_to_all_others(name, cost, right, dtype):
    if name == "multiscale" and cost == "geodesic":
        pytest.skip("the multiscale engine knows no angles")
    skip_repeated_formulas(name, cost, dtype, prepared=False)
    x, y = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x[0] = y[1] = 0
    c = ground(x, y, cost)
    u, v = (torch.zeros(6, dtype=dtype) if offset is None else offset for offset in (c.u, c.v))
    h, soft = torch.linspace(-1, 1, 6, dtype=dtype), engine(c, 1.0, name)
    close(soft.row_softmin(h)[0], -torch.logsumexp(h - (right - u[0] - v), -1).double(), dtype)
    close(soft.column_softmin(h)[1], -torch.logsumexp(h - (right - u - v[1]), -1).double(), dtype)


def batched(name):
    if name == "multiscale":
        pytest.skip("the multiscale engine refuses batches, and says so")
    return case(batch=(2, 3))


@pytest.mark.parametrize("name", ENGINES)
def test_batches(name):
    problem = batched(name)
    soft, (f, g) = made(name, problem), problem.potentials(torch.float64)
    h, k = g + problem.b.log(), f + problem.a.log()
    rows, columns = softmins(problem, h, k)
    close(soft.row_softmin(h), rows, torch.float64)
    close(soft.column_softmin(k), columns, torch.float64)
    v = torch.ones(2, 3, 10, 2, dtype=torch.float64)
    plan = (k[..., None] + h[..., None, :] - problem.R).exp()
    close(soft.plan_product(k, h, v), plan @ v, torch.float64)
    column = torch.linspace(0, 1, 10, dtype=torch.float64).expand(2, 3, 10)
    for prepared in (False, True):
        if prepared:
            soft.prepare(g)
        close(soft.gram(k, h)(column), (plan.mT @ (plan @ column[..., None]))[..., 0], torch.float64)


@pytest.mark.parametrize("name", ["dense", "streamed"])
def test_forbidden_pairs(name):
    problem = case(n=10)
    forbidden = torch.eye(10, dtype=torch.bool)
    forbidden[4] = True
    soft = made(name, problem, lambda rows, columns: forbidden[rows, columns])
    masked = Case(problem.cost, problem.R.masked_fill(forbidden, torch.inf), problem.a, problem.b)
    f, g = masked.potentials(torch.float64)
    rows, columns = softmins(masked, g, f)
    assert rows[4] == torch.inf
    torch.testing.assert_close(soft.row_softmin(g), rows)
    torch.testing.assert_close(soft.column_softmin(f), columns)
    plan = torch.cat([block for _, block in soft.plan_blocks(f, g)], -2)
    torch.testing.assert_close(plan, (f[:, None] + g - masked.R).exp())


@pytest.mark.parametrize("name", ["keops", "multiscale"])
def test_what_an_engine_does_not_do_is_an_error_that_names_those_that_do(name):
    problem = case()
    with pytest.raises(ValueError, match="`backend` must be 'dense' or 'streamed'"):
        made(name, problem, lambda rows, columns: torch.zeros(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="`backend` must be 'dense' or 'streamed'"):
        engine(Matrix(problem.R), EPS, name)


@pytest.mark.parametrize("name", ["dense", "streamed"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1)])
def test_single_points(name, shape):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in shape)
    soft = engine(Bilinear(q, k), 1.0, name)
    torch.testing.assert_close(soft.row_softmin(torch.zeros(shape[1], dtype=q.dtype)), -torch.logsumexp(q @ k.mT, -1))
