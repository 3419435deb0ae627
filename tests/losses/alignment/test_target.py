import pytest
import torch

from otdml.losses import DomainTarget
from otdml.losses.alignment.pairs import Pairing
from otdml.losses.alignment.target import DensePlan, GroupedPlan, MatchedPlan, SparsePlan, target_plan
from otdml.ot.engines import base

CPU = torch.device("cpu")
LIKE = torch.zeros((), dtype=torch.float64)
EVERYTHING = slice(0, 6)
LABELS = torch.tensor([3, 3, 9, 3, 9, 5])
BOTH = LABELS, LABELS
VALUES = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


def brute_force(entry, n, m):
    """Rows of equal mass from a function of (i, j)."""
    T = torch.tensor([[float(entry(i, j)) for j in range(m)] for i in range(n)], dtype=torch.float64)
    shares = torch.where(T.sum(1) > 0, 1 / T.sum(1), 0)
    T = T * shares[:, None]
    return T / T.sum()


def domain(i, j):
    domains = [0, 0, 1, 1, 1, 7]
    return 1.0 if i == j else 0.3 if domains[i] == domains[j] else 0.1


def plans():
    pairs = torch.zeros(6, 6, dtype=torch.bool)
    pairs[[0, 0, 1, 4], [1, 5, 2, 0]] = True
    sparse = pairs.to_sparse_coo()
    domains = DomainTarget(torch.tensor([0, 0, 1, 1, 1, 7]), 0.3, 0.1)
    twice = DomainTarget(torch.tensor([0, 0, 1, 0, 0, 1]), 0.5, 0.25)
    labels3 = LABELS[:3].repeat(2)

    def own(i, j):
        return (i - j) % 6 == 3

    def joint_domain(i, j):
        d = [0, 0, 1, 0, 0, 1]
        return 0.0 if i == j else 1.0 if own(i, j) else 0.5 if d[i] == d[j] else 0.25

    one, both = Pairing.one_way(6, 6, CPU), Pairing.joint(3, CPU)
    return [
        ("pairs", None, one, lambda i, j: i == j),
        ("labels", BOTH, one, lambda i, j: LABELS[i] == LABELS[j]),
        ("domains", domains, one, domain),
        ("mask", pairs, one, lambda i, j: pairs[i, j]),
        ("sparse mask", sparse, one, lambda i, j: pairs[i, j]),
        ("joint pairs", None, both, own),
        ("joint labels", (labels3, labels3), both, lambda i, j: i != j and labels3[i] == labels3[j]),
        ("joint domains", twice, both, joint_domain),
        ("joint mask", ~torch.zeros(6, 6, dtype=torch.bool), both, lambda i, j: i != j),
    ]


@pytest.mark.parametrize(("name", "target", "pairing", "entry"), plans(), ids=[p[0] for p in plans()])
def test_every_form_is_its_definition(name, target, pairing, entry):
    plan, expected = target_plan(target, pairing, LIKE), brute_force(entry, 6, 6)
    torch.testing.assert_close(plan.block(EVERYTHING, EVERYTHING), expected)
    torch.testing.assert_close(plan.block(slice(1, 4), slice(2, 6)), expected[1:4, 2:6])
    torch.testing.assert_close(plan.rows, expected.sum(1))
    torch.testing.assert_close(plan.columns, expected.sum(0))
    v = torch.arange(12.0, dtype=torch.float64).reshape(6, 2)
    x = v.flip(0).square()
    torch.testing.assert_close(plan.attraction(x, v), (expected * (x @ v.mT)).sum())
    anchors = torch.tensor([4, 0, 5])
    part = plan.take(anchors)
    torch.testing.assert_close(part.block(slice(0, 3), EVERYTHING), expected[anchors])
    torch.testing.assert_close(part.rows, expected[anchors].sum(1))
    torch.testing.assert_close(part.columns, expected[anchors].sum(0))
    torch.testing.assert_close(part.attraction(x[anchors], v), (expected[anchors] * (x[anchors] @ v.mT)).sum())


@pytest.mark.parametrize("convert", [lambda T: T, torch.Tensor.to_sparse_coo, torch.Tensor.to_sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_numbers_are_the_plan_up_to_a_factor(convert):
    plan = target_plan(convert(VALUES), Pairing.one_way(3, 3, CPU), LIKE)
    torch.testing.assert_close(plan.block(slice(0, 3), slice(0, 3)), VALUES / 7)


def test_forms_that_are_sparse_stay_so():
    pairing = Pairing.one_way(3, 3, CPU)
    assert isinstance(target_plan(None, pairing, LIKE), MatchedPlan)
    assert isinstance(target_plan(VALUES.to_sparse_coo(), pairing, LIKE), SparsePlan)
    assert isinstance(target_plan((LABELS[:3], LABELS[:3]), pairing, LIKE), GroupedPlan)
    assert isinstance(target_plan(VALUES, pairing, LIKE), DensePlan)


def test_self_pairs_of_a_matrix_are_left_out():
    T = torch.ones(4, 4, dtype=torch.float64)
    for target in (T, T.to_sparse_coo()):
        plan = target_plan(target, Pairing.joint(2, CPU), LIKE)
        torch.testing.assert_close(plan.block(slice(0, 4), slice(0, 4)), (1 - torch.eye(4).double()) / 12)
    assert (T == 1).all()


def test_labels_of_two_sets_of_different_size():
    plan = target_plan((torch.tensor([1, 2]), torch.tensor([2, 2, 1, 8])), Pairing.one_way(2, 4, CPU), LIKE)
    expected = torch.tensor([[0, 0, 0.5, 0], [0.25, 0.25, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(plan.block(slice(0, 2), slice(0, 4)), expected)
    torch.testing.assert_close(plan.columns, expected.sum(0))


def test_error_no_positives():
    with pytest.raises(ValueError, match="`target` must hold at least one positive pair, got none"):
        target_plan(torch.zeros(3, 3, dtype=torch.bool), Pairing.one_way(3, 3, CPU), LIKE)
    with pytest.raises(ValueError, match="`target` must hold at least one positive pair, got none"):
        target_plan((torch.tensor([1]), torch.tensor([2])), Pairing.one_way(1, 1, CPU), LIKE)


@pytest.mark.parametrize("bad", [-1.0, torch.nan, torch.inf])
def test_error_entries(bad):
    T = VALUES.clone()
    T[0, 1] = bad
    for target in (T, T.to_sparse_coo()):
        with pytest.raises(ValueError, match="`target` must be finite, not negative, and not all zero"):
            target_plan(target, Pairing.one_way(3, 3, CPU), LIKE)


@pytest.mark.parametrize("entries", [1, 13, 2**19], ids=["one row a block", "two rows a block", "one block"])
@pytest.mark.parametrize(("name", "target", "pairing", "entry"), plans(), ids=[p[0] for p in plans()])
def test_mean_of_a_function_is_that_under_the_matrix(name, target, pairing, entry, entries, monkeypatch):
    monkeypatch.setitem(base.BLOCK, "cpu", entries)
    generator = torch.Generator().manual_seed(0)
    x, y, h = leaves = [torch.randn(*s, generator=generator, dtype=LIKE.dtype) for s in ((6, 3), (6, 3), (6,))]
    for t in leaves:
        t.requires_grad_()
    plan = target_plan(target, pairing, LIKE)
    expected = (brute_force(entry, 6, 6) * (x @ y.mT + h).tanh()).sum()
    found = plan.expectation(torch.tanh, x, y, h)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))
    torch.testing.assert_close(plan.expectation(torch.exp, x, y), (brute_force(entry, 6, 6) * (x @ y.mT).exp()).sum())


def test_marginals_of_many_small_masses_keep_their_digits():
    n = 300_000
    index = torch.arange(n)
    with torch.sparse.check_sparse_tensor_invariants(False):
        column = torch.sparse_coo_tensor(torch.stack([index, torch.zeros_like(index)]), torch.full((n,), 0.1), (n, 2))
        sparse = target_plan(column, Pairing.one_way(n, 2, CPU), torch.zeros(1))
    assert sparse.columns.tolist() == pytest.approx([1, 0], rel=1e-5)
    labels = index % 3
    grouped = target_plan((labels, labels), Pairing.one_way(n, n, CPU), torch.zeros(1))
    torch.testing.assert_close(n * grouped.columns, torch.ones(n), rtol=1e-5, atol=0)
