"""The kept term of a fixed second measure, in the losses that have one: it is never that of another measure."""

import copy
import pickle

import pytest
import torch

from otdml.costs import cost_matrix
from otdml.losses import MMD, ScaledCost, SinkhornDivergence
from otdml.losses._kept import Kept

LOSSES = {
    "sinkhorn_divergence": lambda **more: SinkhornDivergence(eps=1.0, tol=1e-9, **more),
    "mmd": lambda **more: MMD(kernel="laplacian", bandwidth=[0.5, 2.0], **more),
}


@pytest.fixture(params=LOSSES)
def pair(request):
    """A loss that keeps the term, and the same loss that does not."""
    return LOSSES[request.param](cache_second=True), LOSSES[request.param]()


@pytest.fixture
def measures(generator):
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (7, 5))
    a, b = (torch.rand(n, generator=generator, dtype=torch.float64) + 0.5 for n in (7, 5))
    return x, y, a / a.sum(), b / b.sum()


def test_value_and_gradient_are_those_without(pair, measures):
    x, *rest = measures
    x = x.requires_grad_()
    for _ in range(2):
        values = [loss(x, *rest) for loss in pair]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in values))


def test_term_is_kept_until_the_measure_changes(pair, measures):
    cached, plain = pair
    x, y, a, b = measures
    cached(x, y, a, b)
    kept = cached._kept._value
    cached(x + 1, y, None, b)
    assert cached._kept._value is kept
    y.mul_(2)
    torch.testing.assert_close(cached(x, y, a, b), plain(x, y, a, b))
    assert cached._kept._value is not kept
    b.copy_(b.flip(0))
    torch.testing.assert_close(cached(x, y, a, b), plain(x, y, a, b))
    torch.testing.assert_close(cached(x, y, a), plain(x, y, a))
    torch.testing.assert_close(cached(x, y[:3], a), plain(x, y[:3], a))
    torch.testing.assert_close(cached(x, y.clone(), a, b.clone()), plain(x, y, a, b))


def test_term_of_a_measure_that_is_gone_is_not_used(pair, measures):
    # A new tensor may have the address, and so the identity number, of one that is gone.
    cached, plain = pair
    x, y, *_ = measures
    for shift in range(20):
        torch.testing.assert_close(cached(x, y + shift), plain(x, y + shift))


def test_term_follows_the_options(measures):
    x, y, a, b = measures
    loss = SinkhornDivergence(eps=1.0, cache_second=True)
    loss(x, y, a, b)
    loss.eps = 0.5
    torch.testing.assert_close(loss(x, y, a, b), SinkhornDivergence(eps=0.5)(x, y, a, b))
    kernel = MMD(bandwidth=1.0, cache_second=True)
    kernel(x, y)
    kernel.bandwidth = 3.0
    torch.testing.assert_close(kernel(x, y), MMD(bandwidth=3.0)(x, y))


def test_learnt_second_measure_is_not_kept(pair, measures):
    x, y, _, b = measures
    for learnt in (y, b):
        learnt.requires_grad_()
        for _ in range(2):
            gradients = [torch.autograd.grad(loss(x, y, None, b), learnt)[0] for loss in pair]
            torch.testing.assert_close(*gradients)
        learnt.requires_grad_(False)


def test_learnt_cost_is_not_kept(measures):
    x, y, *_ = measures
    loss = SinkhornDivergence(cost=ScaledCost("sqeuclidean", 2.0).double(), eps=1.0, cache_second=True)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
        scale = float(loss.cost.scale.detach())
        expected = SinkhornDivergence(cost=lambda x, y, s=scale: s * cost_matrix(x, y), eps=1.0)
        with torch.no_grad():
            torch.testing.assert_close(loss(x, y), expected(x, y))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_cost_with_a_parameter_within_is_not_kept_where_no_gradient_is_wanted(measures, mode):
    # Not one of the loss: it shows in the gradient alone.
    x, y, *_ = measures
    scale = torch.ones((), dtype=x.dtype, requires_grad=True)
    cost = {"cost": lambda x, y: scale * cost_matrix(x, y), "eps": 1.0, "tol": 1e-9}
    cached, plain = SinkhornDivergence(**cost, cache_second=True), SinkhornDivergence(**cost)
    with mode():
        assert not cached(x, y).requires_grad
    torch.testing.assert_close(*(torch.autograd.grad(loss(x, y), scale)[0] for loss in (cached, plain)))
    with torch.no_grad():
        scale.mul_(2)
        torch.testing.assert_close(cached(x, y), plain(x, y))


def test_term_follows_the_buffers_of_a_cost(measures):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones((), dtype=torch.float64))

        def forward(self, x, y):
            return self.scale * cost_matrix(x, y)

    x, y, *_ = measures
    cost = Scaled()
    cached, plain = (SinkhornDivergence(cost=cost, eps=1.0, tol=1e-9, cache_second=kept) for kept in (True, False))
    for _ in range(2):
        torch.testing.assert_close(cached(x, y), plain(x, y))
        cost.scale.mul_(2)


def test_term_of_inference_mode(pair, measures):
    cached, plain = pair
    x, y, a, b = measures
    with torch.inference_mode():
        # Writes to tensors made here leave no trace.
        own = y.clone()
        torch.testing.assert_close(cached(x, own), plain(x, own))
        own.mul_(2)
        torch.testing.assert_close(cached(x, own), plain(x, own))
        cached(x, y, a, b)
    x = x.requires_grad_()
    torch.testing.assert_close(*(torch.autograd.grad(loss(x, y, a, b), x)[0] for loss in pair))


def test_copies_start_empty(pair, measures):
    cached, plain = pair
    x, y, *_ = measures
    cached(x, y)
    for twin in (pickle.loads(pickle.dumps(cached)), copy.deepcopy(cached)):
        assert twin._kept._value is None
        torch.testing.assert_close(twin(x, y), plain(x, y))


def test_no_term_is_kept_unasked(measures):
    x, y, *_ = measures
    for make in LOSSES.values():
        loss = make()
        loss(x, y)
        assert loss._kept._value is None


def test_a_value_with_a_gradient_is_not_kept():
    kept, w = Kept(), torch.ones((), requires_grad=True)
    for _ in range(2):
        value = kept(lambda: 2 * w, (torch.ones(1),), {})
        value.backward()
    assert w.grad == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (SinkhornDivergence, "`eps` must be a number where `cache_second` is on, got None"),
        (lambda **more: MMD(bandwidth="median", **more), "`bandwidth` must be a number or several where `cache_sec"),
    ],
)
def test_what_depends_on_the_first_measure_cannot_be_kept(make, message):
    with pytest.raises(ValueError, match=message):
        make(cache_second=True)


@pytest.mark.parametrize(
    "make", [lambda: SinkhornDivergence(eps=0.5, cache_second=True), lambda: MMD(cache_second=True)]
)
def test_a_measure_that_a_batch_shares_is_kept_as_it_is_given(make, monkeypatch):
    from otdml.losses import _mmd, sinkhorn

    calls = []
    for module, name in ((sinkhorn, "sinkhorn_self_term"), (_mmd, "mmd_self_term")):
        own = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda y, *rest, own=own, **more: calls.append(y.shape) or own(y, *rest, **more)
        )
    x, y, loss = torch.randn(3, 6, 2), torch.randn(5, 2), make()
    values = [loss(x, y) for _ in range(3)]
    assert calls == [(5, 2)]
    torch.testing.assert_close(values[2], torch.stack([make()(one, y) for one in x]), rtol=1e-3, atol=1e-4)
