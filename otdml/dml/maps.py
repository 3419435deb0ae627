"""Maps of the frozen part of a network, computed once and stored in files."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from otdml._checks import argument_error, check_integer
from otdml._files import FolderLockedError, folder_lock, replacing
from otdml._training import as_float, evaluating, inputs_of
from otdml.dml.backbones.cut import cut
from otdml.dml.cache import maps_key
from otdml.dml.loading import Augment, OrderedCrops, epoch_seed, portions
from otdml.dml.module import ProxyDML
from otdml.dml.protocols import LabelledImages, queries

__all__ = ["KeptMaps", "keep_maps"]

BATCH = 8  # Images loaded at a time.


class KeptMaps:
    """Maps of labelled images, several crops of each, in files that are mapped into memory.

    Every epoch takes one crop of each image: an image goes through its crops in turn, from one that the seed draws.

    Args:
        files: One file per crop, as :func:`keep_maps` writes them: maps with channels last, or features.
        labels: Shape (n,).
        classes: Names of the classes.
        is_query: As for :class:`~otdml.data.ImageFiles`.
        seed: Of the crop that each image begins with.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Tensor,
        classes: list[str],
        *,
        is_query: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.crops = [np.load(file, mmap_mode="r") for file in files]
        self.labels, self.classes, self.is_query = labels, classes, is_query
        generator = torch.Generator().manual_seed(epoch_seed(seed, 0, stream=4))
        self.first = torch.randint(len(files), (len(labels),), generator=generator, device="cpu")
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose crops are taken."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        maps, labels = self.batch([index])
        return maps[0], int(labels[0])

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Maps (n, channels, height, width) or features (n, channels), as they are stored, and labels."""
        index = torch.as_tensor(indices, device="cpu")
        crops = ((self.first[index] + self.epoch) % len(self.crops)).tolist()
        rows = np.stack([self.crops[crop][i] for crop, i in zip(crops, index.tolist(), strict=True)])
        maps = torch.from_numpy(rows)
        return (maps.permute(0, 3, 1, 2) if maps.ndim == 4 else maps), self.labels[index]


def keep_maps(
    module: ProxyDML,
    dataset: LabelledImages,
    *,
    folder: str | Path | None = None,
    crops: int = 1,
    augment: Augment | None = None,
    exact: bool = False,
    seed: int = 0,
    workers: int = 0,
) -> KeptMaps:
    """Maps of the layer ``frozen`` of a module, read from files where they are, and else computed and kept.

    Files are told apart by a hash of the frozen part and of the images with their transform, so that all runs that
    share these share the files, whatever is trained above. Of several processes that lack files, those of one run or
    of several, one computes them and the others wait; is it killed, one of the others goes on. Whole files are only
    read, also while more crops are computed, and from a folder that cannot be written to. They are never removed:
    delete the folder to have its space back.

    Args:
        module: On the device that computes.
        dataset: The images.
        folder: Where to keep files; ``otdml/maps`` in the user's cache if None.
        crops: How many times each image is cut and distorted at random, by its transform and ``augment``.
        augment: Distorts a batch of images, as for :func:`otdml.dml.fit`.
        exact: Whether to keep all digits, of single precision or of a network in double, or else half precision.
        seed: Of the crop that each image begins with.
        workers: Processes that load images of sets that do not live in memory.

    Returns:
        The maps as a data set.

    Raises:
        ValueError: If the module has no frozen part, or nothing can be told of the images' content.
        OSError: If a file cannot be written.

    Example:
        >>> import tempfile
        >>> from otdml.data import Digits
        >>> module = ProxyDML(3, backbone_options={"widths": (4, 8)}, frozen="layers.2", seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     maps, _ = keep_maps(module, Digits(), folder=folder).batch([0, 1])
        >>> maps.shape, maps.dtype
        (torch.Size([2, 4, 8, 8]), torch.float16)
    """
    crops = check_integer("crops", crops)
    if module.frozen is None:
        raise argument_error("module", "have a layer `frozen`", None)
    lower = cut(module.backbone, module.frozen).lower
    key = maps_key(lower, dataset, augment)
    if key is None:
        must = "be images in files or in memory, with a transform whose settings can be read"
        raise argument_error("dataset", must, type(dataset).__name__)
    home = (_cache() if folder is None else Path(folder)) / f"{key[:24]}-{'single' if exact else 'half'}"
    files = [home / f"{number}.npy" for number in range(crops)]

    def compute(number: int) -> None:
        size = BATCH if module.device.type == "cpu" else 32 * BATCH
        cropped = OrderedCrops(dataset, number, augment=augment, batch_size=size, workers=workers, device=module.device)
        _write(files[number], _maps(module, lower, cropped), len(dataset), exact)

    if not all(file.exists() for file in files):
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home):
            for number, file in enumerate(files):
                # Another process may have written it in the meantime.
                if not file.exists():
                    compute(number)
    return KeptMaps(files, dataset.labels, dataset.classes, is_query=queries(dataset), seed=seed)


@torch.no_grad()
def _maps(module: ProxyDML, lower: nn.Module, images: OrderedCrops) -> Iterator[Tensor]:
    with evaluating(lower):
        for batch in (inputs_of(module, part) for loaded in images for part in portions(loaded)):
            maps = as_float(lower(batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch))
            yield (maps.permute(0, 2, 3, 1) if maps.ndim == 4 else maps).cpu()


def _write(file: Path, maps: Iterator[Tensor], count: int, exact: bool) -> None:
    """All maps in one array, exact or in half precision, which is there as a whole or not at all."""
    with replacing(file) as part:
        array, place = None, 0
        for batch in maps:
            if array is None:
                dtype = batch.numpy().dtype if exact else np.dtype("float16")
                array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=(count, *batch.shape[1:]))
            with np.errstate(over="ignore"):
                array[place : place + len(batch)] = batch.numpy()
            if not np.isfinite(array[place : place + len(batch)]).all():
                wider, numbers = "Pass exact=True.", "Look for NaN or infinity in weights and images."
                remedy = wider if dtype == np.float16 else numbers
                raise argument_error("module", f"have maps that are numbers of {dtype}", "others", remedy)
            place += len(batch)
        assert array is not None
        array.flush()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder, once other processes have released it."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder_lock(folder))
                break
            except FolderLockedError:
                time.sleep(1.0)
        yield


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otdml" / "maps"
