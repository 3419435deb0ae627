"""Judges of features whose classes are known."""

import pytest
import torch

from otdml.contrast import linear_probe, neighbours


def blobs(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    centres = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]])
    return centres[labels] + 0.3 * torch.randn(n, 3, generator=generator), labels


@pytest.mark.parametrize("judge", [linear_probe, neighbours])
def test_separate_classes_are_told_apart_and_mixed_ones_are_not(judge):
    if judge is linear_probe:
        pytest.importorskip("sklearn")
    (z, labels), (test_z, truth) = blobs(300, 0), blobs(3000, 1)
    assert judge(z, labels, test_z, truth) == 1.0
    assert judge(z, (labels + 1) % 3, test_z, truth) == 0.0
    mixed = torch.arange(300) % 3
    assert 0.1 < judge(z, mixed, test_z, truth) < 0.7


def test_the_probe_does_not_depend_on_the_scale_of_a_coordinate():
    pytest.importorskip("sklearn")
    (z, labels), (test_z, truth) = blobs(300, 0), blobs(300, 1)
    scale = torch.tensor([1e-4, 1.0, 1e4])
    assert linear_probe(z * scale, labels, test_z * scale, truth) == 1.0


def test_neighbours_vote():
    """Two far votes of one class beat one near vote of the other when three have a vote."""
    z = torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.9, -0.3], [-1.0, 0.0]])
    labels, test = torch.tensor([0, 1, 1, 0]), torch.tensor([[1.0, 0.0]])
    assert neighbours(z, labels, test, torch.tensor([0]), k=1) == 1.0
    assert neighbours(z, labels, test, torch.tensor([1]), k=3) == 1.0


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e25])
@pytest.mark.parametrize("judge", [linear_probe, neighbours])
def test_judges_do_not_depend_on_the_length_of_features(judge, scale):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    z = torch.randn(40, 3, generator=generator) + 8 * labels[:, None]
    options = {"k": 5} if judge is neighbours else {}
    z[:, 2] = 0  # A coordinate that tells nothing.
    assert judge(z, labels, z, labels, **options) == judge(scale * z, labels, scale * z, labels, **options) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_probe_reads_a_coordinate_beside_one_of_a_billion(dtype):
    """It was taken for the rounding of the other, and accuracy was that of chance."""
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    noise = torch.randn(400, 2, generator=generator, dtype=dtype)
    z = torch.stack([1e9 * noise[:, 0], labels + 0.1 * noise[:, 1]], 1)
    assert linear_probe(z[:200], labels[:200], z[200:], labels[200:]) > 0.99


def test_the_probe_reads_small_changes_far_from_zero_and_no_rounding():
    pytest.importorskip("sklearn")
    labels = torch.arange(40) % 2
    z = 1e9 + labels[:, None].double()
    assert linear_probe(z, labels, z, labels) == 1.0
    # What single precision makes of it is one number.
    assert linear_probe(z.float(), labels, z.float(), labels) == 0.5


def test_of_equal_cosines_the_first_rows_vote():
    labels = torch.arange(50) % 5
    for label in range(5):
        truth = torch.tensor([label])
        assert neighbours(torch.ones(50, 2), (labels + label) % 5, torch.ones(1, 2), truth, k=1) == 1.0
        assert neighbours(torch.ones(50, 2), (labels < 3).long(), torch.ones(1, 2), truth.new_ones(1), k=3) == 1.0


def test_cosines_are_of_single_precision_under_autocast():
    """Angles of a thousandth, which bfloat16 does not tell apart."""
    angles = 1e-3 * torch.arange(40.0)
    z = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.arange(40)
    with torch.autocast("cpu", torch.bfloat16):
        assert neighbours(z, labels, z, labels, k=1) == 1.0
