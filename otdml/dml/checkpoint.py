"""Files of weights, which may be damaged or of unknown origin."""

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["checkpoint", "read_tensors"]

# What torch raises for files that are no checkpoints, or damaged ones, according to where the damage lies.
_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
)


def read_tensors(path: str | Path) -> Any:
    """The content of a file of tensors and plain types, on the CPU; code in it is refused.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, damaged or another file, or would unpack to more than it has; the message names it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is no regular file.")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty, as a full disk or an interrupted copy leaves it.")
    _check_size(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read: it is damaged, or no file of weights ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    """What is wrong with a file, in a line, without torch's advice to run the code in it."""
    if isinstance(error, pickle.UnpicklingError):
        code = re.search(r"GLOBAL (\S+)", str(error))
        return f"it holds {code[1]}, which is code" if code else "torch did not write it"
    said = next(iter(str(error).splitlines()), "").rstrip(".")
    return said if " " in said else f"{type(error).__name__} {said}".rstrip()


def _check_size(path: Path) -> None:
    """Raise where a file would unpack to more than it has: torch does not compress."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be read: it is damaged ({error}).") from error
    if unpacked > path.stat().st_size:
        stored = path.stat().st_size
        raise ValueError(
            f"{path} has {stored:,} bytes and would unpack to {unpacked:,}: it is no file that torch wrote."
        )


def checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that Lightning wrote, on the CPU.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read, or is none; the message names it.
    """
    found = read_tensors(path)
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
        raise ValueError(f"{path} is no checkpoint: it holds no weights of a model.")
    return found
