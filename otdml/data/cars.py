"""Stanford Cars, in each of the three layouts in use."""

import csv
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otdml.data.protocol import Entry, Listing, Protocol, ProtocolImages, find

__all__ = ["PROTOCOL", "Cars196"]

# The first half of the models; the train and test folders of the set are for closed-set classification.
TRAINING_CLASSES = 98
# The published annotations are of some two megabytes.
MOST_BYTES = 2**26
# A part of a MATLAB file that zlib has compressed.
COMPRESSED = 15
_DAMAGE = (KeyError, ValueError, TypeError, OSError, EOFError, IndexError, struct.error, zlib.error, MemoryError)


def _read(root: Path) -> Listing:
    for home in (root, root / "stanford_cars", root / "cars"):
        if (home / "cars_annos.mat").is_file():
            return Listing(home, list(_original(home)))
        if (home / "devkit" / "cars_meta.mat").is_file():
            return Listing(home, list(_devkit(home)))
        if (home / "anno_train.csv").is_file():
            return Listing(find(home, ["car_data/car_data", "car_data"]), list(_kaggle(home)))
    raise FileNotFoundError(f"{root} holds no cars_annos.mat, devkit/cars_meta.mat or anno_train.csv")


def _entry(path: str, number: int, names: list[str]) -> Entry:
    return Entry(path, _named(path, number, names), "train" if number <= TRAINING_CLASSES else "test")


def _named(path: str, number: int, names: list[str]) -> str:
    # Zero would be the last name.
    if not 1 <= number <= len(names):
        raise ValueError(
            f"The annotations of Cars196 give {path} the class {number}, and classes are 1 to {len(names)}."
        )
    return names[number - 1]


def _mat(path: Path, *keys: str) -> list[Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        _check_unpacked(path)
        content = loadmat(path, squeeze_me=True)
        return [content[key] for key in keys]
    except NotImplementedError as error:
        remedy = "Save it with -v7 in MATLAB, or get the published file."
        raise ValueError(
            f"{path} is of MATLAB's version 7.3, and the published file is of version 5. {remedy}"
        ) from error
    except (MatReadError, *_DAMAGE) as error:
        raise ValueError(f"{path} is not the published annotation file ({error}).") from error


def _check_unpacked(path: Path) -> None:
    """Raise where the compressed parts of a file of version 5 unpack to more than annotations can have."""
    left = MOST_BYTES
    with path.open("rb") as file:
        file.seek(128)
        while len(tag := file.read(8)) == 8:
            kind, length = struct.unpack("<II", tag)
            if kind != COMPRESSED:
                file.seek(length, 1)
                continue
            unpacker, packed = zlib.decompressobj(), file.read(length)
            while packed and left >= 0:
                left -= len(unpacker.decompress(packed, 2**20))
                packed = unpacker.unconsumed_tail
            if left < 0:
                raise ValueError(f"it would unpack to more than {MOST_BYTES:,} bytes")


def _original(home: Path) -> Iterator[Entry]:
    annotations, names = _mat(home / "cars_annos.mat", "annotations", "class_names")
    for path, number in zip(annotations["relative_im_path"], annotations["class"], strict=True):
        yield _entry(str(path), int(number), names.tolist())


def _devkit(home: Path) -> Iterator[Entry]:
    (names,) = _mat(home / "devkit" / "cars_meta.mat", "class_names")
    labelled = "cars_test_annos_withlabels.mat"
    try:
        test = find(home, [f"devkit/{labelled}", labelled])
    except FileNotFoundError as error:
        reason = "; the devkit's cars_test_annos.mat has no classes, so half of the images could not be used"
        raise FileNotFoundError(f"{error}{reason}") from error
    for folder, file in (("cars_train", home / "devkit" / "cars_train_annos.mat"), ("cars_test", test)):
        (annotations,) = _mat(find(file.parent, [file.name]), "annotations")
        for path, number in zip(annotations["fname"], annotations["class"], strict=True):
            yield _entry(f"{folder}/{path}", int(number), names.tolist())


def _kaggle(home: Path) -> Iterator[Entry]:
    names = find(home, ["names.csv"]).read_text(encoding="utf-8-sig").splitlines()
    names = [name.strip().strip('"') for name in names if name.strip()]
    for part in ("train", "test"):
        file = find(home, [f"anno_{part}.csv"])
        with file.open(encoding="utf-8-sig", newline="") as rows:
            for line, row in enumerate(csv.reader(rows), 1):
                if not row:
                    continue
                if len(row) != 6 or not row[5].strip().isdecimal():
                    wanted = "a file, four corners of a box and the number of a class"
                    raise ValueError(f"{file}, line {line}: expected {wanted}, found {','.join(row)!r}.")
                number = int(row[5])
                # Folders cannot hold the slash of "Ram C/V Cargo Van Minivan 2012".
                folder = _named(row[0], number, names).replace("/", "-")
                yield _entry(f"{part}/{folder}/{row[0]}", number, names)


PROTOCOL = Protocol(
    name="Cars196",
    address="https://www.kaggle.com/datasets/jutrera/stanford-car-dataset-by-classes-folder (the original host is "
    "gone; the devkit is attached to https://github.com/pytorch/vision/issues/7545)",
    layout="cars_annos.mat and car_ims/; or devkit/ (with cars_test_annos_withlabels.mat), cars_train/ and cars_test/; "
    "or names.csv, anno_train.csv, anno_test.csv and car_data/car_data/{train,test}/",
    counts={"train": (8_054, 98), "test": (8_131, 98)},
    read=_read,
)


class Cars196(ProtocolImages):
    """16,185 photographs of 196 car models: trained on the first 98, tested on the others.

    ``val`` is a fifth of the training models. All three layouts that are around are read: the original one, the
    devkit's, and the folders of Kaggle.

    Source: Krause et al. :cite:p:`krause:13`; the split is that of Oh Song et al. :cite:p:`ohsong:16`.
    """

    protocol = PROTOCOL
