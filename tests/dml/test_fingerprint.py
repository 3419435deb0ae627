"""What tells one data set from another, and what does not."""

import os
import shutil

import pytest
import torch
from PIL import Image

from otdml.data import CenterCrop, Digits, ImageFolder
from otdml.dml.fingerprint import fingerprint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 60 * int(path.stem)).save(path)
    return tmp_path / "photos"


def of(folder):
    return fingerprint(ImageFolder(folder, CenterCrop(8)))


def test_it_is_the_same_wherever_files_lie_and_whenever_they_were_copied(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "a" / "1.png", ns=(1, 1))
    assert of(photos) == of(tmp_path / "copy") == of(photos)


def test_every_change_of_files_is_seen(photos):
    seen = {of(photos)}
    state = (photos / "a/1.png").stat()
    content = bytearray((photos / "a/1.png").read_bytes())
    content[-9] ^= 1
    # As many bytes, and the time of the earlier ones.
    (photos / "a/1.png").write_bytes(content)
    os.utime(photos / "a/1.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    seen.add(of(photos))
    (photos / "a/2.png").rename(photos / "a/4.png")
    seen.add(of(photos))
    (photos / "a/4.png").rename(photos / "b/4.png")
    seen.add(of(photos))
    (photos / "b/3.png").unlink()
    seen.add(of(photos))
    assert len(seen) == 5


def test_files_are_read_once(photos, monkeypatch):
    first = of(photos)
    monkeypatch.setattr("otdml.dml.fingerprint.file_hash", lambda path: pytest.fail("was read again"))
    assert of(photos) == first


def test_a_damaged_cache_is_done_without(photos, tmp_path):
    first = of(photos)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    kept.write_text("[")
    assert of(photos) == first


def test_pixels_labels_and_names_count_in_memory():
    seen = {fingerprint(Digits(split="test")), fingerprint(Digits(split="train"))}
    for change in ("images", "labels", "classes"):
        digits = Digits(split="test")
        if change == "images":
            digits.images[3, 0, 4, 4] ^= 1
        elif change == "labels":
            digits.labels[:2] = digits.labels[:2].flip(0)
        else:
            digits.classes = [*digits.classes[:-1], "other"]
        seen.add(fingerprint(digits))
    assert len(seen) == 5


def test_a_set_may_say_what_it_is():
    class Own:
        labels, classes = torch.zeros(1), ["a"]

        def fingerprint(self):
            return "mine"

    assert fingerprint(Own()) == "mine"
