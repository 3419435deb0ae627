"""The record of a training run: its seeds, curve, validation and checkpoints."""

import copy
import csv
import io
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from otdml._checks import argument_error
from otdml._files import replacing, write_text
from otdml.distributed import is_first
from otdml.dml.cache import embedding_file, embedding_key, keep_embedding, kept_embedding
from otdml.dml.checkpoint import checkpoint
from otdml.dml.config import TrainingConfig
from otdml.dml.evaluation import embed, metrics_of
from otdml.dml.fingerprint import fingerprint
from otdml.dml.loading import Augment, epoch_seed
from otdml.dml.module import ProxyDML
from otdml.dml.protocols import LabelledImages

__all__ = ["ProgressLine", "RunRecord", "earlier_state"]

LAST, BEST, CURVE = "last.ckpt", "best.ckpt", "curve.csv"


class RunRecord(Callback):
    """The bookkeeping of a run: seeds, the curve, validation, and checkpoints."""

    def __init__(
        self,
        module: ProxyDML,
        folder: Path,
        config: TrainingConfig,
        *,
        train: LabelledImages,
        val: LabelledImages | None,
        test: LabelledImages | None,
        augment: Augment | None,
        on_epoch: Callable[[int, Mapping[str, float]], None] | None,
    ) -> None:
        self.module, self.folder, self.config, self.on_epoch = module, folder, config, on_epoch
        sets = {name: images for name, images in (("train", train), ("val", val), ("test", test)) if images is not None}
        self.data: dict[str, Any] = {f"{name} images": fingerprint(images) for name, images in sets.items()}
        self.data |= {"train": len(train), "val": len(val or ()), "augment": _described(augment)}
        self.unseen = {name: images for name, images in (("val", val), ("test", test)) if images is not None}
        # The inputs of the module: these images, or maps of them where a part of the network is frozen.
        self.inputs = dict(self.unseen)
        self.rows: list[dict[str, float]] = []
        # Embeddings after the last epoch, by the name of the set.
        self.embeddings: dict[str, Tensor] = {}
        self.best_epoch: int | None = None
        self.seed_all: Callable[[int], object] = torch.manual_seed
        self.sums: dict[str, Tensor] = {}
        self.started = 0.0

    def identity(self) -> dict[str, dict[str, Any]]:
        """The settings that must agree for a run to resume from a checkpoint."""
        return {
            "config": self.config.numbers(),
            "model": dict(self.module.hparams),
            "start": self.module.start,
            "data": self.data,
        }

    def earlier(self, resume: bool) -> dict[str, Any] | None:
        """The checkpoint that the folder holds, if any."""
        if is_first():
            for part in self.folder.glob(".*.part"):
                # Partly written files of a run that was killed.
                part.unlink()
        path = self.folder / LAST
        if not path.exists():
            return None
        if not resume:
            raise argument_error("folder", "hold no run yet", self.folder, "Pass resume=True, or another folder.")
        state = earlier_state(path)
        found = state.get("callbacks", {}).get(self.state_key, {}).get("identity")
        if found != self.identity():
            differences = _differences(found, self.identity())
            remedy = "Choose another folder, or go on with the settings of that run."
            raise argument_error("folder", "hold a run of this configuration", differences, remedy)
        return state

    def state_dict(self) -> dict[str, Any]:
        return {"identity": self.identity(), "rows": self.rows, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best_epoch = list(state_dict["rows"]), state_dict["best_epoch"]

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the checkpoint of a finished run."""
        self.load_state_dict(state["callbacks"][self.state_key])
        self.module.load_state_dict(state["state_dict"])
        if is_first():
            self.write_curve()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started, self.sums = time.perf_counter(), {}
        # All random numbers of an epoch depend on its number, so that a checkpoint needs no random state.
        self.seed_all(epoch_seed(self.config.seed, trainer.current_epoch, stream=2, rank=trainer.global_rank))
        trainer.train_dataloader.set_epoch(trainer.current_epoch)
        trainer.datamodule.start_epoch(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            # Summed on the device: reading a number would force a synchronisation in every step.
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        losses = {name: float(total) / trainer.num_training_batches for name, total in self.sums.items()}
        if not math.isfinite(losses["loss"]):
            terms = ", ".join(f"{name} {value:g}" for name, value in losses.items())
            raise FloatingPointError(f"the loss of epoch {epoch} is not finite ({terms}): lower `lr`, or set `clip`.")
        row = {"epoch": epoch, "step": trainer.global_step, "seconds": 0.0, **losses}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        row |= self._metrics(*self._due(epoch), keep=LAST if epoch + 1 == self.config.epochs else None)
        row["seconds"] = (self.rows[-1]["seconds"] if self.rows else 0.0) + time.perf_counter() - self.started
        self.rows.append(row)
        self._save(trainer, row)
        for logger in trainer.loggers:
            logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step=trainer.global_step)
        if self.on_epoch is not None and trainer.is_global_zero:
            self.on_epoch(epoch, row)

    def _due(self, epoch: int) -> list[str]:
        """Which sets are evaluated after this epoch."""
        if epoch + 1 == self.config.epochs:
            return list(self.unseen)
        every = {"val": self.config.val_every, "test": self.config.test_every}
        return [name for name in self.unseen if every[name] and (epoch + 1) % every[name] == 0]

    def _metrics(self, *sets: str, keep: str | None = None) -> dict[str, float]:
        """Metrics of some sets, whose embeddings are kept beside the checkpoint named ``keep``."""
        found: dict[str, float] = {}
        for name in sets:
            unseen = self.unseen[name]
            size, workers = self.config.eval_batch_size, self.config.workers
            z = embed(self.module, self.inputs[name], batch_size=size, workers=workers, share=True)
            metrics = metrics_of(z, unseen, self.config.ks, share=True)
            if keep == LAST:
                self.embeddings[name] = z
            if keep and is_first():
                keep_embedding(embedding_file(self.folder / keep, name), embedding_key(self.module, unseen), z)
            found |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        return found

    def _save(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """Best first: a kill in between repeats this epoch, and makes the same best again."""
        metric = f"val/{self.config.select}"
        if metric in row and row[metric] > self._best_score(metric):
            self.best_epoch = int(row["epoch"])
            _save_checkpoint(trainer, self.folder / BEST)
        _save_checkpoint(trainer, self.folder / LAST)
        if trainer.is_global_zero:
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

    def test_embeddings(self) -> Tensor | None:
        """Embeddings of the test set after the last epoch; computed again if another process trained."""
        if "test" not in self.unseen or "test" in self.embeddings:
            return self.embeddings.get("test")
        path, size, workers = (
            embedding_file(self.folder / LAST, "test"),
            self.config.eval_batch_size,
            self.config.workers,
        )
        return kept_embedding(path, self.module, self.unseen["test"], batch_size=size, workers=workers)

    def best(self) -> dict[str, float] | None:
        """Metrics with the weights of the selected epoch, on all sets; the module keeps those of the last one."""
        if self.best_epoch is None:
            return None
        if self.best_epoch == self.rows[-1]["epoch"]:
            return self.last()
        kept = copy.deepcopy(self.module.state_dict())
        state = self._best_state()
        self.module.load_state_dict(state["state_dict"])
        # Random transforms draw the same numbers in a resumed run.
        self.seed_all(epoch_seed(self.config.seed, self.best_epoch, stream=3))
        found = self._metrics(*self.unseen, keep=BEST)
        self.module.load_state_dict(kept)
        return found

    def _best_state(self) -> dict[str, Any]:
        try:
            return checkpoint(self.folder / BEST)
        except (ValueError, FileNotFoundError) as error:
            remedy = "That epoch alone cannot be repeated: delete the folder to repeat the run."
            raise ValueError(f"{error} {remedy}") from error


class ProgressLine(Callback):
    """One line: epochs, time left, and the last epoch's figures."""

    progress: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[row]}")
        self.progress = Progress(*columns)
        total = int(trainer.estimated_stepping_batches)
        self.progress.add_task("starting", total=total, completed=trainer.global_step, row="")
        self.progress.start()

    def _update(self, **changes: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], **changes)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(description=f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._update(completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = next(callback for callback in trainer.callbacks if isinstance(callback, RunRecord))
        row = run.rows[-1] if run.rows else {}
        shown = ("loss", "val/recall@1", "test/recall@1")
        self._update(row="  ".join(f"{name} {row[name]:.3f}" for name in shown if name in row))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.progress is not None:
            self.progress.stop()


def _save_checkpoint(trainer: Trainer, path: Path) -> None:
    if not trainer.is_global_zero:
        # Lightning writes on the first process only; the others wait in this call.
        trainer.save_checkpoint(path)
        return
    with replacing(path) as part:
        trainer.save_checkpoint(part)


def _described(augment: Augment | None) -> str:
    """The augmentation in words that are the same in every process: without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(augment))


def earlier_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that a run goes on from.

    Raises:
        ValueError: If it cannot be read; the message names it and says what to do.
    """
    try:
        return checkpoint(path)
    except ValueError as error:
        raise ValueError(f"{error} Delete it to start that run anew.") from error


def _differences(there: dict[str, Any] | None, here: dict[str, Any]) -> str:
    if there is None:
        return "a checkpoint that `fit` did not write"
    pairs = [
        f"{name} {old.get(name)!r} there, {new.get(name)!r} here"
        for old, new in ((there.get(part) or {}, here[part]) for part in here)
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    return "; ".join(pairs) or "one of an earlier version"
