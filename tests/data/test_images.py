"""Reading and cropping: pixels whose values are known, and every kind of file."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from otdml.data.images import CenterCrop, RandomResizedCrop, as_rgb, open_image, standard_crop, unreadable

# From upright to how each orientation is stored: 6 and 8 undo each other, the others themselves.
BACK = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
RAW = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def ramp(width: int, height: int) -> np.ndarray:
    """Red grows to the right, green downwards: a crop's colours tell where it lies."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (255 * np.stack([across, down, np.full_like(across, 0.5)], -1)).round().astype(np.uint8)


def jpeg(pixels: np.ndarray, **options) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=97, **options)
    return Image.open(file)


def test_center_crop_is_the_middle():
    # Shorter side 100 stands for 64 of which 32 are cut: the middle 50 pixels.
    found = CenterCrop(32, 64, **RAW)(Image.fromarray(ramp(200, 100)))
    assert found.shape == (3, 32, 32)
    assert found.dtype == torch.float32
    red, green, blue = found
    assert red.mean().item() == pytest.approx(0.5, abs=0.005)
    assert (red[0, -1] - red[0, 0]).item() == pytest.approx(50 / 200 * 31 / 32, abs=0.01)
    assert (green[-1, 0] - green[0, 0]).item() == pytest.approx(50 / 100 * 31 / 32, abs=0.01)
    assert torch.equal(blue, torch.full_like(blue, 128 / 255))


def test_center_crop_equals_resizing_then_cutting():
    image = Image.fromarray(ramp(300, 256))
    cut = image.crop((38, 16, 262, 240)).resize((224, 224), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 255
    assert torch.equal(CenterCrop(224, 256, **RAW)(image), expected)


def test_statistics_of_imagenet_by_default():
    grey = Image.new("RGB", (30, 30), (124, 116, 104))
    found = CenterCrop(8)(grey)
    expected = (torch.tensor([124, 116, 104]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(found[:, 3, 3], expected)


@pytest.mark.parametrize("width", [64, 640, 2400])
def test_reduced_decoding_hardly_changes_the_result(width):
    pixels = ramp(width, width // 2)
    for crop in (CenterCrop(48, **RAW), RandomResizedCrop(48, **RAW)):
        torch.manual_seed(3)
        fast = crop(jpeg(pixels))
        torch.manual_seed(3)
        full = crop(Image.fromarray(pixels))
        assert (fast - full).abs().max() < 0.02


def test_large_files_are_decoded_small():
    image = jpeg(ramp(2400, 1600))
    CenterCrop(48)(image)
    assert image.size == (300, 200)  # An eighth, and still at least twice the pixels needed.
    image = jpeg(ramp(100, 80))
    CenterCrop(48)(image)
    assert image.size == (100, 80)


def boxes(width: int, height: int, crop: RandomResizedCrop, draws: int = 400) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.tensor([crop._box(width, height) for _ in range(draws)])


def test_random_parts_lie_inside_and_have_the_shapes_asked_for():
    left, top, right, bottom = boxes(300, 200, RandomResizedCrop(64, scale=(0.08, 0.4))).T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 300 + 1e-3
    assert bottom.max() <= 200 + 1e-3
    share = (right - left) * (bottom - top) / (300 * 200)
    ratio = (right - left) / (bottom - top)
    assert share.min() >= 0.08 - 1e-6
    assert ratio.min() >= 3 / 4 - 1e-5
    assert ratio.max() <= 4 / 3 + 1e-5
    # Parts of this size always fit, so that their area is uniform.
    assert share.max() <= 0.4 + 1e-6
    assert share.mean().item() == pytest.approx(0.24, abs=4 * 0.32 / math.sqrt(12 * 400))
    assert ratio.log().mean().item() == pytest.approx(0, abs=0.06)


def test_of_a_narrow_image_the_middle_is_taken():
    left, top, right, bottom = RandomResizedCrop(8, scale=(1, 1))._box(40, 400)
    assert (left, right) == (0, 40)
    assert bottom - top == pytest.approx(40 / (3 / 4))
    assert top + bottom == pytest.approx(400)


def test_mirroring():
    image = Image.fromarray(ramp(64, 64))
    whole = {"scale": (1, 1), "ratio": (1, 1), **RAW}
    plain, mirrored = (RandomResizedCrop(64, flip=flip, **whole)(image) for flip in (0, 1))
    torch.testing.assert_close(plain.flip(-1), mirrored)
    torch.manual_seed(0)
    crop = RandomResizedCrop(4, flip=0.25, **whole)
    share = sum(bool(crop(image)[0, 0, 0] > 0.5) for _ in range(400)) / 400
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))


def test_the_global_seed_repeats_the_crops():
    image = Image.fromarray(ramp(90, 70))
    crop = RandomResizedCrop(16)
    torch.manual_seed(1)
    first = crop(image)
    assert not torch.equal(crop(image), first)
    torch.manual_seed(1)
    assert torch.equal(crop(image), first)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("LA", "png"), ("1", "png")]
)
def test_every_kind_of_file_becomes_rgb(mode, suffix, tmp_path):
    image = Image.new("RGB", (40, 30), (200, 200, 200)).convert(mode)
    image.save(tmp_path / f"image.{suffix}")
    with open_image(tmp_path / f"image.{suffix}") as opened:
        found = CenterCrop(8, **RAW)(opened)
    expected = 1.0 if mode == "1" else 200 / 255
    # Dithering one bit leaves the mean.
    assert found.mean().item() == pytest.approx(200 / 255 if mode == "1" else expected, abs=0.02)


def test_a_palette_with_transparency_is_converted_without_a_warning(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "image.png", transparency=b"\x00\xff")
    with open_image(tmp_path / "image.png") as opened:
        assert as_rgb(opened).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_orientation_of_a_camera_is_followed(orientation, suffix, tmp_path):
    """Stored as the camera held it, a photograph is cropped as if it had been stored upright."""
    upright = Image.fromarray(ramp(640, 320))
    # What Pillow's own exif_transpose undoes.
    stored = upright.transpose(BACK[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 97, "subsampling": 0} if suffix == "jpg" else {}
    stored.save(tmp_path / f"image.{suffix}", exif=exif, **options)
    for crop in (CenterCrop(32, **RAW), RandomResizedCrop(32, **RAW)):
        found = []
        for image in (open_image(tmp_path / f"image.{suffix}"), upright):
            torch.manual_seed(1)
            found.append(crop(image))
        assert (found[0] - found[1]).abs().max() < 0.03
    with open_image(tmp_path / f"image.{suffix}") as image:
        turned = as_rgb(image)
    assert turned.size == (640, 320)
    # Once turned, it is not turned again.
    torch.testing.assert_close(CenterCrop(32, **RAW)(turned), CenterCrop(32, **RAW)(upright), atol=0.03, rtol=0)
    with open_image(tmp_path / f"image.{suffix}", upright=False) as image:
        as_stored = as_rgb(image)
    assert as_stored.size == stored.size
    np.testing.assert_allclose(np.float32(as_stored), np.float32(stored), atol=8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_pixels_of_a_turned_tiff_stay_in_their_places(orientation, mode, tmp_path):
    """Pillow maps such files into memory, in rows as long as those of the image once it is upright."""
    grey = (np.arange(35, dtype=np.uint16) * 7).reshape(5, 7)
    stored = Image.fromarray(257 * grey) if mode == "I;16" else Image.fromarray(grey.astype(np.uint8)).convert(mode)
    expected = as_rgb(stored)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "image.tif"
    stored.save(path, exif=exif)
    with open_image(path) as image:
        assert np.array_equal(as_rgb(image).transpose(BACK[orientation]), expected)
    with open_image(path, upright=False) as image:
        assert np.array_equal(as_rgb(image), expected)
    path.write_bytes(path.read_bytes()[:-3])
    with open_image(path) as image, pytest.raises(ValueError, match=r"image\.tif cannot be read"):
        as_rgb(image)
    assert list(unreadable([path])) == [str(path)]


def test_damaged_metadata_do_not_matter(tmp_path):
    for exif in (b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12", b"Exif\0\0not at all"):
        Image.fromarray(ramp(40, 20)).save(tmp_path / "image.jpg", exif=exif)
        with open_image(tmp_path / "image.jpg") as image:
            assert as_rgb(image).size == (40, 20)


def test_sixteen_bits_become_eight(tmp_path):
    values = np.array([[0, 257, 51400, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "image.png")
    with open_image(tmp_path / "image.png") as image:
        assert np.array(as_rgb(image))[0, :, 1].tolist() == [0, 1, 200, 255]


def test_damaged_files_are_named(tmp_path):
    whole, short, text, absent = (tmp_path / name for name in ("a.jpg", "b.jpg", "c.png", "d.jpg"))
    Image.fromarray(ramp(60, 60)).save(whole)
    short.write_bytes(whole.read_bytes()[:700])
    text.write_text("no image")
    assert unreadable([whole, short, text]).keys() == {str(short), str(text)}
    with pytest.raises(ValueError, match=r"c\.png cannot be read as an image .*on_corrupt='skip'"):
        open_image(text)
    with open_image(short) as image, pytest.raises(ValueError, match=r"b\.jpg cannot be read as an image .*truncated"):
        CenterCrop(8)(image)
    with pytest.raises(FileNotFoundError):
        open_image(absent)


def test_a_damaged_png_is_named(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[500:510] = b"0123456789"
    path.write_bytes(content)
    assert list(unreadable([path])) == [str(path)]
    with open_image(path) as image, pytest.raises(ValueError, match=r"image\.png cannot be read as an image"):
        as_rgb(image)


def test_standard_crops():
    assert {split: type(standard_crop(split, 32)).__name__ for split in ("train", "trainval", "val", "test")} == {
        "train": "RandomResizedCrop",
        "trainval": "RandomResizedCrop",
        "val": "CenterCrop",
        "test": "CenterCrop",
    }
    assert standard_crop("test", 224).resize == 256
    assert standard_crop("val", 160, resize=160).resize == 160
    assert standard_crop("train", 160, least_area=0.4).scale == (0.4, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop(0), "`size` must be an integer >= 1"),
        (lambda: RandomResizedCrop(8, scale=(0.1, 1.5)), r"`scale` must lie in \(0, 1\]"),
        (lambda: RandomResizedCrop(8, flip=2), r"`flip` must lie in \[0, 1\]"),
        (lambda: CenterCrop(8, 4), "`resize` must be an integer >= 8"),
        (lambda: CenterCrop(8, std=(1, 0, 1)), "`std` must be a positive number"),
        (lambda: CenterCrop(8, mean=(0, 1)), "`mean` must hold three numbers"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("values", "expected"), [(np.float32([[0.0, 0.5], [0.25, 1.0]]), [0, 128, 64, 255])])
def test_floating_point_in_the_unit_interval_is_scaled(values, expected, tmp_path):
    Image.fromarray(values).save(tmp_path / "image.tif")
    assert np.asarray(as_rgb(open_image(tmp_path / "image.tif")))[..., 1].flatten().tolist() == expected


@pytest.mark.parametrize("values", [np.float32([[0.0, 200.0]]), np.float32([[-1.0, 1.0]]), np.int32([[0, 200]])])
def test_numbers_without_a_known_white_are_refused_by_name(values, tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=r"image\.tif holds .* whose white is not known\. Save it with 8 or 16 bits"):
        as_rgb(open_image(path))
    assert "whose white is not known" in unreadable([path])[str(path)]


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    for suffix in ("png", "tif"):
        Image.fromarray(np.uint16([[0, 32896, 65535]])).save(tmp_path / f"image.{suffix}")
        found = np.asarray(as_rgb(open_image(tmp_path / f"image.{suffix}")))
        assert found[..., 0].tolist() == [[0, 128, 255]]


def tiff(path, pixels, bits, photometric, kind=1):
    """A TIFF of one row of two grey pixels, whose bytes are given; ``kind`` is 3 for floating point."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(pixels), 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 279 else 3, 1, value) for tag, value in tags.items())
    body = pixels + bytes(len(pixels) % 2)
    content = struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries
    path.write_bytes(content + bytes(4))
    with open_image(path) as image:
        return np.asarray(as_rgb(image))[0, :, 0].tolist()


def test_the_white_of_a_tiff_is_that_of_its_bits(tmp_path):
    """Twelve bits were taken for sixteen, of which their white is a sixteenth."""
    path = tmp_path / "image.tif"
    assert tiff(path, bytes([0xFF, 0xF8, 0x00]), bits=12, photometric=1) == [255, 128]
    assert tiff(path, struct.pack("<HH", 65535, 257), bits=16, photometric=1) == [255, 1]


def test_zero_is_white_where_a_tiff_says_so(tmp_path):
    path = tmp_path / "image.tif"
    assert tiff(path, bytes([0, 200]), bits=8, photometric=0) == [255, 55]
    assert tiff(path, struct.pack("<HH", 0, 200 * 257), bits=16, photometric=0) == [255, 55]
    assert tiff(path, struct.pack("<ff", 0.0, 0.2), bits=32, photometric=0, kind=3) == [255, 204]


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>
</rdf:RDF></x:xmpmeta>"""


def late_exif(path, image):
    """A PNG whose EXIF comes after the pixels, where the standard allows it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(path)
    content, end = path.read_bytes(), b"\0\0\0\0IEND"
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content.replace(end, late + end))


def with_xmp(path, image):
    image.save(path, quality=100, subsampling=0, xmp=XMP)


@pytest.mark.parametrize(("write", "suffix"), [(late_exif, "png"), (with_xmp, "jpg")])
def test_orientation_is_found_wherever_it_stands(write, suffix, tmp_path):
    upright = Image.fromarray(ramp(40, 20))
    write(tmp_path / f"image.{suffix}", upright.transpose(Image.Transpose.ROTATE_90))
    path = tmp_path / f"image.{suffix}"
    found = as_rgb(open_image(path))
    assert found.size == upright.size
    np.testing.assert_allclose(np.float32(found), np.float32(upright.convert("RGB")), atol=6)
    crop = CenterCrop(8, 8)
    torch.testing.assert_close(crop(open_image(path)), crop(upright), atol=0.15, rtol=0)
    # What was turned is not turned again, by this library or by Pillow.
    assert as_rgb(found).size == ImageOps.exif_transpose(found).size == upright.size
    assert as_rgb(open_image(path, upright=False)).size == (20, 40)


def test_an_image_in_memory_is_refused_without_the_remedy_of_files(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "red").save(path)
    content = path.read_bytes()
    with open_image(io.BytesIO(content)) as image:
        assert as_rgb(image).getpixel((3, 3)) == (255, 0, 0)
    with (
        open_image(io.BytesIO(content[:-30])) as image,
        pytest.raises(ValueError, match="the image cannot be read as an image") as said,
    ):
        as_rgb(image)
    assert "skip" not in str(said.value)
    with pytest.raises(ValueError, match=r"^this cannot be read as an image") as said:
        open_image(io.BytesIO(content), formats=("JPEG",))
    assert "skip" not in str(said.value)
