"""Learnt directions, one per class."""

import pytest
import torch
from regularisers import Width

from otdml.dml.prototypes import PrototypeClassifier, Training, training
from otdml.losses import KoLeo
from otdml.losses.dispersion import nearest_angles

SMALL = {"size": 8, "widths": (4, 8)}


def pictures():
    """Eight classes: which pixel of a row of eight is lit, with noise."""
    labels = torch.arange(160) % 8
    images = torch.randint(0, 60, (160, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[torch.arange(160), 0, :, labels] = 255
    return images, labels


def fitted(seed=0, **how):
    model = PrototypeClassifier(8, 3, seed=seed, **SMALL)
    how = Training(**{"steps": 80, "batch": 32} | how)
    steps = list(training(model, *pictures(), how, torch.Generator().manual_seed(seed)))
    assert steps == list(range(1, how.steps + 1))
    return model


def test_logits_are_scaled_cosines_with_the_prototypes():
    model = PrototypeClassifier(5, 3, seed=0, scale=4.0, **SMALL).eval()
    images = torch.rand(7, 1, 8, 8)
    z = model.project(model.network(images).flatten(1))
    cosines = torch.nn.functional.cosine_similarity(z[:, None], model.prototypes[None], dim=-1)
    assert torch.allclose(model(images), 4 * cosines, atol=1e-5)
    model.prototypes.data *= 3
    assert torch.allclose(model(images), 4 * cosines, atol=1e-5)


def test_classes_are_learnt():
    images, labels = pictures()
    model = fitted()
    assert model.accuracy(images, labels) > 0.95
    assert model.accuracy(images, (labels + 1) % 8) < 0.05
    assert model.training


def test_features_are_classified_by_a_linear_map():
    labels = torch.arange(90) % 3
    rows = torch.eye(3)[labels] + 0.1 * torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    model = PrototypeClassifier(3, 2, seed=0, features=3)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2 * 3 + 3 * 2 + 1
    list(training(model, rows, labels, Training(steps=60, batch=32), torch.Generator().manual_seed(0)))
    assert model.accuracy(rows, labels) == 1.0


def test_a_strong_regulariser_parts_the_prototypes():
    plain, parted = (
        float(nearest_angles(fitted(**how).prototypes.detach()).min())
        for how in ({}, {"regulariser": KoLeo(), "weight": 100.0})
    )
    # Eight directions of three coordinates can be 74.9 degrees apart, those of a few steps less.
    assert parted > 65 > plain


def test_rows_are_what_the_regulariser_sees():
    seen = []

    def regulariser(points):
        seen.append(points.shape)
        return points.sum() * 0

    fitted(regulariser=regulariser, weight=1.0, rows=3, steps=2)
    fitted(regulariser=regulariser, weight=1.0, steps=1)
    assert seen == [(3, 3), (3, 3), (8, 3)]


def test_decay_shrinks_all_but_the_scale():
    plain, decayed = fitted(steps=10), fitted(steps=10, decay=3.0)
    assert float(decayed.prototypes.detach().norm()) < 0.5 * float(plain.prototypes.detach().norm())
    assert float(decayed.log_scale.detach()) > 1.5


def test_parameters_of_a_regulariser_are_learnt():
    """Adam's first step has the length of the rate, here towards a sum of squares above one."""
    regulariser = Width()
    fitted(steps=1, rate=1e-2, regulariser=regulariser)
    assert float(regulariser.width.detach()) == pytest.approx(1 + 1e-2, abs=1e-6)


def test_a_regulariser_of_no_weight_changes_nothing_and_a_seed_repeats():
    state = torch.get_rng_state()
    images = pictures()[0].float() / 255
    plain, same, other = (fitted(seed, steps=4)(images).detach() for seed in (0, 0, 1))
    assert torch.equal(plain, same)
    assert not torch.equal(plain, other)
    assert torch.equal(plain, fitted(steps=4, regulariser=KoLeo(), weight=0.0)(images).detach())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [8, 20])
def test_pictures_of_its_size_are_taken(size):
    model = PrototypeClassifier(3, 2, seed=0, size=size, widths=(2, 2, 2))
    assert model(torch.rand(2, 1, size, size)).shape == (2, 3)
