"""Embeddings cached in a file, under a hash of the weights and the images that made them."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from otdml._files import replacing
from otdml.dml.checkpoint import read_tensors
from otdml.dml.evaluation import embed
from otdml.dml.module import ProxyDML
from otdml.dml.protocols import BatchedImages, ImagesInFiles, ImagesInMemory, LabelledImages

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["embedding_file", "embedding_key", "keep_embedding", "kept_embedding", "maps_key", "network_key"]


class _NotPlainError(Exception):
    """An object that cannot be hashed by content."""


def embedding_file(checkpoint: Path, split: str) -> Path:
    """The file that caches the embeddings of a split by the weights of a checkpoint.

    Example:
        >>> embedding_file(Path("run/last.ckpt"), "test").name
        'last-test.embeddings'
    """
    return checkpoint.with_name(f"{checkpoint.stem}-{split}.embeddings")


def kept_embedding(
    path: Path, module: ProxyDML, dataset: LabelledImages, *, batch_size: int = 512, workers: int = 0
) -> Tensor:
    """The embeddings of :func:`otdml.dml.embed`, read from ``path`` if they are cached there, else computed and cached.

    Args:
        path: The file. One with embeddings of other weights or images is replaced; one that cannot be written is
            ignored.
        module: What embeds.
        dataset: The images.
        batch_size: Images at a time.
        workers: Processes that load images of sets that do not live in memory.

    Returns:
        Shape (n, dim), on the CPU.
    """
    key = embedding_key(module, dataset)
    found = _read(path, key) if key else None
    if found is None:
        found = embed(module, dataset, batch_size=batch_size, workers=workers)
        keep_embedding(path, key, found)
    return found


def keep_embedding(path: Path, key: str | None, z: Tensor) -> None:
    """Write embeddings with their key; without effect where there is no key, or the file cannot be written."""
    if key is None:
        return
    # A cache only: without it they are computed again.
    with suppress(OSError, RuntimeError), replacing(path) as part:
        torch.save({"key": key, "z": z}, part)


def _read(path: Path, key: str) -> Tensor | None:
    try:
        content = read_tensors(path)
    except (FileNotFoundError, ValueError):
        return None
    found = content.get("z") if isinstance(content, dict) and content.get("key") == key else None
    return found if isinstance(found, Tensor) else None


def embedding_key(module: ProxyDML, dataset: LabelledImages) -> str | None:
    """A hash of all that the embeddings depend on: network, weights, and images with their transform.

    Images in memory count by their pixels, files by path, size and time of change.

    Args:
        module: What embeds.
        dataset: The images.

    Returns:
        The hash, or None where the images or their transform cannot be hashed by content, such as a function.

    Example:
        >>> from otdml.data import Digits
        >>> key = embedding_key(ProxyDML(5, dim=8, seed=0), Digits(split="test"))
        >>> key == embedding_key(ProxyDML(5, dim=8, seed=0), Digits(split="test"))
        True
        >>> key == embedding_key(ProxyDML(5, dim=8, seed=1), Digits(split="test"))
        False
    """
    digest = hashlib.sha256()
    try:
        _absorb_network(digest, module)
        _absorb(digest, _images(dataset))
    except _NotPlainError:
        return None
    return digest.hexdigest()


def network_key(module: ProxyDML, transform: Any = None) -> str:
    """A hash of what makes an image's embedding: network, weights, and the transform of images.

    Args:
        module: What embeds.
        transform: Of the images; one that cannot be hashed by content counts by its type.
    """
    digest = hashlib.sha256()
    _absorb_network(digest, module)
    _absorb_or_kind(digest, "transform", transform)
    return digest.hexdigest()


def maps_key(lower: "GraphModule", dataset: LabelledImages, augment: Any = None) -> str | None:
    """A hash of all that the maps of a frozen part depend on: its graph and weights, and images with their transform.

    Args:
        lower: The part, as :func:`otdml.dml.backbones.cut.cut` returns it.
        dataset: The images.
        augment: What distorts them.

    Returns:
        The hash, or None as for :func:`embedding_key`.
    """
    digest = hashlib.sha256()
    try:
        _absorb(digest, [lower.code, repr(lower), dict(lower.state_dict())])
        _absorb(digest, [*_images(dataset), augment])
    except _NotPlainError:
        return None
    return digest.hexdigest()


def _absorb_network(digest: "hashlib._Hash", module: ProxyDML) -> None:
    for part in (module.backbone, module.head):
        _absorb(digest, [repr(part), dict(part.state_dict())])
        for name, inner in part.named_modules():
            _absorb(digest, [name, type(inner).__module__, type(inner).__qualname__])
            for attribute, value in sorted(vars(inner).items()):
                if not attribute.startswith("_") and attribute != "training":
                    _absorb_or_kind(digest, attribute, value)
        for name, buffer in part.named_buffers():
            _absorb(digest, [name, buffer])


def _absorb_or_kind(digest: "hashlib._Hash", name: str, value: Any) -> None:
    """A named value by content, or by its type where that cannot be."""
    _absorb(digest, name)
    try:
        _absorb(digest, value)
    except _NotPlainError:
        _absorb(digest, type(value).__qualname__)


def _images(dataset: Any) -> list[Any]:
    if isinstance(dataset, ImagesInMemory) and isinstance(dataset, BatchedImages):
        return [dataset.images]
    if not isinstance(dataset, ImagesInFiles):
        raise _NotPlainError
    files = [_Each(str, dataset.paths), _Each(_state, dataset.paths)]
    return [*files, getattr(dataset, "transform", None), getattr(dataset, "upright", None)]


class _Each(Sequence[Any]):
    """A function of each entry, evaluated lazily: a million files need no list."""

    def __init__(self, function: Callable[[Any], Any], entries: Sequence[Any]) -> None:
        self.function, self.entries = function, entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        return self.function(self.entries[index])


def _state(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _absorb(digest: "hashlib._Hash", value: Any) -> None:
    """Feed ``value`` to the digest, so that another value feeds it something else."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        _absorb(digest, [entry for pair in value.items() for entry in pair])
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        digest.update(f"{len(value)}[".encode())
        for entry in value:
            _absorb(digest, entry)
    elif value is None or isinstance(value, str | bytes | bool | int | float):
        digest.update(f"{value!r};".encode())
    elif _has_state(value):
        _absorb(digest, [type(value).__module__, type(value).__qualname__, value.__getstate__()])
    else:
        raise _NotPlainError


def _has_state(value: Any) -> bool:
    """Whether an object is determined by its attributes, as for pickle; functions are not."""
    kind: Any = type(value)
    plain = kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__
    return plain and not isinstance(value, type | FunctionType | MethodType | BuiltinFunctionType)
