"""Initial weights of a network: random or published."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from otdml._checks import argument_error
from otdml.dml.checkpoint import read_tensors

__all__ = ["initialise", "load", "published"]


def initialise(network: nn.Module) -> None:
    """Kaiming's normal weights for every convolution."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            # Convolutions follow the memory format of their weights; channels last is faster by a third or more.
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def published(path: str | Path) -> Mapping[str, Tensor]:
    """The weights in a file, by name.

    Raises:
        ValueError: If there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise argument_error("weights", "be a file of weights", path)
    state = read_tensors(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no weights by name.")
    return state


def load(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Start a network from the weights that ``path`` holds.

    Raises:
        ValueError: If they are of another network.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} are of another network: {error}") from error
