"""Scores of an autoencoder whose codes are known."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from otdml.disentanglement import SPRITES, Trees, coarse, regularizer, scores
from otdml.disentanglement.autoencoder import seeded
from otdml.losses import Distortion, GromovMongeGap, distortion

pytest.importorskip("sklearn")
# The gap is taken after few linearisations, which it says.
pytestmark = pytest.mark.filterwarnings("ignore:Gromov-Wasserstein stopped")


class Known(nn.Module):
    """Codes that are the first pixels of a picture, with no noise in the posterior; pictures that are black."""

    def __init__(self, codes):
        super().__init__()
        self.codes = codes

    def encode(self, images):
        mean = images.flatten(1)[:, : self.codes]
        return mean, torch.full_like(mean, -20.0)

    def decoder(self, codes):
        return torch.nn.functional.pad(codes, (0, 16 - self.codes))[:, None].unflatten(-1, (4, 4)) - 100.0


def test_codes_that_are_the_factors():
    factors = torch.stack([torch.arange(600) % 3, torch.arange(600) // 3 % 4], 1)
    images = torch.zeros(600, 16)
    images[:, 0], images[:, 1] = factors[:, 0] / 3, factors[:, 1] / 3
    images = images.reshape(600, 1, 4, 4)
    found = scores(Known(3), images, factors, torch.tensor([3, 4]), trees=Trees(train=400, rounds=3))
    assert found.disentanglement == pytest.approx(1.0)
    assert found.completeness == pytest.approx(1.0)
    assert found.informativeness == 1.0
    assert found.mig == pytest.approx(1.0)
    # Black pictures: the error is the pictures' own energy.
    assert found.error == pytest.approx(float(images.square().sum((1, 2, 3)).mean()), rel=1e-5)
    assert found.active == 3
    assert found.rate == pytest.approx(float((0.5 * (images.square().sum((1, 2, 3)))).mean()) + 3 * 9.5, rel=1e-3)


def test_regularizers_by_name():
    assert isinstance(regularizer("gap"), GromovMongeGap)
    x, y = torch.randn(2, 20, 3).unbind(0)
    loss = regularizer("distortion", "sqeuclidean")
    assert isinstance(loss, Distortion)
    torch.testing.assert_close(loss(x, y), distortion(x, y, cost_x="sqeuclidean", cost_y="sqeuclidean"))
    with pytest.raises(ValueError, match="gab"):
        regularizer("gab")


def test_ranges_of_factors_are_equal():
    counts = torch.tensor([3, 6, 40, 32, 32])
    found = coarse(torch.arange(40 * 6)[:, None].expand(-1, 5) % counts, counts)
    assert torch.equal(found[:, :2], torch.arange(240)[:, None] % counts[:2])
    assert found[:40, 2].bincount().tolist() == 8 * [5]
    assert found[:32, 3].bincount().tolist() == 8 * [4]
    with pytest.raises(ValueError, match="`factors` must have shape"):
        coarse(torch.zeros(3, 2).long(), counts)


def test_few_pictures_are_scored_too():
    pytest.importorskip("sklearn")
    model = seeded(0, size=8, width=2)
    images, factors = SPRITES.draw(50, size=8, generator=torch.Generator().manual_seed(0))
    found = scores(model, images, factors, SPRITES.counts, trees=Trees(40, 1))
    assert all(map(math.isfinite, dataclasses.astuple(found)))
    with pytest.raises(ValueError, match=r"`images` must lie in \[0, 1\]"):
        scores(model, 255 * images, factors, SPRITES.counts, trees=Trees(40, 1))
