"""Self-contained HTML pages: templates, one theme, and embedded pictures."""

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["encoded", "picture_uri", "template"]

# Packages whose folder `templates` Jinja searches, in order; the theme is in this one.
_HERE = "otdml.benchmarks"


def template(name: str, package: str = _HERE) -> "Template":
    """A template of a package, which may include those of this one, such as the theme."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(part) for part in dict.fromkeys((package, _HERE))])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True).get_template(name)


def encoded(image: np.ndarray) -> tuple[bytes, str]:
    """A uint8 image as a file, and its media type: PNG for grey ones, which is lossless, JPEG for colour."""
    from PIL import Image

    file = io.BytesIO()
    kind = "png" if image.ndim == 2 else "jpeg"
    Image.fromarray(image).save(file, format=kind, optimize=True)
    return file.getvalue(), f"image/{kind}"


def picture_uri(image: np.ndarray) -> str:
    """A ``data:`` URI of a uint8 image: lossless for grey ones, JPEG for colour."""
    content, kind = encoded(image)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
