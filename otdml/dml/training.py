"""One training run in one folder, from which it can be resumed."""

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from otdml._checks import argument_error, check_boolean
from otdml._files import folder_lock
from otdml._training import as_float, in_training, inputs_of
from otdml.dml.config import TrainingConfig
from otdml.dml.evaluation import check_pairs, embed, evaluate
from otdml.dml.loading import Augment, TrainingBatches, epoch_seed, seeded
from otdml.dml.maps import keep_maps
from otdml.dml.module import ProxyDML
from otdml.dml.processes import make_trainer
from otdml.dml.protocols import LabelledImages
from otdml.dml.record import LAST, ProgressLine, RunRecord, earlier_state
from otdml.dml.sampling import ClassBalancedBatchSampler

__all__ = ["FitResult", "TrainingConfig", "embed", "evaluate", "fit"]


@dataclass(frozen=True)
class FitResult:
    """The result of a run.

    Attributes:
        last: Metrics after the last epoch, keyed ``val/recall@1``, ``test/recall@1`` and so on.
        best: Likewise of the epoch with the best validation metric; None without validation classes.
        best_epoch: That epoch, counted from 0.
        seconds: Time spent training and validating, that of earlier parts of a resumed run included.
        folder: Where curve and checkpoints are.
        test_embeddings: Unit embeddings of the test set by the last epoch's weights, shape (n, dim), on the CPU; None
            without one.
    """

    last: dict[str, float]
    best: dict[str, float] | None
    best_epoch: int | None
    seconds: float
    folder: Path
    test_embeddings: Tensor | None = None


def fit(
    module: ProxyDML,
    train: LabelledImages,
    *,
    folder: str | Path,
    val: LabelledImages | None = None,
    test: LabelledImages | None = None,
    config: TrainingConfig | None = None,
    augment: Augment | None = None,
    resume: bool = True,
    progress: bool = True,
    on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
) -> FitResult:
    """Train a module in a folder, and evaluate it.

    The folder gets ``curve.csv`` (one row per epoch), ``last.ckpt`` and, with ``val``, ``best.ckpt``, and beside these
    the embeddings of ``val`` and ``test``, such as ``last-test.embeddings``. Each is replaced whole or not at all: a
    full disk or a kill leaves the earlier one. A run that was killed goes on from ``last.ckpt`` when called again, and
    ends with the same weights and metrics, bit for bit on a CPU with the same number of threads: all that is drawn in
    an epoch depends on the seed and the epoch's number, and on nothing before. A finished run is only evaluated.

    With ``config.devices``, or under ``torchrun``, several processes share every batch; each calls this function, and
    all get the same metrics. The loss is that of the whole batch, whatever the number of processes.

    Args:
        module: What to train, in place. Give it a ``seed``: a run killed before its first checkpoint starts over. In
            evaluation mode, as ``from_pretrained`` returns it, it is trained in the other, and gets its mode back.
        train: Training images, float or uint8, with labels in [0, num_classes).
        folder: Where the run lives; made if missing.
        val: Images of held-out classes, on which the epoch is selected.
        test: Images of the test classes.
        config: The budget; ``TrainingConfig()`` if None.
        augment: Maps a batch of images (n, c, h, w), float, and a generator on their device to distorted ones.
        resume: Whether to go on from ``last.ckpt``, rather than refuse a folder that has one.
        progress: Whether to show a progress bar.
        on_epoch: Called after every epoch with its number and its row of the curve, on the first process alone.

    Returns:
        Metrics of the last and the selected epoch. The module holds the last epoch's weights.

    Raises:
        ValueError: If the folder holds a run of another configuration, or another process trains in it, or labels and
            model do not fit.
        FloatingPointError: If the loss ceases to be finite.
        OSError: If a file cannot be written; the earlier one is kept.
        KeyboardInterrupt: If it is interrupted.
        SystemExit: On SIGTERM, with exit code 143.

    Example:
        >>> import tempfile
        >>> from otdml.data import Digits
        >>> module = ProxyDML(3, dim=8, seed=0)
        >>> config = TrainingConfig(epochs=1, classes_per_batch=3, batches_per_epoch=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = fit(module, Digits(), val=Digits(split="val"), folder=folder, config=config, progress=False)
        >>> found.best_epoch, found.best == found.last
        (0, True)
    """
    config, folder = config or TrainingConfig(), Path(folder)
    check_boolean("resume", resume), check_boolean("progress", progress)
    _check_classes(module, train)
    for name, images in (("val", val), ("test", test)):
        if images is not None:
            check_pairs(name, images)
    run = RunRecord(module, folder, config, train=train, val=val, test=test, augment=augment, on_epoch=on_epoch)
    with seeded() as seed_all, _quiet(), in_training(module):
        run.seed_all = seed_all
        trainer = make_trainer(config, module, folder, [run, *([ProgressLine()] if progress else [])])
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder) if trainer.is_global_zero else nullcontext():
            # What is computed and restored before the training has the precision of it.
            trainer.precision_plugin.convert_module(module)
            with _inputs(trainer, run, train, augment) as (images, rest):
                _trained(trainer, run, _Batches(images, config, rest), resume)
                with _on(module, trainer.strategy.root_device):
                    best = run.best()
            with _on(module, trainer.strategy.root_device):
                z = run.test_embeddings()
            found = FitResult(run.last(), best, run.best_epoch, run.seconds, folder, z)
            # A process that exits early can close the connection for the others.
            trainer.strategy.barrier()
    return found


def _trained(trainer: Trainer, run: RunRecord, batches: LightningDataModule, resume: bool) -> None:
    """Train from the last checkpoint of the folder, if any, to the end; then this process has rows and weights."""
    state = run.earlier(resume)
    if state is None or state["epoch"] + 1 < run.config.epochs:
        if run.config.compile:
            run.module.network.compile()
        with _stopped_as_asked():
            trainer.fit(run.module, datamodule=batches, ckpt_path=None if state is None else run.folder / LAST)
        # Spawned processes trained; this one has no rows and reads them from the checkpoint.
        state = None if run.rows else earlier_state(run.folder / LAST)
    if state is not None:
        run.restore(state)


@contextmanager
def _stopped_as_asked() -> Iterator[None]:
    """Within it an interrupt is ``KeyboardInterrupt`` and SIGTERM exit code 143; Lightning makes exit codes 1 and 0."""
    try:
        yield
    except SIGTERMException as end:
        # With 0 a training that was stopped would pass for a finished one.
        end.code = 128 + signal.SIGTERM
        raise
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        raise


@contextmanager
def _inputs(
    trainer: Trainer, run: RunRecord, train: LabelledImages, augment: Augment | None
) -> Iterator[tuple[LabelledImages, Augment | None]]:
    """The inputs of the training and their augmentation: the images, or the stored maps of a frozen part."""
    config = run.config
    if not config.crops:
        yield train, augment
        return
    if run.module.frozen is None:
        remedy = "Name the last frozen layer with `frozen`."
        raise argument_error("crops", "be 0 for a module that trains as a whole", config.crops, remedy)
    with _on(run.module, trainer.strategy.root_device):
        keep = partial(keep_maps, run.module, folder=config.maps, workers=config.workers)
        maps = keep(train, crops=config.crops, augment=augment, seed=config.seed)
        # In full precision, so that embeddings equal those of the whole network.
        run.inputs = {name: keep(images, exact=True) for name, images in run.unseen.items()}
    with run.module.on_maps():
        yield maps, None


@contextmanager
def _on(module: ProxyDML, device: torch.device) -> Iterator[None]:
    """The module on a device: a trainer leaves it on the CPU."""
    before = module.device
    module.to(device)
    try:
        yield
    finally:
        module.to(before)


class _Batches(LightningDataModule):
    """Training batches, brought to the device as they are stored and augmented there."""

    def __init__(self, train: LabelledImages, config: TrainingConfig, augment: Augment | None) -> None:
        super().__init__()
        self.train, self.config, self.augment = train, config, augment
        self.generator: torch.Generator | None = None

    def train_dataloader(self) -> TrainingBatches:
        config = self.config
        sampler = ClassBalancedBatchSampler(
            self.train.labels,
            config.classes_per_batch or min(32, len(self.train.classes)),
            config.samples_per_class,
            seed=config.seed,
            batches=config.batches_per_epoch,
        )
        return TrainingBatches(self.train, sampler, seed=config.seed, workers=config.workers)

    def val_dataloader(self) -> list[Any]:
        """None: the run validates between epochs itself. Lightning warns of a module whose validation has no loader."""
        return []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        # The network may be in half or double precision as a whole; the augmentation is not.
        return inputs_of(self.trainer.lightning_module, self._augmented(as_float(images))), labels

    def _augmented(self, images: Tensor) -> Tensor:
        if self.augment is None:
            return images
        if self.generator is None or self.generator.device != images.device:
            self.generator = torch.Generator(images.device)
            self.start_epoch(self.trainer.current_epoch)
        return self.augment(images, self.generator)

    def start_epoch(self, epoch: int) -> None:
        """Draw the augmentation of an epoch from a start of its own."""
        if self.generator is not None:
            rank = self.trainer.global_rank
            self.generator.manual_seed(epoch_seed(self.config.seed, epoch, stream=1, rank=rank))


def _check_classes(module: ProxyDML, train: LabelledImages) -> None:
    classes = module.hparams["num_classes"]
    if len(train.classes) != classes:
        remedy = "Build the module with num_classes=len(train.classes)."
        raise argument_error("train", f"have the module's {classes} classes", len(train.classes), remedy)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's greetings off: devices, processes, tips, the last epoch, and its use of a deprecated name."""
    names = [f"lightning.{part}{end}" for part in ("pytorch", "fabric") for end in ("", ".utilities.rank_zero")]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            # For 1 × 1 convolutions the strides differ in dimensions of size one, which has no effect.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
