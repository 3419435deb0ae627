"""Pictures in folders and archives, written here."""

import shutil

import numpy as np
import pytest
import torch

from otdml.contrast import class_pictures

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    for split, n in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = np.full((4, 4, 3), 100 * label + i, np.uint8)
                pixels[..., 0] = 7
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{i}.png")
    (tmp_path / "set" / "train" / "cat" / "notes.txt").write_text("no picture")
    return tmp_path / "set"


@pytest.mark.parametrize("archived", [False, True])
def test_pictures_come_in_order_with_their_classes(folder, archived):
    path = shutil.make_archive(str(folder), "zip", folder) if archived else folder
    images, labels, classes = class_pictures(path, "train")
    assert images.shape == (6, 3, 4, 4)
    assert images.dtype == torch.uint8
    assert images[:, 0].unique().tolist() == [7]
    assert images[:, 1, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert classes == ["cat", "dog"]
    assert len(class_pictures(path, "test")[0]) == 2


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"hold pictures val/CLASS/NAME.jpg or .png"):
        class_pictures(folder, "val")
    with pytest.raises(FileNotFoundError):
        class_pictures(tmp_path / "absent.zip", "train")
    Image.new("RGB", (5, 4)).save(folder / "test" / "dog" / "wide.png")
    with pytest.raises(ValueError, match="pictures of one size"):
        class_pictures(folder, "test")


@pytest.mark.parametrize("archived", [False, True])
def test_files_beside_pictures_are_passed_over_and_a_folder_around_them_is_not(folder, tmp_path, archived):
    inner = tmp_path / "around" / "set"
    inner.parent.mkdir()
    folder.rename(inner)
    (inner / "train" / "cat" / "folder.png").mkdir()
    (inner / "train" / "cat" / "._0.png").write_bytes(b"of macOS")
    # Jupyter leaves copies of what it has shown, which made a class of their own.
    shutil.copytree(inner / "train" / "cat", inner / "train" / ".ipynb_checkpoints")
    path = shutil.make_archive(str(inner.parent), "zip", inner.parent) if archived else inner.parent
    assert len(class_pictures(path, "train")[0]) == 6


def test_what_cannot_be_read_is_named(folder, tmp_path):
    (folder / "train" / "dog" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"hold pictures that can be read, got train/dog/broken.png"):
        class_pictures(folder, "train")
    (tmp_path / "other.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"be a folder or a zip archive, got .*other.zip"):
        class_pictures(tmp_path / "other.zip", "train")


def test_pixels_are_those_that_one_sees(tmp_path):
    """Sixteen bits were cut off at 255, and pictures lay as the camera was held."""
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.fromarray(np.array([[32896, 257]], np.uint16)).save(tmp_path / "train" / "cat" / "a.png")
    exif = Image.Exif()
    exif[274] = 3  # Upside down.
    Image.fromarray(np.array([[5, 9]], np.uint8)).save(tmp_path / "train" / "cat" / "b.png", exif=exif)
    assert class_pictures(tmp_path, "train")[0][:, 1, 0].tolist() == [[128, 1], [9, 5]]


@pytest.mark.parametrize("archived", [False, True])
def test_two_sets_side_by_side_are_not_one(folder, tmp_path, archived):
    both = tmp_path / "both"
    both.mkdir()
    shutil.copytree(folder, both / "first")
    folder.rename(both / "second")
    path = shutil.make_archive(str(both), "zip", both) if archived else both
    with pytest.raises(ValueError, match=r"hold one folder train, got first/train, second/train\."):
        class_pictures(path, "train")
