"""Files that are replaced whole or not at all, and folders that one process holds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["held", "replacing", "write_text"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    Whatever goes wrong inside, a full disk or a kill, the earlier file stays as it was.

    Raises:
        OSError: The file could not be written; the message names it, and says that nothing was lost.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as written:
            # Without this a crash of the machine may leave a renamed file with nothing in it.
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"cannot write {path}: {reason}. What was there before is unchanged.") from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within it no other process can hold the folder; a kill lets go of it. Without effect where locks are unknown.

    Raises:
        ValueError: Another process holds it.
    """
    path = folder / ".lock"
    lock = _locked(path)
    try:
        yield
    finally:
        if lock is not None:
            # Before it is let go of: whoever opened the file in the meantime finds that it is no longer there.
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
            raise ValueError(
                f"another process trains in {path.parent}. Wait for it, or choose another folder."
            ) from error
        except OSError:
            # A file system without locks.
            lock.close()
            path.unlink(missing_ok=True)
            return None
        if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
            return lock
        lock.close()
