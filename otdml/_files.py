"""Files that are replaced atomically, and folders that one process locks."""

import glob
import json
import math
import os
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = ["FolderLockedError", "folder_lock", "replacing", "writable_file", "write_json", "write_text"]

# Locks of this process: closing a second handle of a file would release its lock.
_LOCKED: set[tuple[Path, int]] = set()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    Whatever goes wrong inside, a full disk or a kill, the earlier file stays as it was. What a kill has left of an
    earlier attempt is removed. Where ``path`` is a link, the file it leads to is replaced, and the link stays.

    Raises:
        OSError: The file could not be written; the message names it, and says that nothing was lost. Errors of
            other files pass through.
    """
    path = writable_file(path)
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.part")
    _remove_abandoned(path)
    try:
        yield part
        with part.open("rb") as written:
            # Without fsync a crash of the machine may leave an empty file under the new name.
            os.fsync(written.fileno())
        with suppress(FileNotFoundError):
            # What is for its owner alone stays so.
            part.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(part, path)
    except OSError as error:
        # A file that is moved here has two names, and the second is where it was to go.
        names = {os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)}
        if names and not names & {str(part), str(path)}:
            # Of a file that is read meanwhile.
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"cannot write {path}: {reason}. What was there before is unchanged.") from error
    finally:
        part.unlink(missing_ok=True)


def writable_file(path: str | Path) -> Path:
    """The file that ``path`` means, after all links.

    Raises:
        OSError: It is a folder, a device or a pipe, which no file must replace, or its links lead in a circle.
    """
    try:
        found = Path(os.path.realpath(path))
        kind = found.stat().st_mode
    except FileNotFoundError:
        return found
    except OSError as error:
        raise OSError(f"cannot write {path}: {os.strerror(error.errno or 0)}.") from error
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a device or a pipe"
        raise OSError(f"cannot write {path}: it is {what}. Name a file.")
    return found


def _remove_abandoned(path: Path) -> None:
    """Remove what processes of this machine that are no more have left of ``path``."""
    start = f".{path.name}.{socket.gethostname()}-"
    for part in path.parent.glob(f"{glob.escape(start)}*.part"):
        process = part.name.removeprefix(start).removesuffix(".part").partition("-")[0]
        if process.isdecimal() and not _is_running(int(process)):
            part.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # The process belongs to another user, or cannot be queried.
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all.

    Bytes of file names that are no UTF-8, which Python holds as lone surrogates, are written as escapes such as
    ``\\udcff``, from which JSON makes them again.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` to ``path`` as JSON, whole or not at all, with null for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class FolderLockedError(ValueError):
    """Another process has locked the folder."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """A lock of a folder against other processes; a kill releases it. Without effect where there are no file locks.

    It is reentrant within a process: the outermost block releases it.

    Raises:
        FolderLockedError: Another process has the lock.
    """
    path = (folder / ".lock").resolve()
    if (path, os.getpid()) in _LOCKED:
        yield
        return
    lock = _locked(path)
    _LOCKED.add((path, os.getpid()))
    try:
        yield
    finally:
        _LOCKED.discard((path, os.getpid()))
        if lock is not None:
            # Deleted before it is unlocked, so that a process that waits for the lock notices.
            path.unlink(missing_ok=True)
            lock.close()


def _locked(path: Path) -> IO[bytes] | None:
    try:
        import fcntl
    except ModuleNotFoundError:
        return None
    while True:
        lock = path.open("ab")
        try:
            # Not `flock`, whose lock the children of a process inherit and keep when it is killed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise FolderLockedError(
                f"another process trains in {path.parent}. Wait for it, or choose another folder."
            ) from error
        except OSError:
            # A file system without locks.
            lock.close()
            path.unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return lock
        # The process that had the lock has removed the file: there is another one now, or none.
        lock.close()
