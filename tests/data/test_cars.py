"""Cars196 in each of its three layouts."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from otdml.data import Cars196

scipy_io = pytest.importorskip("scipy.io")

NUMBERS = [1, 2, 3, 97, 98, 99, 100, 174, 196]
NAMES = np.array([f"Maker Model {c} 2012" for c in range(1, 197)], dtype=object)
NAMES[173] = "Ram C/V Cargo Van Minivan 2012"
BOX = [("bbox_x1", object), ("bbox_y1", object), ("bbox_x2", object), ("bbox_y2", object)]


def photograph(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), (number, number, number)).save(path)


def records(rows, fields):
    annotations = np.empty((1, len(rows)), dtype=fields)
    for i, row in enumerate(rows):
        annotations[0, i] = row
    return annotations


def original(root):
    rows = []
    for i, c in enumerate([c for c in NUMBERS for _ in range(2)], 1):
        photograph(root / "car_ims" / f"{i:06d}.jpg", c)
        rows.append((f"car_ims/{i:06d}.jpg", 1, 2, 30, 20, c, i % 2))
    fields = [("relative_im_path", object), *BOX, ("class", object), ("test", object)]
    scipy_io.savemat(root / "cars_annos.mat", {"annotations": records(rows, fields), "class_names": NAMES[None]})


def devkit(root):
    fields = [*BOX, ("class", object), ("fname", object)]
    for part, name in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(1, 2, 30, 20, c, f"{i:05d}.jpg") for i, c in enumerate(NUMBERS, 1)]
        for row in rows:
            photograph(root / f"cars_{part}" / row[5], row[4])
        (root / "devkit").mkdir(exist_ok=True)
        scipy_io.savemat(root / "devkit" / name, {"annotations": records(rows, fields)})
    scipy_io.savemat(root / "devkit" / "cars_meta.mat", {"class_names": NAMES[None]})


def kaggle(root):
    (root / "names.csv").write_text("".join(f"{name}\n" for name in NAMES))
    for part in ("train", "test"):
        lines = []
        for i, c in enumerate(NUMBERS, 1):
            photograph(root / "car_data" / "car_data" / part / NAMES[c - 1].replace("/", "-") / f"{i:05d}.jpg", c)
            lines.append(f"{i:05d}.jpg,1,2,30,20,{c}\n")
        (root / f"anno_{part}.csv").write_text("".join(lines))


@pytest.mark.parametrize("layout", [original, devkit, kaggle])
def test_every_layout_is_split_by_class(layout, tmp_path):
    layout(tmp_path)
    train, test = (Cars196(tmp_path, split, allow_partial=True, size=8) for split in ("trainval", "test"))
    assert train.classes == [NAMES[c - 1] for c in (1, 2, 3, 97, 98)]
    assert test.classes == [NAMES[c - 1] for c in (99, 100, 174, 196)]
    assert sorted(test.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    # The grey value tells the class: every file is the one its label belongs to.
    for index in range(len(test)):
        number = test.thumbnail(index, 4).mean()
        assert NAMES[round(number) - 1] == test.classes[test.labels[index]]


def test_a_devkit_without_the_labels_of_its_test_half(tmp_path):
    devkit(tmp_path)
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").rename(tmp_path / "devkit" / "cars_test_annos.mat")
    with pytest.raises(FileNotFoundError, match=r"cars_test_annos\.mat has no classes, so half of the images"):
        Cars196(tmp_path)


def test_labels_beside_the_devkit_are_found(tmp_path):
    devkit(tmp_path)
    labelled = "cars_test_annos_withlabels.mat"
    (tmp_path / "devkit" / labelled).rename(tmp_path / labelled)
    assert len(Cars196(tmp_path, "test", allow_partial=True)) == 8


def test_a_partial_copy_and_a_missing_image(tmp_path):
    original(tmp_path)
    (tmp_path / "car_ims" / "000001.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"train lists 10 images of 5 classes, officially 8,054 of 98; .*missing: car_ims/000001\.jpg"
    ):
        Cars196(tmp_path)
    assert len(Cars196(tmp_path, "trainval", allow_partial=True)) == 9


def test_a_damaged_annotation_file_is_named(tmp_path):
    (tmp_path / "cars_annos.mat").write_bytes(b"no matrix" * 100)
    with pytest.raises(ValueError, match=r"cars_annos\.mat is not the published annotation file"):
        Cars196(tmp_path)


def test_a_missing_set_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no cars_annos\.mat, .*kaggle\.com"):
        Cars196(tmp_path)


def test_annotations_of_another_version_or_that_would_burst_are_named(tmp_path):
    root, file = tmp_path, tmp_path / "cars_annos.mat"
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    packed = zlib.compress(bytes(2**27))
    file.write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(ValueError, match=r"\.mat is not the published .*it would unpack to more than 67,108,864 bytes"):
        Cars196(root, "trainval", allow_partial=True)
    file.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(600))
    with pytest.raises(ValueError, match=r"\.mat is of MATLAB's version 7\.3.*-v7"):
        Cars196(root, "trainval", allow_partial=True)


def test_classes_that_are_counted_from_zero_are_refused(tmp_path):
    """Class 0 was taken for the last one, and so trained on and tested on."""
    kaggle(tmp_path)
    (tmp_path / "anno_train.csv").write_text("00001.jpg,1,2,30,20,0\n")
    with pytest.raises(ValueError, match=r"give 00001\.jpg the class 0, and classes are 1 to 196"):
        Cars196(tmp_path, "trainval", allow_partial=True)
    (tmp_path / "anno_train.csv").write_text("00001.jpg,1,2,30,20,197\n")
    with pytest.raises(ValueError, match=r"give 00001\.jpg the class 197, and classes are 1 to 196"):
        Cars196(tmp_path, "trainval", allow_partial=True)


def test_a_row_that_is_no_annotation_is_named(tmp_path):
    kaggle(tmp_path)
    rows = (tmp_path / "anno_test.csv").read_text()
    (tmp_path / "anno_test.csv").write_bytes(b"\r\n" + rows.replace("\n", "\r\n").encode())
    assert len(Cars196(tmp_path, "test", allow_partial=True)) == 8
    (tmp_path / "anno_test.csv").write_text("name,x1,y1,x2,y2,class\n" + rows)
    with pytest.raises(ValueError, match=r"anno_test\.csv, line 1: expected a file, .* found 'name,x1,y1,x2,y2,class'"):
        Cars196(tmp_path, "test", allow_partial=True)
