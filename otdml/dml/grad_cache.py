"""Losses of batches that do not fit through an encoder at once."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from otdml._checks import argument_error, check_integer

__all__ = ["GradCache"]


class GradCache(nn.Module):
    r"""An encoder that takes a batch in pieces, and keeps no activations but the embeddings.

    A loss that compares all samples of a batch needs the embeddings of all, and its gradient needs the activations of
    all. Here pieces of ``size`` samples are embedded one after the other, their activations are dropped, and the
    backward pass embeds each piece again: memory is that of one piece, time that of one forward pass more, and the
    gradient that of the whole batch up to rounding.

    Dropout and other draws from PyTorch's default generators are the same both times, and running statistics of batch
    norms are updated once. What a batch norm normalises by in training is the statistics of a piece: freeze it, or
    expect another function than that of the whole batch. Within ``DistributedDataParallel`` wrap this module, not the
    encoder: ``DistributedDataParallel(GradCache(encoder))``.

    Args:
        encoder: Maps inputs (n, ...) to embeddings (n, d), each sample on its own.
        size: Samples that are embedded at a time.

    Example:
        >>> import torch
        >>> cached = GradCache(torch.nn.Linear(3, 2), size=4)
        >>> cached(torch.zeros(10, 3)).shape  # 4, 4 and 2 at a time
        torch.Size([10, 2])

    Source: :cite:p:`gao:21`.
    """

    def __init__(self, encoder: nn.Module, *, size: int = 256) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise argument_error("encoder", "be an nn.Module", type(encoder).__name__, kind=TypeError)
        self.encoder, self.size = encoder, check_integer("size", size)

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return torch.cat([self.encoder(piece) for piece in x.split(self.size)])
        return torch.cat([self._again(piece) for piece in x.split(self.size)])

    def _again(self, piece: Tensor) -> Tensor:
        return checkpoint(self.encoder, piece, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), self._statistics_kept()

    @contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Buffers as they were, once a piece has been embedded for the second time."""
        before = {name: buffer.clone() for name, buffer in self.encoder.named_buffers()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in self.encoder.named_buffers():
                    buffer.copy_(before[name])
