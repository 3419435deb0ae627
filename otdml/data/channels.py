"""Decoded images of any mode in three channels of 8 bits."""

import numpy as np
from PIL import ExifTags, Image

__all__ = ["REMEDY", "image_name", "remedy", "three_channels"]

REMEDY = "Replace the file, or pass on_corrupt='skip' (--skip-corrupt) to leave such images out."


def image_name(image: Image.Image) -> str:
    """The file of an image, as errors name it."""
    return str(getattr(image, "filename", "") or "the image")


def remedy(image: Image.Image) -> str:
    """The remedy for a damaged file; none for an image without a name, which is not one of the user's files."""
    return f" {REMEDY}" if getattr(image, "filename", "") else ""


def three_channels(image: Image.Image) -> Image.Image:
    """A decoded image in RGB.

    Raises:
        ValueError: If its numbers have no known white, or its mode is not converted; the message names the file.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    try:
        # A palette whose transparency is per colour has to pass through RGBA.
        return image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{image_name(image)} cannot be converted to RGB ({error}).{remedy(image)}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits in 8; Pillow would clip it to 255.

    Raises:
        ValueError: If nothing says which number is white.
    """
    pixels, tags = np.asarray(image), getattr(image, "tag_v2", {})
    low, high = pixels.min(), pixels.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        grey = np.rint(255 * pixels)
    # Pillow reads 16-bit PNG and PGM in mode I; in a TIFF that mode is of 32 bits.
    elif image.mode != "F" and (image.mode != "I" or image.format != "TIFF") and low >= 0 and high <= 65535:
        # Twelve bits of a TIFF are not scaled to the sixteen of their mode.
        grey = pixels // (16 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 257)
    else:
        kind = "floating-point numbers" if image.mode == "F" else "integers of 32 bits"
        wanted = "Save it with 8 or 16 bits per channel, or as floating point in [0, 1]."
        raise ValueError(
            f"{image_name(image)} holds {kind} from {low:g} to {high:g}, whose white is not known. {wanted}"
        )
    grey = grey.astype(np.uint8)
    # Of TIFFs in which zero is white Pillow inverts those of 8 bits alone.
    return Image.fromarray(255 - grey if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else grey)
