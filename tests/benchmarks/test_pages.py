"""Pictures within pages."""

import base64
import io

import numpy as np
from PIL import Image

from otdml.benchmarks.pages import encoded, picture_uri


def test_uri_holds_the_image():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    uri = picture_uri(image)
    decoded = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(decoded), image)
    assert picture_uri(np.zeros((8, 8, 3), np.uint8)).startswith("data:image/jpeg;base64,")


def test_a_colour_image_is_a_jpeg_without_metadata():
    content, kind = encoded(np.full((8, 8, 3), 77, np.uint8))
    with Image.open(io.BytesIO(content)) as image:
        assert (kind, image.format, image.getpixel((3, 3))) == ("image/jpeg", "JPEG", (77, 77, 77))
        assert not image.getexif()
