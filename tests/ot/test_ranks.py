"""Soft ranks and soft top-k against sorting, ties, symmetry, and Sinkhorn between the same points."""

import pytest
import torch
from draws import drawn
from transforms import TRANSFORMS

from otdml.ot import sinkhorn, soft_rank, soft_topk
from otdml.ot._ranks import _sorted_potential, topk_logits

DOUBLE = torch.float64
pytestmark = TRANSFORMS


def ranks_of(x: torch.Tensor) -> torch.Tensor:
    return x.argsort(-1).argsort(-1).to(x.dtype) + 1


@pytest.mark.parametrize("n", [1, 2, 7, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_are_those_of_sorting_as_the_temperature_falls(n, dtype):
    # The gaps are a tenth at least.
    x = (torch.arange(n) / 10)[torch.randperm(n, generator=torch.Generator().manual_seed(0))].to(dtype).expand(2, n)
    found = soft_rank(x, eps=0.002)
    assert found.dtype == dtype
    torch.testing.assert_close(found, ranks_of(x), rtol=0, atol=1e-3)
    torch.testing.assert_close(soft_rank(x, eps=0.002, descending=True), n + 1 - ranks_of(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("eps", [1e-4, 0.1, 3.0])
def test_ties_share_the_mean_of_their_ranks(eps):
    x = torch.tensor([1.0, 0.0, 1.0, 1.0, 5.0, 0.0], dtype=DOUBLE)
    found = soft_rank(x, eps=eps, tol=1e-9)
    for group in ([0, 2, 3], [1, 5]):
        torch.testing.assert_close(found[group], found[group[:1]].expand(len(group)), rtol=1e-9, atol=1e-9)
    assert float(found.mean()) == pytest.approx(3.5, abs=1e-7)
    if eps == 1e-4:
        torch.testing.assert_close(found, torch.tensor([4.0, 1.5, 4.0, 4.0, 6.0, 1.5], dtype=DOUBLE))


def test_large_temperatures_give_all_the_middle_rank():
    torch.testing.assert_close(soft_rank(drawn(9), eps=1e6), torch.full((9,), 5.0, dtype=DOUBLE), rtol=0, atol=1e-3)


@pytest.mark.parametrize("eps", [0.05, 1.0])
def test_ranks_are_those_of_squared_costs_at_twice_the_temperature(eps):
    x, r = drawn(12), torch.arange(1.0, 13.0, dtype=DOUBLE)
    plan = sinkhorn(x[:, None], r[:, None], eps=2 * eps, tol=1e-10, max_iter=20_000).plan
    torch.testing.assert_close(soft_rank(x, eps=eps, tol=1e-10), 12 * plan @ r, rtol=1e-6, atol=1e-6)


def test_the_order_is_kept_and_shifts_do_not_matter():
    x = drawn(3, 40)
    found = soft_rank(x, eps=0.3, tol=1e-9)
    assert torch.equal(found.argsort(-1), x.argsort(-1))
    torch.testing.assert_close(soft_rank(x + 1000, eps=0.3, tol=1e-9), found, rtol=1e-6, atol=1e-6)
    for one, row in zip(x, found, strict=True):
        torch.testing.assert_close(soft_rank(one, eps=0.3, tol=1e-9), row, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eps", [0.3, 0.01])
def test_the_sorted_order_is_a_start_that_saves_iterations(eps):
    x, r = drawn(300), torch.arange(1.0, 301.0, dtype=DOUBLE)
    options = {"cost": "inner", "eps": eps, "tol": 1e-3}
    near = sinkhorn(x[:, None], r[:, None], init=(None, _sorted_potential(x)), **options)
    far = sinkhorn(x[:, None], r[:, None], **options)
    assert near.converged
    assert near.n_iter <= far.n_iter / 3


@pytest.mark.parametrize("backend", ["dense", "streamed"])
def test_gradients_of_ranks_are_finite_differences(backend):
    x = drawn(2, 6).requires_grad_()
    for descending in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, d=descending: soft_rank(x, eps=0.5, descending=d, tol=1e-11, backend=backend), x
        )
    (gradient,) = torch.autograd.grad(soft_rank(x, eps=0.5, backend="streamed")[0, 0], x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(gradient.sum(), x)


def test_ranks_under_transforms():
    x = drawn(3, 6)

    def value(x):
        return (soft_rank(x, eps=0.5, tol=1e-10) * torch.linspace(-1, 1, 6, dtype=DOUBLE)).sum(-1)

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf).sum(), leaf)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(value))(x), expected)
    torch.testing.assert_close(torch.func.vmap(value)(x), value(x))
    with pytest.raises(NotImplementedError, match="have no forward-mode derivatives"):
        torch.func.jvp(value, (x,), (x,))


def test_spearman_correlation_as_a_loss():
    # Ranks of a nonlinear increasing function are those of its argument: the loss of ranks is zero, that of values not.
    x = drawn(20)
    difference = soft_rank(x, eps=1e-4) - soft_rank(x.exp(), eps=1e-4)
    assert difference.abs().max() < 1e-2


# ---- the k largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 3, 9, 10])
def test_topk_is_the_indicator_as_the_temperature_falls(k, dtype):
    x = drawn(4, 10).to(dtype)
    found = soft_topk(x, k, eps=1e-5)
    assert found.dtype == dtype
    expected = torch.zeros_like(x).scatter_(-1, x.topk(k).indices, 1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-8, 1e-3, 0.3, 100.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_topk_sums_to_k(eps, scale):
    x = scale * drawn(5, 11)
    torch.testing.assert_close(soft_topk(x, 4, eps=eps).sum(-1), torch.full((5,), 4.0, dtype=DOUBLE))
    if eps > 0.1 * scale:
        torch.testing.assert_close(soft_topk(x, 4, eps=eps).logit().diff() * eps, x.diff(), rtol=1e-3, atol=1e-6 * eps)


def test_what_ties_across_the_border_shares():
    found = soft_topk(torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]), 3, eps=1e-3)
    torch.testing.assert_close(found, torch.tensor([1.0, 2 / 3, 2 / 3, 2 / 3, 0.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(soft_topk(torch.full((5,), 7.0), 2, eps=0.1), torch.full((5,), 0.4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [-1e6, 1e6, -1e30, 1e30])
def test_scores_far_from_the_border_leave_it_its_digits(far, dtype):
    near, k = torch.tensor([0.0, 1e-3, 2e-3], dtype=dtype), 1 if far < 0 else 2
    expected = soft_topk(near, 1, eps=5e-4)
    found = soft_topk(torch.cat([near.new_tensor([far]), near]), k, eps=5e-4)
    torch.testing.assert_close(found[1:], expected)
    assert float(found.sum()) == pytest.approx(k, rel=1e-6)
    shifted = soft_topk(torch.tensor([0.0, 1.0, 2.0], dtype=dtype) + 2.0**20, 1, eps=0.5)
    torch.testing.assert_close(shifted, soft_topk(torch.tensor([0.0, 1.0, 2.0], dtype=dtype), 1, eps=0.5))


@pytest.mark.parametrize("gap", [30.0, 300.0, 1e20])
def test_the_threshold_is_the_middle_of_a_wide_gap(gap):
    # Seen by nothing but logits and their derivatives, which say how far a score is from being chosen.
    x = torch.tensor([-gap, 0.0], requires_grad=True)
    logits = topk_logits(x, 1, 1.0)
    torch.testing.assert_close(logits.detach(), torch.tensor([-gap / 2, gap / 2]))
    torch.testing.assert_close(torch.autograd.grad(logits[0], x)[0], torch.tensor([0.5, -0.5]))


@pytest.mark.parametrize("eps", [0.1, 2.0])
def test_topk_is_transport_to_two_targets(eps):
    x, k = drawn(9), 4
    b = torch.tensor([5 / 9, 4 / 9], dtype=DOUBLE)
    targets = torch.tensor([[0.0], [1.0]], dtype=DOUBLE)
    result = sinkhorn(x[:, None], targets, None, b, cost="inner", eps=eps, tol=1e-12, max_iter=50_000)
    torch.testing.assert_close(soft_topk(x, k, eps=eps), 9 * result.plan[:, 1], rtol=1e-8, atol=1e-8)


def test_derivatives_of_topk_are_those_of_the_root():
    x = drawn(2, 6).requires_grad_()
    for k in (1, 4, 6):
        assert torch.autograd.gradcheck(lambda x, k=k: soft_topk(x, k, eps=0.4), x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x, k=k: soft_topk(x, k, eps=0.4), x)


def test_topk_under_transforms():
    x = drawn(3, 6)

    def value(x):
        return (soft_topk(x, 2, eps=0.4) * torch.linspace(-1, 1, 6, dtype=DOUBLE)).sum(-1)

    expected = torch.stack([torch.autograd.functional.hessian(value, row) for row in x])
    torch.testing.assert_close(torch.func.vmap(torch.func.hessian(value))(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(value)(x[0]), torch.func.jacrev(value)(x[0]))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_topk_compiles_in_one_graph():
    torch._dynamo.reset()
    x = drawn(3, 6).float()
    compiled = torch.compile(lambda x: soft_topk(x, 2, eps=0.4), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), soft_topk(x, 2, eps=0.4))


def test_gradients_vanish_and_stay_finite_where_all_is_decided():
    x = torch.tensor([5.0, 1.0, -3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_topk(x, 1, eps=1e-6)[0], x)
    assert torch.equal(gradient, torch.zeros(3))
    (gradient,) = torch.autograd.grad(soft_rank(x, eps=1e-6)[0], x)
    assert gradient.isfinite().all()


def test_minus_infinity_is_no_candidate():
    x = torch.tensor([[1.0, -torch.inf, 3.0, 2.0], [1.0, -torch.inf, -torch.inf, -torch.inf]], dtype=DOUBLE)
    x.requires_grad_()
    found = soft_topk(x, 2, eps=0.5)
    torch.testing.assert_close(found[0, [0, 2, 3]], soft_topk(x[0, [0, 2, 3]], 2, eps=0.5))
    torch.testing.assert_close(found[1], torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=DOUBLE))
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[x == -torch.inf] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    x = drawn(8).to(dtype)
    for function in (lambda x: soft_rank(x, eps=0.1), lambda x: soft_topk(x, 3, eps=0.1)):
        assert torch.equal(function(x), function(x.float()))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(function(x), function(x.float()))


def test_not_a_number_is_not_hidden():
    x = drawn(5)
    x[2] = torch.nan
    assert soft_topk(x, 2, eps=0.1).isnan().all()
    with pytest.raises(ValueError, match="finite"):
        soft_rank(x, eps=0.1)


def test_errors():
    x = drawn(5)
    with pytest.raises(ValueError, match=r"`x` must have shape \(..., n\) with n >= 1, got \(0,\)"):
        soft_rank(x[:0], eps=0.1)
    with pytest.raises(ValueError, match="`k` must be at most the number of scores, 5, got 6"):
        soft_topk(x, 6, eps=0.1)
    with pytest.raises(ValueError, match="`k` must be an integer >= 1"):
        soft_topk(x, 0, eps=0.1)
    for function in (lambda x, eps: soft_rank(x, eps=eps), lambda x, eps: soft_topk(x, 2, eps=eps)):
        with pytest.raises(ValueError, match="`eps` must be a positive number"):
            function(x, 0.0)
        with pytest.raises(TypeError, match=r"`x` must be a torch.Tensor, got list"):
            function([1.0, 2.0], 0.1)
        with pytest.raises(TypeError, match=r"`x` must be of floating point"):
            function(torch.arange(4), 0.1)
