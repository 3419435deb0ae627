"""CUB-200-2011 in its official layout."""

import pytest

from otdml.data import CUB200
from otdml.data.cub import PROTOCOL

CLASSES = [1, 2, 3, 98, 99, 100, 101, 102, 200]


def test_the_split_is_by_class(published):
    root = published("cub", CLASSES)
    sets = {split: CUB200(root, split, allow_partial=True) for split in ("train", "val", "trainval", "test")}
    assert sets["trainval"].classes == [
        "001.Bird_1",
        "002.Bird_2",
        "003.Bird_3",
        "098.Bird_98",
        "099.Bird_99",
        "100.Bird_100",
    ]
    assert sets["test"].classes == ["101.Bird_101", "102.Bird_102", "200.Bird_200"]
    assert {*sets["train"].classes, *sets["val"].classes} == {*sets["trainval"].classes}
    assert not {*sets["train"].classes} & {*sets["val"].classes}
    assert len(sets["val"].classes) == 2
    assert sets["test"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert all(
        f"/images/{sets['test'].classes[label]}/" in path
        for path, (_, label) in zip(sets["test"].paths, sets["test"], strict=True)
    )
    assert sets["test"][0][0].shape == (3, 224, 224)
    assert sets["test"].is_query is None


def test_the_folder_itself_or_the_one_around_it(published):
    root = published("cub", CLASSES)
    inside = CUB200(root / "CUB_200_2011", "test", allow_partial=True)
    assert inside.paths == CUB200(root, "test", allow_partial=True).paths


def test_a_partial_copy_is_refused_with_the_difference(published):
    root = published("cub", CLASSES)
    next((root / "CUB_200_2011" / "images").glob("101*/*_0001_*.jpg")).unlink()
    message = (
        "does not hold the whole CUB-200-2011: train lists 24 images of 6 classes, officially 5,864 of 100; "
        "test lists 12 images of 3 classes, officially 5,924 of 100; "
        r"1 listed images are missing: 101.Bird_101/Bird_101_0001_26.jpg. Pass allow_partial=True"
    )
    with pytest.raises(ValueError, match=message):
        CUB200(root)
    assert len(CUB200(root, "test", allow_partial=True)) == 11


def test_the_whole_set_is_accepted(tmp_path):
    # All 11,788 files of the official counts, empty: nothing is decoded until it is asked for.
    home = tmp_path / "CUB_200_2011"
    rows, number = [], 0
    for c in range(1, 201):
        folder = f"{c:03d}.Bird"
        (home / "images" / folder).mkdir(parents=True)
        images = (59 if c <= 64 else 58) if c <= 100 else (60 if c <= 124 else 59)
        for _ in range(images):
            number += 1
            rows.append((number, c, f"{folder}/{number}.jpg"))
            (home / "images" / rows[-1][2]).touch()
    (home / "images.txt").write_text("".join(f"{n} {path}\n" for n, _, path in rows))
    (home / "image_class_labels.txt").write_text("".join(f"{n} {c}\n" for n, c, _ in rows))
    (home / "classes.txt").write_text("".join(f"{c} {c:03d}.Bird\n" for c in range(1, 201)))
    sizes = {split: len(CUB200(tmp_path, split)) for split in ("train", "val", "trainval", "test")}
    assert sizes["trainval"] == 5_864
    assert sizes["test"] == 5_924
    assert sizes["train"] + sizes["val"] == 5_864
    assert len(CUB200(tmp_path, "val").classes) == 20


def test_a_missing_folder_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.caltech\.edu.* Expected: CUB_200_2011/ with images\.txt"):
        CUB200(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"holds no images\.txt\. CUB-200-2011 is published at"):
        CUB200(tmp_path)
    with pytest.raises(ValueError, match="`root` must be the folder that holds CUB-200-2011, got None"):
        CUB200()
    with pytest.raises(ValueError, match="`split` must be one of 'train', 'val', 'trainval', 'test', got 'valid'"):
        CUB200(tmp_path, "valid")


def test_damaged_annotations_are_named(published):
    root = published("cub", CLASSES)
    home = root / "CUB_200_2011"
    lines = (home / "image_class_labels.txt").read_text().splitlines()
    (home / "image_class_labels.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"annotation files of CUB-200-2011 .* disagree about '36'"):
        PROTOCOL.listing(root)
    (home / "image_class_labels.txt").write_text("1\n")
    with pytest.raises(ValueError, match=r"image_class_labels\.txt, line 1: expected 2 columns, found '1'"):
        PROTOCOL.listing(root)


def test_an_image_that_is_listed_again_is_told_and_taken_once(published):
    """It would be its own nearest neighbour; one that is left out beside it kept the number of images official."""
    root = published("cub", CLASSES)
    home = root / "CUB_200_2011"
    rows = (home / "images.txt").read_text().splitlines()
    rows[-1] = f"{rows[-1].split()[0]} {rows[-2].split()[1]}"
    (home / "images.txt").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"1 images are listed more than once: 200\.Bird_200/Bird_200_0002"):
        CUB200(root)
    found = CUB200(root, "test", allow_partial=True)
    assert len(found) == len(set(found.paths)) == 11


def test_a_class_is_trained_on_or_tested_on(published):
    root = published("cub", CLASSES)
    names = root / "CUB_200_2011" / "classes.txt"
    names.write_text(names.read_text().replace("101.Bird_101", "001.Bird_1"))
    with pytest.raises(ValueError, match=r"1 classes in train and in another part: 001\.Bird_1"):
        CUB200(root, allow_partial=True)


def test_annotations_of_another_encoding_are_named(published):
    root = published("cub", CLASSES)
    (root / "CUB_200_2011" / "classes.txt").write_bytes("1 Säger\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"An annotation file of CUB-200-2011 in .* is not in UTF-8"):
        CUB200(root)
