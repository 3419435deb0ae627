"""Search by image: an index with the network that made it, and a page of what was found."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from otdml._files import write_text
from otdml._training import as_float
from otdml.benchmarks.models import image_transform, load_checkpoint
from otdml.benchmarks.pages import picture_uri, template
from otdml.data.images import open_image, thumbnail, transformed
from otdml.dml.cache import network_key
from otdml.dml.index import EmbeddingIndex

if TYPE_CHECKING:
    from PIL import Image

    from otdml.dml import ProxyDML
    from otdml.dml.approximate import ApproximateSearch
    from otdml.dml.index import Match

__all__ = ["ImageSearch", "nearest_images", "write_matches"]


class ImageSearch:
    """An index of images, and the network that made it.

    Args:
        index: The embeddings.
        model: What made them, ready to embed.
        transform: What is done to an image before.
    """

    def __init__(self, index: EmbeddingIndex, model: "ProxyDML", transform: Callable[["Image.Image"], Tensor]) -> None:
        self.index, self.model, self.transform = index, model, transform

    @classmethod
    def open(
        cls, folder: Path, checkpoint: Path | None = None, *, exact: bool = False, trust: bool = False
    ) -> "ImageSearch":
        """The index in a folder, with the checkpoint that it names, or another one.

        Raises:
            FileNotFoundError: The index or the checkpoint is not there.
            ValueError: The index was made by other weights, or of images of another size or kind.
        """
        return cls.of(EmbeddingIndex.load(folder, exact=exact), folder, checkpoint, trust=trust)

    @classmethod
    def of(
        cls, index: EmbeddingIndex, folder: Path, checkpoint: Path | None = None, *, trust: bool = False
    ) -> "ImageSearch":
        """The result of :meth:`open`, for an index that has been read from the folder."""
        maker = checkpoint or index.about.get("checkpoint")
        if maker is None:
            raise ValueError(f"{folder} does not say which checkpoint made it. Name that with --checkpoint.")
        model = load_checkpoint(Path(maker), trust=trust)
        transform = image_transform(Path(maker), model, index.about.get("size"))
        features, made = index.z.shape[1], model.head.linear.out_features
        if made != features:
            raise ValueError(f"{folder} holds {features} features, the checkpoint makes {made}.")
        made_by = index.about.get("network")
        # An index of another origin does not record its checkpoint; then the one given counts.
        if made_by != network_key(model, transform) and not (made_by is None and checkpoint):
            what = "an earlier version made it" if made_by is None else "other weights or images made it"
            raise ValueError(f"{folder} is not of the network of {maker}: {what}. Make it again with `otdml embed`.")
        return cls(index, model, transform)

    def embedding(self, image: "Image.Image") -> Tensor:
        """The unit embedding of an image that is not decoded yet, shape (1, d)."""
        with torch.no_grad():
            return self.model(as_float(transformed(image, self.transform)[None]))

    def nearest(self, image: "Image.Image", k: int) -> "list[Match]":
        """The ``k`` images of the index that are most similar to an image; best first."""
        return self.index.search(self.embedding(image), k)[0]


def nearest_images(
    index: Path, image: Path, k: int, checkpoint: Path | None = None, *, exact: bool = False, trust: bool = False
) -> "tuple[list[Match], ApproximateSearch | None]":
    """The ``k`` images of an index most similar to an image, embedded as the index was, and what proposed them.

    Raises:
        FileNotFoundError: The index, the image or the checkpoint is not there.
        ValueError: The index was made by other weights, or of images of another size or kind.
    """
    search = ImageSearch.open(index, checkpoint, exact=exact, trust=trust)
    try:
        with open_image(image) as opened:
            return search.nearest(opened, k), search.index.approximate
    except ValueError as error:
        if error.__cause__ is None:
            raise
        # It is no image of a set, which could do without it.
        raise ValueError(f"{image} cannot be read as an image ({error.__cause__}). Search by another one.") from error


def write_matches(path: Path, query: Path, matches: Sequence["Match"]) -> dict[str, str]:
    """Write a self-contained page that shows an image and those found for it.

    Returns:
        Images that cannot be shown, because they have moved or are damaged, with the reason; the page says so.
    """
    missing: dict[str, str] = {}
    shown = [_picture(file, missing) for file in (str(query), *(match.path for match in matches))]
    found = [(uri, Path(match.path).name, match) for uri, match in zip(shown[1:], matches, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, template("search.html.jinja").render(query=query.name, uri=shown[0], found=found))
    return missing


def _picture(file: str, missing: dict[str, str]) -> str | None:
    """The middle of an image as a URI; None if it cannot be read, with the reason in ``missing``."""
    try:
        with open_image(file) as image:
            return picture_uri(thumbnail(image, 160))
    except FileNotFoundError:
        missing[file] = "there is no such file any more"
    except (OSError, ValueError) as error:
        missing[file] = str(error)
    return None
