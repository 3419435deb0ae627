import copy
import itertools
import math

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F

from otdml.losses import ContrastiveAlignment, DomainTarget, contrastive_alignment
from otdml.losses.alignment import logits as logits_module
from otdml.losses.alignment.options import Options
from otdml.losses.alignment.pairs import Pairing
from otdml.losses.alignment.problem import Alignment
from otdml.losses.alignment.target import target_plan

TIGHT = {"tol": 1e-11, "max_iter": 5000}
LABELS = torch.tensor([0, 0, 1, 1, 2, 0])
DOMAINS = torch.tensor([0, 0, 0, 1, 1, 1])
IDS = torch.tensor([0, 0, 1, 2, 3, 4])
EVERYTHING = slice(0, 6)
EYE = torch.eye(6, dtype=torch.float64)


def views(n=6, m=None, d=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(n, d, generator=generator, dtype=torch.float64)
    z2 = torch.randn(m or n, d, generator=generator, dtype=torch.float64)
    z2 = z2 if m else z1 + 0.7 * z2
    return [z.to(dtype).requires_grad_() for z in (z1, z2)]


def similarities(z1, z2, eps):
    return F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).mT / eps


def sinkhorn(S, a, b, iterations=3000):
    """Plain iterations in the log domain, differentiable."""
    g = torch.zeros_like(b)
    for _ in range(iterations):
        f = a.log() - (S + g).logsumexp(1)
        g = b.log() - (S + f[:, None]).logsumexp(0)
    return (S + f[:, None] + g).exp(), g


def close(actual, expected, tol=1e-8):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tol, atol=tol)


# 1. InfoNCE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1.0, 0.1])
def test_rows_is_cross_entropy(eps):
    z1, z2 = views()
    S = similarities(z1, z2, eps)
    value = contrastive_alignment(z1, z2, eps=eps)
    close(value, F.cross_entropy(S, torch.arange(6)))
    # A half-step on the rows: the plan that is compared has the row marginal alone.
    P = S.softmax(1) / 6
    close(value, -(EYE / 6 * (6 * P).log()).sum())


def test_two_way_is_the_mean_of_both():
    z1, z2 = views()
    S, i = similarities(z1, z2, 0.2), torch.arange(6)
    expected = (F.cross_entropy(S, i) + F.cross_entropy(S.mT, i)) / 2
    close(contrastive_alignment(z1, z2, eps=0.2, form="two-way"), expected)


def test_joint_is_cross_entropy_without_the_diagonal():
    z1, z2 = views()
    z = torch.cat([z1, z2])
    S = similarities(z, z, 0.2).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf)
    expected = F.cross_entropy(S, torch.arange(12).roll(6))
    close(contrastive_alignment(z1, z2, eps=0.2, form="joint"), expected)


# 2. The gradient without unrolling ----------------------------------------------------------------------------------


def test_gradient_of_balanced_is_plan_less_target():
    z1, z2 = views()
    eps, uniform = 0.2, torch.full((6,), 1 / 6, dtype=torch.float64)
    S = similarities(z1, z2, eps)
    P, _ = sinkhorn(S.detach(), uniform, uniform)
    wanted = torch.autograd.grad(S, (z1, z2), P - EYE / 6)
    found = torch.autograd.grad(contrastive_alignment(z1, z2, eps=eps, marginals="balanced", **TIGHT), (z1, z2))
    for actual, expected in zip(found, wanted, strict=True):
        close(actual, expected)


def test_value_and_gradient_of_balanced_are_those_of_unrolled_iterations():
    z1, z2 = views()
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    S = similarities(z1, z2, 0.3)
    _, g = sinkhorn(S, uniform, uniform, iterations=300)
    expected = F.cross_entropy(S + g, torch.arange(6))
    value = contrastive_alignment(z1, z2, eps=0.3, marginals="balanced", **TIGHT)
    close(value, expected)
    for pair in zip(*(torch.autograd.grad(v, (z1, z2)) for v in (value, expected)), strict=True):
        close(*pair)


GRID = [
    ("balanced", "rince", "one-way", None, None),
    ("balanced", "kl", "joint", LABELS, None),
    ("balanced", "kl+rince", "joint", None, IDS),
    ("balanced", "rince", "two-way", DomainTarget(DOMAINS, 0.3, 0.1), None),
    ("balanced", "kl", "one-way", "uneven", None),
    (0.7, "kl", "one-way", None, None),
    (0.7, "kl+rince", "joint", LABELS, IDS),
    ((None, 0.5), "kl", "two-way", "uneven", None),
    ((0.5, None), "rince", "one-way", LABELS, None),
    ("rows", "rince", "joint", DomainTarget(DOMAINS, 0.3, 0.1), IDS),
    ("rows", "kl+rince", "one-way", "sparse", None),
    ("rows", "kl", "two-way", LABELS, IDS),
    ("none", "kl", "joint", LABELS, None),
]


def named(target):
    uneven = torch.rand(6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.1
    return {"uneven": uneven, "sparse": (uneven * (uneven > 0.6)).to_sparse_coo()}[target]


@pytest.mark.parametrize(("marginals", "divergence", "form", "target", "ids"), GRID)
def test_gradient_is_that_of_finite_differences(marginals, divergence, form, target, ids):
    z1, z2 = views(d=2)
    target = named(target) if isinstance(target, str) else target
    eps = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def value(z1, z2, eps, backend="streamed"):
        options = {"marginals": marginals, "divergence": divergence, "form": form, "ids": ids, "lam": 0.1, **TIGHT}
        return contrastive_alignment(z1, z2, target, eps=eps, backend=backend, **options)

    assert torch.autograd.gradcheck(value, (z1, z2, eps), eps=1e-5, atol=1e-6, rtol=1e-4, fast_mode=True)
    # 11. Streamed and dense are one function.
    pair = [value(z1, z2, eps, backend) for backend in ("streamed", "dense")]
    close(*pair)
    for gradients in zip(*(torch.autograd.grad(v, (z1, z2, eps)) for v in pair), strict=True):
        close(*gradients)


# 3. Half-steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pairs", "labels", "uneven"])
def test_divergence_falls_with_every_half_step(form):
    """The plan with the target's own marginals is nearer to the target than all half-steps before it."""
    z1, z2 = views()
    target = {"pairs": None, "labels": LABELS, "uneven": named("uneven")}[form]
    S = similarities(z1, z2, 0.2).detach()
    plan = target_plan((target, target) if form == "labels" else target, Pairing.one_way(6, 6, S.device), S)
    T, a, b = plan.block(EVERYTHING, EVERYTHING), plan.rows, plan.columns
    last, values = (S.exp() / S.exp().sum()).log(), []
    for half in range(12):
        last = last + (a.log() - last.logsumexp(1))[:, None] if half % 2 == 0 else last + b.log() - last.logsumexp(0)
        values.append(-(T * last).sum())
    # The first half-step normalises from a plan of mass one, so all are divergences of plans of one mass.
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(values))
    value = contrastive_alignment(z1, z2, target, eps=0.2, marginals="balanced", **TIGHT)
    # Rows of the converged plan sum to a, which the conditional form leaves out.
    assert value + -(a * a.log()).sum() <= values[-1] + 1e-12
    assert value < contrastive_alignment(z1, z2, target, eps=0.2)


# 4. Penalties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "uneven"])
def test_penalty_goes_from_rows_to_balanced(target):
    z1, z2 = views()
    target = named(target) if target else None
    options = {"eps": 0.3, "tol": 1e-9}
    ends = [contrastive_alignment(z1, z2, target, marginals=m, **options) for m in ("rows", "balanced")]
    path = [contrastive_alignment(z1, z2, target, marginals=r, **options) for r in (1e-5, 0.1, 1.0, 10.0, 1e6)]
    close(path[0], ends[0], tol=1e-5)
    close(path[-1], ends[1], tol=1e-5)
    assert all(before > after for before, after in itertools.pairwise(path))


def problem_of(z1, z2, target, eps):
    x, y = F.normalize(z1, dim=1).detach(), F.normalize(z2, dim=1).detach()
    pairing = Pairing.one_way(len(x), len(y), x.device)
    return Alignment(x / eps, y, eps, pairing, target_plan(target, pairing, x), None)


def options(marginals, divergence="kl"):
    numbers = {"q": 0.5, "lam": 0.1, "weight": 1.0, "tol": 1e-11, "max_iter": 5000}
    choices = {"form": "one-way", "gather": False, "backend": "auto"}
    return Options(marginals=marginals, divergence=divergence, **numbers, **choices)


@pytest.mark.parametrize("rho", [0.3, 2.0, (0.5, 2.0)])
def test_plan_is_that_of_pot(rho):
    z1, z2 = views()
    problem = problem_of(z1, z2, named("uneven"), 0.3)
    a, b, S = problem.target.rows, problem.target.columns, problem.x @ problem.y.mT
    # Relative to a reference of ones, the divergence from the kernel is transport of the similarities plus entropy.
    ones = np.ones((6, 6))
    expected = ot.unbalanced.sinkhorn_unbalanced(
        a.numpy(), b.numpy(), -S.numpy(), 1.0, rho, reg_type="kl", c=ones, stopThr=1e-14, numItermax=20000
    )
    h = problem.potentials(options(rho))[1]
    # The row potential is the optimal one; what is left is one factor, as h has mean zero.
    conditional = (S + h).softmax(1)
    close(conditional, expected / expected.sum(1, keepdims=True), tol=1e-6)


# 5. RINCE -----------------------------------------------------------------------------------------------------------


def rince(S, T, q, lam):
    return (T * ((lam * S.exp().sum(1, keepdim=True)) ** q / q - (q * S).exp() / q)).sum()


@pytest.mark.parametrize("target", [None, "labels", "uneven", "sparse"])
def test_rince_is_its_definition(target):
    z1, z2 = views()
    target = LABELS if target == "labels" else named(target) if target else None
    S = similarities(z1, z2, 0.5)
    plan = target_plan((target, target) if target is LABELS else target, Pairing.one_way(6, 6, S.device), S)
    T = plan.block(EVERYTHING, EVERYTHING)
    for q, lam in ((0.5, 0.01), (1.0, 2.0), (0.1, 0.3)):
        expected = rince(S, T, q, lam)
        close(contrastive_alignment(z1, z2, target, divergence="rince", q=q, lam=lam), expected)
        nce = contrastive_alignment(z1, z2, target)
        both = contrastive_alignment(z1, z2, target, divergence="kl+rince", q=q, lam=lam, weight=0.25)
        close(both, nce + 0.25 * expected)


def test_rince_tends_to_infonce_plus_log_lam():
    z1, z2 = views()
    for target in (None, LABELS):
        nce = contrastive_alignment(z1, z2, target)
        close(contrastive_alignment(z1, z2, target, divergence="rince", q=1e-8, lam=0.2), nce + math.log(0.2), tol=1e-6)


def test_lam_changes_the_direction():
    z1, z2 = views()
    directions = []
    for lam in (0.01, 1.0):
        value = contrastive_alignment(z1, z2, divergence="rince", lam=lam)
        directions.append(F.normalize(torch.autograd.grad(value, z1)[0].flatten(), dim=0))
    assert directions[0] @ directions[1] < 0.99


def test_balanced_rince_is_rince_on_scaled_columns():
    z1, z2 = views()
    S = similarities(z1, z2, 0.5)
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    _, g = sinkhorn(S, uniform, uniform)
    expected = rince(S + g - g.mean(), EYE / 6, 0.5, 0.1)
    close(contrastive_alignment(z1, z2, marginals="balanced", divergence="rince", lam=0.1, **TIGHT), expected)


# 6. Order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["one-way", "two-way", "joint"])
@pytest.mark.parametrize("marginals", ["rows", "balanced", 0.5])
def test_order_and_views_are_immaterial(form, marginals):
    z1, z2 = views()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    options = {"form": form, "marginals": marginals, "divergence": "kl+rince", **TIGHT}
    for target, ids in ((None, IDS), (LABELS, None)):
        value = contrastive_alignment(z1, z2, target, ids=ids, **options)
        shuffled = contrastive_alignment(
            z1[order], z2[order], target if target is None else target[order], ids=ids if ids is None else ids[order],
            **options,
        )  # fmt: skip
        close(shuffled, value)
        if form != "one-way":
            close(contrastive_alignment(z2, z1, target, ids=ids, **options), value)


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_two_way_turns_a_matrix(layout):
    z1, z2 = views(6, 4)
    T = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = T if layout == "dense" else T.to_sparse_coo()
    ways = contrastive_alignment(z1, z2, T), contrastive_alignment(z2, z1, T.mT)
    close(contrastive_alignment(z1, z2, given, form="two-way"), sum(ways) / 2)


# 7. Columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.5, 0.05])
@pytest.mark.parametrize("name", [None, "labels", "uneven"])
def test_columns_of_the_plan_are_those_of_the_target(eps, name):
    z1, z2 = views()
    target = {None: None, "labels": (LABELS, LABELS), "uneven": named("uneven")}[name]
    problem = problem_of(z1, z2, target, eps)
    P = problem.target.rows[:, None] * (problem.x @ problem.y.mT + problem.potentials(options("balanced"))[1]).softmax(
        1
    )
    close(P.sum(0), problem.target.columns, tol=1e-9)


# 8. Temperatures and precisions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.5, 0.05, 0.005])
@pytest.mark.parametrize("marginals", ["rows", "balanced", 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_near_float64(eps, marginals, dtype):
    exact = [z.detach().to(dtype).double().requires_grad_() for z in views(16, d=8)]
    low = [z.detach().to(dtype).requires_grad_() for z in exact]
    # The gradient is resolved to tol / eps, which has to be less than the bound below.
    settings = {"eps": eps, "marginals": marginals, "max_iter": 20000, "tol": 2e-5}
    value, reference = contrastive_alignment(*low, **settings), contrastive_alignment(*exact, **settings)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), reference, rtol=1e-3, atol=1e-4)
    value.backward()
    reference.backward()
    for a, b in zip(low, exact, strict=True):
        assert a.grad.dtype == dtype
        # Rounding of the similarities shifts forces, which are up to 1 / eps, even where they balance.
        error = torch.linalg.vector_norm(a.grad.double() - b.grad) / (torch.linalg.vector_norm(b.grad) + 5e-3 / eps)
        assert error < {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("eps", [0.02, 0.005, 0.002])
@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0, (None, 1.0), (1.0, None)])
def test_penalties_at_low_temperature(eps, rho):
    """In single precision the masses of the points of such a plan overflow, and its derivative with them."""
    exact = [z.detach().float().double().requires_grad_() for z in views(32, d=8)]
    single = [z.detach().float().requires_grad_() for z in exact]
    values = [contrastive_alignment(*z, eps=eps, marginals=rho, tol=1e-6) for z in (single, exact)]
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-4, atol=1e-6 / eps)
    gradients = [torch.autograd.grad(v, z) for v, z in zip(values, (single, exact), strict=True)]
    for found, wanted in zip(*gradients, strict=True):
        # Rounding of a cosine by 1e-7 moves a similarity by 1e-7 / eps, and a force of at most 1 / eps by as much.
        assert (found - wanted).norm() < 1e-4 * wanted.norm() + 1e-6 / eps


def test_error_penalty_below_the_lowest_temperature():
    with pytest.raises(ValueError, match=r"`eps` must be at least 0.002 where `marginals` is a penalty, got 0.001"):
        contrastive_alignment(*views(), eps=0.001, marginals=1.0)


# At the last temperature each sample is a block of its own.
@pytest.mark.filterwarnings("ignore:The plan falls into blocks")
@pytest.mark.parametrize("eps", [0.5, 0.05, 0.01])
def test_rince_is_finite(eps):
    z1, z2 = views(dtype=torch.float32)
    value = contrastive_alignment(z1, z2, eps=eps, divergence="rince", marginals="balanced", max_iter=20000)
    value.backward()
    assert value.isfinite()
    assert z1.grad.isfinite().all()


# 9. Signs and the diagonal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marginals", ["rows", "balanced", 1.0, "none"])
@pytest.mark.parametrize("angle", [100.0, 170.0])
def test_positive_pair_beyond_a_right_angle_is_attracted(marginals, angle):
    t = math.radians(angle)
    z1 = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    z2 = torch.tensor([[math.cos(t), math.sin(t), 0.0], [0.0, 0.1, 1.0]], dtype=torch.float64, requires_grad=True)
    contrastive_alignment(z1, z2, marginals=marginals, **TIGHT).backward()
    # Descent turns the first anchor towards its pair, along +y.
    assert z1.grad[0, 1] < 0


def test_negatives_beyond_a_right_angle_are_repelled():
    z1 = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    contrastive_alignment(z1, z1.detach().clone()).backward()
    assert z1.grad[0, 1] > 0


@pytest.mark.parametrize("marginals", ["rows", "balanced"])
def test_diagonal_has_no_mass(marginals):
    """Four rows of one direction: the log of three others, whatever the similarity with itself."""
    z = torch.ones(2, 3, dtype=torch.float64)
    close(contrastive_alignment(z, z, eps=0.01, form="joint", marginals=marginals), math.log(3))


# 10. Labels ---------------------------------------------------------------------------------------------------------


def test_labels_are_supcon():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z1, z2 = views()
    both = torch.cat([z1, z2])
    expected = losses.SupConLoss(temperature=0.2)(both, LABELS.repeat(2))
    close(contrastive_alignment(z1, z2, LABELS, eps=0.2, form="joint"), expected)


def test_joint_is_ntxent():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z1, z2 = views()
    expected = losses.NTXentLoss(temperature=0.2)(torch.cat([z1, z2]), torch.arange(6).repeat(2))
    close(contrastive_alignment(z1, z2, eps=0.2, form="joint"), expected)


def test_any_target_is_soft_cross_entropy():
    z1, z2 = views()
    T = named("uneven")
    S = similarities(z1, z2, 0.5)
    close(contrastive_alignment(z1, z2, T), -(T * S.log_softmax(1)).sum() / T.sum())
    rows = T / T.sum(1, keepdim=True)
    close(contrastive_alignment(z1, z2, rows), F.cross_entropy(S, rows))


def test_forms_of_one_target_agree():
    z1, z2 = views()
    same = LABELS[:, None] == LABELS
    for settings in ({}, {"marginals": "balanced", "divergence": "rince", **TIGHT}):
        value = contrastive_alignment(z1, z2, LABELS, **settings)
        rows = same / same.sum(1, keepdim=True)
        for target in (same, same.to_sparse_coo(), rows, rows.to_sparse_coo(), (LABELS, LABELS)):
            close(contrastive_alignment(z1, z2, target, **settings), value)


def test_distinct_labels_are_pairs():
    z1, z2 = views()
    for form in ("one-way", "two-way", "joint"):
        value = contrastive_alignment(z1, z2, form=form)
        close(contrastive_alignment(z1, z2, torch.arange(6), form=form), value)
        close(contrastive_alignment(z1, z2, DomainTarget(DOMAINS), form=form), value)


def test_domains_move_the_plan():
    """With mass for pairs inside a domain the optimum keeps domains apart, with mass across it does not."""
    z1, z2 = views()
    S = similarities(z1, z2, 0.5)
    T = EYE + 0.4 * ((DOMAINS[:, None] == DOMAINS) & (EYE == 0))
    expected = F.cross_entropy(S, T / T.sum(1, keepdim=True))
    close(contrastive_alignment(z1, z2, DomainTarget(DOMAINS, alpha=0.4)), expected)


# Ids, duplicates, and small batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("marginals", ["rows", "balanced"])
def test_false_negatives_are_left_out(marginals):
    z1, z2 = views()
    S = similarities(z1, z2, 0.5).masked_fill((IDS[:, None] == IDS) & (EYE == 0), -torch.inf)
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    g = sinkhorn(S, uniform, uniform)[1] if marginals == "balanced" else 0.0
    expected = F.cross_entropy(S + g, torch.arange(6))
    close(contrastive_alignment(z1, z2, ids=IDS, marginals=marginals, **TIGHT), expected)


def test_duplicate_without_ids_is_a_negative_and_with_ids_is_not():
    z1, z2 = views()
    twice1, twice2 = torch.cat([z1, z1]), torch.cat([z2, z2])
    value = contrastive_alignment(z1, z2)
    close(contrastive_alignment(twice1, twice2), value + math.log(2))
    S = similarities(z1, z2, 0.5)
    without_copies = (2 * S.exp().sum(1) - S.diag().exp()).log() - S.diag()
    close(contrastive_alignment(twice1, twice2, ids=torch.arange(6).repeat(2)), without_copies.mean())


@pytest.mark.parametrize("form", ["one-way", "two-way", "joint"])
@pytest.mark.parametrize("marginals", ["rows", "balanced", 1.0])
def test_one_instance_many_times_leaves_nothing_to_contrast(form, marginals):
    z1, z2 = views()
    value = contrastive_alignment(z1, z2, ids=torch.zeros(6, dtype=torch.long), form=form, marginals=marginals)
    value.backward()
    close(value, 0.0)
    close(z1.grad, torch.zeros_like(z1))


def test_uniform_mass_is_the_uniformity_penalty_of_inverse_transport():
    """IOT-uni: the divergence of the plan from the pairs, plus p times that from the uniform plan."""
    z1, z2 = views()
    penalty, n = 0.3, 6
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    S = similarities(z1, z2, 0.5)
    log_plan = (S + sinkhorn(S, uniform, uniform)[1]).log_softmax(1)
    expected = -(log_plan.diagonal().mean() + penalty * log_plan.mean()) / (1 + penalty)
    domain = DomainTarget(torch.zeros(n, dtype=torch.long), alpha=penalty / (n + penalty))
    close(contrastive_alignment(z1, z2, domain, marginals="balanced", **TIGHT), expected)


@pytest.mark.parametrize("form", ["one-way", "two-way", "joint"])
def test_every_way_of_computing_is_the_same_at_real_sizes(form):
    """Few logits by torch's cross-entropy, many in blocks; with and without the bound of the similarities."""
    exact = [z.detach().requires_grad_() for z in views(700, d=16)]
    for eps in (0.2, 0.01):
        expected = contrastive_alignment(*exact, eps=eps, form=form, backend="dense")
        wanted = torch.autograd.grad(expected, exact)
        single = [z.detach().float().requires_grad_() for z in exact]
        value = contrastive_alignment(*single, eps=eps, form=form)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(torch.autograd.grad(value, single), wanted, strict=True):
            assert (a - b).norm() < 1e-4 * b.norm()


def second_derivative(function, z):
    (slope,) = torch.autograd.grad(function(z), z, create_graph=True)
    return torch.autograd.grad(slope.sum(), z)


def test_second_derivatives_exist_where_the_matrix_is_held_and_are_refused_elsewhere():
    z1, z2 = views(3, d=2)
    for form in ("one-way", "two-way", "joint"):
        held = lambda x, form=form: contrastive_alignment(x, z2.detach(), form=form, backend="dense")  # noqa: E731
        assert torch.autograd.gradgradcheck(held, z1, eps=1e-5, atol=1e-6)
    for settings in (
        {"backend": "streamed"},
        {"backend": "streamed", "form": "two-way"},
        {"backend": "streamed", "form": "joint"},
        {"backend": "streamed", "divergence": "rince"},
        {"backend": "dense", "marginals": "balanced"},
        {"backend": "dense", "marginals": 1.0},
    ):
        # An unbalanced plan is that of a solver, which refuses it as well.
        with pytest.raises(
            NotImplementedError, match=r"have no second|has second derivatives for `marginals`='rows' and"
        ):
            second_derivative(lambda z, settings=settings: contrastive_alignment(z, z2, **settings), z1)


@pytest.mark.parametrize("marginals", ["rows", "balanced", 1.0])
def test_batch_of_one_has_nothing_to_contrast(marginals):
    for form in ("one-way", "two-way", "joint"):
        z1, z2 = views(1)
        value = contrastive_alignment(z1, z2, form=form, marginals=marginals)
        value.backward()
        close(value, 0.0)
        close(z1.grad, torch.zeros_like(z1))


def test_all_positive_batch_is_pulled_together():
    z1, z2 = views()
    ones = torch.zeros(6, dtype=torch.long)
    value = contrastive_alignment(z1, z2, ones)
    close(value, -similarities(z1, z2, 0.5).log_softmax(1).mean())
    z = torch.ones(6, 2, dtype=torch.float64)
    close(contrastive_alignment(z, z, ones), math.log(6))


def test_anchor_without_positive_has_no_part():
    z1, z2 = views()
    mask = torch.eye(6, dtype=torch.bool)
    mask[2] = False
    S, kept = similarities(z1, z2, 0.5), [0, 1, 3, 4, 5]
    close(contrastive_alignment(z1, z2, mask), F.cross_entropy(S[kept], torch.tensor(kept)))
    # Under both marginals its candidate has no mass either.
    value = contrastive_alignment(z1, z2, mask, marginals="balanced", **TIGHT)
    close(value, contrastive_alignment(z1[kept], z2[kept], marginals="balanced", **TIGHT))
    value.backward()
    assert (z2.grad[2] == 0).all()
    assert z1.grad.isfinite().all()


def test_zero_vector_has_a_finite_gradient():
    z1, z2 = views()
    with torch.no_grad():
        z1[0] = 0
    contrastive_alignment(z1, z2).backward()
    assert z1.grad.isfinite().all()


def test_attraction_alone_is_the_squared_distance():
    z1, z2 = views()
    expected = (F.normalize(z1, dim=1) - F.normalize(z2, dim=1)).square().sum(1).mean()
    close(contrastive_alignment(z1, z2, eps=0.5, marginals="none"), expected)
    close(2 * 0.05 * contrastive_alignment(z1, z2, eps=0.05, marginals="none"), expected)


def test_similarities_of_large_batches_are_not_held():
    """Blocks of the right size are made, and no others."""
    sizes = []
    original = logits_module._blocks

    def spy(*args, **options):
        for rows, columns, scores in original(*args, **options):
            sizes.append(scores.numel())
            yield rows, columns, scores

    logits_module._blocks = spy
    try:
        z1, z2 = views(1500, dtype=torch.float32)
        contrastive_alignment(z1, z2).backward()
    finally:
        logits_module._blocks = original
    assert sum(sizes) == 1500**2
    assert max(sizes) <= 2**19


# The Module ---------------------------------------------------------------------------------------------------------


def test_learnable_temperature():
    z1, z2 = views(dtype=torch.float32)
    loss = ContrastiveAlignment(eps=0.3, learnable=True)
    close(loss(z1, z2), contrastive_alignment(z1, z2, eps=0.3).detach(), tol=1e-6)
    assert [name for name, _ in loss.named_parameters()] == ["log_eps"]
    loss(z1, z2).backward()
    with torch.no_grad():
        pair = [contrastive_alignment(z1.double(), z2.double(), eps=0.3 * math.exp(s)) for s in (1e-4, -1e-4)]
    close(loss.log_eps.grad.double(), (pair[0] - pair[1]) / 2e-4, tol=1e-4)
    again = copy.deepcopy(loss)
    again.load_state_dict(loss.state_dict())
    assert not list(ContrastiveAlignment().parameters())


def test_target_of_another_dtype_keeps_the_result_in_float32():
    z1, z2 = views(dtype=torch.float32)
    assert contrastive_alignment(z1, z2, named("uneven")).dtype == torch.float32


def test_repr():
    shown = repr(ContrastiveAlignment(marginals=1.0, divergence="kl+rince", form="joint", gather=True))
    assert shown == (
        "ContrastiveAlignment(eps=0.5, marginals=1.0, divergence='kl+rince', form='joint', q=0.5, lam=0.01, "
        "weight=1, gather=True)"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "`eps` must be a positive number, got 0.0"),
        ({"marginals": "columns"}, "`marginals` must be one of 'rows', 'balanced', 'none', got 'columns'"),
        ({"marginals": -1.0}, "`marginals` must be a positive number"),
        ({"marginals": (1.0, 2.0, 3.0)}, "`marginals` must be a number, a pair of numbers, or None"),
        ({"divergence": "js"}, "`divergence` must be one of 'kl', 'rince'"),
        ({"divergence": "rince", "marginals": "none"}, "`divergence` must be 'kl' where `marginals` is 'none'"),
        ({"q": 1.5}, r"`q` must lie in \(0, 1\]"),
        ({"lam": 0.0}, "`lam` must be a positive number"),
        ({"weight": -1.0}, "`weight` must be a number that is not negative"),
        ({"form": "both"}, "`form` must be one of 'one-way', 'two-way', 'joint'"),
        ({"divergence": "rince", "eps": 0.005}, "`q` must be at most 79 times `eps`, got 100 times"),
    ],
)
def test_error_options(settings, message):
    z1, z2 = views(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        contrastive_alignment(z1, z2, **settings)
    with pytest.raises(ValueError, match=message):
        ContrastiveAlignment(**settings)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            torch.zeros(4, dtype=torch.long),
            ValueError,
            r"`target` must have shape \(6,\), one label per row, got \(4,\)",
        ),
        (torch.zeros(6), TypeError, "`target` must be a tensor of integers"),
        (torch.ones(6, 5), ValueError, r"`target` must have shape \(6, 6\), got \(6, 5\)"),
        (torch.ones(6, 6, 1), ValueError, "`target` must be None, one label per row"),
        ("labels", TypeError, "`target` must be None, one label per row, .* got str"),
        ([0, 1], ValueError, r"`target` must have shape \(6,\), one label per row, got \(2,\)"),
        (DomainTarget(torch.tensor([0, 1])), ValueError, r"`target.domains` must have shape \(6,\)"),
    ],
)
def test_error_targets(target, error, message):
    with pytest.raises(error, match=message):
        contrastive_alignment(*views(), target)


def test_error_target_with_a_gradient():
    z1, z2 = views()
    target = torch.rand(len(z1), len(z2), generator=torch.Generator().manual_seed(0)).requires_grad_()
    for given in (target, 2 * target):
        with pytest.raises(ValueError, match=r"`target` must be a constant, .* pass `target.detach\(\)`"):
            contrastive_alignment(z1, z2, given)
    with torch.no_grad():
        torch.testing.assert_close(
            contrastive_alignment(z1, z2, target), contrastive_alignment(z1, z2, target.detach())
        )


def test_error_sizes():
    z1, z2 = views(6, 4)
    for settings in ({}, {"target": LABELS}, {"target": torch.ones(6, 4), "form": "joint"}):
        with pytest.raises(ValueError, match="`z2` must hold one row per row of `z1`, 6, got 4"):
            contrastive_alignment(z1, z2, **settings)
    with pytest.raises(ValueError, match="`z2` must have the features of `z1`, 4, got 3"):
        contrastive_alignment(z1, z1[:, :3])


def test_error_temperature_of_several_elements():
    with pytest.raises(ValueError, match="`eps` must be a number or a tensor of one element"):
        contrastive_alignment(*views(), eps=torch.ones(2))


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1)])
@pytest.mark.parametrize("settings", [{}, {"marginals": "none"}, {"divergence": "rince", "form": "two-way"}])
def test_dimensions_of_a_temperature_of_one_element_are_without_effect(settings, shape):
    z1, z2 = views()
    eps = torch.full(shape, 0.5, dtype=torch.float64, requires_grad=True)
    found = contrastive_alignment(z1, z2, eps=eps, **settings)
    close(found, contrastive_alignment(z1, z2, eps=0.5, **settings))
    assert found.shape == ()
    assert torch.autograd.grad(found, eps)[0].shape == shape


def test_error_temperature_that_is_not_positive():
    with pytest.raises(ValueError, match=r"`eps` must be positive, got -0\.1"):
        contrastive_alignment(*views(), eps=torch.tensor(-0.1, requires_grad=True))


def test_warns_if_not_converged():
    with pytest.warns(RuntimeWarning, match="Sinkhorn stopped at `max_iter`=1"):
        contrastive_alignment(*views(), eps=0.05, marginals="balanced", max_iter=1, tol=1e-9)


def test_transforms_in_the_temperature_are_refused_in_a_sentence():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match=r"contrastive_alignment has no transforms of torch.func"):
        torch.func.grad(lambda eps: contrastive_alignment(z, z.flip(0), eps=eps))(torch.tensor(0.5))
    with pytest.raises(RuntimeError, match="Pass a number as `eps`"):
        torch.func.grad(ContrastiveAlignment(learnable=True), argnums=0)(z, z.flip(0))


@pytest.mark.parametrize("backend", ["auto", "streamed"])
@pytest.mark.parametrize("divergence", ["kl", "rince"])
@pytest.mark.parametrize("marginals", ["rows", "balanced", 0.1, 1.0, (1.0, None), (None, 1.0)])
def test_an_anchor_without_positive_or_admissible_pair_is_absent(marginals, divergence, backend):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    target[2] = 0
    # The candidates are all of the instance of the third anchor.
    first, second = torch.tensor([0, 1, 7, 3, 4, 5]), torch.full((6,), 7)
    options = {"marginals": marginals, "divergence": divergence, "backend": backend, "eps": 0.3, "tol": 1e-10}
    kept = torch.arange(6) != 2
    z1.requires_grad_()
    found = contrastive_alignment(z1, z2, target, ids=(first, second), **options)
    right = contrastive_alignment(z1[kept], z2, target[kept], ids=(first[kept], second), **options)
    torch.testing.assert_close(found, right)
    slopes = (torch.autograd.grad(value, z1)[0] for value in (found, right))
    torch.testing.assert_close(next(slopes), next(slopes), rtol=1e-5, atol=1e-9)
