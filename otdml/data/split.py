"""One split convention: which classes are trained on, chosen on and tested on."""

from collections import Counter
from collections.abc import Sequence
from zlib import crc32

from otdml._checks import argument_error, check_choice, check_fraction

__all__ = ["SPLITS", "held_out_classes", "split_classes"]

SPLITS = ("train", "val", "trainval", "test")


def held_out_classes(classes: Sequence[str], *, fraction: float = 0.2, seed: int = 0) -> list[str]:
    """Training classes held out for validation: whole groups where the names have groups, single classes otherwise.

    A class named ``group/name`` belongs to a group, and a group is held out whole, so that validation classes differ
    from training classes as test classes do. Groups are taken in an order drawn from ``seed`` and their names (no
    random generator, so it is the same on every machine and in every version) until ``fraction`` of the classes is
    reached.

    Args:
        classes: Names of the training classes.
        fraction: Least share of the classes to hold out, in (0, 1].
        seed: Another seed holds out other classes.

    Returns:
        The names held out, in the order of ``classes``; at least two, at most all but two, where there are four.

    Raises:
        ValueError: If there are fewer than four classes, or one group only.

    Example:
        >>> held_out_classes(["Greek/1", "Greek/2", "Latin/1", "Latin/2"])
        ['Greek/1', 'Greek/2']
    """
    check_fraction("fraction", fraction)
    if len(classes) < 4:
        raise argument_error("classes", "be four or more: two to train on and two to validate on", len(classes))
    group = {name: name.rpartition("/")[0] or name for name in classes}
    drawn = sorted(set(group.values()), key=lambda name: crc32(f"{seed}:{name}".encode()))
    sizes, wanted, taken = Counter(group.values()), max(2.0, fraction * len(classes)), set[str]()
    while sum(sizes[name] for name in taken) < wanted:
        taken.add(drawn[len(taken)])
    found = [name for name in classes if group[name] in taken]
    if len(found) > len(classes) - 2:
        remedy = "Lower `fraction`, or name the classes so that they have more groups."
        raise argument_error("fraction", "leave two classes or more to train on", fraction, remedy)
    return found


def split_classes(split: str, train: Sequence[str], test: Sequence[str], val: Sequence[str] | None = None) -> list[str]:
    """Classes of a split, in the order of the protocol's lists.

    ``train`` and ``val`` are disjoint parts of the protocol's training classes, ``trainval`` is all of them, ``test``
    the classes never seen in training.

    Args:
        split: One of ``SPLITS``.
        train: All training classes of the protocol.
        test: Its test classes.
        val: Training classes to hold out; :func:`held_out_classes` of ``train`` if None.

    Returns:
        The names of the split's classes.

    Raises:
        ValueError: If ``split`` is no split.

    Example:
        >>> split_classes("train", train="abcde", test="fg", val="de")
        ['a', 'b', 'c']
    """
    check_choice("split", split, SPLITS)
    if split in ("trainval", "test"):
        return list(train if split == "trainval" else test)
    held = set(held_out_classes(train) if val is None else val)
    return [name for name in train if (name in held) == (split == "val")]
