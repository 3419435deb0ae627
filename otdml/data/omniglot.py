"""Omniglot: handwritten characters of fifty alphabets."""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from otdml._arrays import load_arrays
from otdml._checks import argument_error, check_boolean, check_choice, check_integer
from otdml.data.report import Report
from otdml.data.split import check_fold, split_classes
from otdml.data.tensors import TensorImages, crop_to_ink, downscale, rotated_classes

__all__ = ["Omniglot", "check"]

PIXELS = 105
ADDRESS = "https://github.com/brendenlake/omniglot, folder python"
# The repack numbers characters as the archives do and names no alphabets. These are the background set's, with their
# numbers of characters, in that order, under their names in the archives.
BACKGROUND = (
    "Arcadian 26, Armenian 41, Asomtavruli_(Georgian) 40, Balinese 24, Bengali 46,"
    "Blackfoot_(Canadian_Aboriginal_Syllabics) 14, Braille 26, Cyrillic 33, Early_Aramaic 22, Syriac_(Estrangelo) 23,"
    "Anglo-Saxon_Futhorc 29, Futurama 26, Grantha 43, Greek 24, Gujarati 48, Hebrew 22, Japanese_(hiragana) 52,"
    "Inuktitut_(Canadian_Aboriginal_Syllabics) 16, Malay_(Jawi_-_Arabic) 40, Japanese_(katakana) 47, Korean 40,"
    "Latin 26, Alphabet_of_the_Magi 20, Mkhedruli_(Georgian) 41, Burmese_(Myanmar) 34, N_Ko 33,"
    "Ojibwe_(Canadian_Aboriginal_Syllabics) 14, Sanskrit 42, Tagalog 17, Tifinagh 55"
)
# Archive, the repack that holds the same, and the alphabets to leave out.
SOURCES = {
    ("small", "train"): ("images_background_small1", None, ()),
    ("small", "test"): ("images_background_small2", None, ("Greek", "Latin")),
    ("full", "train"): ("images_background", "omniglot_background.npz", ()),
    ("full", "test"): ("images_evaluation", "omniglot_evaluation.npz", ()),
}
# Limits above the sizes of all parts of the set, checked before anything is unpacked.
MOST_BYTES, MOST_FILE, MOST_DRAWINGS = 2**28, 2**16, 40_000
# What Pillow and zipfile raise for damaged files, or those with a password.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, Image.DecompressionBombError),
)
# Images and characters of each part, and the hash of its drawings as :func:`_signature` makes it.
OFFICIAL = {
    ("small", "train"): (2_720, 136, "a14fb551b9cb5942"),
    ("small", "test"): (2_120, 106, "ea9618c10b528166"),
    ("full", "train"): (19_280, 964, "b487053ff8f408d1"),
    ("full", "test"): (13_180, 659, "e8fdd7e9a403c3ab"),
}
FILE = re.compile(r"(([^/]+)/character\d+)/(\d+)_(\d+)\.png$")
CLASS = re.compile(r"([^/]+/character\d+)/$")


@dataclass(frozen=True)
class _Drawings:
    """Masks of ink (n, 105, 105), the character of each drawing, and the names of the characters, in order."""

    ink: np.ndarray
    labels: Tensor
    classes: list[str]


class Omniglot(TensorImages):
    """Handwritten characters, 20 drawings of each, in one bit; classes are characters, named ``Alphabet/characterNN``.

    Two retrieval protocols, trained and tested on disjoint characters:

    ========= =============================================== =========================================================
    protocol  training characters                             test characters
    ========= =============================================== =========================================================
    small     136: five alphabets, ``background_small1``      106: Japanese, Sanskrit, Tagalog of ``background_small2``
    full      964: thirty alphabets, ``background``           659: twenty alphabets, ``evaluation``
    ========= =============================================== =========================================================

    ``val`` holds whole alphabets out of the training characters, a fifth of the characters or somewhat more.

    Args:
        root: Folder with the published archives (``images_background_small1.zip`` and so on), or the folders they
            unpack to, or the repack ``omniglot_background.npz`` and ``omniglot_evaluation.npz`` for ``"full"``.
        split: ``"train"``, ``"val"``, ``"trainval"`` or ``"test"``.
        transform: Called on each item's image, float32 in [0, 1], ink is 1, shape (1, size, size), if given.
        protocol: ``"small"`` or ``"full"``.
        size: Pixels per side, by anti-aliased resampling of the 105 × 105 drawings.
        crop: Whether each drawing is cropped to its ink first, as :func:`~otdml.data.crop_to_ink` does with the margin
            .08, to a third of the paper at least.
        rotations: Whether training characters turned by 90, 180 and 270 degrees are classes of their own, which makes
            four times as many. Splits ``val`` and ``test`` are never turned.
        fold: Let ``val`` be this one of :func:`~otdml.data.class_folds`, and ``train`` the other three.
        allow_partial: Whether to use what is there where it is not the whole official set.
        on_corrupt: What to do with an image that cannot be read: ``"raise"`` an error that names it, or ``"skip"`` it.

    Attributes:
        skipped: Images of the split that were left out, with the reason.

    Raises:
        FileNotFoundError: If the images are not there; the message says where they are published.
        ValueError: If an image is corrupt, a class has no image, or the set is not complete; the message says which.

    Source: Lake, Salakhutdinov and Tenenbaum :cite:p:`lake:15`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        transform: Callable[[Tensor], Any] | None = None,
        *,
        protocol: str = "small",
        size: int = 28,
        crop: bool = False,
        rotations: bool = False,
        fold: int | None = None,
        allow_partial: bool = False,
        on_corrupt: str = "raise",
    ) -> None:
        check_choice("protocol", protocol, ("small", "full"))
        check_choice("on_corrupt", on_corrupt, ("raise", "skip"))
        size = check_integer("size", size, least=4)
        fold = fold if fold is None else check_fold(fold)
        for name, value in (("crop", crop), ("rotations", rotations), ("allow_partial", allow_partial)):
            check_boolean(name, value)
        self.skipped: dict[str, str] = {}
        part = "test" if split == "test" else "train"
        found = _read(_folder(root), *SOURCES[protocol, part], None if on_corrupt == "raise" else self.skipped)
        if not allow_partial and (wrong := _counts(found, protocol, part, skipped=len(self.skipped))):
            remedy = "Pass allow_partial=True (--allow-partial) to use what is there."
            raise ValueError(f"{root} does not hold the whole Omniglot: {wrong}. {remedy}")
        classes = split_classes(split, found.classes, found.classes, fold=fold)
        numbered = _numbered(list(self.skipped), ())
        self.skipped = {member: self.skipped[member] for *_, name, member in numbered if name in classes}
        ink, labels = _selected(found, classes)
        images = _shrunk(ink, size, crop)
        if rotations and split in ("train", "trainval"):
            images, labels, classes = rotated_classes(images, labels, classes)
        super().__init__(images, labels, classes, transform=transform)


def _folder(root: str | Path | None) -> Path:
    if root is None:
        raise argument_error("root", "be the folder that holds Omniglot", None, f"It is published at {ADDRESS}.")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"`root` must be the folder that holds Omniglot, but {root} is no folder.")
    return Path(root)


def _read(root: Path, name: str, repack: str | None, skip: tuple[str, ...], bad: dict[str, str] | None) -> _Drawings:
    """The drawings of one archive, from the archive, its folder or the repack, whichever is there first."""
    if (root / f"{name}.zip").is_file():
        with _archive(root / f"{name}.zip") as archive:
            return _decoded(archive.namelist(), lambda member: _unpacked(archive, member), skip, bad)
    folder = root if root.name == name else root / name
    if folder.is_dir():
        found = [path.relative_to(folder).as_posix() + "/" * path.is_dir() for path in folder.rglob("*")]
        return _decoded(found, lambda member: (folder / member).read_bytes(), skip, bad)
    if repack and (root / repack).is_file():
        return _repacked(root / repack)
    wanted = " or ".join([f"{name}.zip", f"{name}/ALPHABET/characterNN/XXXX_YY.png", *([repack] if repack else [])])
    raise FileNotFoundError(f"{root} holds no {wanted}. Omniglot is published at {ADDRESS}.")


def _unpacked(archive: zipfile.ZipFile, member: str) -> bytes:
    size = archive.getinfo(member).file_size
    if size > MOST_FILE:
        raise ValueError(f"it would unpack to {size:,} bytes, a hundred times what a drawing has")
    return archive.read(member)


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged ({error}). Omniglot is published at {ADDRESS}.") from error


def _decoded(
    members: list[str], read: Callable[[str], bytes], skip: tuple[str, ...], bad: dict[str, str] | None
) -> _Drawings:
    """Drawings in order of character and drawing, as the published numbers in the file names have it."""
    files = sorted(_numbered(members, skip))
    if len(files) > MOST_DRAWINGS:
        raise ValueError(f"there are {len(files):,} drawings, more than Omniglot has. Get the archive again.")
    classes = list(dict.fromkeys(name for _, _, name, _ in files))
    empty = {match[1] for member in members if (match := CLASS.search(member))} - set(classes)
    if empty := {name for name in empty if name.split("/")[0] not in skip}:
        raise ValueError(f"the class {min(empty)} is empty. Get the archive again, or remove the folder.")
    inks = [(_ink(member, read, bad), name) for _, _, name, member in files]
    kept = [(ink, classes.index(name)) for ink, name in inks if ink is not None]
    if not kept:
        raise FileNotFoundError("no drawing was found: the layout must be ALPHABET/characterNN/XXXX_YY.png.")
    return _Drawings(np.stack([ink for ink, _ in kept]), torch.tensor([label for _, label in kept]), classes)


def _numbered(members: list[str], skip: tuple[str, ...]) -> Iterator[tuple[int, int, str, str]]:
    """Numbers of character and drawing, class and file of every drawing."""
    for member in members:
        match = FILE.search(member)
        if match and match[2] not in skip:
            yield int(match[3]), int(match[4]), match[1], member


def _ink(member: str, read: Callable[[str], bytes], bad: dict[str, str] | None) -> np.ndarray | None:
    """True where there is ink; None for an image that cannot be read and is to be skipped."""
    try:
        with Image.open(io.BytesIO(read(member))) as image:
            # Checked before decoding: a few bytes can declare billions of pixels.
            if image.size != (PIXELS, PIXELS):
                raise ValueError(f"it is {image.width} × {image.height} pixels, not {PIXELS} × {PIXELS}")
            return ~np.array(image.convert("1"))
    except _DAMAGE as error:
        if bad is None:
            remedy = 'Get the file again, or pass on_corrupt="skip" to go without it.'
            raise ValueError(f"cannot read the image {member}: {error}. {remedy}") from error
        bad[member] = str(error)
        return None


def _repacked(path: Path) -> _Drawings:
    try:
        arrays = load_arrays(path, MOST_BYTES)
        paper, labels = arrays["images"], arrays["labels"]
        if paper.dtype != bool or paper.ndim != 4 or paper.shape[2:] != (PIXELS, PIXELS):
            raise ValueError(
                f"images are {paper.dtype} of shape {paper.shape}, not bool of (n, 20, {PIXELS}, {PIXELS})"
            )
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no repack of Omniglot, or is damaged ({error}).") from error
    characters = len(paper)
    if labels.shape != paper.shape[:2]:
        raise ValueError(f"{path} must hold one label per image, {paper.shape[:2]}, got {labels.shape}.")
    # Minus one would be the last character.
    if labels.dtype.kind not in "iu" or not 0 <= int(labels.min()) <= int(labels.max()) < characters:
        found = f"{labels.dtype} from {labels.min()} to {labels.max()}"
        raise ValueError(f"{path} must hold labels of its {characters} characters, counted from 0, got {found}.")
    return _Drawings(
        ~paper.reshape(-1, *paper.shape[2:]), torch.from_numpy(labels.reshape(-1)).long(), _names(characters)
    )


def _names(characters: int) -> list[str]:
    """Names of the repack's characters: the background set's alphabets are known."""
    alphabets = [entry.strip().rsplit(" ", 1) for entry in BACKGROUND.split(",")]
    names = [f"{name}/character{k + 1:02d}" for name, count in alphabets for k in range(int(count))]
    return names if len(names) == characters else [f"evaluation/character{k + 1:03d}" for k in range(characters)]


def _shrunk(ink: np.ndarray, size: int, crop: bool) -> Tensor:
    images = torch.from_numpy(ink)[:, None].to(torch.uint8) * 255
    return crop_to_ink(images, size, least=PIXELS // 3) if crop else downscale(images, size)


def _selected(found: _Drawings, classes: list[str]) -> tuple[np.ndarray, Tensor]:
    """Ink of ``classes``, and their labels counted anew from 0."""
    position = {name: label for label, name in enumerate(classes)}
    anew = torch.tensor([position.get(name, -1) for name in found.classes])[found.labels]
    return found.ink[(anew >= 0).numpy()], anew[anew >= 0]


def differences(root: str | Path | None, protocol: str, part: str) -> list[str]:
    """Differences between the training or the test part of a protocol and the published one, a phrase each.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is damaged.
    """
    found = _read(_folder(root), *SOURCES[protocol, part], None)
    if wrong := _counts(found, protocol, part):
        return [wrong]
    if _signature(found) != OFFICIAL[protocol, part][2]:
        return [f"{protocol}, {part} has as many images as the published set, and some are others"]
    return []


def _counts(found: _Drawings, protocol: str, part: str, *, skipped: int = 0) -> str:
    """The numbers of images and characters beside the official ones, empty if they agree."""
    images, characters, _ = OFFICIAL[protocol, part]
    held = len(found.ink) + skipped
    if (held, len(found.classes)) == (images, characters):
        return ""
    is_there = f"{held:,} images of {len(found.classes):,} characters"
    return f"{protocol}, {part} has {is_there}, officially {images:,} of {characters:,}"


def _signature(found: _Drawings) -> str:
    """A hash of which drawings are of one character, whatever the order of drawings and characters."""
    labels = found.labels.tolist()
    drawings: dict[int, list[bytes]] = {label: [] for label in labels}
    for ink, label in zip(found.ink, labels, strict=True):
        drawings[label].append(hashlib.sha256(np.packbits(ink).tobytes()).digest())
    characters = sorted(b"".join(sorted(own)) for own in drawings.values())
    return hashlib.sha256(b"".join(characters)).hexdigest()[:16]


def check(root: str | Path | None, *, decode: bool = True) -> Report:
    """Report on Omniglot: complete if a protocol can be run, and the other is there in whole or not at all."""
    found: dict[str, list[str]] = {}
    absent: dict[tuple[str, str], str] = {}
    there = []
    for protocol, part in OFFICIAL:
        found.setdefault(protocol, [])
        try:
            wrong = differences(root, protocol, part)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, ValueError):
                wrong = [f"{protocol}, {part}: {error}"]
            else:
                absent[protocol, part], wrong = f"{protocol}, {part}: {error}", []
        found[protocol] += wrong
        if not wrong and (protocol, part) not in absent:
            images, characters, _ = OFFICIAL[protocol, part]
            name = "trainval" if part == "train" else "test"
            there.append(f"{protocol}, {name}: {images:,} images of {characters:,} classes")
    lost = {name: [absent[name, part] for part in ("train", "test") if (name, part) in absent] for name in found}
    runs = [name for name in found if not found[name] and not lost[name]]
    wrong = [line for lines in found.values() for line in lines]
    wrong += [
        line for name, lines in lost.items() if not (runs and len(lines) == 2 and not found[name]) for line in lines
    ]
    unused = [line for lines in lost.values() for line in lines if line not in wrong]
    return Report("omniglot", str(root), there + unused, wrong, f"Omniglot is published at {ADDRESS}.")
