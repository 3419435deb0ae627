"""Images in one tensor: resampling, cropping and turning by value."""

import pytest
import torch
from torch.nn import functional as F

from otdml.data import TensorImages, crop_to_ink, downscale, rotated_classes


def square(top: int, left: int, side: int, size: int = 24) -> torch.Tensor:
    image = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    image[..., top : top + side, left : left + side] = 255
    return image


def test_downscaling_by_a_whole_factor_keeps_the_mean(generator):
    images = torch.randint(256, (1500, 1, 12, 12), generator=generator, dtype=torch.uint8)
    small = downscale(images, 1)
    torch.testing.assert_close(small.flatten().float(), images.float().mean((1, 2, 3)), atol=25, rtol=0)
    assert downscale(images, 12) is images


def test_downscaling_is_anti_aliased():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).tile(24)[None, None, None].expand(1, 1, 48, 48)
    inner = downscale(stripes, 8)[..., 1:-1].int()
    assert (inner - 128).abs().max() <= 2


@pytest.mark.parametrize(("top", "left"), [(0, 0), (9, 3), (18, 18)])
def test_crop_forgets_the_place(top, left):
    assert torch.equal(crop_to_ink(square(top, left, 6), 6, margin=0.0), square(0, 0, 6, 6))
    assert torch.equal(crop_to_ink(square(top, left, 6), 9), crop_to_ink(square(4, 5, 6), 9))


@pytest.mark.parametrize("side", [3, 6, 12, 20])
def test_crop_forgets_the_scale(side):
    """With a quarter of the side as margin, ink covers two thirds of the crop each way."""
    assert crop_to_ink(square(1, 2, side), 12, margin=0.25).float().mean() / 255 == pytest.approx(4 / 9, abs=0.01)


def test_crop_of_the_whole_image_is_resampling(generator):
    images = torch.randint(1, 256, (3, 2, 24, 24), generator=generator, dtype=torch.uint8)
    inner = crop_to_ink(images, 8, margin=0.0)[..., 1:-1, 1:-1].float()
    expected = F.interpolate(images.float(), (8, 8), mode="bilinear", antialias=True)[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, expected, atol=1.0, rtol=0)


def test_crop_keeps_margin_and_small_marks_small():
    found = crop_to_ink(square(4, 4, 8), 10, margin=0.125)
    assert torch.equal((found[0, 0] > 127).nonzero().aminmax(dim=0).min, torch.tensor([1, 1]))
    assert crop_to_ink(square(4, 4, 1), 8, margin=0.0, least=16).float().div(255).sum() == pytest.approx(0.25, abs=0.02)
    assert not crop_to_ink(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 4).any()


def test_crop_treats_images_one_by_one(generator):
    images = torch.cat([square(0, 0, 6), square(3, 9, 10), square(20, 2, 3)])
    together = crop_to_ink(images, 7)
    assert torch.equal(together, torch.cat([crop_to_ink(image[None], 7) for image in images]))


def test_turned_classes_are_turned_drawings():
    images = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2)
    turned, labels, classes = rotated_classes(images, torch.tensor([1, 0]), ["a", "b"])
    assert classes == ["a", "b", "a@90", "b@90", "a@180", "b@180", "a@270", "b@270"]
    assert torch.equal(turned[labels == classes.index("b@90")][0, 0], torch.rot90(images[0, 0]))
    assert torch.equal(turned[labels == classes.index("a@180")][0, 0], images[1, 0].flip(0, 1))


def test_bad_images_are_named():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no image of b"):
        TensorImages(images, torch.tensor([0, 0]), ["a", "b"])
    with pytest.raises(ValueError, match=r"`labels` must lie in \[0, 1\)"):
        TensorImages(images, torch.tensor([0, 1]), ["a"])
    with pytest.raises(ValueError, match="`images` must be uint8"):
        TensorImages(images.float(), torch.tensor([0, 0]), ["a"])


def test_images_to_be_turned_are_square():
    with pytest.raises(ValueError, match=r"`images` must be square, got \(2, 1, 3, 4\)"):
        rotated_classes(torch.zeros(2, 1, 3, 4), torch.tensor([0, 1]), ["a", "b"])
