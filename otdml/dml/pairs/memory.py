"""A memory of earlier batches, against which pair losses compare the present one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from otdml._checks import argument_error, check_boolean, check_integer, check_labels, check_matrix
from otdml.distributed import gather as gather_rows
from otdml.dml.pairs._comparison import Tuples, all_pairs, check_tuples, compare, without_itself

__all__ = ["CrossBatchMemory"]

Miner = Callable[[Tensor, Tensor, Tensor, Tensor], Tuples]


class CrossBatchMemory(nn.Module):
    """A pair loss of the batch against the embeddings of the last batches, this one included.

    Embeddings drift slowly, so those of earlier batches are negatives and positives that cost no forward pass: with
    ``size`` of them, a batch of a hundred sees thousands of pairs of each sample. They are constants: the gradient is
    that of the batch as anchors. A sample is not compared with itself. Values are those of
    ``pytorch_metric_learning.losses.CrossBatchMemory``, which keeps a memory of its own in every process, but for what
    :func:`~otdml.dml.multi_similarity` says of single pairs.

    Under several processes pass ``gather=True``: every process compares the batch of all of them, keeps all of it, and
    gets the value that one process with the whole batch would. Inside :class:`~otdml.dml.ProxyDML` leave it, which
    gathers itself. The memory is part of ``state_dict``, so that a run that goes on from a checkpoint goes on with it.

    Args:
        loss: A pair loss of this library or of pytorch-metric-learning, called as ``loss(z, labels, tuples, reference,
            reference_labels)``.
        dim: Features of the embeddings.
        size: Embeddings kept; no fewer than those of a batch.
        miner: Which tuples of batch and memory count, such as :func:`~otdml.dml.multi_similarity_pairs`. None for all.
        gather: Whether batch and memory are those of all processes of ``torch.distributed``.

    Raises:
        ValueError: If a batch is larger than the memory.

    Example:
        >>> import torch
        >>> from otdml.dml import TripletMargin
        >>> loss = CrossBatchMemory(TripletMargin(margin=0.2), 2, size=4)
        >>> loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).item()  # nothing to compare with yet
        0.0
        >>> loss(torch.tensor([[-1.0, 0.0]]), torch.tensor([1])).item()  # a negative, and no positive
        0.0
        >>> round(loss(torch.tensor([[0.0, 1.0]]), torch.tensor([0])).item(), 4)  # as far from both
        0.2

    Source: :cite:p:`wang:20b`.
    """

    memory: Tensor
    memory_labels: Tensor

    def __init__(
        self, loss: nn.Module, dim: int, *, size: int = 1024, miner: Miner | None = None, gather: bool = False
    ) -> None:
        super().__init__()
        _check_pair_loss(loss)
        if not (miner is None or callable(miner)):
            must = "be a function of embeddings and labels, such as `otdml.dml.hard_triplets`, or None"
            raise argument_error("miner", must, repr(miner), kind=TypeError)
        self.loss, self.miner, self.gather = loss, miner, check_boolean("gather", gather)
        size = check_integer("size", size)
        self.register_buffer("memory", torch.zeros(size, check_integer("dim", dim)))
        self.register_buffer("memory_labels", torch.zeros(size, dtype=torch.long))
        self.start()

    def start(self) -> None:
        """Forget all embeddings."""
        self._next, self._filled = 0, 0

    def extra_repr(self) -> str:
        return f"dim={self.memory.shape[1]}, size={len(self.memory)}, gather={self.gather}"

    def forward(self, z: Tensor, labels: Tensor, tuples: None = None) -> Tensor:
        if tuples is not None:
            must = "be None: those of a batch alone know nothing of the memory"
            raise argument_error("tuples", must, "some", "Give the miner to the memory.")
        labels = check_labels("labels", labels, len(check_matrix("z", z))).to(z.device)
        if z.shape[1] != self.memory.shape[1]:
            raise argument_error("z", f"have the features of the memory, {self.memory.shape[1]}", z.shape[1])
        if self.gather:
            z, labels = gather_rows(z), gather_rows(labels)
        rows = self._keep(z, labels)
        # Copies, because autograd saves these tensors and the next batch overwrites the memory.
        reference = self.memory[: self._filled].to(z.dtype, copy=True)
        others = self.memory_labels[: self._filled].clone()
        if self.miner is None:
            with torch.no_grad():
                found = all_pairs(compare(z, labels, reference, others))
        else:
            found = self.miner(z.detach(), labels, reference, others)
            found = check_tuples(found, (len(z), len(reference)), z.device)
        return self.loss(z, labels, without_itself(found, rows), reference, others)

    # In inference mode a memory of another dtype would be a tensor of that mode, which no later batch may overwrite.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _keep(self, z: Tensor, labels: Tensor) -> Tensor:
        """Put the batch in place of the oldest embeddings, and return where."""
        size = len(self.memory)
        if len(z) > size:
            raise argument_error("size", f"hold a batch of {len(z)}", size)
        rows = (self._next + torch.arange(len(z), device=z.device)) % size
        self.memory = self.memory.to(torch.promote_types(self.memory.dtype, z.dtype))
        self.memory[rows] = z.detach().to(self.memory)
        self.memory_labels[rows] = labels
        self._next, self._filled = (self._next + len(z)) % size, min(size, self._filled + len(z))
        return rows

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        # The memory has the dtype of what it has seen, and a copy into another one would round embeddings.
        saved = state_dict.get(f"{prefix}memory")
        if isinstance(saved, Tensor) and saved.is_floating_point():
            self.memory = self.memory.to(saved.dtype)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def get_extra_state(self) -> dict[str, int]:
        return {"next": self._next, "filled": self._filled}

    def set_extra_state(self, state: Any) -> None:
        self._next, self._filled = state["next"], state["filled"]


def _check_pair_loss(loss: nn.Module) -> None:
    """Raise unless ``loss`` is a module that takes a reference, as far as its signature tells."""
    if not isinstance(loss, nn.Module):
        raise argument_error("loss", "be an nn.Module", type(loss).__name__, kind=TypeError)
    try:
        inspect.signature(loss.forward).bind("z", "labels", "tuples", "reference", "reference_labels")
    except TypeError:
        must = "take tuples, a reference and its labels after labels"
        remedy = "Take a pair loss, such as TripletMargin."
        raise argument_error("loss", must, type(loss).__name__, remedy, TypeError) from None
