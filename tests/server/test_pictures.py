"""Pictures: bounded, drawn anew, and of files that are where the index has them."""

import io
import os
import struct
import threading
import warnings
import zlib

import pytest
from PIL import Image

from otdml.server import pictures
from otdml.server.pictures import FORMATS, MOST_PIXELS, drawn, picture_of, state_of, uploaded


def png_of(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size, without its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 10**6) + b"IDAT"


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("size", [(8001, 8000), (1, MOST_PIXELS + 1), (12_000, 12_000)])
def test_an_upload_of_too_many_pixels_is_refused_before_it_is_decoded(size, monkeypatch):
    # Some plugins of Pillow draw when they are loaded.
    Image.init()
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="at most 64 million are read"), uploaded(png_of(*size)):
        pass


def test_what_pillow_takes_for_a_bomb_is_refused_too():
    with pytest.raises(ValueError, match="cannot be read as an image"), uploaded(png_of(30_000, 30_000)):
        pass


def test_an_upload_of_as_many_pixels_as_are_allowed_is_read():
    with uploaded(png_of(8000, 8000)) as image:
        assert image.size == (8000, 8000)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_of_cameras_and_browsers_are_read(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow was built without {kind}")
    with uploaded(file_of(Image.new("RGB", (20, 20), "red"), kind)) as image:
        content, media = drawn(image)
    with Image.open(io.BytesIO(content)) as found:
        assert (media, found.size) == ("image/jpeg", (pictures.SIDE, pictures.SIDE))
        assert found.getpixel((9, 9))[0] > 240


def test_a_refusal_says_nothing_of_objects():
    with (
        pytest.raises(ValueError, match=r"^this cannot be read as an image \(its format is not known\)\.$"),
        uploaded(b"x"),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0"])
def test_what_is_no_image_is_refused(content):
    with pytest.raises(ValueError, match="this cannot be read as an image"), uploaded(content):
        pass


@pytest.mark.parametrize("kind", ["PPM", "ICO", "PCX"])
def test_formats_that_nobody_uploads_are_refused_although_pillow_reads_them(kind):
    content = file_of(Image.new("RGB", (20, 20)), kind)
    with pytest.raises(ValueError, match="this cannot be read as an image"), uploaded(content):
        pass


def test_a_picture_says_nothing_that_its_file_says_beside_its_pixels():
    exif = Image.Exif()
    exif[270] = "where I live"
    content = file_of(Image.new("RGB", (20, 20)), "JPEG", exif=exif, comment=b"who I am")
    assert b"where I live" in content
    with uploaded(content) as image:
        assert b" I " not in drawn(image)[0]


def test_one_image_is_decoded_at_a_time():
    content, inside, most = file_of(Image.new("RGB", (20, 20)), "PNG"), [], []

    def look():
        with uploaded(content):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=look) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 16


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (30, 20), "blue").save(path)
    return str(path)


def test_the_picture_of_a_file(photo):
    assert state_of(photo) == ("", os.stat(photo).st_mtime)
    content, kind = picture_of(photo)
    assert kind == "image/jpeg"
    with Image.open(io.BytesIO(content)) as found:
        assert found.getpixel((9, 9))[2] > 240


def test_a_file_that_changes_gets_a_new_picture(photo):
    before = picture_of(photo)
    Image.new("RGB", (30, 20), "red").save(photo)
    os.utime(photo, (1, 1))
    assert picture_of(photo) != before


def test_a_link_in_the_place_of_an_image_is_not_followed(photo, tmp_path):
    secret = tmp_path / "secret.png"
    os.rename(photo, secret)
    os.symlink(secret, photo)
    with pytest.raises(ValueError, match="a link has taken its place"):
        picture_of(photo)
    with pytest.raises(OSError, match="symbolic links"):
        pictures._opened(photo)


def test_a_link_in_the_place_of_a_folder_above_an_image_is_not_followed(tmp_path):
    for name in ("photos", "secret"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 20)).save(tmp_path / name / "1.png")
    assert picture_of(str(tmp_path / "photos" / "1.png"))
    os.rename(tmp_path / "photos", tmp_path / "elsewhere")
    os.symlink(tmp_path / "secret", tmp_path / "photos")
    with pytest.raises(ValueError, match="a link has taken its place"):
        picture_of(str(tmp_path / "photos" / "1.png"))


def test_a_path_that_climbs_is_not_followed(photo, tmp_path):
    (tmp_path / "below").symlink_to("/")
    with pytest.raises(ValueError, match="a link has taken its place"):
        picture_of(f"{tmp_path}/below/..{photo}")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file any more"),
        (os.mkdir, "it is no file any more"),
        (os.mkfifo, "it is no file any more"),
    ],
)
def test_what_is_no_file_any_more_is_not_waited_for(photo, make, reason):
    os.remove(photo)
    make(photo)
    with pytest.raises(ValueError, match=reason):
        picture_of(photo)


@pytest.mark.parametrize("path", ["/etc/passwd", "a\0b", "x" * 5000])
def test_what_is_no_image_is_never_shown(path):
    with pytest.raises(ValueError):
        picture_of(path)


def test_a_file_that_cannot_be_opened_is_named_by_its_reason(photo, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(ValueError, match=r"it cannot be read \(Permission denied\)"):
        picture_of(photo)


def test_large_images_of_the_index_raise_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "large.png").write_bytes(png_of(10_000, 10_000))
        with open(tmp_path / "large.png", "rb") as file, pictures.decoded(file) as image:
            assert image.size == (10_000, 10_000)
