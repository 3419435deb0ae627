"""Arrays in files that may be damaged, or decompress to more than memory holds."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["load_arrays"]

# What NumPy raises for files that are no archives of arrays, or damaged ones.
_DAMAGE = (
    *(OSError, ValueError, TypeError, EOFError, KeyError, SyntaxError, NotImplementedError, MemoryError),
    *(RuntimeError, struct.error, zipfile.BadZipFile, zlib.error),
)


def load_arrays(path: Path, most: int) -> "dict[str, np.ndarray]":
    """The arrays of an ``.npz`` file. Pickled ones are refused.

    Args:
        path: The file.
        most: Bytes to which it may unpack.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no such file, or would unpack to more; the message names it.
    """
    import numpy as np

    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        if not path.is_file() or not path.stat().st_size:
            raise ValueError("it is empty" if path.is_file() else "it is no regular file")
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > most:
            raise ValueError(f"it would unpack to {unpacked:,} bytes, and {most:,} are the most there can be")
        with np.load(path, allow_pickle=False) as content:
            return dict(content)
    except _DAMAGE as error:
        raise ValueError(f"{path} is no file of arrays, or is damaged: {error}.") from error
