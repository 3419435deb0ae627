"""How a run is spread over processes: the trainer, and how they are started."""

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from otdml._checks import argument_error
from otdml.dml.config import TrainingConfig
from otdml.dml.module import ProxyDML

__all__ = ["make_trainer"]


def make_trainer(config: TrainingConfig, module: ProxyDML, folder: Path, callbacks: Sequence[Callback]) -> Trainer:
    """A trainer without what a run does not use, or does itself.

    Raises:
        ValueError: If this process is connected to others that the trainer would not know of.
        ModuleNotFoundError: If TensorBoard is asked for, and not installed.
    """
    devices, nodes = _processes(config)
    trainer = Trainer(
        max_epochs=config.epochs,
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(config, devices != 1 or nodes != 1, unused=module.frozen_epochs > 0),
        precision=config.precision,
        callbacks=list(callbacks),
        logger=_tensorboard(folder) if config.tensorboard else False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    connected = dist.get_world_size() if dist.is_available() and dist.is_initialized() else trainer.world_size
    if connected != trainer.world_size:
        must = f"be as many as the {connected} processes that are connected already"
        raise argument_error("devices", must, trainer.world_size)
    return trainer


def _tensorboard(folder: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        remedy = "pip install tensorboard, or read curve.csv, which has the same figures"
        raise ModuleNotFoundError(f"`tensorboard=True` needs TensorBoard: {remedy}.", name="tensorboard") from error


def _started_by_torchrun() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


def _processes(config: TrainingConfig) -> tuple[int | str, int]:
    """Processes per machine, and machines."""
    if not _started_by_torchrun():
        return config.devices, config.num_nodes
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return here, int(os.environ["WORLD_SIZE"]) // here


def _strategy(config: TrainingConfig, several: bool, *, unused: bool) -> str:
    if config.strategy != "auto" or not several:
        return config.strategy
    # Lightning starts processes by running the script again, which is not what a process of a pool runs.
    pooled = multiprocessing.parent_process() is not None and not _started_by_torchrun()
    # A frozen backbone has no gradients, and DDP would wait for them.
    return "ddp" + ("_spawn" if pooled else "") + ("_find_unused_parameters_true" if unused else "")
