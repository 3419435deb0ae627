"""In-Shop Clothes Retrieval in its official layouts."""

import pytest
import torch

from otdml.data import InShop

CLASSES = list(range(1, 11))


def test_queries_and_gallery(published):
    root = published("inshop", CLASSES)
    test = InShop(root, "test", allow_partial=True)
    assert test.classes == [f"id_{c:08d}" for c in range(6, 11)]
    assert test.is_query.tolist() == [False, True] * 10
    assert test.labels.tolist() == [c for c in range(5) for _ in range(4)]
    query, gallery = (InShop(root, split, allow_partial=True) for split in ("query", "gallery"))
    assert query.paths == test.paths[1::2]
    assert gallery.paths == test.paths[::2]
    assert query.is_query is None


def test_training_splits(published):
    root = published("inshop", CLASSES)
    sets = {split: InShop(root, split, allow_partial=True) for split in ("train", "val", "trainval")}
    assert len(sets["trainval"]) == 20
    assert sets["trainval"].is_query is None
    assert sorted(sets["train"].paths + sets["val"].paths) == sorted(sets["trainval"].paths)


def test_the_layout_of_the_download(published):
    root = published("inshop", CLASSES)
    (root / "Eval").mkdir()
    (root / "Img").mkdir()
    expected = [path.replace("/img/", "/Img/img/") for path in InShop(root, "test", allow_partial=True).paths]
    (root / "list_eval_partition.txt").rename(root / "Eval" / "list_eval_partition.txt")
    (root / "img").rename(root / "Img" / "img")
    assert InShop(root, "test", allow_partial=True).paths == expected


def test_high_resolution_photographs_are_not_the_protocol(published):
    root = published("inshop", CLASSES)
    (root / "img").rename(root / "img_highres")
    with pytest.raises(FileNotFoundError, match=r"holds no img\. In-Shop Clothes Retrieval is published at"):
        InShop(root)


def test_a_partial_copy_is_refused(published):
    root = published("inshop", CLASSES)
    with pytest.raises(ValueError, match="query lists 10 images of 5 classes, officially 14,218 of 3,985"):
        InShop(root)


def test_metrics_of_queries_in_the_gallery(published):
    from otdml.dml import retrieval_metrics

    test = InShop(published("inshop", CLASSES), "test", allow_partial=True, size=16)
    z = torch.stack([image.mean((1, 2)) for image, _ in test])
    queries, labels = test.is_query, test.labels
    found = retrieval_metrics(
        z[queries], labels[queries], gallery=z[~queries], gallery_labels=labels[~queries], similarity="l2"
    )
    assert found["recall@1"] == 1  # The colour tells the class.


def test_queries_and_gallery_number_their_classes_alike(published):
    """Each numbered them in its own order, so that labels of the one meant nothing in the other."""
    root = published("inshop", CLASSES)
    file = root / "list_eval_partition.txt"
    (*head,) = file.read_text().splitlines()[:2]
    rows = file.read_text().splitlines()[2:]
    mixed = [row for row in rows if not row.endswith("query")] + [row for row in rows[::-1] if row.endswith("query")]
    file.write_text("\n".join(head + mixed))
    query, gallery = (InShop(root, split, allow_partial=True) for split in ("query", "gallery"))
    assert query.classes == gallery.classes == [f"id_{c:08d}" for c in range(6, 11)]
    assert query.labels.tolist() == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
