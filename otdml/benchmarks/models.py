"""Trained models: loaded from checkpoints, with the transform of images that they were trained with."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from otdml._checks import argument_error
from otdml.benchmarks.experiment import load_split, takes
from otdml.benchmarks.presets import Preset
from otdml.benchmarks.runs import RunFolder, checkpoint_file
from otdml.data.registry import DATASETS, without_folder
from otdml.data.tensors import crop_to_ink
from otdml.dml.approximate import check_factory
from otdml.dml.checkpoint import checkpoint
from otdml.dml.evaluation import embed, embeddings, metrics_of
from otdml.dml.export import export_onnx, export_safetensors
from otdml.dml.index import GIVEN, EmbeddingIndex
from otdml.dml.trust import check_names

if TYPE_CHECKING:
    from PIL import Image

    from otdml.data.files import ImageFiles
    from otdml.dml import ProxyDML

__all__ = [
    "GreyImage",
    "checkpoint_metrics",
    "embedded",
    "exported",
    "folder_metrics",
    "image_files",
    "image_transform",
    "load_checkpoint",
    "split_for",
]

# What images of a number of channels are called.
KINDS = {1: "drawings", 3: "photographs"}


class GreyImage:
    """A Pillow image as one channel of ``size`` × ``size`` pixels in [0, 1].

    Args:
        size: Pixels per side.
        invert: Whether dark ink becomes one and light paper zero.
        crop: Whether the image is cropped to its ink first, as the drawings of :class:`~otdml.data.Omniglot` can be.
    """

    def __init__(self, size: int, *, invert: bool, crop: bool = False) -> None:
        self.size, self.invert, self.crop = size, invert, crop

    def __call__(self, image: "Image.Image") -> Tensor:
        if self.crop:
            return self._cropped(np.array(image.convert("L")))
        # Pillow averages over the area that a new pixel covers.
        grey = np.array(image.convert("L").resize((self.size, self.size), 2), dtype=np.float32) / 255
        return torch.from_numpy(1 - grey if self.invert else grey)[None]

    def _cropped(self, grey: np.ndarray) -> Tensor:
        ink = torch.from_numpy(255 - grey if self.invert else grey)
        # Scanned paper is never quite white, and would count as ink.
        ink = ink.masked_fill(ink < 64, 0)
        return crop_to_ink(ink[None, None], self.size, least=max(ink.shape) // 3)[0].float() / 255


def load_checkpoint(path: Path, *, trust: bool = False) -> "ProxyDML":
    """The model of a checkpoint, on the CPU, ready to embed.

    Args:
        path: The file, or the folder of a run.
        trust: Whether it may name networks that load files or run code of others.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: The file is no checkpoint of :class:`~otdml.dml.ProxyDML`, or a damaged one, or names what it may
            not.
    """
    from otdml.dml import ProxyDML

    file = checkpoint_file(path)
    try:
        content = checkpoint(file)
    except ValueError as error:
        raise ValueError(f"{file} is no checkpoint that can be read: {error}") from error
    settings = content.get("hyper_parameters")
    if not isinstance(settings, dict) or "num_classes" not in settings:
        raise ValueError(f"{file} is a checkpoint of another model: it lacks the settings of a ProxyDML.")
    if not trust:
        check_names(settings, file, "Pass --trust")
    try:
        model = ProxyDML(**settings)
        model.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        remedy = "If its network or loss was a module, pass that to ProxyDML.load_from_checkpoint."
        raise ValueError(f"{file} is a checkpoint of another model: its weights do not fit. {remedy}") from error
    return model.eval()


def checkpoint_metrics(
    path: Path, preset: Preset | None, root: str | None, split: str, ks: tuple[int, ...], *, trust: bool = False
) -> tuple[dict[str, float], dict[str, str]]:
    """Retrieval metrics of a checkpoint on a split, and the images left out with the reason.

    Its embeddings are those kept beside the checkpoint, or kept now.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: It is of another model or of other images, or nothing says which data set.
    """
    from otdml.dml.cache import embedding_file, kept_embedding

    model, images = load_checkpoint(path, trust=trust), split_for(path, preset, root, split)
    _check_channels(path, model, images)
    z = kept_embedding(embedding_file(checkpoint_file(path), split), model, images)
    return metrics_of(z, images, ks), dict(getattr(images, "skipped", {}))


def folder_metrics(
    checkpoint: Path,
    folder: Path,
    ks: tuple[int, ...],
    *,
    size: int | None = None,
    on_corrupt: str = "raise",
    trust: bool = False,
) -> tuple[dict[str, float], dict[str, str]]:
    """Retrieval metrics of a checkpoint on the images below a folder, and those left out with the reason.

    The class of an image is the folder it lies in.

    Raises:
        FileNotFoundError: There is no checkpoint, or no image.
        ValueError: All images lie in one folder.
    """
    model = load_checkpoint(checkpoint, trust=trust)
    files = image_files([folder], image_transform(checkpoint, model, size), on_corrupt)
    if len(files.classes) < 2:
        raise argument_error("images", "hold a folder for each of two classes or more", f"{folder}, which is one class")
    return metrics_of(embed(model, files), files, ks), files.skipped


def _check_channels(path: Path, model: "ProxyDML", images: Any) -> None:
    """Raise where a network of drawings is to embed photographs, or one of photographs drawings."""
    wanted, given = _channels(model), images[0][0].shape[0]
    if wanted != given:
        embedded, held = (KINDS.get(n, f"images of {n} channels") for n in (wanted, given))
        raise ValueError(f"{path} embeds {embedded}, and the set holds {held}. Name a set of those with --dataset.")


def _channels(model: "ProxyDML") -> int:
    """The channels of the images that a network takes."""
    return next(weight for weight in model.backbone.parameters() if weight.ndim == 4).shape[1]


def _origin(checkpoint: Path) -> dict[str, Any]:
    """The configuration of the run that the checkpoint belongs to, empty where none lies beside it."""
    folder = RunFolder(checkpoint_file(checkpoint).parent)
    # The file may be that of another tool.
    content = folder.config() if (folder.path / "config.json").exists() else {}
    run = content.get("run") if isinstance(content, dict) else None
    known = isinstance(run, dict) and isinstance(run.get("data"), dict) and isinstance(run.get("dataset"), str)
    return run if known else {}  # type: ignore[return-value]


def split_for(checkpoint: Path, preset: Preset | None, root: str | None, split: str) -> Any:
    """A split of the preset's data set, or of the one that the checkpoint's run was trained on, to be evaluated.

    If these are one, images are made and classes are split as the run had them: with another seed of the split, classes
    that were trained on would be tested on.

    Raises:
        ValueError: Neither says which data set.
    """
    from otdml.data.images import standard_crop

    origin = _origin(checkpoint)
    if preset is None and not origin:
        raise ValueError(f"no config.json beside {checkpoint} says what it was trained on. Name a set with --dataset.")
    dataset, options = (origin["dataset"], {}) if preset is None else (preset.dataset, dict(preset.data))
    # Raises for a folder of a set that is in none.
    without_folder(dataset, root)
    if dataset == origin.get("dataset"):
        # The protocol that is named says of which classes the set is.
        options = {**origin["data"], **{name: value for name, value in options.items() if name == "protocol"}}
    if takes(dataset, "on_corrupt"):
        # By default photographs of a training split are cropped at random.
        crop = standard_crop("test", options.get("size", 224), resize=options.get("resize"))
        options = {**options, "transform": crop}
    return load_split(dataset, root, split, options)


def _side(checkpoint: Path) -> int | None:
    """Pixels per side of the images that a checkpoint's run was trained on, if that is known."""
    origin = _origin(checkpoint)
    return origin.get("data", {}).get("size") or _ink(origin)


def _ink(origin: Mapping[str, Any]) -> int | None:
    """Pixels per side of the drawings that a run was trained on; None where it was not trained on drawings."""
    known = DATASETS.get(origin.get("dataset", ""))
    return known.ink if known else None


def image_transform(checkpoint: Path, model: "ProxyDML", size: int | None = None) -> Callable[["Image.Image"], Tensor]:
    """How image files become what the model was trained on: drawings or photographs, and how many pixels.

    Args:
        checkpoint: Beside it the configuration of its run may say what it was trained on.
        model: Its first convolution says how many channels there are.
        size: Pixels per side, instead of what the run had.
    """
    from otdml.data.images import standard_crop

    origin = _origin(checkpoint)
    side = size or _side(checkpoint)
    if _channels(model) == 1:
        crop = bool(origin.get("data", {}).get("crop"))
        return GreyImage(side or 28, invert=_ink(origin) is not None, crop=crop)
    # Of another size than in training, the margin is the same share.
    margin = (origin.get("data", {}).get("resize") or 0) / (_side(checkpoint) or 224)
    return standard_crop("test", side or 224, resize=round(margin * (side or 224)) or None)


def image_files(paths: Sequence[Path], transform: Callable[["Image.Image"], Tensor], on_corrupt: str) -> "ImageFiles":
    """The images of a folder, or the image files, as a data set.

    Raises:
        FileNotFoundError: A path is not there, or there is no image below it.
    """
    from otdml.data.files import ImageFiles, ImageFolder

    if len(paths) == 1 and paths[0].is_dir():
        return ImageFolder(paths[0], transform, on_corrupt=on_corrupt)
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no image file. Give one folder, or files.")
    labels = torch.zeros(len(paths), dtype=torch.long)
    return ImageFiles(list(paths), labels, ["image"], transform=transform, on_corrupt=on_corrupt)


def embedded(
    checkpoint: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    size: int | None = None,
    on_corrupt: str = "raise",
    factory: str | None = None,
    trust: bool = False,
) -> tuple[EmbeddingIndex, dict[str, str]]:
    """Write an index of images into ``out``, and return it, and the files that were left out with the reason.

    Embeddings of the same weights and files that are there already are reused. Neither images nor embeddings are kept
    in memory: only the paths grow with their number.

    Args:
        checkpoint: What embeds.
        paths: Image files, or one folder.
        out: Folder of the index.
        size: Pixels per side, instead of what the run had.
        on_corrupt: ``"raise"`` or ``"skip"``.
        factory: A kind of FAISS index, for an approximate search; None for an exact one.
        trust: As for :func:`load_checkpoint`.
    """
    from otdml.dml.cache import embedding_key, network_key

    model = load_checkpoint(checkpoint, trust=trust)
    files = image_files(paths, image_transform(checkpoint, model, size), on_corrupt)
    if factory is not None:
        check_factory(factory, model.head.linear.out_features, len(files))
    absolute, given = ([find(path) for path in files.paths] for find in (os.path.realpath, os.path.abspath))
    about = {
        "checkpoint": str(checkpoint_file(checkpoint).resolve()),
        "size": size,
        "network": network_key(model, files.transform),
        "key": embedding_key(model, files),
    } | ({} if given == absolute else {GIVEN: given})
    index = _earlier(out, about, absolute)
    if index is None:
        index = EmbeddingIndex.write(out, embeddings(model, files), absolute, about)
    if factory != (None if index.approximate is None else index.approximate.asked):
        index = index.approximated(factory)
        index.save(out)
    return index, files.skipped


def _earlier(folder: Path, about: Mapping[str, Any], paths: Sequence[str]) -> EmbeddingIndex | None:
    """The index in a folder, where it is of the same weights and files."""
    if about["key"] is None:
        return None
    with suppress(FileNotFoundError, ValueError):
        there = EmbeddingIndex.load(folder, exact=True)
        if (there.about, there.paths) == (about, paths):
            with suppress(ValueError):
                return EmbeddingIndex.load(folder)
            return there
    return None


def exported(checkpoint: Path, out: Path, *, size: int | None = None, trust: bool = False) -> str:
    """Write a checkpoint's model as ``out`` says by its suffix, and return what was written, in words.

    Raises:
        ValueError: ``out`` is the folder of a run, whose configuration would be lost.
    """
    run = next((name for name in ("last.ckpt", "metrics.json") if (out / name).exists()), None)
    if run is not None:
        raise argument_error("out", "be a folder without a run", f"{out}, which holds {run}", "Name another.")
    model = load_checkpoint(checkpoint, trust=trust)
    if not out.suffix:
        model.save_pretrained(out)
        return "Model"
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        export_safetensors(model, out)
        return "Weights"
    side = size or _side(checkpoint) or 224
    difference = export_onnx(model, out, size=side)
    return f"Graph for images of {side} pixels, within {difference:.1g} of PyTorch"
