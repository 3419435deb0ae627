"""What a check says of whole, partial, damaged and absent data sets."""

import zipfile

import pytest

from otdml.data import check
from otdml.data.cub import PROTOCOL

CLASSES = [1, 2, 3, 4, 101, 102]


@pytest.mark.parametrize("name", ["glyphs", "digits"])
def test_sets_of_libraries_are_always_there(name):
    assert check(name).complete


def test_a_partial_and_damaged_copy(published):
    root = published("cub", CLASSES)
    images = sorted((root / "CUB_200_2011" / "images").glob("*/*.jpg"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:400])
    found = check("cub", root)
    assert not found.complete
    text = str(found)
    assert f"cub in {root}: not complete" in text
    assert "+ train: 16 images of 4 classes listed" in text
    assert "- test lists 8 images of 2 classes, officially 5,924 of 100" in text
    assert f"- 1 listed images are missing: {images[0].parent.name}/{images[0].name}" in text
    assert f"- {images[1]} cannot be read: " in text
    assert text.endswith("md5 97eceeb196236b17998738112f37df78).")
    assert len(found.wrong) == 4


def test_without_decoding_damage_is_not_looked_for(published):
    root = published("cub", CLASSES)
    next((root / "CUB_200_2011" / "images").glob("*/*.jpg")).write_bytes(b"no image")
    assert len(check("cub", root, decode=False).wrong) == 2
    assert len(check("cub", root).wrong) == 3


def test_a_whole_copy(published, monkeypatch):
    root = published("cub", CLASSES)
    monkeypatch.setitem(PROTOCOL.counts, "train", (16, 4))
    monkeypatch.setitem(PROTOCOL.counts, "test", (8, 2))
    found = check("cub", root)
    assert found.complete
    assert str(found).splitlines()[0] == f"cub in {root}: complete"


@pytest.mark.parametrize("name", ["cub", "cars", "sop", "inshop", "omniglot"])
def test_an_absent_set_is_a_report_that_says_where_to_get_it(name, tmp_path):
    for root in (tmp_path, tmp_path / "absent", None):
        found = check(name, root)
        assert not found.complete
        assert "published at" in str(found)


def test_omniglot(real_data):
    found = check("omniglot", real_data)
    assert found.complete
    assert "small, test: 2,120 images of 106 classes" in found.there


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="digits"):
        check("imagenet")


def test_half_of_omniglot_is_not_complete(real_data, tmp_path):
    for name in ("images_background_small1.zip", "images_background_small2.zip"):
        (tmp_path / name).symlink_to(real_data / name)
    assert check("omniglot", tmp_path).complete
    (tmp_path / "images_background_small2.zip").unlink()
    half = check("omniglot", tmp_path)
    assert not half.complete
    assert "small, test: " in str(half)


def test_an_omniglot_of_other_content_is_not_complete(real_data, tmp_path):
    """One drawing less, and one that is another."""
    (tmp_path / "images_background_small2.zip").symlink_to(real_data / "images_background_small2.zip")
    for change, said in (("less", "officially 2,720 of 136"), ("other", "some are others")):
        with (
            zipfile.ZipFile(real_data / "images_background_small1.zip") as whole,
            zipfile.ZipFile(tmp_path / "images_background_small1.zip", "w") as changed,
        ):
            names = [name for name in whole.namelist() if name.endswith(".png")]
            for name in names[1:]:
                changed.writestr(name, whole.read(name))
            if change == "other":
                changed.writestr(names[0], whole.read(names[-1]))
        found = check("omniglot", tmp_path)
        assert not found.complete
        assert said in str(found)
