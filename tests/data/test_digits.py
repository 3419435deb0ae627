"""Digits against scikit-learn's own arrays."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from otdml.data import Digits

COUNTS = {"train": 537, "val": 364, "trainval": 901, "test": 896}


@pytest.mark.parametrize("split", COUNTS)
def test_images_and_labels_are_those_of_scikit_learn(split):
    digits, source = Digits(split=split), load_digits()
    keep = [i for i, target in enumerate(source.target.tolist()) if str(target) in digits.classes]
    assert len(digits) == len(keep) == COUNTS[split]
    assert [digits.classes[label] for label in digits.labels] == [str(source.target[i]) for i in keep]
    torch.testing.assert_close(
        digits.images[:, 0] / 255 * 16, torch.tensor(source.images[keep]).float(), atol=0.032, rtol=0
    )


def test_splits_are_disjoint_by_class():
    classes = {split: set(Digits(split=split).classes) for split in COUNTS}
    assert classes["train"] | classes["val"] == classes["trainval"] == set("01234")
    assert not classes["train"] & classes["val"]
    assert classes["test"] == set("56789")


def test_items_and_batches_agree():
    digits = Digits(split="train", transform=lambda image: image.flip(-1))
    images, labels = digits.batch([3, 5])
    assert images.dtype == torch.uint8
    assert labels.tolist() == [digits[3][1], digits[5][1]]
    torch.testing.assert_close(digits[3][0], images[0].float().flip(-1) / 255)
    assert next(iter(DataLoader(digits, 4)))[0].shape == (4, 1, 8, 8)


def test_thumbnail_is_the_stored_image():
    digits = Digits()
    assert digits.thumbnail(7).shape == (8, 8)
    assert digits.thumbnail(7).tolist() == digits.images[7, 0].tolist()


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="`split` must be one of"):
        Digits(split="all")


def test_rotations_are_classes_of_the_training_splits_alone():
    turned = Digits(split="train", rotations=True)
    assert len(turned) == 4 * COUNTS["train"]
    assert len(turned.classes) == 12
    torch.testing.assert_close(turned.images[COUNTS["train"]], Digits(split="train").images[0].rot90(1, (-2, -1)))
    assert len(Digits(split="test", rotations=True)) == COUNTS["test"]
