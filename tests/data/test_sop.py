"""Stanford Online Products in its official layout."""

import pytest

from otdml.data import StanfordOnlineProducts
from otdml.data.protocol import table
from otdml.data.sop import PROTOCOL


def test_the_split_is_that_of_the_files(published):
    root = published("sop", list(range(1, 13)), images=3)
    sets = {split: StanfordOnlineProducts(root, split, allow_partial=True) for split in ("trainval", "val", "test")}
    assert sets["trainval"].classes == ["bicycle 1", "chair 2", "bicycle 3", "chair 4", "bicycle 5", "chair 6"]
    assert sets["test"].classes == ["bicycle 7", "chair 8", "bicycle 9", "chair 10", "bicycle 11", "chair 12"]
    assert [len(sets[split]) for split in ("trainval", "test")] == [18, 18]
    assert {*sets["val"].classes} < {*sets["trainval"].classes}
    assert sets["test"].paths[0].endswith("Stanford_Online_Products/bicycle_final/111085122878_0.JPG")
    assert sets["test"][17][1] == 5


def test_counts_are_verified(published, monkeypatch):
    root = published("sop", list(range(1, 13)), images=3)
    with pytest.raises(ValueError, match="train lists 18 images of 6 classes, officially 59,551 of 11,318; test lists"):
        StanfordOnlineProducts(root, "test")
    monkeypatch.setitem(PROTOCOL.counts, "train", (18, 6))
    monkeypatch.setitem(PROTOCOL.counts, "test", (18, 6))
    assert len(StanfordOnlineProducts(root, "test")) == 18


def test_official_counts():
    assert PROTOCOL.counts == {"train": (59_551, 11_318), "test": (60_502, 11_316)}


def test_a_missing_list_is_named(published):
    root = published("sop", list(range(1, 9)))
    (root / "Stanford_Online_Products" / "Ebay_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no Ebay_test\.txt\. .*published at https://cvgl"):
        StanfordOnlineProducts(root)


def test_a_byte_order_mark_is_no_part_of_a_list(published):
    root = published("sop", list(range(1, 13)), images=3)
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        file = root / "Stanford_Online_Products" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(StanfordOnlineProducts(root, "trainval", allow_partial=True)) == 18
    lines = root / "marked.txt"
    lines.write_bytes(b"\xef\xbb\xbf1 a b\n")
    assert list(table(lines, 2)) == [["1", "a b"]]


def test_a_list_without_titles_keeps_its_first_row(published):
    root = published("sop", list(range(1, 13)), images=3)
    file = root / "Stanford_Online_Products" / "Ebay_test.txt"
    whole = StanfordOnlineProducts(root, "test", allow_partial=True).paths
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    assert StanfordOnlineProducts(root, "test", allow_partial=True).paths == whole
    counted = root / "counted.txt"
    counted.write_text("2\nimage_name item\na 1\nb 2\n")
    assert list(table(counted, 2, header="image_name")) == [["a", "1"], ["b", "2"]]
