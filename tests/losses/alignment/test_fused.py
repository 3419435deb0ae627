"""Alignment losses on the fused engine, its kernels interpreted on the CPU, against matrices in double precision."""

import pytest
import torch
from kernel_marks import INTERPRETED

from otdml.losses import DomainTarget, contrastive_alignment
from otdml.losses.alignment.logits import Logits
from otdml.losses.alignment.pairs import Forbidden, Pairing

pytestmark = INTERPRETED

N = 21
LABELS = torch.arange(N) % 6
# Numbers that 32 bits would cut to the same one are no repetition.
IDS = torch.tensor([0, 0, 1, 2**32, 2, 2, 1]).repeat(3)


def views(n=N, d=20):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(n, d, generator=generator)
    return z, z + torch.randn(n, d, generator=generator)


def near(found, expected, tol=1e-4):
    torch.testing.assert_close(found.double(), expected, rtol=tol, atol=tol * float(expected.abs().max()))


CASES = [
    ("one-way", "rows", "kl", None, None),
    ("one-way", "rows", "kl+rince", LABELS, IDS),
    ("two-way", "rows", "kl", None, None),
    ("two-way", "rows", "kl", LABELS, IDS),
    ("joint", "rows", "kl", None, None),
    ("joint", "rows", "kl", LABELS, None),
    ("joint", "rows", "rince", None, IDS),
    ("one-way", "balanced", "kl+rince", None, IDS),
    ("two-way", "balanced", "kl", None, None),
    ("joint", "balanced", "kl", LABELS, None),
    ("one-way", 1.0, "kl", None, None),
]


@pytest.mark.parametrize(("form", "marginals", "divergence", "target", "ids"), CASES)
def test_value_and_gradients_are_those_of_the_dense_form(form, marginals, divergence, target, ids):
    found, exact = [], []
    for backend, dtype, values in (("triton", torch.float32, found), ("dense", torch.float64, exact)):
        z1, z2 = (z.to(dtype).requires_grad_() for z in views())
        eps = torch.tensor(0.3, dtype=dtype, requires_grad=True)
        value = contrastive_alignment(
            z1, z2, target, eps=eps, form=form, marginals=marginals, divergence=divergence, ids=ids, backend=backend,
            tol=1e-5,
        )  # fmt: skip
        values += [value.detach(), *torch.autograd.grad(value, (z1, z2, eps))]
    for one, other in zip(found, exact, strict=True):
        near(one, other, 1e-3 if marginals == 1.0 else 1e-4)


@pytest.mark.parametrize("d", [3, 16, 128])
@pytest.mark.parametrize(
    "pairing", [Pairing.one_way(N, N, torch.device("cpu")), Pairing.joint(12, torch.device("cpu"))]
)
def test_rows_and_their_pull_back(pairing, d):
    (x, y), h = views(pairing.n, d), torch.randn(pairing.n, generator=torch.Generator().manual_seed(2))
    h[3], forbidden = -torch.inf, None
    if pairing.itself is not None:
        forbidden = Forbidden(pairing, None, lambda rows, columns: torch.zeros(1, 1))
    leaves = [[t.to(dtype).requires_grad_() for t in (0.3 * x, y, h)] for dtype in (torch.float32, torch.float64)]
    rows = []
    for (q, k, terms), backend in zip(leaves, ("triton", "dense"), strict=True):
        rows.append(Logits(q, k, 0.02, forbidden, backend=backend).logsumexp(terms))
    near(rows[0].detach(), rows[1].detach())
    weights = torch.linspace(0.5, 2.0, pairing.n, dtype=torch.float64)
    wanted = torch.autograd.grad((weights * rows[1]).sum(), leaves[1])
    for one, other in zip(torch.autograd.grad((weights.float() * rows[0]).sum(), leaves[0]), wanted, strict=True):
        near(one, other)


def test_second_derivatives_are_refused():
    z1, z2 = (z.requires_grad_() for z in views())
    with pytest.raises(NotImplementedError, match="second derivatives for `marginals`='rows' and `backend`='dense'"):
        torch.autograd.grad(contrastive_alignment(z1, z2, backend="triton"), z1, create_graph=True)


def test_double_precision_is_streamed():
    z1, z2 = (z.double() for z in views())
    found = contrastive_alignment(z1, z2, eps=0.1, form="two-way", backend="triton")
    torch.testing.assert_close(found, contrastive_alignment(z1, z2, eps=0.1, form="two-way", backend="streamed"))


@pytest.mark.parametrize("target", [torch.rand(N, N), DomainTarget(LABELS, 0.3, 0.2)], ids=["matrix", "domains"])
def test_what_integers_do_not_forbid_is_refused(target):
    z1, z2 = views()
    assert contrastive_alignment(z1, z2, target, backend="triton").isfinite()
    with pytest.raises(ValueError, match="`backend` must be 'dense' or 'streamed' where a function forbids pairs"):
        contrastive_alignment(z1, z2, target, ids=IDS, backend="triton")
