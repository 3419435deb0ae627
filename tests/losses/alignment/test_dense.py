"""Every combination of options beside a dense form that is differentiated through its iterations."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from otdml.losses import DomainTarget, contrastive_alignment

N = 5
LABELS = torch.tensor([0, 1, 0, 2, 1])
IDS = torch.tensor([3, 3, 1, 0, 3])
GENERATOR = torch.Generator().manual_seed(3)
UNEVEN = torch.rand(2 * N, 2 * N, generator=GENERATOR, dtype=torch.float64) + 0.1
SPARSE = UNEVEN * (UNEVEN > 0.5) + torch.eye(2 * N, dtype=torch.float64).roll(1, 0)

FORMS = ["one-way", "two-way", "joint"]
MARGINALS = ["rows", "balanced", 0.8, (None, 0.6), (0.6, None)]
DIVERGENCES = ["kl", "rince", "kl+rince"]
TARGETS = ["pairs", "labels", "domains", "matrix", "sparse", "mask"]
Q, LAM, WEIGHT = 0.4, 0.2, 0.7


def given(name, size):
    """The target as it is passed."""
    part = slice(0, size)
    return {
        "pairs": None,
        "labels": LABELS,
        "domains": DomainTarget(LABELS, 0.3, 0.2),
        "matrix": UNEVEN[part, part],
        "sparse": SPARSE[part, part].to_sparse_coo(),
        "mask": SPARSE[part, part] > 0,
    }[name]


def plan(name, size):
    """The target as a matrix of mass one."""
    copies = size // N
    labels = LABELS.repeat(copies)
    same, own = labels[:, None] == labels, torch.eye(N).repeat(copies, copies).bool()
    T = {
        "pairs": own,
        "labels": same,
        "domains": torch.where(own, 1.0, torch.where(same, 0.3, 0.2)),
        "matrix": UNEVEN[:size, :size],
        "sparse": SPARSE[:size, :size],
        "mask": SPARSE[:size, :size] > 0,
    }[name].double()
    if copies == 2:
        T = T.clone().fill_diagonal_(0)
    return T / T.sum() if name in ("matrix", "sparse") else T / T.sum(1, keepdim=True) / size


def column_potential(S, a, b, marginals, iterations=150):
    rho = (None, None) if marginals == "balanced" else marginals if isinstance(marginals, tuple) else (marginals,) * 2
    s, t = (1.0 if r is None else r / (1 + r) for r in rho)
    g = torch.zeros_like(b)
    for _ in range(iterations):
        f = s * (a.log() - (S + g).logsumexp(1))
        g = t * (b.log() - (S + f[:, None]).logsumexp(0))
    return g - (b * g).sum()


def dense(S, T, marginals, divergence):
    a, b = T.sum(1), T.sum(0)
    S = S if marginals == "rows" else S + column_potential(S, a, b, marginals)
    total, known = S.logsumexp(1), torch.where(T > 0, S, 0.0)
    kl = (a * total).sum() - (T * known).sum()
    robust = (a * (LAM * total.exp()) ** Q).sum() / Q - (T * (Q * known).exp()).sum() / Q
    return {"kl": kl, "rince": robust, "kl+rince": kl + WEIGHT * robust}[divergence]


def expected(z1, z2, eps, name, ids, form, marginals, divergence):
    if form == "joint":
        z1 = z2 = torch.cat([z1, z2])
    S, T = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).mT / eps, plan(name, len(z1))
    if ids is not None:
        ids = ids.repeat(len(z1) // N)
        S = S.masked_fill((ids[:, None] == ids) & (T == 0), -torch.inf)
    if form == "joint":
        S = S.masked_fill(torch.eye(len(z1), dtype=torch.bool), -torch.inf)
    value = dense(S, T, marginals, divergence)
    if form == "two-way":
        turned = T.mT
        if name in ("labels", "domains", "mask"):
            # Not the plan is turned but what it was made of, so that anchors have equal mass the other way, too.
            raw = (T.mT > 0).double() if name == "mask" else T
            turned = raw / raw.sum(1, keepdim=True) / N
        value = (value + dense(S.mT, turned, marginals, divergence)) / 2
    return value


CASES = [
    (*options, TARGETS[number % len(TARGETS)], IDS if number % 5 < 2 else None)
    for number, options in enumerate(itertools.product(FORMS, MARGINALS, DIVERGENCES))
] + [(form, "rows", "kl", target, None) for form in FORMS for target in TARGETS]


@pytest.mark.parametrize("backend", ["auto", "streamed", "dense"])
@pytest.mark.parametrize(("form", "marginals", "divergence", "target", "ids"), CASES)
def test_value_and_gradients_are_those_of_the_dense_form(form, marginals, divergence, target, ids, backend):
    generator = torch.Generator().manual_seed(7)
    z1 = torch.randn(N, 3, generator=generator, dtype=torch.float64).requires_grad_()
    z2 = torch.randn(N, 3, generator=generator, dtype=torch.float64).requires_grad_()
    eps = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    options = {"q": Q, "lam": LAM, "weight": WEIGHT, "tol": 1e-13, "max_iter": 3000}
    actual = contrastive_alignment(
        z1, z2, given(target, 2 * N if form == "joint" else N), eps=eps, ids=ids, form=form,
        marginals=marginals, divergence=divergence, backend=backend, **options,
    )  # fmt: skip
    wanted = expected(z1, z2, eps, target, ids, form, marginals, divergence)
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)
    found = torch.autograd.grad(actual, (z1, z2, eps))
    torch.testing.assert_close(found, torch.autograd.grad(wanted, (z1, z2, eps)), rtol=1e-7, atol=1e-8)
