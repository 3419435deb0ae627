"""Agreement of partitions against scikit-learn and against counting pairs."""

import numpy as np
import pytest
import torch

from otdml.dml.clustering import cluster_agreement


@pytest.mark.parametrize("counts", [(1, 1), (3, 2), (10, 40), (100, 100)])
def test_against_scikit_learn_and_pairs(counts, generator):
    metrics = pytest.importorskip("sklearn.metrics")
    cells, labels = (torch.randint(count, (100,), generator=generator) for count in counts)
    nmi, f1 = cluster_agreement(cells, labels)
    assert nmi == pytest.approx(metrics.normalized_mutual_info_score(labels, cells), abs=1e-12)
    upper = torch.ones(100, 100).triu(1).bool()
    together, alike = (cells[:, None] == cells)[upper], (labels[:, None] == labels)[upper]
    assert f1 == pytest.approx(metrics.f1_score(alike, together), abs=1e-12)


def test_equal_partitions_agree_whatever_their_names():
    assert cluster_agreement(torch.tensor([7, 7, 2]), torch.tensor([0, 0, 5])) == pytest.approx((1, 1))
    assert cluster_agreement(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])) == pytest.approx((1, 1))
    assert cluster_agreement(torch.zeros(3).long(), torch.zeros(3).long()) == (1, 1)


def test_one_cluster_of_two_classes_says_nothing():
    nmi, f1 = cluster_agreement(torch.zeros(4).long(), torch.tensor([0, 0, 1, 1]))
    assert nmi == pytest.approx(0, abs=1e-12)
    assert f1 == pytest.approx(2 * 2 / (6 + 2))  # Two good pairs of six, and of two.


def test_cells_and_labels_in_lists_and_arrays():
    assert cluster_agreement([0, 0, 1, 1], np.array([5, 5, 3, 3], dtype=np.uint16)) == (1.0, 1.0)


def test_nothing_agrees_with_nothing():
    with pytest.raises(ValueError, match="`cells` must hold one item or more"):
        cluster_agreement(torch.zeros(0).long(), torch.zeros(0).long())
