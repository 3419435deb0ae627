"""Labelled image files: what a transform gets, damaged files, and folders of one's own."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from otdml.data.files import ImageFiles, ImageFolder, suffixes
from otdml.data.images import CenterCrop, RandomResizedCrop

# The folder holds a file of notes.
pytestmark = pytest.mark.filterwarnings("ignore:Passed over")


@pytest.fixture
def folder(tmp_path):
    for name, color in (("cat/a.jpg", 10), ("cat/b.png", 20), ("dog/c.JPEG", 30), ("dog/old/d.jpg", 40)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 16), color).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "dog" / "._c.JPEG").write_bytes(b"Mac OS X")
    return tmp_path


def test_the_folder_of_an_image_is_its_class(folder):
    images = ImageFolder(folder, CenterCrop(8, mean=(0, 0, 0), std=(1, 1, 1)))
    assert images.classes == ["cat", "dog", "dog/old"]
    assert images.labels.tolist() == [0, 0, 1, 2]
    assert [path.removeprefix(f"{folder}/") for path in images.paths] == [
        "cat/a.jpg",
        "cat/b.png",
        "dog/c.JPEG",
        "dog/old/d.jpg",
    ]
    for index, color in enumerate((10, 20, 30, 40)):
        image, label = images[index]
        assert label == images.labels[index]
        torch.testing.assert_close(image, torch.full((3, 8, 8), color / 255), atol=0.005, rtol=0)


def test_a_loader_makes_batches(folder):
    images, labels = next(iter(DataLoader(ImageFolder(folder, size=32), batch_size=4)))
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 0, 1, 2]


def test_any_other_callable_gets_a_decoded_rgb_image(folder):
    images = ImageFolder(folder, lambda image: (image.mode, image.size, image.getpixel((0, 0))))
    assert images[1] == (("RGB", (20, 16), (20, 20, 20)), 0)


def test_thumbnails_are_of_one_size(folder):
    images = ImageFolder(folder)
    thumbnails = np.stack([images.thumbnail(i) for i in range(4)])
    assert thumbnails.shape == (4, 96, 96, 3)
    assert thumbnails.dtype == np.uint8
    assert thumbnails[1].min() == thumbnails[1].max() == 20


def test_a_damaged_image_is_named_when_asked_for_or_left_out(folder):
    damaged = folder / "dog" / "c.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    images = ImageFolder(folder)
    assert len(images) == 4
    with pytest.raises(ValueError, match=r"dog/c\.JPEG cannot be read as an image .*on_corrupt='skip'"):
        images[2]
    images = ImageFolder(folder, on_corrupt="skip")
    assert list(images.skipped) == [str(damaged)]
    # Its class has no other image: labels stay without a gap.
    assert images.classes == ["cat", "dog/old"]
    assert images.labels.tolist() == [0, 0, 1]
    assert len(images[2][0]) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["png", "jpg", "avif", "tif", "webp", "gif", "bmp"])
def test_no_damage_to_a_file_is_more_than_a_damaged_image(tmp_path, monkeypatch, kind):
    import io
    import random

    from otdml.data.images import unreadable

    Image.init()
    if f".{kind}" not in Image.EXTENSION or Image.EXTENSION[f".{kind}"] not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    whole, draw = io.BytesIO(), random.Random(kind)
    Image.effect_noise((24, 16), 50).convert("RGB").save(whole, Image.EXTENSION[f".{kind}"])
    paths = []
    for i in range(300):
        content = bytearray(whole.getvalue())
        # Files are read by their heads.
        for place in draw.choices(range(min(len(content), 400)), k=draw.randint(1, 6)):
            content[place] = draw.randrange(256)
        paths.append(tmp_path / f"{i}.{kind}")
        paths[-1].write_bytes(content[: draw.randint(1, len(content))] if i % 3 == 0 else content)
    # Pixels that a damaged head promises are not allocated.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    found = unreadable(paths, 1)
    assert found.keys() <= {str(path) for path in paths}
    assert len(found) > 20
    assert all(found.values())


@pytest.mark.parametrize("error", [RuntimeError("no item"), TypeError("no offset"), KeyError(3), ZeroDivisionError()])
def test_whatever_a_decoder_raises_is_a_damaged_image(folder, monkeypatch, error):
    def load(image):
        raise error

    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ValueError, match=r"cannot be read as an image"):
        ImageFolder(folder)[0]


def test_queries_are_left_out_with_their_images(folder):
    damaged = folder / "cat" / "a.jpg"
    damaged.write_bytes(b"no image")
    paths = sorted(folder.rglob("[abcd].*"))
    for is_query in (torch.tensor([True, True, False, True]), [True, True, False, True]):
        options = {"transform": RandomResizedCrop(8), "is_query": is_query, "on_corrupt": "skip"}
        images = ImageFiles(paths, torch.zeros(4).long(), ["x"], **options)
        assert images.is_query.tolist() == [True, False, True]


def test_errors(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="`root` must be a folder of images"):
        ImageFolder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No image below .*empty: looked for .*\.jpg"):
        ImageFolder(tmp_path / "empty")
    with pytest.raises(ValueError, match="`on_corrupt` must be one of 'raise', 'skip'"):
        ImageFolder(folder, on_corrupt="ignore")
    with pytest.raises(ValueError, match=r"`labels` must lie in \[0, 1\)"):
        ImageFiles([folder / "cat" / "a.jpg"], torch.tensor([1]), ["x"], transform=CenterCrop(8))
    with pytest.raises(ValueError, match="none of them"):
        ImageFiles([folder / "dog" / "notes.txt"], torch.tensor([0]), ["x"], transform=CenterCrop(8), on_corrupt="skip")


@pytest.mark.filterwarnings("default:Passed over")
def test_links_are_followed_and_what_is_no_image_is_counted(tmp_path):
    root = tmp_path / "root"
    for place in (root / "cat", tmp_path / "elsewhere"):
        place.mkdir(parents=True)
        Image.new("L", (8, 8), 10).save(place / "a.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "gone.png").symlink_to("absent.png")
    (root / "view.png").mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "notes.txt").write_text("no image")
    (root / "README").write_text("no image")
    with pytest.warns(
        UserWarning,
        match=r"1 \.txt, 1 broken links, 1 empty folders, 1 files without suffix, 1 links in circles, 1 pipes",
    ):
        images = ImageFolder(root, CenterCrop(8))
    assert images.classes == ["cat", "dog"]
    assert [path.removeprefix(f"{root}/") for path in images.paths] == ["cat/a.png", "dog/a.png"]
    assert images.passed_over.total() == 6


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "jp2", "tga", "webp", "ico", "JPG"])
def test_what_pillow_decodes_is_read(suffix, tmp_path):
    kind = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "jp2": "JPEG2000"}.get(suffix, suffix.upper())
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / f"a.{suffix}", kind)
    image, _ = ImageFolder(tmp_path, CenterCrop(16, 16, mean=(0, 0, 0), std=(1, 1, 1)))[0]
    assert image.mean((1, 2)).tolist() == pytest.approx([200 / 255, 0, 0], abs=0.03)


def test_formats_that_other_programs_decode_are_no_images():
    assert not suffixes() & {".eps", ".ps", ".mpg", ".h5", ".pdf", ".txt"}


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    images = ImageFiles([tmp_path / "pipe.png"], torch.zeros(1, dtype=torch.long), ["a"], transform=CenterCrop(8))
    with pytest.raises(ValueError, match=r"pipe\.png cannot be read as an image \(no regular file"):
        images[0]


def test_queries_are_a_mask_and_classes_have_images():
    paths = ["1.png", "2.png", "3.png", "4.png"]
    options = {"transform": CenterCrop(8)}
    for wrong in (torch.tensor([0, 1, 1, 0]), torch.tensor([True, False])):
        with pytest.raises(ValueError, match=r"`is_query` must be booleans of shape \(4,\)"):
            ImageFiles(paths, torch.tensor([0, 0, 1, 1]), ["a", "b"], is_query=wrong, **options)
    with pytest.raises(ValueError, match="`labels` must name an image or more of every class, got no image of b"):
        ImageFiles(paths, torch.tensor([0, 0, 2, 2]), ["a", "b", "c"], **options)


@pytest.mark.parametrize("wrong", [{"scale": (0.5,)}, {"scale": (0.1, 0.2, 0.3)}, {"ratio": (2.0, 1.0)}])
def test_ranges_of_crops_ascend(wrong):
    with pytest.raises(ValueError, match="must be two numbers, the smaller one first"):
        RandomResizedCrop(8, **wrong)
