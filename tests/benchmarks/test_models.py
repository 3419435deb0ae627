"""Image files become what the model was trained on."""

import numpy as np
import torch
from PIL import Image

from otdml.benchmarks.models import GreyImage
from otdml.data import crop_to_ink


def test_drawings_are_inverted_and_cropped_as_in_training(generator):
    ink = torch.zeros(1, 1, 105, 105, dtype=torch.uint8)
    ink[..., 20:60, 30:50] = 255 * (torch.rand(40, 20, generator=generator) > 0.3)
    paper = Image.fromarray(255 - ink[0, 0].numpy())
    found = GreyImage(28, invert=True, crop=True)(paper)
    assert torch.equal(found, crop_to_ink(ink, 28, least=35)[0].float() / 255)
    assert not torch.equal(found, GreyImage(28, invert=True)(paper))


def test_grey_paper_is_no_ink():
    scan = np.full((60, 60), 220, dtype=np.uint8)
    scan[10:30, 10:30] = 5
    clean = np.where(scan > 128, 255, scan).astype(np.uint8)
    crop = GreyImage(12, invert=True, crop=True)
    assert torch.equal(crop(Image.fromarray(scan)), crop(Image.fromarray(clean)))
