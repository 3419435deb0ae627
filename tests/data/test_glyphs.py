"""Glyphs: what is drawn, of which letters, and always the same."""

import pytest
import torch

from otdml.data import Glyphs
from otdml.data.glyphs import FACES, TEST, TRAIN, _characters, _drawing, _letters
from otdml.dml import retrieval_metrics


@pytest.fixture(scope="module")
def test_set():
    return Glyphs(split="test")


def scripts(found):
    return list(dict.fromkeys(name.partition("/")[0] for name in found.classes))


def test_scripts_of_the_test_are_seen_in_no_training(test_set):
    train, val, both = (Glyphs(split=split, samples=2) for split in ("train", "val", "trainval"))
    assert scripts(test_set) == list(TEST)
    assert scripts(both) == list(TRAIN)
    assert not set(scripts(train)) & set(scripts(val))
    assert sorted(train.classes + val.classes) == sorted(both.classes)
    assert len(test_set) == 12 * len(test_set.classes)
    assert len(both.classes) > 400
    assert len(test_set.classes) > 250


def test_drawings_depend_on_nothing_else(test_set):
    assert torch.equal(Glyphs(split="test").images, test_set.images)
    both, train = (Glyphs(split=split) for split in ("trainval", "train"))
    for name in (train.classes[0], train.classes[-1]):
        own = [part.images[part.labels == part.classes.index(name)] for part in (both, train)]
        assert torch.equal(*own)
        assert len(own[0].flatten(1).unique(dim=0)) == 12


def test_samples_have_ink_inside_the_image(test_set):
    ink = test_set.images.flatten(1).float()
    assert (ink.amax(1) > 60).all()
    assert 0.02 < float((ink / 255).mean()) < 0.3
    border = torch.cat([test_set.images[..., [0, -1], :].flatten(1), test_set.images[..., [0, -1]].flatten(1)], 1)
    assert float((border.amax(1) > 128).float().mean()) < 0.01


def test_letters_of_every_face_are_drawn_by_it():
    assert all(any(ord(letter) in _characters(face) for face in FACES) for _, letter in _letters())
    upright, slanted = (_drawing("A", face) for face in ("Sans", "Sans-Oblique"))
    assert (upright != slanted).mean() > 0.02


def test_capitals_that_look_like_latin_ones_are_no_classes():
    letters = {letter for _, letter in _letters()}
    assert "A" in letters
    assert not letters & {"\u0391", "\u0410"}  # Alpha, and the A of Cyrillic
    assert "\u0416" in letters  # Zhe
    assert "é" not in letters


def test_raw_pixels_find_few_neighbours(test_set):
    found = retrieval_metrics(test_set.images.flatten(1).float(), test_set.labels)
    assert 0.05 < found["recall@1"] < 0.3


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`split` must be"):
        Glyphs(split="tests")
    with pytest.raises(ValueError, match="`samples` must be"):
        Glyphs(samples=0)
