import pytest
import torch

from otdml.losses.alignment import logsumexp as blocks
from otdml.losses.alignment.logsumexp import safe_shift
from otdml.losses.alignment.mutual import mutual_logsumexp, symmetric_logsumexp

DOUBLE = torch.float64


@pytest.fixture(params=[1, 10, 2**19], ids=["one row a block", "some rows a block", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK", request.param)


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
