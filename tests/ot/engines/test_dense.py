"""The dense engine: several iterations at once on a kernel are what single ones are, however they are multiplied."""

import pytest
import torch

from otdml.costs import Bilinear
from otdml.ot._marginal import Marginal
from otdml.ot.engines import Dense, dense, small


def problem(batch=(), n=7, m=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(*batch, size, 3, generator=generator, dtype=torch.float64) for size in (n, m))
    a, b = (torch.rand(*batch, size, generator=generator, dtype=torch.float64) + 0.1 for size in (n, m))
    return Dense(Bilinear(q, k)), a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def iterations(engine, g, a, b, times):
    rows, columns = (w if isinstance(w, Marginal) else Marginal(w) for w in (a, b))
    found = engine.scaling_iterations(g, columns.weights, rows.scaling, columns.scaling, times)
    return found and (found.by_row, found.by_column)


@pytest.mark.parametrize("tiny", [0, 2**16], ids=["torch", "numpy"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_iterations_at_once_are_single_ones(batch, tiny, monkeypatch):
    monkeypatch.setattr(dense, "SMALL", tiny)
    engine, a, b = problem(batch)
    g = torch.zeros_like(b)
    engine.prepare(g)
    last, softmins = iterations(engine, g, a, b, 3)
    for softmin in softmins:
        f = engine.row_softmin(g + b.log())
        g = engine.column_softmin(f + a.log())
        torch.testing.assert_close(softmin, g, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, f, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tiny", [0, 2**16], ids=["torch", "numpy"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("hard", [(), (0,), (1,)], ids=["both", "columns", "rows"])
def test_iterations_at_once_with_penalties_are_single_ones(hard, batch, tiny, monkeypatch):
    monkeypatch.setattr(dense, "SMALL", tiny)
    engine, *weights = problem(batch)
    generator = torch.Generator().manual_seed(1)
    rows, columns = (
        Marginal(w, *(() if i in hard else (torch.randn(w.shape, generator=generator, dtype=w.dtype), rho)))
        for i, (w, rho) in enumerate(zip(weights, (0.7, 3.0), strict=True))
    )
    g = torch.zeros_like(columns.weights)
    engine.prepare(g)
    last, softmins = iterations(engine, g, rows, columns, 3)
    for softmin in softmins:
        by_row = engine.row_softmin(g + columns.log)
        by_column = engine.column_softmin(rows.update(by_row) + rows.log)
        torch.testing.assert_close(softmin, by_column, rtol=1e-12, atol=1e-12)
        g = columns.update(by_column)
    torch.testing.assert_close(last, by_row, rtol=1e-12, atol=1e-12)


def test_points_without_weight_have_potentials():
    engine, a, b = problem()
    a[2] = b[3] = 0.0
    engine.prepare(torch.zeros_like(b))
    f, softmins = iterations(engine, torch.zeros_like(b), a, b, 4)
    assert f.isfinite().all()
    assert softmins.isfinite().all()


def test_what_is_lost_is_not_hidden():
    """A column that no row reaches any more is infinite, as it is in single iterations, and nothing warns."""
    engine, a, b = problem()
    engine.prepare(torch.zeros_like(b))
    engine.kernel[:, 4] = 0.0
    _, softmins = iterations(engine, torch.zeros_like(b), a, b, 1)
    assert softmins[0, 4] == torch.inf


def test_without_a_kernel_there_are_none():
    engine, a, b = problem()
    assert iterations(engine, torch.zeros_like(b), a, b, 2) is None


def far_from(engine, b, by):
    """A column potential that far from the centre, with its row potential."""
    g = engine.g + by * torch.linspace(-1, 1, len(b), dtype=b.dtype)
    return engine.row_softmin(g + b.log()), g


def test_a_kernel_that_is_centred_anew_still_makes_several_iterations_at_once():
    # Costs of 1e4 temperatures, most of whose entries are set to zero: another centre needs another kernel.
    engine, a, b = problem()
    engine = Dense(engine.cost.scaled(1e4))
    engine.prepare(torch.zeros_like(b))
    f, g = far_from(engine, b, 1e3)
    assert engine.refresh(f, g)
    _, softmins = iterations(engine, g, a, b, 2)
    other = Dense(engine.cost)
    expected = super(Dense, other).row_softmin(g + b.log())
    torch.testing.assert_close(softmins[0], super(Dense, other).column_softmin(expected + a.log()))


def test_a_kernel_that_stays_where_potentials_are_far_makes_them_one_by_one():
    # Nothing was set to zero, so the kernel is right wherever potentials go, but their exponentials would overflow.
    engine, a, b = problem()
    engine.prepare(torch.zeros_like(b))
    f, g = far_from(engine, b, 100.0)
    assert engine.refresh(f, g)
    assert engine.has_kernel
    assert iterations(engine, g, a, b, 2) is None
    plain = Dense(engine.cost)
    torch.testing.assert_close(engine.row_softmin(g + b.log()), super(Dense, plain).row_softmin(g + b.log()))


def test_with_penalties_they_are_made_one_by_one_where_a_kernel_was_centred_anew():
    engine, a, b = problem()
    engine = Dense(engine.cost.scaled(1e4))
    engine.prepare(torch.zeros_like(b))
    f, g = far_from(engine, b, 1e3)
    assert engine.refresh(f, g)
    assert iterations(engine, g, Marginal(a, rho=1.0), Marginal(b), 2) is None


def settled(tol, times=100, g=0.0):
    engine, a, b = problem(n=30, m=40)
    start = torch.full_like(b, g)
    engine.prepare(torch.zeros_like(b))
    rows, columns = Marginal(a), Marginal(b)
    return rows, columns, start, engine.scaling_iterations(start, b, rows.scaling, columns.scaling, times, tol)


def test_small_problems_stop_at_a_look_within_the_tolerance():
    _, columns, start, found = settled(1e-6)
    assert found.settled
    assert len(found.by_column) < 100
    assert len(found.by_column) % small.LOOK == 0
    # Their errors are those of the potentials that they started from.
    old = torch.cat((start[None], found.by_column[:-1]))
    torch.testing.assert_close(found.errors, columns.error(old, found.by_column))
    assert float(found.errors[-1]) <= 1e-6 < float(found.errors[0])


def test_nothing_is_settled_above_the_tolerance_or_far_from_the_centre():
    *_, found = settled(1e-12, times=dense.FIRST + 1)
    assert not found.settled
    assert len(found.by_column) <= dense.FIRST + 1
    # There a constant is in the potentials that takes them to where the kernel has lost entries.
    *_, found = settled(1e-6, g=2 * dense.DRIFT)
    assert float(found.errors[-1]) <= 1e-6
    assert not found.settled
