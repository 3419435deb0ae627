"""Initial values of a module, drawn from a seed of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from otdml._checks import check_integer

__all__ = ["started", "to_default_device"]


@contextmanager
def started(seed: int | None) -> Iterator[None]:
    """Draw initial values from ``seed``, and leave the default generator as it was."""
    if seed is None:
        yield
        return
    # Drawn on the CPU, so that initial values do not depend on the device.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(check_integer("seed", seed, least=None))
        yield


def to_default_device(module: nn.Module, seed: int | None) -> None:
    """Move parameters that were drawn on the CPU to the default device."""
    # `torch.get_default_device` does not know of `with torch.device(...)` before torch 2.8.
    device = torch.empty(0).device
    if seed is not None and device.type != "cpu":
        module.to(device)
