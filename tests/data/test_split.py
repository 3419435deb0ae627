"""Splits by class: disjoint, complete, whole groups, the same on every machine."""

import pytest

from otdml.data import held_out_classes, split_classes
from otdml.data.split import SPLITS

ALPHABETS = [
    f"{name}/character{k:02d}" for name in ("Latin", "Greek", "Korean", "Balinese", "Futurama") for k in range(8)
]


def test_held_out_classes_are_whole_groups():
    held = held_out_classes(ALPHABETS)
    groups = {name.split("/")[0] for name in held}
    assert held == [name for name in ALPHABETS if name.split("/")[0] in groups]
    assert len(held) >= 0.2 * len(ALPHABETS)


def test_held_out_classes_without_groups_are_the_wanted_share():
    names = [f"class {k}" for k in range(100)]
    assert len(held_out_classes(names)) == 20
    assert len(held_out_classes(names, fraction=0.05)) == 5


def test_held_out_classes_depend_on_names_and_seed_alone():
    assert held_out_classes(ALPHABETS) == held_out_classes(ALPHABETS)
    assert sorted(held_out_classes(ALPHABETS[::-1])) == sorted(held_out_classes(ALPHABETS))
    assert len({tuple(held_out_classes(ALPHABETS, seed=seed)) for seed in range(8)}) > 1
    # Figures of earlier runs hold only as long as these are the classes held out.
    assert held_out_classes([f"{name}/1" for name in "abcdefghij"]) == ["c/1", "g/1"]


def test_splits_partition_the_classes():
    train, test = [f"{k}" for k in range(10)], ["x", "y"]
    found = {split: split_classes(split, train, test) for split in SPLITS}
    assert found["trainval"] == train
    assert found["test"] == test
    assert sorted(found["train"] + found["val"]) == train
    assert not set(found["train"]) & set(found["val"])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`split` must be one of 'train', 'val', 'trainval', 'test', got 'valid'"):
        split_classes("valid", "abcd", "e")
    with pytest.raises(ValueError, match="four or more"):
        held_out_classes(["a", "b", "c"])
    with pytest.raises(ValueError, match="`fraction` must leave two classes or more"):
        held_out_classes(["a/1", "a/2", "a/3", "a/4"])
    with pytest.raises(ValueError, match="`fraction`"):
        held_out_classes(["a", "b", "c", "d"], fraction=0.9)
