"""Images of one's own: how classes are split, what is passed over, and what is said of folders that will not do."""

import os
from unicodedata import normalize

import pytest
import torch
from PIL import Image

from otdml.data import ClassFolders, check


def fill(root, **images):
    """``fill(root, cat=3)``: three images in ``root/cat``; an underscore is a slash."""
    for name, count in images.items():
        folder = root / name.replace("_", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (20, 16), (i, 0, 0)).save(folder / f"{i}.png")
    return root


def splits(root, *names, **options):
    return {name: ClassFolders(root, name, **options) for name in names or ("train", "val", "trainval", "test")}


HALVES = "trainval", "test"


@pytest.fixture
def ten(tmp_path):
    return fill(tmp_path / "ten", **dict.fromkeys("abcdefghij", 3))


def test_half_of_the_classes_are_tested_on_and_none_is_seen_before(ten):
    found = splits(ten)
    assert {name: len(one.classes) for name, one in found.items()} == {"train": 3, "val": 2, "trainval": 5, "test": 5}
    assert sorted(found["trainval"].classes + found["test"].classes) == list("abcdefghij")
    assert sorted(found["train"].classes + found["val"].classes) == found["trainval"].classes
    for images in found.values():
        names = [os.path.basename(os.path.dirname(path)) for path in images.paths]
        assert [images.classes[label] for label in images.labels] == names
        assert torch.equal(images.labels.bincount(), torch.full((len(images.classes),), 3))


def test_the_seed_and_the_share_choose_the_classes(ten):
    test = {seed: tuple(ClassFolders(ten, "test", split_seed=seed).classes) for seed in range(4)}
    assert len(set(test.values())) > 1
    assert tuple(ClassFolders(ten, "test").classes) == test[0]
    assert len(ClassFolders(ten, "test", test_share=0.2).classes) == 2
    assert len(ClassFolders(ten, "trainval", test_share=0.2).classes) == 8
    folds = [ClassFolders(ten, "val", test_share=0.2, fold=fold).classes for fold in range(4)]
    assert sorted(name for fold in folds for name in fold) == ClassFolders(ten, "trainval", test_share=0.2).classes


def test_folders_say_what_is_trained_on(tmp_path):
    fill(tmp_path, train_a=2, train_b=2, train_c=2, train_d=2, train_e=2, test_x=2, test_y=2, other_z=2)
    with pytest.warns(UserWarning, match="2 images beside train and test"):
        found = splits(tmp_path)
    assert found["trainval"].classes == list("abcde")
    assert found["test"].classes == ["x", "y"]
    assert len(found["val"].classes) == 2
    fill(tmp_path, val_v=2, val_w=2)
    with pytest.warns(UserWarning, match="2 images beside train and test"):
        found = splits(tmp_path)
    assert {name: one.classes for name, one in found.items()} == {
        "train": list("abcde"),
        "val": ["v", "w"],
        "trainval": list("abcdevw"),
        "test": ["x", "y"],
    }


def test_a_class_of_folders_in_folders(tmp_path):
    fill(tmp_path, cats_siamese=2, cats_manx=2, dogs_pug=2, dogs_corgi=2, dogs=2, cows_all=2, hens_all=2)
    found = splits(tmp_path, *HALVES)
    names = ["cats/manx", "cats/siamese", "cows/all", "dogs", "dogs/corgi", "dogs/pug", "hens/all"]
    assert sorted(found["trainval"].classes + found["test"].classes) == names
    outer = splits(tmp_path, *HALVES, level="outermost", test_share=0.3)
    assert sorted(outer["trainval"].classes + outer["test"].classes) == ["cats", "cows", "dogs", "hens"]
    images = next(one for one in outer.values() if "dogs" in one.classes)
    assert int((images.labels == images.classes.index("dogs")).sum()) == 6


def test_names_of_all_kinds(tmp_path):
    names = ["<b>ä & ö</b>", " spaced out ", "猫", "100%", b"caf\xe9".decode("utf-8", "surrogateescape"), "a.jpg"]
    for name in names:
        fill(tmp_path / name, images=2)
        for image in (tmp_path / name / "images").iterdir():
            image.rename(tmp_path / name / image.name)
        (tmp_path / name / "images").rmdir()
    found = splits(tmp_path, *HALVES)
    shown = {name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in names}
    assert {*found["trainval"].classes, *found["test"].classes} == shown
    assert "caf\\xe9" in shown
    assert found["test"][0][0].shape == (3, 224, 224)


def test_what_is_left_out_is_counted(ten):
    (ten / "empty").mkdir()
    (ten / "a" / "notes.txt").touch()
    Image.new("RGB", (4, 4)).save(ten / "stray.png")
    fill(ten, lonely=1)
    said = "1 .txt, 1 classes of fewer than 2 images, 1 empty folders, 1 images in no folder of a class"
    with pytest.warns(UserWarning, match=said):
        found = ClassFolders(ten, "test", least=2)
    assert found.passed_over.total() == 4
    assert f"passed over: {said.replace('1 classes of fewer than 2 images, ', '')}" in check("folder", ten).there


def test_classes_of_one_image_are_refused(tmp_path):
    fill(tmp_path, a=2, b=1, c=2, d=2, e=1, f=2)
    with pytest.raises(ValueError, match=r"2 classes have one image only: b, e\. .*least=2 \(--set data\.least=2\)"):
        ClassFolders(tmp_path)
    with pytest.warns(UserWarning, match="2 classes of fewer than 2 images"):
        assert len(ClassFolders(tmp_path, "trainval", least=2).classes) == 2
    fill(tmp_path / "all", a=1, b=1, c=1, d=1)
    with pytest.raises(ValueError, match=r"Every class has one image only: a, b, c, d\."):
        ClassFolders(tmp_path / "all")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ({}, "No image below"),
        ({"": 3}, r"four classes or more, .* and has none\. Put the images of each class into a folder of its own"),
        ({"a": 2, "b": 2}, r"has 2: a, b\. Put the images"),
        ({"train_a": 2, "train_b": 2}, r"holds train and no test\. Add test .* or give .*/train as the folder"),
        ({"test_a": 2, "test_b": 2}, r"holds test and no train\."),
        ({"train_a": 2, "train_b": 2, "test": 2}, r"/test must hold folders of two classes or more"),
        ({"train_a": 2, "test_a": 2}, r"/train and .*/test must hold folders of two classes"),
        (
            {"train_a": 2, "train_b": 2, "test_a": 2, "test_c": 2},
            r"1 classes are in two of the folders train, val and test of .*: a\. .* split by a seed",
        ),
    ],
)
def test_folders_that_will_not_do(images, said, tmp_path):
    fill(tmp_path, **images)
    for found in ("train", "test"):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            ClassFolders(tmp_path, found)
    report = check("folder", tmp_path)
    assert not report.complete


def test_arguments(ten, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a folder of images, but .*absent is no folder"):
        ClassFolders(tmp_path / "absent")
    with pytest.raises(ValueError, match="`root` must be a folder with a folder of images for each class, got None"):
        ClassFolders()
    for options, said in (
        ({"split": "gallery"}, "split"),
        ({"level": "middle"}, "`level` must be one of"),
        ({"test_share": 1}, "leave classes to train on"),
        ({"test_share": 0.0}, "test_share"),
        ({"least": 0}, "least"),
    ):
        with pytest.raises(ValueError, match=said):
            ClassFolders(ten, **options)


def test_a_train_folder_beside_other_classes_is_a_class(ten):
    """Of vehicles, say."""
    fill(ten, train=3)
    found = splits(ten)
    assert "train" in found["trainval"].classes + found["test"].classes


def test_a_check_says_what_is_there(ten):
    found = check("folder", ten)
    assert found.complete
    assert found.there == [
        "30 images of 10 classes",
        "trainval, drawn from split_seed 0: 15 images of 5 classes, 3 to 3 each",
        "test, drawn from split_seed 0: 15 images of 5 classes, 3 to 3 each",
    ]
    (ten / "a" / "0.png").write_bytes(b"no image")
    damaged = check("folder", ten)
    assert [line for line in damaged.wrong if f"{ten}/a/0.png cannot be read" in line]
    assert str(damaged).endswith("--skip-corrupt.")
    assert check("folder", ten, decode=False).complete
    few = str(check("folder", fill(ten.parent / "few", a=2, b=2)))
    assert "not complete" in few
    assert "--skip-corrupt" not in few
    assert check("folder", None).wrong


def test_damaged_images_are_named_or_left_out(ten):
    (ten / "a" / "0.png").write_bytes(b"no image")
    split = next(name for name in ("trainval", "test") if "a" in ClassFolders(ten, name).classes)
    images = ClassFolders(ten, split)
    with pytest.raises(ValueError, match=r"a/0\.png cannot be read as an image"):
        images[images.paths.index(f"{ten}/a/0.png")]
    whole = ClassFolders(ten, split, on_corrupt="skip")
    assert list(whole.skipped) == [f"{ten}/a/0.png"]
    assert len(whole) == len(images) - 1


def test_one_class_to_validate_on_is_too_few(tmp_path):
    """All neighbours would be of the right class, whatever the network."""
    fill(tmp_path, train_a=2, train_b=2, val_c=2, test_x=2, test_y=2)
    for split in ("train", "val", "trainval", "test"):
        with pytest.raises(ValueError, match="val must hold folders of two classes or more"):
            ClassFolders(tmp_path, split)


def test_accents_of_file_systems_change_no_split(tmp_path):
    """Some store a letter and its accent as two characters, by which other classes were drawn."""
    names = ["école", "fête", "Öl", "über", "a", "b", "c", "d"]
    found = []
    for form in ("NFC", "NFD"):
        for name in names:
            fill(tmp_path / form, **{normalize(form, name): 2})
        found.append(splits(tmp_path / form))
    for name, composed in found[0].items():
        apart = found[1][name]
        assert composed.classes == apart.classes
        assert [os.path.basename(path) for path in composed.paths] == [os.path.basename(path) for path in apart.paths]
    fill(tmp_path / "NFC", **{normalize("NFD", "Öl"): 3})
    both = [one for one in splits(tmp_path / "NFC", *HALVES).values() if "Öl" in one.classes]
    assert both[0].labels.bincount()[both[0].classes.index("Öl")] == 5


def test_train_and_test_may_be_in_capital_letters(tmp_path):
    """Train/a and Test/a were two classes, one of which may be trained on and the other tested on."""
    fill(tmp_path, Train_a=2, Train_b=2, TEST_x=2, TEST_y=2, Val_v=2, Val_w=2)
    found = splits(tmp_path)
    assert {name: one.classes for name, one in found.items()} == {
        "train": ["a", "b"], "val": ["v", "w"], "trainval": ["a", "b", "v", "w"], "test": ["x", "y"],
    }  # fmt: skip
    fill(tmp_path, TEST_a=2)
    with pytest.raises(ValueError, match=r"1 classes are in two of the folders train, val and test of .*: a\."):
        ClassFolders(tmp_path)
