"""The split convention: which classes are for training, validation and test."""

from collections import Counter
from collections.abc import Sequence
from zlib import crc32

from otdml._checks import argument_error, check_boolean, check_choice, check_fraction, check_integer

__all__ = ["FOLDS", "SPLITS", "check_fold", "class_folds", "held_out_classes", "split_classes"]

SPLITS = ("train", "val", "trainval", "test")
FOLDS = 4


def held_out_classes(
    classes: Sequence[str], *, fraction: float = 0.2, seed: int = 0, grouped: bool = True
) -> list[str]:
    """Training classes held out for validation: whole groups where the names have groups, single classes otherwise.

    A class named ``group/name`` belongs to a group, and a group is held out whole, so that validation classes differ
    from training classes as test classes do. Groups are taken in an order drawn from ``seed`` and their names (no
    random generator, so it is the same on every machine and in every version) until ``fraction`` of the classes is
    reached.

    Args:
        classes: Names of the training classes.
        fraction: Least share of the classes to hold out, in (0, 1].
        seed: Another seed holds out other classes.
        grouped: Whether names have groups; otherwise every class is drawn by itself, whatever its name.

    Returns:
        The names held out, in the order of ``classes``; at least two, at most all but two, where there are four.

    Raises:
        ValueError: If there are fewer than four classes, or one group only.

    Example:
        >>> held_out_classes(["Greek/1", "Greek/2", "Latin/1", "Latin/2"])
        ['Greek/1', 'Greek/2']
    """
    fraction, seed = check_fraction("fraction", fraction), check_integer("seed", seed, least=0)
    if len(classes) < 4:
        raise argument_error("classes", "be four or more: two to train on and two to validate on", len(classes))
    check_boolean("grouped", grouped)
    group = {name: _group(name, grouped) for name in classes}
    # Names of one check sum come in order of the alphabet: that of a set differs from process to process.
    drawn = sorted(set(group.values()), key=lambda name: (_place(name, seed), name))
    # Less than rounding may add: .07 of 100 classes are 7.000000000000001 in floating point.
    sizes, wanted, taken = Counter(group.values()), max(2.0, fraction * len(classes) - 1e-9), set[str]()
    while sum(sizes[name] for name in taken) < wanted:
        taken.add(drawn[len(taken)])
    found = [name for name in classes if group[name] in taken]
    if len(found) > len(classes) - 2:
        remedy = "Lower `fraction`, or name the classes so that they have more groups."
        raise argument_error("fraction", "leave two classes or more to train on", fraction, remedy)
    return found


def _place(name: str, seed: int) -> int:
    """A hash of a name and a seed, by which names are put into an order.

    The seed multiplies: a check sum is linear, and a seed within it would at most exchange the halves of the order.
    """
    return crc32(f"0:{name}".encode()) * pow(0x9E3779B1, seed, 2**32) % 2**32


def _group(name: str, grouped: bool) -> str:
    return name.rpartition("/")[0] or name if grouped else name


def class_folds(classes: Sequence[str], folds: int = FOLDS, *, grouped: bool = True) -> list[list[str]]:
    """Training classes in ``folds`` disjoint parts of about equal size, for cross-validation.

    Parts are of neighbours in the order of ``classes``, as in the Reality Check protocol :cite:p:`musgrave:20`, and of
    whole groups where names have groups, ``group/name``: a group belongs to the part in which its middle lies.

    Args:
        classes: Names of the training classes; those of a group next to each other.
        folds: Number of parts.
        grouped: Whether names have groups; otherwise every class is a group of its own, whatever its name.

    Returns:
        The parts; together they are ``classes``, in order.

    Raises:
        ValueError: If a part has fewer than two classes, among which nothing could be told apart.

    Example:
        >>> class_folds("abcdefgh")
        [['a', 'b'], ['c', 'd'], ['e', 'f'], ['g', 'h']]
    """
    folds = check_integer("folds", folds)
    check_boolean("grouped", grouped)
    group = {name: _group(name, grouped) for name in classes}
    names = list(dict.fromkeys(group.values()))
    sizes, before, found = Counter(group.values()), 0, {}
    for name in names:
        found[name] = int(folds * (before + sizes[name] / 2) / len(classes))
        before += sizes[name]
    parts = [[name for name in classes if found[group[name]] == fold] for fold in range(folds)]
    if min(len(part) for part in parts) < 2:
        counts = f"{len(classes)} classes in {len(names)} groups" if len(names) < len(classes) else len(classes)
        raise argument_error("classes", f"make {folds} folds of two classes or more", counts)
    return parts


def split_classes(
    split: str,
    train: Sequence[str],
    test: Sequence[str],
    val: Sequence[str] | None = None,
    fold: int | None = None,
    *,
    grouped: bool = True,
) -> list[str]:
    """Classes of a split, in the order of the protocol's lists.

    ``train`` and ``val`` are disjoint parts of the protocol's training classes, ``trainval`` is all of them, ``test``
    the classes never seen in training.

    Args:
        split: One of ``SPLITS``.
        train: All training classes of the protocol.
        test: Its test classes.
        val: Training classes to hold out; :func:`held_out_classes` of ``train`` if None.
        fold: Hold out this one of :func:`class_folds` of ``train`` instead.
        grouped: As there.

    Returns:
        The names of the split's classes.

    Raises:
        ValueError: If ``split`` is no split, ``fold`` no fold, or there are too few classes to hold some out.

    Example:
        >>> split_classes("train", train="abcde", test="fg", val="de")
        ['a', 'b', 'c']
    """
    check_choice("split", split, SPLITS)
    if split in ("trainval", "test"):
        return list(train if split == "trainval" else test)
    if val is None and fold is None and len(train) < 4:
        got, remedy = f"{len(train)}: {', '.join(train)}", "Train on 'trainval', without --hold-out."
        raise argument_error("train", "have four classes or more, to hold two of them out for validation", got, remedy)
    if fold is not None:
        held = set(class_folds(train, grouped=grouped)[check_fold(fold)])
    else:
        held = set(held_out_classes(train, grouped=grouped) if val is None else val)
    return [name for name in train if (name in held) == (split == "val")]


def check_fold(fold: int) -> int:
    if (fold := check_integer("fold", fold, least=0)) >= FOLDS:
        raise argument_error("fold", f"be one of 0 to {FOLDS - 1}", fold)
    return fold
