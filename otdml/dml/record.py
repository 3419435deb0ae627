"""The record of a training run: its seeds, curve, validation and checkpoints."""

import csv
import io
import math
import pickle
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from otdml._checks import argument_error, check_integer, check_known
from otdml._files import replacing, write_text
from otdml.dml.evaluation import evaluate
from otdml.dml.loading import LabelledImages, epoch_seed
from otdml.dml.module import ProxyDML

__all__ = ["ProgressLine", "RunRecord", "TrainingConfig"]

LAST, BEST, CURVE = "last.ckpt", "best.ckpt", "curve.csv"
# What torch raises for files that are no checkpoints, or damaged ones, according to where the damage lies.
UNREADABLE = (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class TrainingConfig:
    """How long and in which batches a run trains, and when it is evaluated; with the module it determines the numbers.

    Attributes:
        epochs: Passes through ``batches_per_epoch`` batches.
        classes_per_batch: Classes in a batch.
        samples_per_class: Images of each.
        batches_per_epoch: About as many as it takes to see every image once if None.
        seed: Of the batches, the augmentation and everything drawn in training.
        ks: The K of Recall@K.
        select: Validation metric whose best epoch is kept as ``best.ckpt``.
        val_every: Epochs between two validations; the last epoch is always validated.
        test_every: Epochs between two looks at the test classes for the learning curve; none before the end at 0.
        eval_batch_size: Images embedded at a time.
        workers: Processes that load and transform images of sets that do not live in memory.
        precision: Lightning's, e.g. ``"bf16-mixed"``.
        accelerator: Lightning's, e.g. ``"cpu"``.
        compile: Whether ``torch.compile`` runs the backbone.

    Raises:
        ValueError: If a number is out of range, or ``select`` is none of the metrics.

    Example:
        >>> TrainingConfig(epochs=2, ks=(1, 10)).select
        'map@r'
    """

    epochs: int = 30
    classes_per_batch: int = 32
    samples_per_class: int = 4
    batches_per_epoch: int | None = None
    seed: int = 0
    ks: tuple[int, ...] = (1, 2, 4, 8)
    select: str = "map@r"
    val_every: int = 1
    test_every: int = 0
    eval_batch_size: int = 512
    workers: int = 0
    precision: str = "32-true"
    accelerator: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "classes_per_batch", "samples_per_class", "eval_batch_size"):
            check_integer(name, getattr(self, name))
        for name in ("seed", "val_every", "test_every", "workers"):
            check_integer(name, getattr(self, name), least=0)
        if self.batches_per_epoch is not None:
            check_integer("batches_per_epoch", self.batches_per_epoch)
        for k in self.ks:
            # Here, and not when the first epoch has been trained and is evaluated.
            check_integer("ks", k)
        check_known("metric to select by", self.select, ["map@r", "r_precision", *(f"recall@{k}" for k in self.ks)])


class RunRecord(Callback):
    """The bookkeeping of a run: seeds, the curve, validation, and checkpoints."""

    def __init__(
        self,
        module: ProxyDML,
        folder: Path,
        config: TrainingConfig,
        *,
        val: LabelledImages | None,
        test: LabelledImages | None,
        on_epoch: Callable[[int, Mapping[str, float]], None] | None,
    ) -> None:
        self.module, self.folder, self.config, self.on_epoch = module, folder, config, on_epoch
        self.unseen = {name: images for name, images in (("val", val), ("test", test)) if images is not None}
        self.rows: list[dict[str, float]] = []
        self.best_epoch: int | None = None
        self.seed_all: Callable[[int], object] = torch.manual_seed
        self.sums: dict[str, Tensor] = {}
        self.started = 0.0

    def identity(self) -> dict[str, Any]:
        """What must agree for one run to go on from another's checkpoint."""
        config = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.config).items()}
        return {"config": config, "model": dict(self.module.hparams), "val": "val" in self.unseen}

    def earlier(self, resume: bool) -> dict[str, Any] | None:
        """The checkpoint that the folder holds, if any."""
        for part in self.folder.glob(".*.part"):
            # What a kill left of a file that was being written.
            part.unlink()
        path = self.folder / LAST
        if not path.exists():
            return None
        if not resume:
            raise argument_error("folder", "hold no run yet", self.folder, "Pass resume=True, or another folder.")
        state = _loaded(path)
        found = state.get("callbacks", {}).get(self.state_key, {}).get("identity")
        if found != self.identity():
            remedy = "Choose another folder, or go on with the settings of that run."
            raise argument_error("folder", "hold a run of this configuration", _differences(found, self), remedy)
        return state

    def state_dict(self) -> dict[str, Any]:
        return {"identity": self.identity(), "rows": self.rows, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best_epoch = list(state_dict["rows"]), state_dict["best_epoch"]

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the checkpoint of a finished run."""
        self.load_state_dict(state["callbacks"][self.state_key])
        self.module.load_state_dict(state["state_dict"])
        self.write_curve()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started, self.sums = time.perf_counter(), {}
        # Whatever is drawn in an epoch starts from its number, so that no random state has to be carried over.
        self.seed_all(epoch_seed(self.config.seed, trainer.current_epoch, stream=2))
        trainer.train_dataloader.set_epoch(trainer.current_epoch)
        trainer.datamodule.start_epoch(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            # Summed on the device: reading a number here would wait for it in every step.
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        losses = {name: float(total) / trainer.num_training_batches for name, total in self.sums.items()}
        if not math.isfinite(losses["loss"]):
            terms = ", ".join(f"{name} {value:g}" for name, value in losses.items())
            raise FloatingPointError(f"the loss of epoch {epoch} is not finite ({terms}): lower `lr`, or set `clip`.")
        row = {"epoch": epoch, "step": trainer.global_step, "seconds": 0.0, **losses}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        row |= self._metrics(*self._due(epoch))
        row["seconds"] = (self.rows[-1]["seconds"] if self.rows else 0.0) + time.perf_counter() - self.started
        self.rows.append(row)
        self._save(trainer, row)
        if self.on_epoch is not None:
            self.on_epoch(epoch, row)

    def _due(self, epoch: int) -> list[str]:
        """Which sets are evaluated after this epoch."""
        if epoch + 1 == self.config.epochs:
            return list(self.unseen)
        every = {"val": self.config.val_every, "test": self.config.test_every}
        return [name for name in self.unseen if every[name] and (epoch + 1) % every[name] == 0]

    def _metrics(self, *sets: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in sets:
            metrics = evaluate(
                self.module,
                self.unseen[name],
                ks=self.config.ks,
                batch_size=self.config.eval_batch_size,
                workers=self.config.workers,
            )
            found |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        return found

    def _save(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """Best first: a kill in between repeats this epoch, and makes the same best again."""
        metric = f"val/{self.config.select}"
        if metric in row and row[metric] > self._best_score(metric):
            self.best_epoch = int(row["epoch"])
            _checkpoint(trainer, self.folder / BEST)
        _checkpoint(trainer, self.folder / LAST)
        self.write_curve()

    def _best_score(self, metric: str) -> float:
        return next((row[metric] for row in self.rows if row["epoch"] == self.best_epoch), -math.inf)

    def write_curve(self) -> None:
        """Write ``curve.csv`` from the rows, a metric without a value in an epoch left empty."""
        lines = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        table = csv.DictWriter(lines, names, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_text(self.folder / CURVE, lines.getvalue())

    @property
    def seconds(self) -> float:
        """Time spent in epochs, validation included, over all parts of a resumed run."""
        return self.rows[-1]["seconds"]

    def last(self) -> dict[str, float]:
        """Metrics after the last epoch."""
        return {name: value for name, value in self.rows[-1].items() if name.startswith(("val/", "test/"))}

    def best(self) -> dict[str, float] | None:
        """Metrics with the weights of the selected epoch, on all sets; the module keeps those of the last one."""
        if self.best_epoch is None:
            return None
        kept = {name: value.clone() for name, value in self.module.state_dict().items()}
        state = torch.load(self.folder / BEST, map_location=self.module.device, weights_only=True)
        self.module.load_state_dict(state["state_dict"])
        # Images of sets with random transforms are those of this evaluation, in a resumed run too.
        self.seed_all(epoch_seed(self.config.seed, self.best_epoch, stream=3))
        found = self._metrics(*self.unseen)
        self.module.load_state_dict(kept)
        return found


class ProgressLine(Callback):
    """One line: epochs, time left, and the last epoch's figures."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[row]}")
        self.progress = Progress(*columns)
        self.task = self.progress.add_task("starting", total=None, row="")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(trainer.estimated_stepping_batches)
        self.progress.update(self.task, total=total, completed=trainer.global_step)
        self.progress.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.update(self.task, description=f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.progress.update(self.task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = next(callback for callback in trainer.callbacks if isinstance(callback, RunRecord))
        row = run.rows[-1] if run.rows else {}
        shown = ("loss", "val/recall@1", "test/recall@1")
        self.progress.update(self.task, row="  ".join(f"{name} {row[name]:.3f}" for name in shown if name in row))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.progress.stop()


def _checkpoint(trainer: Trainer, path: Path) -> None:
    with replacing(path) as part:
        trainer.save_checkpoint(part)


def _loaded(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path} is no checkpoint that can be read. Delete it to start that run anew.") from error


def _differences(found: dict[str, Any] | None, run: RunRecord) -> str:
    if found is None:
        return "a checkpoint that `fit` did not write"
    here = run.identity()
    pairs = [
        f"{name} {found[part].get(name)!r} there, {here[part].get(name)!r} here"
        for part in ("config", "model")
        for name in sorted({*found[part], *here[part]})
        if found[part].get(name) != here[part].get(name)
    ]
    return "; ".join(pairs) or "a run with other validation images"
