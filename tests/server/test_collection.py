"""The images of an index by number."""

import os
import time

import pytest
import torch

from otdml.dml import EmbeddingIndex
from otdml.server.collection import Collection, classes_of


def collection(paths, angles=None, made=0.0):
    angles = torch.arange(len(paths)) * 0.1 if angles is None else torch.tensor(angles)
    return Collection(EmbeddingIndex(torch.stack([angles.cos(), angles.sin()], 1), paths), made)


@pytest.mark.parametrize(
    ("paths", "classes"),
    [
        (["/p/cat/1", "/p/cat/2", "/p/dog/1"], ["cat", "cat", "dog"]),
        (["/p/train/cat/1", "/p/test/dog/1"], ["train/cat", "test/dog"]),
        (["/p/1", "/p/cat/1"], [".", "cat"]),
        (["/p/1", "/p/2"], None),
        (["/p/ca\u202et/1", "/p/dog/1"], [r"ca\u202et", "dog"]),
        ([], None),
    ],
)
def test_the_class_of_an_image_is_its_folder(paths, classes):
    assert classes_of(paths) == classes


def test_neighbours_come_best_first_and_without_the_image_itself():
    found = collection([f"/p/{i}.jpg" for i in range(5)], [0.0, 0.1, 0.3, 0.6, 1.0]).neighbors(1, 3)
    assert [neighbor.number for neighbor in found] == [0, 2, 3]
    expected = torch.tensor([0.1, 0.2, 0.5]).cos().tolist()
    assert [neighbor.similarity for neighbor in found] == pytest.approx(expected, abs=1e-6)


def test_of_equal_images_there_are_as_many_as_were_asked_for():
    found = collection([f"/p/{i}.jpg" for i in range(8)], [0.0] * 8).neighbors(7, 3)
    assert len(found) == 3
    assert 7 not in [neighbor.number for neighbor in found]


def test_all_are_found_where_more_are_asked_for():
    assert len(collection(["/p/1", "/p/2", "/p/3"]).neighbors(0, 99)) == 2
    assert len(collection(["/p/1", "/p/2", "/p/3"]).nearest(torch.eye(2)[:1], 99)) == 3


def test_a_path_that_the_index_has_twice_is_one_image():
    found = collection(["/p/1", "/p/2", "/p/1"], [0.0, 0.5, 0.0])
    assert [neighbor.number for neighbor in found.neighbors(2, 5)] == [1]
    assert [neighbor.number for neighbor in found.neighbors(1, 5)] == [0]


def test_folders_that_are_links_are_where_they_lead_now(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    (tmp_path / "disk").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "disk" / "1.png")
    (tmp_path / "photos").symlink_to(tmp_path / "disk")
    shown = collection([tmp_path / "photos" / "1.png"])
    assert shown.state(0)[0] == ""
    assert shown.path(0) == str(tmp_path / "photos" / "1.png")
    assert shown.picture(0)[0]
    # Whatever becomes a link later leads nowhere.
    (tmp_path / "disk").rename(tmp_path / "kept")
    (tmp_path / "disk").symlink_to(tmp_path / "kept")
    assert shown.state(0)[0] == "a link has taken its place"


def test_images_have_the_names_and_classes_by_which_they_were_given(network, tmp_path):
    from otdml.benchmarks.models import embedded

    Image = pytest.importorskip("PIL.Image")
    (tmp_path / "flat").mkdir()
    for i, name in enumerate(("cat", "dog", "cat", "bird")):
        (tmp_path / "classes" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(tmp_path / "flat" / f"{i}.png")
        (tmp_path / "classes" / name / f"{name}-{i}.png").symlink_to(tmp_path / "flat" / f"{i}.png")
    embedded(network, [tmp_path / "classes"], tmp_path / "index", size=16)
    shown = Collection(EmbeddingIndex.load(tmp_path / "index"), 0.0)
    assert [shown.label(number) for number in range(4)] == ["bird", "cat", "cat", "dog"]
    assert [shown.name(number) for number in range(4)] == ["bird-3.png", "cat-0.png", "cat-2.png", "dog-1.png"]
    assert [shown.state(number)[0] for number in range(4)] == [""] * 4
    assert sorted(os.path.basename(path) for path in shown.index.paths) == ["0.png", "1.png", "2.png", "3.png"]


def test_the_first_images_are_of_different_classes():
    paths = [f"/p/{name}/{i}" for name in ("a", "b", "c") for i in range(20)]
    shown = collection(paths)
    assert sorted(shown.label(number) for number in shown.some(3)) == ["a", "b", "c"]
    assert len(set(shown.some(9))) == 9
    assert shown.some(99) == shown.some(99)
    assert sorted(shown.some(99)) == list(range(60))


def test_names_give_a_page_no_marks_of_direction():
    shown = collection(["/p/\u202egnp.exe", os.fsdecode(b"/p/\xff.png")])
    assert shown.name(0) == r"\u202egnp.exe"
    assert shown.path(1) == r"/p/\udcff.png"


def test_images_that_moved_and_images_that_changed_are_told(tmp_path):
    paths = [str(tmp_path / name) for name in ("old", "new", "gone")]
    now = time.time()
    for path, changed in zip(paths[:2], (now - 100, now + 100), strict=True):
        with open(path, "w"):
            os.utime(path, (changed, changed))
    shown = collection(paths, made=now)
    assert [shown.state(number) for number in range(3)] == [
        ("", False),
        ("", True),
        ("there is no such file any more", False),
    ]
    assert shown.missing() == ({paths[2]: "there is no such file any more"}, 3)


def test_a_thousand_images_are_looked_at_at_most(monkeypatch):
    looked = []
    monkeypatch.setattr("otdml.server.collection.state_of", lambda path: looked.append(path) or ("", 0.0))
    assert collection([f"/p/{i}" for i in range(1500)]).missing() == ({}, 1000)
    assert len(set(looked)) == 1000
