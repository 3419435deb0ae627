"""What training loops share: pixels as numbers, rows that are drawn, evaluation, and the loop of small models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from otdml._checks import device_of_draws

__all__ = ["as_float", "drawn_rows", "evaluating", "in_training", "inputs_of", "learnt", "minimised"]


def minimised(
    loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    cosine: bool = True,
    clip: float | None = None,
) -> Iterator[int]:
    """Minimise a loss; the number of steps so far after each of them.

    Args:
        loss: Of a batch that it draws.
        optimizer: Of the parameters, with the first learning rates.
        steps: Number of steps.
        cosine: Whether learning rates fall to zero; they are constant otherwise.
        clip: Largest norm of the gradient, None for any.
    """
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    for step in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
        optimizer.step()
        if rates is not None:
            rates.step()
        yield step + 1


def learnt(*parts: object) -> list[nn.Parameter]:
    """Parameters of the parts that are modules, each once: of a network, and of a loss whose temperature is learnt."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))


def drawn_rows(table: Tensor, rows: int | None, generator: torch.Generator) -> Tensor:
    """So many rows of a table, in a random order; all of them as they are if None."""
    if rows is None:
        return table
    order = torch.randperm(len(table), generator=generator, device=device_of_draws(generator))
    return table[order[:rows].to(table.device)]


def as_float(images: Tensor) -> Tensor:
    """Stored pixels, uint8, in [0, 1]; what is floating already, in float32 at least."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images.float() if images.dtype.itemsize < 4 else images


def inputs_of(model: nn.Module, images: Tensor) -> Tensor:
    """Stored pixels in [0, 1], or what is floating already, in the dtype and on the device of a model."""
    return as_float(images).to(next(model.parameters()))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode, and each of its parts in the mode it was in afterwards, whatever happens."""
    with _modes_kept(model):
        model.eval()
        yield


@contextmanager
def in_training(model: nn.Module) -> Iterator[None]:
    """A model that is in evaluation mode as a whole in training mode, and another one as it is, parts in evaluation."""
    if model.training:
        yield
        return
    with _modes_kept(model):
        model.train()
        yield


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in model.modules()}
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
