"""One training run in one folder, which a killed run can go on from."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor

from otdml._checks import argument_error
from otdml.dml.evaluation import embed, evaluate
from otdml.dml.loading import Augment, LabelledImages, TrainingBatches, as_float, epoch_seed, seeded
from otdml.dml.module import ProxyDML
from otdml.dml.record import LAST, ProgressLine, RunRecord, TrainingConfig
from otdml.dml.sampling import ClassBalancedBatchSampler

__all__ = ["FitResult", "TrainingConfig", "embed", "evaluate", "fit"]


@dataclass(frozen=True)
class FitResult:
    """What a run ends with.

    Attributes:
        last: Metrics after the last epoch, keyed ``val/recall@1``, ``test/recall@1`` and so on.
        best: Likewise of the epoch with the best validation metric; None without validation classes.
        best_epoch: That epoch, counted from 0.
        seconds: Time spent training and validating, that of earlier parts of a resumed run included.
        folder: Where curve and checkpoints are.
    """

    last: dict[str, float]
    best: dict[str, float] | None
    best_epoch: int | None
    seconds: float
    folder: Path


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

    The folder gets ``curve.csv`` (one row per epoch), ``last.ckpt`` and, with ``val``, ``best.ckpt``. Each is replaced
    whole or not at all: a full disk or a kill leaves the earlier one. A run that was killed goes on from ``last.ckpt``
    when called again, and ends with the same weights and metrics, bit for bit on a CPU with the same number of
    threads: all that is drawn in an epoch depends on the seed and the epoch's number, and on nothing before. A finished
    run is only evaluated.

    Args:
        module: What to train, in place. Give it a ``seed``: a run killed before its first checkpoint starts over.
        train: Training images, float or uint8, with labels in [0, num_classes).
        folder: Where the run lives; made if missing.
        val: Images of held-out classes, on which the epoch is selected.
        test: Images of the test classes.
        config: The budget; ``TrainingConfig()`` if None.
        augment: Maps a batch of images (n, c, h, w), float, and a generator on their device to distorted ones.
        resume: Whether to go on from ``last.ckpt``, rather than refuse a folder that has one.
        progress: Whether to show a progress bar.
        on_epoch: Called after every epoch with its number and its row of the curve.

    Returns:
        Metrics of the last and the selected epoch. The module holds the last epoch's weights.

    Raises:
        ValueError: If the folder holds a run of another configuration, or labels and model do not fit.
        FloatingPointError: If the loss ceases to be finite.
        OSError: If a file cannot be written; the earlier one is kept.

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
    _check_classes(module, train)
    folder.mkdir(parents=True, exist_ok=True)
    run = RunRecord(module, folder, config, val=val, test=test, on_epoch=on_epoch)
    state = run.earlier(resume)
    with seeded() as seed_all, _quiet():
        run.seed_all = seed_all
        if state is None or state["epoch"] + 1 < config.epochs:
            _train(module, run, _Batches(train, config, augment), state is not None, progress)
        else:
            run.restore(state)
        return FitResult(run.last(), run.best(), run.best_epoch, run.seconds, folder)


def _train(module: ProxyDML, run: RunRecord, batches: LightningDataModule, resumed: bool, progress: bool) -> None:
    if run.config.compile:
        module.backbone.compile()
    trainer = _trainer(run.config, [run, *([ProgressLine()] if progress else [])])
    path = run.folder / LAST if resumed else None
    trainer.fit(module, datamodule=batches, ckpt_path=path)


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
            config.classes_per_batch,
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
        images = as_float(images)
        if self.augment is None:
            return images, labels
        if self.generator is None or self.generator.device != images.device:
            self.generator = torch.Generator(images.device)
            self.start_epoch(self.trainer.current_epoch)
        return self.augment(images, self.generator), labels

    def start_epoch(self, epoch: int) -> None:
        """Draw the augmentation of an epoch from a start of its own."""
        if self.generator is not None:
            self.generator.manual_seed(epoch_seed(self.config.seed, epoch, stream=1))


def _trainer(config: TrainingConfig, callbacks: list[Callback]) -> Trainer:
    """A trainer without what a run does not use, or does itself."""
    return Trainer(
        max_epochs=config.epochs,
        accelerator=config.accelerator,
        devices=1,
        precision=config.precision,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


def _check_classes(module: ProxyDML, train: LabelledImages) -> None:
    classes = module.hparams["num_classes"]
    if len(train.classes) != classes:
        remedy = "Build the module with num_classes=len(train.classes)."
        raise argument_error("train", f"have the module's {classes} classes", len(train.classes), remedy)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's greetings off: devices, tips, that the last epoch was reached, and its use of a deprecated name."""
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero", "lightning.pytorch")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
