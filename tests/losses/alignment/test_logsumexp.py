import pytest
import torch

from otdml.losses.alignment.logsumexp import (
    logsumexp,
    mutual_logsumexp,
    row_slices,
    safe_shift,
    symmetric_logsumexp,
    weighted_logsumexp,
)
from otdml.ot.engines import base

DOUBLE = torch.float64


def problem(n=7, m=5, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y, h = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((n, d), (m, d), (m,)))
    return [t.requires_grad_() for t in (x, y, h)]


def forbid(scores, rows, columns):
    """Pair (i, i) for i < 5."""
    for i in range(rows.start, min(rows.stop, 5)):
        scores[i - rows.start, i] = -torch.inf


@pytest.fixture(params=[1, 10, 2**19], ids=["one row a block", "two rows a block", "one block"])
def block(request, monkeypatch):
    monkeypatch.setitem(base.BLOCK, "cpu", request.param)


@pytest.mark.parametrize("edit", [None, forbid])
@pytest.mark.usefixtures("block")
def test_streamed_is_torch(edit):
    x, y, h = problem()
    scores = x @ y.mT + h
    if edit is not None:
        allowed = torch.ones(7, 5, dtype=torch.bool).fill_diagonal_(False)
        scores = scores.where(allowed, torch.tensor(-torch.inf, dtype=torch.float64))
    expected = scores.logsumexp(1)
    factors = torch.arange(1.0, 8.0, dtype=torch.float64)
    wanted = torch.autograd.grad((factors * expected).sum(), (x, y, h))
    for backend in ("streamed", "dense"):
        actual = logsumexp(x, y, h, edit, backend=backend)
        torch.testing.assert_close(actual, expected)
        found = torch.autograd.grad((factors * actual).sum(), (x, y, h))
        torch.testing.assert_close(found, wanted)
        total = weighted_logsumexp(x, y, h, factors, edit, backend=backend)
        torch.testing.assert_close(total, (factors * expected).sum())
        torch.testing.assert_close(torch.autograd.grad(3 * total, (x, y, h)), tuple(3 * g for g in wanted))


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_row_without_pairs_is_the_least_number_and_has_no_gradient(backend):
    x, y, h = problem()

    def forbid_first(scores, rows, columns):
        if rows.start == 0:
            scores[0] = -torch.inf

    value = logsumexp(x, y, h, forbid_first, backend=backend)
    assert value[0] == torch.finfo(torch.float64).min
    gradients = torch.autograd.grad(value[1:].sum() + 0 * value[0], (x, y, h))
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][0] == 0).all()
    rest = torch.tensor([0.0, 1, 1, 1, 1, 1, 1], dtype=torch.float64)
    total = weighted_logsumexp(x, y, h, rest, forbid_first, backend=backend)
    torch.testing.assert_close(total, value[1:].sum())
    torch.testing.assert_close(torch.autograd.grad(total, (x, y, h)), gradients)
    # Every other row hands out a mass of one.
    torch.testing.assert_close(gradients[2].sum(), torch.tensor(6.0, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_column_of_no_mass(backend):
    x, y, h = problem()
    h = h.detach().clone()
    h[2] = -torch.inf
    value = logsumexp(x, y, h, backend=backend)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(value, logsumexp(x, y[kept], h[kept], backend="dense"))
    (dy,) = torch.autograd.grad(value.sum(), y)
    assert dy.isfinite().all()
    assert (dy[2] == 0).all()


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_large_logits_neither_overflow_nor_vanish(backend):
    x = torch.tensor([[1.0], [-1.0]])
    value = logsumexp(1000 * x, x, torch.zeros(2), backend=backend)
    torch.testing.assert_close(value, torch.tensor([1000.0, 1000.0]))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (3, 2**20), (5000, 1000)])
def test_slices_cover_the_rows_once(n, m):
    slices = list(row_slices(n, m, torch.device("cpu")))
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(n))
    assert all((s.stop - s.start) * m <= max(m, 2**19) for s in slices)


def draw(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=generator, dtype=DOUBLE) for s in shapes]


def allowed(n, m):
    """All pairs but those of numbers with the sum 3, and of a number with itself."""
    i, j = torch.arange(n)[:, None], torch.arange(m)
    return (i + j != 3) & (i != j)


def edit(scores, rows, columns):
    scores.masked_fill_(~allowed(8, 8)[rows, columns], -torch.inf)


def weighted(scores, h, w):
    return (w * (scores + h).logsumexp(1)).sum()


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.usefixtures("block")
def test_mutual_is_torch(edited):
    x, y, g, h, w, v = draw((7, 3), (5, 3), (7,), (5,), (7,), (5,))
    h[2] = -torch.inf
    x, y = x.requires_grad_(), y.requires_grad_()
    scores = x @ y.mT
    scores = scores.masked_fill(~allowed(7, 5), -torch.inf) if edited else scores
    expected = weighted(scores, h, w) + weighted(scores.mT, g, v)
    actual = mutual_logsumexp(x, y, (g, h), (w, v), edit if edited else None, bound=9.0)
    torch.testing.assert_close(actual, expected)
    found = torch.autograd.grad(3 * actual, (x, y))
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected, (x, y)))


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.usefixtures("block")
def test_symmetric_is_torch(edited):
    x, h, w = draw((7, 3), (7,), (7,))
    h[2] = -torch.inf
    x = x.requires_grad_()
    scores = x @ x.mT
    scores = scores.masked_fill(~allowed(7, 7), -torch.inf) if edited else scores
    expected = weighted(scores, h, w)
    actual = symmetric_logsumexp(x, h, w, edit if edited else None, bound=9.0)
    torch.testing.assert_close(actual, expected)
    found = torch.autograd.grad(3 * actual, x)
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected, x))


def test_nothing_is_differentiated_where_nothing_is_asked():
    x, y, g, h, w, v = draw((7, 3), (5, 3), (7,), (5,), (7,), (5,))
    with torch.no_grad():
        assert not mutual_logsumexp(x, y, (g, h), (w, v), bound=9.0).requires_grad
        assert not symmetric_logsumexp(x, g, w, bound=9.0).requires_grad


def test_shift_is_the_largest_logit_if_none_vanishes_beside_it():
    h = torch.tensor([-5.0, 3.0, -torch.inf])
    assert safe_shift(10.0, torch.float32, None, h) == 13.0
    assert safe_shift(36.0, torch.float32, h) == 39.0
    # 2 * 36.5 + 8 > 80: the least of the exponentials would be no normal number.
    assert safe_shift(36.5, torch.float32, h) is None
    assert safe_shift(36.5, torch.float64, h) == 39.5
    assert safe_shift(torch.nan, torch.float32) is None
