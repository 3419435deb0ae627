import pytest
import torch

from otdml.losses.alignment.logits import Logits, row_slices, safe_shift
from otdml.losses.alignment.pairs import Forbidden, Pairing
from otdml.ot.engines import base

DOUBLE = torch.float64
BACKENDS = ["dense", "streamed", "auto"]


def draw(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=generator, dtype=DOUBLE) for s in shapes]


def problem(n=7, m=5, d=3):
    return [t.requires_grad_() for t in draw((n, d), (m, d), (m,))]


@pytest.fixture(params=[1, 10, 2**19], ids=["one row a block", "two rows a block", "one block"])
def block(request, monkeypatch):
    monkeypatch.setitem(base.BLOCK, "cpu", request.param)


def allowed(n, m):
    """All pairs but those of one instance, numbers with the sum 3, and of an anchor with itself."""
    i, j = torch.arange(n)[:, None], torch.arange(m)
    return (i + j != 3) & (i % m != j)


def forbidden(n, m):
    """The same: what an anchor is itself, and instances of which none is a positive."""
    rows, columns = torch.arange(n), torch.arange(m)
    ids = torch.where(rows <= 3, 3 - rows, -1), torch.where(columns <= 3, columns, -2)
    return Forbidden(Pairing(n, m, rows % m, rows % m), ids, lambda r, c: torch.zeros(1, 1))


def masked(scores):
    return scores.masked_fill(~allowed(*scores.shape), -torch.inf)


def total(scores, h, w):
    return (w * (scores + h).logsumexp(1)).sum()


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("block")
def test_rows_are_torch(edited, backend):
    x, y, h = problem()
    logits = Logits(x, y, 1 / 9, forbidden(7, 5) if edited else None, backend=backend)
    scores = masked(x @ y.mT) if edited else x @ y.mT
    expected = (scores + h).logsumexp(1)
    factors = torch.arange(1.0, 8.0, dtype=DOUBLE)
    wanted = torch.autograd.grad((factors * expected).sum(), (x, y, h))
    actual = logits.logsumexp(h)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad((factors * actual).sum(), (x, y, h), retain_graph=True), wanted)
    value = logits.weighted_logsumexp(factors, h)
    torch.testing.assert_close(value, (factors * expected).sum())
    torch.testing.assert_close(torch.autograd.grad(3 * value, (x, y, h)), tuple(3 * g for g in wanted))
    torch.testing.assert_close(logits.logsumexp(), scores.logsumexp(1))
    torch.testing.assert_close(logits.log_mass(), scores.exp().sum().log())
    torch.testing.assert_close(logits.weighted_logsumexp(factors), (factors * scores.logsumexp(1)).sum())


def test_a_part_of_the_gradient():
    x, y, h = problem()
    value = Logits(x.detach(), y, 1 / 9, backend="streamed").logsumexp(h.detach())
    (dy,) = torch.autograd.grad(value.sum(), y)
    torch.testing.assert_close(dy, (x @ y.mT + h).softmax(1).mT @ x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_without_pairs_is_the_least_number_and_has_no_gradient(backend):
    x, y, h = problem()
    ids = torch.tensor([1, 0, 0, 0, 0, 0, 0]), torch.ones(5, dtype=torch.long)
    none_for_first = Forbidden(Pairing(7, 5, ids[0]), ids, lambda rows, columns: torch.zeros(1, 1))
    logits = Logits(x, y, 1 / 9, none_for_first, backend=backend)
    value = logits.logsumexp(h)
    assert value[0] == torch.finfo(DOUBLE).min
    gradients = torch.autograd.grad(value[1:].sum() + 0 * value[0], (x, y, h), retain_graph=True)
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][0] == 0).all()
    rest = torch.tensor([0.0, 1, 1, 1, 1, 1, 1], dtype=DOUBLE)
    found = logits.weighted_logsumexp(rest, h)
    torch.testing.assert_close(found, value[1:].sum())
    torch.testing.assert_close(torch.autograd.grad(found, (x, y, h)), gradients)
    # Every other row hands out a mass of one.
    torch.testing.assert_close(gradients[2].sum(), torch.tensor(6.0, dtype=DOUBLE))


@pytest.mark.parametrize("backend", BACKENDS)
def test_column_of_no_mass(backend):
    x, y, h = problem()
    h = h.detach().clone()
    h[2] = -torch.inf
    value = Logits(x, y, 1 / 9, backend=backend).logsumexp(h)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(value, Logits(x, y[kept], 1 / 9, backend="dense").logsumexp(h[kept]))
    (dy,) = torch.autograd.grad(value.sum(), y)
    assert dy.isfinite().all()
    assert (dy[2] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_neither_overflow_nor_vanish(backend):
    x = torch.tensor([[1.0], [-1.0]])
    logits = Logits(1000 * x, x, 1e-3, backend=backend)
    torch.testing.assert_close(logits.logsumexp(), torch.tensor([1000.0, 1000.0]))
    torch.testing.assert_close(logits.weighted_logsumexp(torch.tensor([1.0, 2.0])), torch.tensor(3000.0))
    assert logits.mutual_logsumexp((torch.ones(2), torch.ones(2))) is None


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (3, 2**20), (5000, 1000)])
def test_slices_cover_the_rows_once(n, m):
    slices = list(row_slices(n, m, torch.device("cpu")))
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(n))
    assert all((s.stop - s.start) * m <= max(m, 2**19) for s in slices)


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.usefixtures("block")
def test_mutual_is_torch(edited):
    x, y, g, h, w, v = draw((7, 3), (5, 3), (7,), (5,), (7,), (5,))
    h[2] = -torch.inf
    x, y = x.requires_grad_(), y.requires_grad_()
    scores = masked(x @ y.mT) if edited else x @ y.mT
    expected = total(scores, h, w) + total(scores.mT, g, v)
    actual = Logits(x, y, 1 / 9, forbidden(7, 5) if edited else None).mutual_logsumexp((w, v), (g, h))
    torch.testing.assert_close(actual, expected)
    found = torch.autograd.grad(3 * actual, (x, y))
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected, (x, y)))


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.usefixtures("block")
def test_symmetric_is_torch(edited):
    x, h, w = draw((7, 3), (7,), (7,))
    h[2] = -torch.inf
    x = x.requires_grad_()
    scores = masked(x @ x.mT) if edited else x @ x.mT
    expected = total(scores, h, w)
    actual = Logits(x, x, 1 / 9, forbidden(7, 7) if edited else None, symmetric=True).weighted_logsumexp(w, h)
    torch.testing.assert_close(actual, expected)
    found = torch.autograd.grad(3 * actual, x)
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected, x))


def test_nothing_is_differentiated_where_nothing_is_asked():
    x, y, g, h, w, v = draw((7, 3), (5, 3), (7,), (5,), (7,), (5,))
    x.requires_grad_()
    with torch.no_grad():
        assert not Logits(x, y, 1 / 9).mutual_logsumexp((w, v), (g, h)).requires_grad
        assert not Logits(x, x, 1 / 9, symmetric=True).weighted_logsumexp(w, g).requires_grad


def test_shift_is_the_largest_logit_if_none_vanishes_beside_it():
    h = torch.tensor([-5.0, 3.0, -torch.inf])
    assert safe_shift(10.0, torch.float32, None, h) == 13.0
    assert safe_shift(36.0, torch.float32, h) == 39.0
    # 2 * 36.5 + 8 > 80: the least of the exponentials would be no normal number.
    assert safe_shift(36.5, torch.float32, h) is None
    assert safe_shift(36.5, torch.float64, h) == 39.5
    assert safe_shift(torch.nan, torch.float32) is None
