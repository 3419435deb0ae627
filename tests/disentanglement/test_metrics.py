"""DCI and MIG on matrices and codes whose scores are known."""

import math

import pytest
import torch

from otdml.disentanglement import dci, dci_scores, mutual_information_gap
from otdml.disentanglement.metrics import importances


def test_one_code_per_factor_is_perfect():
    assert dci_scores(torch.eye(5)) == (1.0, 1.0)
    assert dci_scores(torch.diag(torch.tensor([0.1, 1.0, 7.0]))) == (1.0, 1.0)


def test_nothing_matters():
    assert dci_scores(torch.zeros(10, 5)) == (0.0, 0.0)


def test_everything_matters_alike():
    disentanglement, completeness = dci_scores(torch.ones(10, 5))
    assert abs(disentanglement) < 1e-12
    assert abs(completeness) < 1e-12


def test_each_code_twice():
    # Five factors and ten codes: still disentangled, but each factor is shared by two of the ten.
    disentanglement, completeness = dci_scores(torch.eye(5).repeat(2, 1))
    assert disentanglement == 1.0
    assert math.isclose(completeness, 1 - math.log(2) / math.log(10))


def test_codes_count_by_their_importance():
    # A dead code counts for nothing, and a mixed one by its share: 3/4 * 1 + 1/4 * 0.
    R = torch.tensor([[3.0, 0.0], [0.5, 0.5], [0.0, 0.0]])
    assert math.isclose(dci_scores(R)[0], 0.75)


def test_negative_importance_is_an_error():
    for wrong, message in ((-1.0, "no negative numbers, got -1.0"), (-1e-06, "got -1e-06"), (math.nan, "be finite")):
        R = torch.eye(3, dtype=torch.float64)
        R[0, 1] = wrong
        with pytest.raises(ValueError, match=f"`importance` must .*{message}"):
            dci_scores(R)
    with pytest.raises(ValueError, match="`importance` must have shape"):
        dci_scores(torch.ones(3))


def test_rounding_below_zero_is_nothing():
    R = torch.tensor([[3.0, -1e-16], [0.5, 0.5], [-1e-17, 0.0]], dtype=torch.float64)
    assert dci_scores(R) == dci_scores(R.clamp(min=0))


def test_codes_that_tell_nothing_beside_one_that_tells_all():
    """The gains of splits of dead codes are differences of equal numbers, and some come out below zero."""
    from sklearn.ensemble import GradientBoostingClassifier

    def trees():
        return GradientBoostingClassifier(n_estimators=20, random_state=0)

    codes = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    factors = torch.bucketize(codes[:, :1].contiguous(), torch.tensor([-1.0, 0.0, 1.0]))
    matrix, _ = importances(codes[:500], factors[:500], trees)
    assert float(matrix.min()) < 0  # Or else this shows nothing.
    assert dci(codes, factors, n_train=500, classifier=trees).disentanglement > 0.99


def test_dci_of_factors_is_perfect_and_of_their_rotation_less():
    tree = pytest.importorskip("sklearn.tree").DecisionTreeClassifier
    factors = torch.randint(4, (600, 3), generator=torch.Generator().manual_seed(0))
    own = dci(factors.float(), factors, n_train=400, classifier=tree)
    assert own.disentanglement == own.completeness == own.informativeness == 1
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    mixed = dci(factors.float() @ rotation, factors, n_train=400, classifier=tree)
    assert mixed.disentanglement < 0.6


def test_default_classifier_is_boosted_trees():
    pytest.importorskip("sklearn")
    factors = torch.randint(2, (60, 2), generator=torch.Generator().manual_seed(0))
    assert dci(factors.float(), factors, n_train=40).disentanglement > 0.99


def test_trees_choose_between_equal_codes_by_their_seed():
    pytest.importorskip("sklearn")
    factor = torch.arange(60) % 3
    codes = torch.stack([factor, factor, torch.arange(60) % 7], 1).float()
    first, *others = (dci(codes, factor[:, None], n_train=40) for _ in range(3))
    assert others == [first, first]


def test_importances_of_any_size_have_scores():
    assert dci_scores(1e308 * torch.eye(3, dtype=torch.float64)) == (1.0, 1.0)
    assert dci_scores(1e-308 * torch.eye(3, dtype=torch.float64)) == (1.0, 1.0)


def test_the_gap_is_one_at_most():
    """Of a factor with unequal values, which one code tells, rounding led beyond."""
    for n in range(5, 60):
        factor = torch.arange(n) % 5
        assert mutual_information_gap(torch.stack([factor.float(), torch.zeros(n)], 1), factor[:, None]) <= 1.0


def test_no_rows_to_test_on_is_an_error():
    with pytest.raises(ValueError, match="`n_train` must lie between 0 and the number of rows, 5, got 5"):
        dci(torch.zeros(5, 2), torch.zeros(5, 2).long(), n_train=5)


def test_gap_of_shared_information():
    factor = torch.arange(400) % 4
    codes = torch.stack([factor.float(), (factor // 2).float()], 1)
    # The second code holds one of the factor's two bits.
    assert math.isclose(mutual_information_gap(codes, factor[:, None]), 0.5, abs_tol=1e-9)


CODES = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
INDICES = torch.randint(3, (60, 2), generator=torch.Generator().manual_seed(1))
WRONG = {
    "one value": (CODES, INDICES * torch.tensor([1, 0]), "`factors` must take two values .* in column 1. Leave that"),
    "one value in the rows that train": (CODES, INDICES * (torch.arange(60) > 40)[:, None], "`factors` must take two"),
    "not finite": (CODES.clone().index_fill_(0, torch.tensor(7), math.nan), INDICES, "`codes` must be finite.* 7"),
    "floats": (CODES, INDICES.float(), "`factors` must be a tensor of integers"),
    "truth values": (CODES, INDICES > 0, "`factors` must be a tensor of integers"),
    "other rows": (CODES, INDICES[:30], r"`factors` must have shape \(n, factors\) with n = [46]0, got \(30, 2\)"),
    "one factor": (CODES, INDICES[:, 0], r"`factors` must have shape \(n, factors\)"),
    "no factor": (CODES, INDICES[:, :0], r"`factors` must have shape \(n, factors\)"),
    "a row of codes": (CODES[:, 0], INDICES, "`codes` must have shape"),
    "an array": (CODES.numpy(), INDICES, "`codes` must be a torch.Tensor, got ndarray"),
}


@pytest.mark.parametrize(("codes", "factors", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_scored_is_named(codes, factors, message):
    tree = pytest.importorskip("sklearn.tree").DecisionTreeClassifier
    with pytest.raises((ValueError, TypeError), match=message):
        dci(codes, factors, n_train=40, classifier=tree)
    with pytest.raises((ValueError, TypeError), match=message):
        mutual_information_gap(codes[:40], factors[:40])


def test_the_gap_takes_two_codes_and_factors_of_any_values_in_any_precision():
    with pytest.raises(ValueError, match="`codes` must be two or more"):
        mutual_information_gap(CODES[:, :1], INDICES)
    expected = mutual_information_gap(CODES.half().double(), INDICES)
    assert mutual_information_gap(CODES.half(), INDICES) == expected
    assert mutual_information_gap(CODES.half(), 7 - 4 * INDICES) == pytest.approx(expected)
    far = CODES / CODES.abs().max() * 3e38  # Their range is beyond single precision.
    assert mutual_information_gap(far, INDICES) == pytest.approx(mutual_information_gap(CODES, INDICES))


def test_trees_take_codes_in_bfloat16():
    tree = pytest.importorskip("sklearn.tree").DecisionTreeClassifier
    found = [
        dci(codes, INDICES, n_train=40, classifier=lambda: tree(random_state=0))
        for codes in (CODES.bfloat16(), CODES.bfloat16().float())
    ]
    assert found[0] == found[1]


def test_rounding_does_not_lead_beyond_zero_and_one():
    for codes in range(1, 13):
        for factors in range(1, 13):
            even, single = torch.ones(codes, factors), torch.eye(codes, factors) / torch.arange(1, 1 + factors)
            assert all(0 <= score <= 1 for one in (even, single) for score in dci_scores(one))
