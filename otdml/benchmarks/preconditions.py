"""Whether a run can be made on this machine: its network, its images and its trainer, before anything is trained."""

import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from otdml._arguments import argument_error
from otdml.benchmarks.runs import Run
from otdml.data.registry import named_dataset
from otdml.dml.config import TrainingConfig

__all__ = ["check_network", "check_trainer"]

# What torch raises for files that are no weights.
UNREADABLE = (RuntimeError, ValueError, TypeError, LookupError, EOFError, OSError, pickle.UnpicklingError)
# Settings that this machine may not have.
MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "tensorboard")


def check_network(run: Run) -> None:
    """Raise where the network is of a library that is not installed, cannot be made, or does not take the images.

    It is made without memory for its weights, which takes a moment, and once for all runs of a grid. Networks of other
    libraries are only looked for.

    Raises:
        ModuleNotFoundError: The message says what to install.
        ValueError: The message names the setting, or the file of weights.
    """
    from otdml.dml.backbones import BACKBONES, backbone
    from otdml.dml.backbones.cut import cut
    from otdml.dml.backbones.libraries import check_importable

    name, options = str(run.model.get("backbone", "conv4")), dict(run.model.get("backbone_options") or {})
    check_importable(name)
    if name not in BACKBONES:
        return
    with torch.device("meta"), warnings.catch_warnings():
        # Weights are read to compare names and shapes, and then released.
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        try:
            network = backbone(name, options).eval()
        except UNREADABLE as error:
            if "weights" in options:
                remedy = "Pass --weights FILE with a state dictionary as torchvision publishes it."
                reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
                raise ValueError(f"cannot read the weights {options['weights']}: {reason}. {remedy}") from error
            raise ValueError(f"`model.backbone_options` {options} make no {name}: {error}") from error
        if run.model.get("frozen") is not None:
            cut(network, run.model["frozen"])
        ink = named_dataset(run.dataset).ink
        side = run.data.get("size", ink or 224)
        shape = (1 if ink else 3, side, side)
        try:
            network(torch.zeros(2, *shape))
        except RuntimeError as error:
            what = " × ".join(map(str, shape))
            remedy = (
                "Change `model.backbone_options`: in_channels for another number of channels, fewer layers for fewer "
            )
            raise ValueError(
                f"`model.backbone` {name} does not take the images of {run.dataset}, {what}: {error}. {remedy}pixels."
            ) from error


def check_trainer(run: Run, devices: int | None = None) -> None:
    """Raise where the settings of the machine are not those of this one, such as a GPU that is not there.

    Raises:
        ValueError: The message names the settings.
        ModuleNotFoundError: A library is not installed; the message says which.
    """
    own = {name: run.training[name] for name in MACHINE if name in run.training}
    own |= {"devices": devices} if devices else {}
    _check_processes(run, own.get("devices", 1))
    if set(own) <= {"precision"} and own.get("precision") in (None, "32-true", "bf16-mixed"):
        return
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from otdml.dml.module import ProxyDML
    from otdml.dml.processes import make_trainer

    with _quiet():
        try:
            make_trainer(TrainingConfig(**own), ProxyDML(2, backbone_options={"widths": [1]}, dim=1), Path(), [])
        except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
            settings = ", ".join(f"training.{name} = {value}" for name, value in own.items())
            raise ValueError(f"this machine cannot train with {settings}: {error}") from error


def _check_processes(run: Run, devices: int | str) -> None:
    """Raise where a batch cannot be shared, or processes would be more than there are processors."""
    if isinstance(devices, str):
        return
    # By default a batch has all classes where there are few, which the data set says.
    batch = (run.training.get("classes_per_batch") or 0) * run.training.get("samples_per_class", 4)
    if batch % devices:
        raise argument_error("devices", f"share a batch of {batch} images evenly", devices)
    most = torch.cuda.device_count() or os.cpu_count() or 1
    if devices > max(2, most):
        raise argument_error("devices", f"be at most {most}, what this machine has", devices)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the greetings of a trainer that is only tried."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
