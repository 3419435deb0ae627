"""Losses of batches that do not fit through an encoder at once."""

from contextlib import AbstractContextManager

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

    Dropout and other draws from PyTorch's default generators are the same both times; so are the buffers that the
    encoder reads and writes, such as those of spectral norms, and running statistics are updated once. What a batch
    norm normalises by in training is the statistics of a piece: freeze it, or expect another function than that of the
    whole batch. Within ``DistributedDataParallel`` wrap this module, not the encoder:
    ``DistributedDataParallel(GradCache(encoder))``.

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
        return checkpoint(self.encoder, piece, use_reentrant=False, context_fn=_Buffers(self.encoder).contexts)


class _Buffers:
    """Those buffers of an encoder that it writes to, as they were before one piece."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder
        self.before: dict[str, Tensor] = {}

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The contexts in which a piece is embedded for the first time, and for every other."""
        return _First(self), _Again(self)

    def copies(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.encoder.named_buffers()}

    def versions(self) -> dict[str, tuple[int, int]]:
        """What changes when a buffer is written to, or another tensor takes its place."""
        return {name: (id(buffer), buffer._version) for name, buffer in self.encoder.named_buffers()}

    @torch.no_grad()
    def write(self, values: dict[str, Tensor]) -> None:
        for name, buffer in self.encoder.named_buffers():
            if name in values:
                buffer.copy_(values[name])


class _First(AbstractContextManager[None]):
    """Remembers the buffers that a piece changes."""

    def __init__(self, buffers: _Buffers) -> None:
        self.buffers = buffers

    def __enter__(self) -> None:
        self.versions, self.copies = self.buffers.versions(), self.buffers.copies()

    def __exit__(self, *_: object) -> None:
        now = self.buffers.versions()
        self.buffers.before = {name: copy for name, copy in self.copies.items() if now.get(name) != self.versions[name]}
        del self.copies


class _Again(AbstractContextManager[None]):
    """Gives the piece the buffers that it had, for the vectors of a spectral norm decide what is embedded."""

    def __init__(self, buffers: _Buffers) -> None:
        self.buffers = buffers

    def __enter__(self) -> None:
        self.now = self.buffers.copies()
        self.buffers.write(self.buffers.before)

    def __exit__(self, *_: object) -> None:
        self.buffers.write(self.now)
        del self.now
