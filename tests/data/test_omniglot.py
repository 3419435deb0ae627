"""Omniglot from made-up archives in the published layout, and from the real ones where they are at hand."""

import io
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from otdml.data import Omniglot
from otdml.data.omniglot import BACKGROUND

# Made-up archives hold a few characters of the published ones.
Part = partial(Omniglot, allow_partial=True)

# Alphabet: number of the first character. Some archives hold them out of alphabetical order.
SMALL1 = {"Korean": 30, "Balinese": 1, "Greek": 60, "Latin": 90, "Early_Aramaic": 20}
SMALL2 = {"Tagalog": 200, "Greek": 60, "Sanskrit": 300, "Latin": 90}


def drawing(character: int, number: int) -> bytes:
    """White paper with a black bar whose place tells character and drawing."""
    paper = np.full((105, 105), True)
    paper[10 + character % 80, 10 + 4 * number :] = False
    file = io.BytesIO()
    Image.fromarray(paper).save(file, "PNG")
    return file.getvalue()


def members(name: str, alphabets: dict[str, int], characters: int = 3, drawings: int = 2) -> dict[str, bytes]:
    return {
        f"{name}/{alphabet}/character{c + 1:02d}/{first + c:04d}_{d + 1:02d}.png": drawing(first + c, d)
        for alphabet, first in alphabets.items()
        for c in range(characters)
        for d in range(drawings)
    }


def zipped(root: Path, name: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
        for folder in sorted({f"{file.rsplit('/', 1)[0]}/" for file in files}):
            archive.writestr(folder, b"")
        for file, content in files.items():
            archive.writestr(file, content)


def unpacked(root: Path, files: dict[str, bytes]) -> None:
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)


@pytest.fixture
def root(tmp_path) -> Path:
    zipped(tmp_path, "images_background_small1", members("images_background_small1", SMALL1))
    zipped(tmp_path, "images_background_small2", members("images_background_small2", SMALL2))
    return tmp_path


def test_drawings_come_in_order_of_character_and_drawing(root):
    found = Part(root, "trainval", size=105)
    order = sorted(SMALL1, key=SMALL1.__getitem__)
    assert found.classes == [f"{name}/character{c:02d}" for name in order for c in (1, 2, 3)]
    assert found.labels.tolist() == [k // 2 for k in range(30)]
    for i, (alphabet, c, d) in enumerate((a, c, d) for a in order for c in range(3) for d in range(2)):
        paper = np.array(Image.open(io.BytesIO(drawing(SMALL1[alphabet] + c, d))))
        assert torch.equal(found.images[i, 0], torch.from_numpy(~paper).to(torch.uint8) * 255)


def test_test_characters_are_the_alphabets_training_lacks(root):
    assert {name.split("/")[0] for name in Part(root, "test").classes} == {"Tagalog", "Sanskrit"}


def test_val_holds_whole_alphabets_out(root):
    classes = {split: Part(root, split).classes for split in ("train", "val", "trainval")}
    alphabets = {split: {name.split("/")[0] for name in names} for split, names in classes.items()}
    assert sorted(classes["train"] + classes["val"]) == sorted(classes["trainval"])
    assert not alphabets["train"] & alphabets["val"]
    assert alphabets["val"]


def test_folders_hold_what_archives_hold(root, tmp_path):
    folder = tmp_path / "unpacked"
    unpacked(folder, members("images_background_small1", SMALL1))
    for where in (folder, folder / "images_background_small1"):
        found, expected = Part(where, "train"), Part(root, "train")
        assert found.classes == expected.classes
        assert torch.equal(found.images, expected.images)


def test_turned_characters_are_training_classes_only(root):
    plain, turned = Part(root, "train"), Part(root, "train", rotations=True)
    assert len(turned) == 4 * len(plain)
    assert len(turned.classes) == 4 * len(plain.classes)
    assert Part(root, "test", rotations=True).classes == Part(root, "test").classes


def test_size_and_crop(root):
    assert Part(root, size=14).images.shape[1:] == (1, 14, 14)
    cropped = Part(root, crop=True).images
    # The bars lie anywhere on the paper, and in the middle of the crops.
    heights = cropped[:, 0].float().sum(2)
    middle = (heights * torch.arange(28)).sum(1) / heights.sum(1)
    torch.testing.assert_close(middle, torch.full_like(middle, 13.5), atol=0.1, rtol=0)


def test_corrupt_image_is_named_and_can_be_skipped(root):
    files = members("images_background_small1", SMALL1)
    bad, blank = [name for name in files if "Greek/character02" in name]
    zipped(root, "images_background_small1", files | {bad: files[bad][:40]})
    with pytest.raises(ValueError, match=rf'cannot read the image {bad}: .* pass on_corrupt="skip"'):
        Part(root, "trainval")
    found = Part(root, "trainval", on_corrupt="skip")
    assert list(found.skipped) == [bad]
    assert found.skipped[bad]
    assert len(found) == 29
    # Each is told of by the split it belongs to.
    parts = [Part(root, split, on_corrupt="skip") for split in ("train", "val")]
    assert ["Greek/character02" in part.classes for part in parts] == [bool(part.skipped) for part in parts]
    assert sum(len(part.skipped) for part in parts) == 1
    zipped(root, "images_background_small1", files | {bad: b"", blank: b""})
    with pytest.raises(ValueError, match="no image of Greek/character02"):
        Part(root, "trainval", on_corrupt="skip")


@pytest.mark.parametrize("on_corrupt", ["raise", "skip"])
def test_damaged_archive_is_named(root, on_corrupt):
    file = root / "images_background_small1.zip"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{file} is damaged .* published at https://github"):
        Part(root, on_corrupt=on_corrupt)


def test_image_whose_compressed_bytes_are_damaged_is_corrupt(tmp_path):
    files, name = members("images_background_small1", SMALL1), "images_background_small1"
    bad = next(file for file in files if "Greek/character02" in file)
    with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        start = archive.getinfo(bad).header_offset + 30 + len(bad)
    content = bytearray((tmp_path / f"{name}.zip").read_bytes())
    content[start] |= 0b110  # The third kind of deflate block, which there is not.
    (tmp_path / f"{name}.zip").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"cannot read the image {bad}: .*invalid block type"):
        Part(tmp_path, "trainval")
    assert Part(tmp_path, "trainval", on_corrupt="skip").skipped.keys() == {bad}


@pytest.mark.parametrize("content", [b"", b"PK no archive", b"anything else"])
def test_damaged_repack_is_named(tmp_path, content):
    file = tmp_path / "omniglot_background.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is no repack of Omniglot, or is damaged"):
        Part(tmp_path, protocol="full")
    np.savez(file, pictures=np.zeros(3))
    with pytest.raises(ValueError, match=r"is no repack of Omniglot.*images"):
        Part(tmp_path, protocol="full")


def test_image_of_another_size_is_corrupt(root):
    files = members("images_background_small1", SMALL1)
    file = io.BytesIO()
    Image.new("1", (28, 28)).save(file, "PNG")
    name = next(iter(files))
    zipped(root, "images_background_small1", files | {name: file.getvalue()})
    with pytest.raises(ValueError, match="28 × 28 pixels, not 105 × 105"):
        Part(root, "trainval")


def test_a_part_of_the_set_is_refused_unless_it_is_asked_for(root):
    has = "small, train has 30 images of 15 characters, officially 2,720 of 136"
    for split in ("train", "val", "trainval"):
        with pytest.raises(ValueError, match=rf"not hold the whole Omniglot: {has}\. .* \(--allow-partial\)"):
            Omniglot(root, split)
    with pytest.raises(ValueError, match="small, test has 12 images of 6 characters, officially 2,120 of 106"):
        Omniglot(root, "test")
    assert len(Omniglot(root, "trainval", allow_partial=True)) == 30


def test_empty_class_is_named(tmp_path):
    unpacked(tmp_path, members("images_background_small1", SMALL1))
    (tmp_path / "images_background_small1" / "Greek" / "character09").mkdir()
    with pytest.raises(ValueError, match="the class Greek/character09 is empty"):
        Part(tmp_path)


def test_missing_data_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images_background_small1\.zip or .*published at https://github"):
        Part(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"omniglot_evaluation\.npz"):
        Part(tmp_path, "test", protocol="full")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Part(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`root`"):
        Omniglot()
    (tmp_path / "images_background_small1").mkdir()
    with pytest.raises(FileNotFoundError, match="no drawing was found"):
        Part(tmp_path)


def test_bad_options_are_named(root):
    with pytest.raises(ValueError, match="`protocol` must be one of 'small', 'full'"):
        Part(root, protocol="tiny")
    with pytest.raises(ValueError, match="`on_corrupt`"):
        Part(root, on_corrupt="ignore")


def test_repack_has_the_names_of_the_background_set(tmp_path):
    paper, labels = np.ones((964, 1, 105, 105), dtype=bool), np.arange(964)[:, None]
    paper[:, 0, 50, 50] = False
    np.savez_compressed(tmp_path / "omniglot_background.npz", images=paper, labels=labels)
    found = Part(tmp_path, "trainval", protocol="full")
    assert len(found) == len(found.classes) == 964
    assert len(BACKGROUND.split(",")) == 30
    assert found.classes[107] == "Balinese/character01"


@pytest.mark.parametrize("wrong", [-1, 4, 0.5])
def test_labels_of_a_repack_are_its_characters(tmp_path, wrong):
    """Minus one was the last character."""
    labels = np.array([[0], [1], [2], [wrong]])
    np.savez_compressed(tmp_path / "omniglot_background.npz", images=np.ones((4, 1, 105, 105), bool), labels=labels)
    with pytest.raises(ValueError, match=r"npz must hold labels of its 4 characters, counted from 0, got"):
        Part(tmp_path, "trainval", protocol="full")


def test_real_archives_have_the_protocols_counts(real_data):
    assert (len(Omniglot(real_data, "trainval")), len(Omniglot(real_data, "trainval").classes)) == (2720, 136)
    test = Omniglot(real_data, "test")
    assert (len(test), len(test.classes)) == (2120, 106)
    assert {name.split("/")[0] for name in test.classes} == {"Japanese_(katakana)", "Sanskrit", "Tagalog"}


def test_real_repack_names_what_the_archive_shows(real_data):
    """The characters that archive and repack share have the same names and, image by image, the same ink."""
    small, full = Omniglot(real_data, "trainval"), Omniglot(real_data, "trainval", protocol="full")
    assert (len(full), len(full.classes)) == (19280, 964)
    place = torch.tensor([full.classes.index(name) for name in small.classes])
    images = full.images.unflatten(0, (964, 20))[place].flatten(0, 1)
    assert torch.equal(images, small.images)


def test_archives_that_would_burst_are_refused_before_they_are_unpacked(tmp_path):
    member = "images_background_small1/Latin/character01/0001_01.png"
    with zipfile.ZipFile(tmp_path / "images_background_small1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, bytes(2**24))
    with pytest.raises(ValueError, match=r"0001_01\.png: it would unpack to 16,777,216 bytes"):
        Part(tmp_path, "trainval")
    big = io.BytesIO()
    Image.new("1", (9000, 9000)).save(big, "png")
    zipped(tmp_path, "images_background_small1", {member: big.getvalue()})
    with pytest.raises(ValueError, match="9000 × 9000 pixels, not 105 × 105"):
        Part(tmp_path, "trainval")


def test_repacks_that_would_burst_are_refused_before_they_are_unpacked(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "omniglot_background.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(17):
            file.write(bytes(2**24))
    with pytest.raises(ValueError, match=r"omniglot_background\.npz .*it would unpack to 285,212,672 bytes"):
        Part(tmp_path, "trainval", protocol="full")
