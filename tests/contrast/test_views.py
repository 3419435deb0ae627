"""Views whose content is known."""

import pytest
import torch
from draws import seeded

from otdml.contrast import Pairs, Views, corrupted, spoiled

STILL = {"crop": (1.0, 1.0), "ratio": 1.0, "colour": 0.0, "grey": 0.0}


def test_half_of_all_views_are_mirrored():
    images = torch.rand(400, 3, 6, 6)
    views = Views(**STILL)(images, seeded())
    same = torch.isclose(views, images, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(views, images.flip(-1), atol=1e-5).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 160 < int(mirrored.sum()) < 240


def test_crops_have_the_area_that_was_asked_for_and_stay_inside():
    """A picture whose colours are its coordinates tells where each point of a view comes from."""
    side = 64
    places = (torch.arange(side) + 0.5) / side
    image = torch.stack([places.expand(side, side), places[:, None].expand(side, side), torch.zeros(side, side)])
    views = Views(crop=(0.1, 0.4), colour=0.0, grey=0.0)(image.expand(300, 3, side, side), seeded())
    spans = views[:, :2].amax((2, 3)) - views[:, :2].amin((2, 3))
    # The outermost points of a view are half a point from its edge.
    areas = (spans * side / (side - 1)).prod(1)
    assert 0.098 < float(areas.min()) < 0.13
    assert 0.36 < float(areas.max()) < 0.402
    ratios = spans[:, 0] / spans[:, 1]
    assert float(ratios.max()) < 4 / 3 + 0.03
    assert float(ratios.max()) > 1.25
    assert float(views[:, :2].amin()) >= 0.5 / side - 1e-6


def test_a_crop_of_the_whole_is_the_whole_whatever_its_shape():
    images = torch.rand(50, 3, 6, 6)
    views = Views(**STILL | {"ratio": 4 / 3})(images, seeded())
    assert torch.allclose(views.sum((1, 2, 3)), images.sum((1, 2, 3)), rtol=1e-4)


def test_grey_views_have_equal_channels_and_the_luma():
    images = torch.rand(300, 3, 4, 4)
    views = Views(**STILL | {"grey": 0.3})(images, seeded())
    grey = (views[:, 0] - views[:, 1]).abs().amax((1, 2)) < 1e-6
    assert 60 < int(grey.sum()) < 120
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum((1, 2, 3)) / 16
    assert torch.allclose(views[grey].mean((1, 2, 3)), luma[grey], atol=1e-5)


def test_views_repeat_with_their_generator_and_leave_the_global_one():
    images, state = torch.rand(4, 3, 8, 8), torch.get_rng_state()
    assert torch.equal(Views()(images, seeded(1)), Views()(images, seeded(1)))
    assert not torch.equal(Views()(images, seeded(1)), Views()(images, seeded(2)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("crop", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5)])
def test_shares_that_are_none_are_refused(crop):
    with pytest.raises(ValueError, match="`crop` must "):
        Views(crop=crop)


def test_a_share_of_views_is_spoiled():
    views = torch.arange(1000.0).view(1000, 1, 1, 1)
    found = spoiled(views, "wrong", 0.8, seeded()).flatten()
    wrong = found != views.flatten()
    assert 760 < int(wrong.sum()) < 840
    assert torch.equal(found[wrong], views.flatten().roll(1)[wrong])
    assert torch.equal(spoiled(views, "noise", 0.0, seeded()), views)
    noise = spoiled(torch.full((1000, 1, 2, 2), 7.0), "noise", 0.5, seeded())
    assert bool(((noise == 7) | ((noise >= 0) & (noise < 1))).all())
    assert 440 < int((noise == 7).all((1, 2, 3)).sum()) < 560


def test_wrong_spoils_are_named():
    with pytest.raises(ValueError, match="wrogn"):
        spoiled(torch.zeros(2, 1, 1, 1), "wrogn", 0.5, seeded())
    with pytest.raises(ValueError, match="`share` must lie in"):
        spoiled(torch.zeros(2, 1, 1, 1), "wrong", 1.5, seeded())


def test_pairs_that_are_not_spoiled_show_the_same_picture():
    images = torch.rand(8, 1, 1, 1).expand(8, 3, 6, 6).contiguous()
    first, second = Pairs(Views(colour=0.0), "wrong", 0.0)(images, seeded())
    assert torch.allclose(first, second, atol=1e-5)


def test_one_picture_has_no_other():
    with pytest.raises(ValueError, match="`views` must be of two pictures or more"):
        spoiled(torch.zeros(1, 1, 2, 2), "wrong", 0.5, torch.Generator())
    assert spoiled(torch.ones(1, 1, 2, 2), "wrong", 0.0, torch.Generator()).sum() == 4


def test_views_keep_the_dtype():
    for dtype in (torch.float32, torch.float64):
        images = torch.rand(3, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
        assert Views()(images, torch.Generator()).dtype == dtype
        assert spoiled(images, "noise", 0.5, torch.Generator()).dtype == dtype
    with pytest.raises(TypeError, match="`generator` must be"):
        Views()(images, 3)


RAMP = torch.linspace(0, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


def test_draws_of_a_seed_stay_what_they_are():
    view = Views()(RAMP, seeded(5))
    assert view[:, :, 2, 5].flatten().tolist() == pytest.approx(
        [0.092684, 0.232507, 0.372329, 0.586933, 0.797642, 1.0], abs=2e-6
    )
    noise = spoiled(RAMP.view(12, 1, 4, 8), "noise", 0.5, seeded(5))[:6, 0, 2, 5]
    assert noise.tolist() == pytest.approx([0.05483, 0.904067, 0.221932, 0.305483, 0.389034, 0.742661], abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_views_of_another_precision_show_the_same_places(dtype):
    images = RAMP.to(dtype)
    found, expected = Views()(images, seeded()), Views()(images.float(), seeded())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pictures_on_a_gpu_with_a_generator_anywhere(device):
    images = RAMP.cuda()
    for change in (Views(), lambda x, g: corrupted(x, "noise", g), lambda x, g: spoiled(x, "noise", 0.5, g)):
        found = change(images, torch.Generator(device).manual_seed(0))
        assert found.device == images.device
        if device == "cpu":
            torch.testing.assert_close(found.cpu(), change(RAMP, seeded()), rtol=0, atol=1e-4)


def test_colours_are_not_inverted():
    """A brightness of 1 - 1.5 made black views, and such a contrast negatives."""
    with pytest.raises(ValueError, match=r"`colour` must lie in \[0, 1\], got 1.5"):
        Views(colour=1.5)
