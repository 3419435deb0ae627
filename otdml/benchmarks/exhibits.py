"""What a report shows of a run besides numbers: queries with their neighbours, and some classes to map."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otdml._arrays import load_arrays
from otdml._files import replacing
from otdml.neighbors import nearest_neighbors

__all__ = ["Exhibits", "embedding_map", "exhibits", "load_exhibits", "save_exhibits", "thumbnails"]

Exhibits = dict[str, np.ndarray]
Thumbnail = Callable[[int], np.ndarray]

QUERIES, FAILURES, NEIGHBORS = 8, 4, 8
MAP_CLASSES, MAP_ITEMS = 20, 400
PARTS = (
    *("query", "query_class", "neighbor", "neighbor_class", "failure"),
    *("map_image", "map_embedding", "map_class", "classes"),
)
# About ten times the size of five hundred images of a few hundred pixels.
MOST_BYTES = 2**28


def exhibits(
    z: Tensor, labels: Tensor, classes: list[str], thumbnail: Thumbnail, is_query: Tensor | None = None
) -> Exhibits:
    """A gallery and a map of the unseen classes.

    The gallery holds queries drawn at random, the same ones for every method, and some whose nearest neighbour is
    of another class: random queries alone would look too good, failures alone too bad.

    Args:
        z: Unit embeddings, shape (n, d).
        labels: Their classes, shape (n,).
        classes: Names of the classes.
        thumbnail: The image of an index as uint8, shape (h, w) or (h, w, 3), the same for all.
        is_query: Which images are queries, shape (n,), of those that are searched in the others. None where each is
            searched among all others.

    Returns:
        Arrays: ``query`` and ``neighbor`` images, their ``query_class`` and ``neighbor_class``, ``failure`` (True for
        the queries chosen because they fail), and ``map_image``, ``map_embedding``, ``map_class``; ``classes``.
    """
    chance = torch.Generator().manual_seed(0)
    order = torch.randperm(len(z), generator=chance)
    asked = order if is_query is None else order[is_query[order]]
    queries = _one_per_class(asked, labels, QUERIES)
    near = _nearest(z, asked, 1, is_query)[:, 0]
    fails = (labels[near] != labels[asked]) & ~torch.isin(asked, queries)
    failures = _one_per_class(asked[fails], labels, FAILURES)
    shown = torch.cat([queries, failures])
    neighbors = _nearest(z, shown, NEIGHBORS, is_query)
    mapped = _mapped(labels, chance)
    images = _stacked(thumbnail)
    return {
        "query": images(shown),
        "query_class": labels[shown].numpy(),
        "neighbor": images(neighbors.flatten()),
        "neighbor_class": labels[neighbors].numpy(),
        "failure": (torch.arange(len(shown)) >= len(queries)).numpy(),
        "map_image": images(mapped),
        "map_embedding": z[mapped].float().numpy(),
        "map_class": labels[mapped].numpy(),
        "classes": np.array(classes),
    }


def _nearest(z: Tensor, rows: Tensor, k: int, is_query: Tensor | None) -> Tensor:
    """Indices of up to ``k`` nearest neighbours, shape (len(rows), k), in the gallery or among all others."""
    if is_query is None:
        return nearest_neighbors(z[rows], z, min(k, len(z) - 1), exclude=rows)[1]
    gallery = torch.nonzero(~is_query)[:, 0]
    return gallery[nearest_neighbors(z[rows], z[gallery], min(k, len(gallery)))[1]]


def _one_per_class(order: Tensor, labels: Tensor, count: int) -> Tensor:
    """The first ``count`` indices of ``order``, of classes as different as possible."""
    seen: dict[int, int] = {}
    turns = []
    for label in labels[order].tolist():
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return order[torch.tensor(turns, dtype=torch.long).argsort(stable=True)[:count]]


def _mapped(labels: Tensor, chance: torch.Generator) -> Tensor:
    """Indices to map: up to twenty classes, with equally many items where they have them."""
    present = labels.unique()
    present = present[torch.randperm(len(present), generator=chance)[:MAP_CLASSES]]
    each = MAP_ITEMS // len(present)
    items = [torch.nonzero(labels == label)[:, 0] for label in present]
    return torch.cat([own[torch.randperm(len(own), generator=chance)[:each]] for own in items])


def _stacked(thumbnail: Thumbnail) -> Callable[[Tensor], np.ndarray]:
    return lambda indices: np.stack([thumbnail(i) for i in indices.tolist()])


def thumbnails(dataset: Any) -> Thumbnail:
    """The data set's thumbnails; grey ones, which hold ink as light, with dark ink as on paper."""

    def thumbnail(index: int) -> np.ndarray:
        image = dataset.thumbnail(index)
        return 255 - image if image.ndim == 2 else image

    return thumbnail


def save_exhibits(path: Path, content: Exhibits) -> None:
    """Write the arrays to ``path``, whole or not at all."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **content)  # type: ignore[arg-type]


def load_exhibits(path: Path) -> Exhibits:
    """The arrays that :func:`save_exhibits` wrote.

    Raises:
        ValueError: If the file is damaged; the message names it, and says what to do.
    """
    try:
        content = load_arrays(path, MOST_BYTES)
        if missing := [name for name in PARTS if name not in content]:
            raise ValueError(f"{path} lacks {', '.join(missing)}.")
    except ValueError as error:
        remedy = f"Delete {path.parent / 'metrics.json'} and give the command again: the run is evaluated anew."
        raise ValueError(f"{error} {remedy}") from error
    return content


def embedding_map(z: np.ndarray) -> np.ndarray:
    """Coordinates in the plane, shape (n, 2), by t-SNE from a PCA start :cite:p:`vandermaaten:08`.

    Embeddings that are all equal, which lie in one place, are the origin.
    """
    from sklearn.manifold import TSNE

    # PCA divides by their deviation, and t-SNE reads beyond its arrays where numbers are NaN.
    if (z == z[:1]).all():
        return np.zeros((len(z), 2), dtype=np.float32)
    if z.shape[1] == 1:
        z = np.pad(z, ((0, 0), (0, 1)))

    perplexity = min(30.0, max(1.0, (len(z) - 1) / 3))
    return TSNE(2, perplexity=perplexity, init="pca", metric="cosine", random_state=0).fit_transform(z)
