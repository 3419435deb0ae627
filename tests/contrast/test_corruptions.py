"""Corruptions of pictures whose result is known."""

import pytest
import torch
from draws import seeded

from otdml.contrast import corrupted
from otdml.contrast.corruptions import CORRUPTIONS


def test_noise_has_its_size_and_its_generator():
    grey = torch.full((20, 3, 8, 8), 0.5)
    found = corrupted(grey, "noise", seeded())
    assert float((found - grey).std()) == pytest.approx(0.15, abs=0.005)
    assert torch.equal(found, corrupted(grey, "noise", seeded()))
    assert corrupted(torch.ones(1, 1, 8, 8), "noise", seeded()).max() == 1


def test_a_blurred_point_is_a_pyramid():
    point = torch.zeros(1, 1, 8, 8)
    point[..., 4, 4] = 1
    line = torch.tensor([1.0, 2, 3, 2, 1]) / 9
    torch.testing.assert_close(corrupted(point, "blur", seeded())[0, 0, 2:7, 2:7], line[:, None] * line)
    torch.testing.assert_close(corrupted(torch.ones(1, 1, 4, 4), "blur", seeded()), torch.ones(1, 1, 4, 4))


def test_contrast_keeps_the_mean_of_each_picture():
    images = torch.rand(3, 3, 4, 4)
    found = corrupted(images, "contrast", seeded())
    torch.testing.assert_close(found.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(found.std((1, 2, 3)), 0.3 * images.std((1, 2, 3)))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_pictures_keep_their_shape_and_range(kind):
    images = torch.rand(2, 3, 6, 4)
    found = corrupted(images, kind, seeded())
    assert found.shape == images.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(found, images) == (kind == "none")


def test_other_kinds_are_refused():
    with pytest.raises(ValueError, match="fog"):
        corrupted(torch.rand(1, 3, 4, 4), "fog", seeded())


def test_noise_of_a_seed_stays_what_it_is():
    ramp = torch.linspace(0, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    found = corrupted(ramp, "noise", seeded(5))[:, :, 2, 5].flatten()
    assert found.tolist() == pytest.approx([0.0, 0.139875, 0.499839, 0.509174, 0.772471, 0.932001], abs=2e-6)
