"""Pictures of files and uploads: decoded and encoded again, one at a time, within limits."""

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO

from PIL import Image

from otdml.benchmarks.pages import encoded
from otdml.data.images import open_image, thumbnail

__all__ = ["FORMATS", "MOST_BYTES", "MOST_PIXELS", "Picture", "decoded", "drawn", "picture_of", "state_of", "uploaded"]

# A file and its media type.
Picture = tuple[bytes, str]

# Twice the side of a card, for screens of twice the density.
SIDE = 320
# Limits of an upload, which is in memory compressed and decoded: 32 MiB, and 64 million pixels, for which a decoder
# takes some 700 MiB at most.
MOST_BYTES, MOST_PIXELS = 32 * 2**20, 64_000_000
# Formats of uploads: those that cameras, browsers and scanners make. Each further decoder is one more to be attacked.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_TURN = threading.Lock()


@contextmanager
def decoded(file: IO[bytes], formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """The image in a file, to be decoded within the block; meanwhile no other one is, which bounds memory.

    Raises:
        ValueError: It cannot be read as an image, of one of the formats if they are given.
    """
    with _TURN, warnings.catch_warnings():
        # Pillow warns at half the size that it refuses.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.init()
        known = None if formats is None else tuple(name for name in formats if name in Image.OPEN)
        with open_image(file, formats=known) as image:
            yield image


@contextmanager
def uploaded(content: bytes) -> Iterator[Image.Image]:
    """The image that an upload holds, to be decoded within the block.

    Raises:
        ValueError: It is no image of :data:`FORMATS`, or has more than :data:`MOST_PIXELS` pixels.
    """
    with decoded(io.BytesIO(content), FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            most = f"{MOST_PIXELS // 10**6} million"
            raise ValueError(f"the image has {image.width:,} × {image.height:,} pixels, and at most {most} are read.")
        yield image


def drawn(image: Image.Image) -> Picture:
    """The middle of an image as a file of its own, without what its file says beside its pixels."""
    return encoded(thumbnail(image, SIDE))


def state_of(path: str) -> tuple[str, float]:
    """Why the image at a path cannot be shown, or nothing, and when it was changed last.

    A path that leads through a link may lead anywhere, and is not followed.
    """
    try:
        if os.path.realpath(path) != os.path.abspath(path):
            return "a link has taken its place", 0.0
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return "there is no such file any more", 0.0
    except (OSError, ValueError):
        return "it cannot be looked at", 0.0
    return ("" if stat.S_ISREG(found.st_mode) else "it is no file any more"), found.st_mtime


def picture_of(path: str) -> Picture:
    """The picture of an image file.

    Raises:
        ValueError: It is not there, as a file and no link, or cannot be read as an image.
    """
    reason, changed = state_of(path)
    if reason:
        raise ValueError(reason)
    return _kept_picture(path, changed)


@lru_cache(maxsize=512)
def _kept_picture(path: str, changed: float) -> Picture:
    """The picture of a file in one state of it; half a thousand are some ten megabytes."""
    try:
        with _opened(path) as file, decoded(file) as image:
            return drawn(image)
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from error


def _opened(path: str) -> IO[bytes]:
    """A file that is no link, and that is not waited for if it is a pipe."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
