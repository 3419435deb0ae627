"""Distortions by value: what a rotation, a shift or a stroke does to a known image."""

import pytest
import torch

from otdml.data import Distort

STILL = {"degrees": 0, "scale": 0, "shear": 0, "translate": 0}


@pytest.fixture
def blob() -> torch.Tensor:
    """A Gaussian blob in the middle, a little to the right, in 64 images."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 33), indexing="xy")
    return torch.exp(-((x - 0.4) ** 2 + y**2) / 0.02).expand(64, 1, 33, 33).contiguous()


def centres(images: torch.Tensor) -> torch.Tensor:
    x, y = torch.meshgrid(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 33), indexing="xy")
    mass = images.sum((1, 2, 3))
    return torch.stack([(images[:, 0] * axis).sum((1, 2)) / mass for axis in (x, y)], dim=1)


def test_nothing_asked_changes_nothing(blob, generator):
    torch.testing.assert_close(Distort(**STILL)(blob, generator), blob, atol=1e-5, rtol=0)


def test_rotation_keeps_the_distance_to_the_middle(blob, generator):
    found = centres(Distort(**STILL | {"degrees": 90})(blob, generator))
    torch.testing.assert_close(found.norm(dim=1), torch.full((64,), 0.4), atol=0.01, rtol=0)
    angle = torch.atan2(found[:, 1], found[:, 0]).rad2deg()
    assert angle.min() < -70
    assert angle.max() > 70
    assert angle.abs().max() <= 90.5


def test_shift_is_a_share_of_the_side(blob, generator):
    moved = centres(Distort(**STILL | {"translate": 0.1})(blob, generator)) - torch.tensor([0.4, 0.0])
    # The side is 33 pixels or, between the centres of the outer ones, 32 steps: 2 × 33 / 32 long in these units.
    assert 0.19 < moved.abs().max() <= 0.2 * 33 / 32 + 1e-3


def test_scale_and_shear_map_the_blob_linearly(blob, generator):
    x = centres(Distort(**STILL | {"scale": 0.2})(blob, generator))
    assert x[:, 0].min() >= 0.4 / 1.2 - 0.02
    assert x[:, 0].max() <= 0.4 / 0.8 + 0.02
    torch.testing.assert_close(x[:, 1], torch.zeros(64), atol=1e-3, rtol=0)
    # A shear moves what lies right of the middle only if it moves along rows: at height zero, nowhere.
    torch.testing.assert_close(
        centres(Distort(**STILL | {"shear": 0.5})(blob, generator)), centres(blob), atol=1e-3, rtol=0
    )


def test_elastic_waves_bend_and_keep_still_without(blob, generator):
    found = Distort(**STILL, elastic=0.05)(blob, generator)
    spread = (centres(found) - centres(blob)).norm(dim=1)
    assert 0.01 < spread.mean() < 0.15


def test_strokes_get_thicker_and_thinner(blob, generator):
    line = torch.zeros(64, 1, 9, 9)
    line[..., 3:6, :] = 1
    mass = Distort(**STILL, strokes=1.0)(line, generator).sum((1, 2, 3)) / 9
    assert mass.min() >= 1 - 1e-4
    assert mass.max() <= 5 + 1e-4
    assert mass.min() < 1.5
    assert mass.max() > 4.5


def test_draws_are_the_generators_own(blob):
    distort = Distort(elastic=0.02, strokes=0.5)
    first, again, other = (distort(blob, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row) for row in first.flatten(1).tolist()}) == 64


def test_negative_magnitudes_are_named():
    with pytest.raises(ValueError, match="`shear` must be a number that is not negative"):
        Distort(shear=-0.1)
    assert repr(Distort()).startswith("Distort(degrees=15, scale=0.15")


def test_turns_are_those_of_pixels(generator):
    """A bar across a wide image stands upright after a quarter turn, cut to the height that there is."""
    images = torch.zeros(64, 1, 8, 16)
    images[..., 3:5, 2:14] = 1
    turned = Distort(**STILL | {"degrees": 90})(images, generator)[:, 0]
    upright = min(turned, key=lambda one: float((one.sum(0) > 0.5).sum()))
    assert (upright > 0.5).any(1).sum() == 8
    assert 2 <= (upright > 0.5).any(0).sum() <= 4


def test_magnitudes_that_turn_an_image_inside_out_are_refused():
    with pytest.raises(ValueError, match="`strokes` must"):
        Distort(strokes=3.0)
    with pytest.raises(ValueError, match="`scale` must be below 1"):
        Distort(scale=1.0)
    with pytest.raises(TypeError, match="`images` must be of floating point, got bytes"):
        Distort()(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.Generator())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_places_do_not_have_the_digits_of_half_precision(dtype, generator):
    """Places in 224 pixels were off by a pixel, and some pixels became NaN."""
    images = torch.rand(2, 1, 224, 224, generator=generator).to(dtype)
    found = Distort(**STILL)(images, generator)
    torch.testing.assert_close(found, images.float(), atol=1e-3, rtol=0)


def test_draws_go_where_the_images_are(generator, monkeypatch):
    """A generator of the CPU draws there alone; the meta device, whose images have no values, stands for a GPU."""
    monkeypatch.setattr("otdml.data.augment.check_images", lambda name, images: images)
    images = torch.empty(2, 1, 8, 8, device="meta")
    found = Distort(elastic=0.1, strokes=0.5)(images, generator)
    assert (found.device.type, found.shape) == ("meta", images.shape)


def test_what_is_no_generator_is_named():
    with pytest.raises(TypeError, match=r"`generator` must be a torch\.Generator or None, got 3"):
        Distort()(torch.rand(1, 1, 4, 4), 3)
