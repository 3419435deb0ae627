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
