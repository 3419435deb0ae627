"""A hash of a data set's images and labels, by which runs on other data are recognised."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from otdml._files import write_text
from otdml.dml.protocols import FingerprintedImages, ImagesInFiles, ImagesInMemory, queries

__all__ = ["file_hash", "fingerprint", "hashed"]


def fingerprint(dataset: Any) -> str:
    """A hash of the images of a data set, their order, labels and class names; it is the same wherever files lie.

    Images in memory count by their pixels, and files by every byte and by their names below the folder that they share.
    Files are read once: their hashes are kept in the user's cache for as long as size and times of a file stay. A set
    of another kind counts by its labels and names alone, unless it has a method ``fingerprint`` of its own.

    Args:
        dataset: What :func:`otdml.dml.fit` trains on.

    Example:
        >>> from otdml.data import Digits
        >>> fingerprint(Digits(split="test")) == fingerprint(Digits(split="test"))
        True
        >>> fingerprint(Digits(split="test")) == fingerprint(Digits(split="train"))
        False
    """
    if isinstance(dataset, FingerprintedImages):
        return str(dataset.fingerprint())
    found = hashlib.sha256()
    _absorb(found, dataset.labels)
    found.update(json.dumps([str(name) for name in dataset.classes]).encode())
    if (asked := queries(dataset)) is not None:
        _absorb(found, asked)
    if isinstance(dataset, ImagesInMemory):
        _absorb(found, dataset.images)
    elif isinstance(dataset, ImagesInFiles):
        found.update(json.dumps(_contents([str(path) for path in dataset.paths])).encode())
    return found.hexdigest()[:32]


def hashed(*values: Tensor) -> str:
    """A hash of tensors: their numbers, shapes and types."""
    found = hashlib.sha256()
    for one in values:
        _absorb(found, one)
    return found.hexdigest()[:32]


def _absorb(digest: "hashlib._Hash", values: Tensor) -> None:
    array = values.detach().cpu().contiguous()
    digest.update(f"{array.dtype} {tuple(array.shape)}".encode())
    digest.update(array.numpy().tobytes())


def _contents(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Name below the common folder, and hash, of every file."""
    absolute = [os.path.abspath(path) for path in paths]
    shared = os.path.commonpath([os.path.dirname(path) for path in absolute]) if absolute else ""
    names = [os.path.relpath(path, shared) for path in absolute]
    return list(zip(names, _hashes(shared, absolute), strict=True))


def _hashes(folder: str, paths: Sequence[str]) -> list[str]:
    """The hash of every file: the one that is kept for its present state, or else a new one, which is then kept."""
    store = _cache() / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"
    kept = _read(store)
    states = {path: _state(path) for path in paths}
    unknown = [path for path, state in states.items() if kept.get(path, ["", ""])[0] != state]
    with ThreadPoolExecutor() as pool:
        # hashlib releases the interpreter's lock, so that threads help.
        new = dict(zip(unknown, pool.map(file_hash, map(Path, unknown)), strict=True))
    if new:
        kept = {**kept, **{path: [states[path], value] for path, value in new.items()}}
        # A cache only: without it files are hashed again.
        with suppress(OSError):
            store.parent.mkdir(parents=True, exist_ok=True)
            write_text(store, json.dumps(kept))
    return [kept[path][1] for path in paths]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otdml" / "hashes"


def _read(store: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries: Iterable[tuple[Any, Any]] = found.items() if isinstance(found, dict) else ()
    return {path: entry for path, entry in entries if isinstance(entry, list) and len(entry) == 2}


def _state(path: str) -> str:
    """A text that changes whenever a file does: the third number, the inode's time of change, cannot be set back."""
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def file_hash(path: Path) -> str:
    """A hash of every byte of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
