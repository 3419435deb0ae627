import numpy as np
import pytest
import torch

from otdml._fused.barred import Barred
from otdml.losses import DomainTarget, SupCon, contrastive_alignment
from otdml.losses.alignment.pairs import Forbidden, Pairing
from otdml.losses.alignment.problem import Alignment
from otdml.losses.alignment.target import target_plan

CPU = torch.device("cpu")
LIKE = torch.zeros((), dtype=torch.float64)
EVERYTHING = slice(0, 6)
LABELS = [0, 0, 1, 2, 2, 1]


def test_error_domains():
    with pytest.raises(TypeError, match="`domains` must be a tensor of integers"):
        DomainTarget(torch.rand(3))
    with pytest.raises(ValueError, match="`alpha` must be a number that is not negative"):
        DomainTarget(torch.tensor([0, 1]), -0.1)


def test_forbidden_pairs():
    ids = torch.tensor([4, 4, 2, 4, 2, 1])
    pairing = Pairing.joint(3, CPU)
    forbidden = Forbidden(pairing, (ids, ids), target_plan(None, pairing, LIKE).block)
    # Same instance, unless it is the other view, three rows on.
    expected = torch.tensor([[ids[i] == ids[j] and (i - j) % 6 != 3 for j in range(6)] for i in range(6)])
    assert torch.equal(forbidden(EVERYTHING, EVERYTHING), expected)
    assert torch.equal(forbidden(slice(2, 5), slice(1, 3)), expected[2:5, 1:3])
    scores = torch.zeros(6, 6)
    forbidden.fill(scores[2:4], slice(2, 4), EVERYTHING)
    assert torch.equal(scores[2:4] == -torch.inf, expected[2:4])


LARGE = torch.tensor([4, 4, 2, 4 + 2**32, 2, 1])
TARGETS = {
    "other view": (None, True),
    "labels": ((torch.tensor(LABELS),) * 2, True),
    "domains": (DomainTarget(torch.tensor(LABELS), 0.1, 0.0), False),
    "matrix": (torch.ones(6, 6), False),
}


@pytest.mark.parametrize("pairing", [Pairing.joint(3, CPU), Pairing.one_way(6, 6, CPU)], ids=["joint", "one-way"])
@pytest.mark.parametrize("ids", [None, LARGE], ids=["no ids", "ids"])
@pytest.mark.parametrize("kind", TARGETS)
def test_integers_forbid_what_the_blocks_do(kind, ids, pairing):
    target, by_integers = TARGETS[kind]
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = target_plan(target, pairing, LIKE)
    problem = Alignment(x, x, 1.0, pairing, plan, ids if ids is None else (ids, ids))
    if problem.forbidden is None:
        return
    mask = problem.forbidden.mask
    assert isinstance(mask, Barred) == (by_integers or ids is None)
    for rows, columns in ((EVERYTHING, EVERYTHING), (slice(2, 5), slice(1, 3))):
        assert torch.equal(mask(rows, columns), problem.forbidden(rows, columns))
    if isinstance(mask, Barred):
        # As a kernel reads it: numbers of 32 bits, which must not make two instances one.
        (own, *more), (its, *others) = (mask.vectors(side) for side in (0, 1))
        assert own.dtype == torch.int32
        found = own[:, None] == its
        if more:
            found |= (more[0][:, None] == others[0]) & (more[1][:, None] != others[1])
        assert torch.equal(found, problem.forbidden(EVERYTHING, EVERYTHING))


def views():
    return torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("form", [list, np.int16, np.int64, np.uint8])
def test_labels_may_be_arrays_and_lists(form):
    z1, z2 = views()
    labels = LABELS if form is list else np.array(LABELS, dtype=form)
    expected = contrastive_alignment(z1, z2, torch.tensor(LABELS))
    torch.testing.assert_close(contrastive_alignment(z1, z2, labels), expected)
    torch.testing.assert_close(SupCon()(z1, z2, labels), SupCon()(z1, z2, torch.tensor(LABELS)))
    torch.testing.assert_close(SupCon()(z1, labels), SupCon()(z1, torch.tensor(LABELS)))


@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.int32])
def test_a_matrix_may_be_an_array(dtype):
    z1, z2 = views()
    T = np.array([[i == j or i + j == 3 for j in range(6)] for i in range(6)]).astype(dtype)
    expected = contrastive_alignment(z1, z2, torch.from_numpy(T))
    torch.testing.assert_close(contrastive_alignment(z1, z2, T), expected)
    torch.testing.assert_close(contrastive_alignment(z1, z2, T.tolist()), expected)


@pytest.mark.parametrize(("bad", "got"), [(["a"] * 6, "ndarray of <U1"), ([0.5] * 6, "ndarray of float64")])
def test_error_labels_are_no_integers(bad, got):
    with pytest.raises(TypeError, match=f"`target` must be integers, in a tensor, an array or a list, got {got}"):
        contrastive_alignment(*views(), bad)


def test_error_points_are_no_tensors():
    z = views()[0]
    with pytest.raises(TypeError, match=r"`z1` must be a torch\.Tensor, got list\. Convert it with `torch\.as_tensor`"):
        contrastive_alignment(z.tolist(), z)
    with pytest.raises(TypeError, match=r"`z2` must be a torch\.Tensor, got NoneType"):
        contrastive_alignment(z, None)
