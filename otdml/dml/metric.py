"""Retrieval metrics as a metric of torchmetrics, for training loops of one's own."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from otdml._checks import argument_error, check_labels, check_matrix
from otdml.dml.evaluation import protocol_metrics
from otdml.dml.retrieval import check_asked

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("RetrievalMetrics is a metric of torchmetrics: pip install 'otdml[train]'") from error

__all__ = ["RetrievalMetrics"]


class RetrievalMetrics(Metric):
    """:func:`retrieval_metrics` of all embeddings seen since the last reset, as a metric of torchmetrics.

    Under distributed training the embeddings of all processes are gathered, and the values are those of one process
    that has seen everything: the mean of the processes' recalls is not, as each would search its own part alone.
    Samplers that spread a set over processes repeat some samples, so that all processes have equally many. A repeated
    query finds itself: pass ``index``, the place of each sample in its set, and repeated ones count once, in the order
    of the set.

    Args:
        ks: The K of Recall@K.
        extra: More metrics, as for :func:`retrieval_metrics`.
        average: ``"queries"`` or ``"classes"``, likewise.
        similarity: ``"cosine"``, ``"inner"`` or ``"l2"``.

    Example:
        >>> import torch
        >>> metric = RetrievalMetrics(ks=(1,), similarity="l2")
        >>> metric.update(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 0]))
        >>> metric.update(torch.tensor([[3.0], [5.5]]), torch.tensor([1, 1]))
        >>> metric.compute()["recall@1"]
        0.75
    """

    is_differentiable = False
    higher_is_better = True
    # Neighbours are searched among all samples, so that values of a batch alone are not those of the whole.
    full_state_update = False
    z: list[Tensor]
    labels: list[Tensor]
    index: list[Tensor]
    queries: list[Tensor]

    def __init__(
        self,
        *,
        ks: Sequence[int] = (1, 2, 4, 8),
        extra: Collection[str] = (),
        average: str = "queries",
        similarity: str = "cosine",
    ) -> None:
        super().__init__()
        # Checked here, as the values are computed after an epoch.
        self.ks, self.extra = check_asked(ks, extra, average, similarity), tuple(extra)
        self.average, self.similarity = average, similarity
        for name in ("z", "labels", "index", "queries"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, z: Tensor, labels: Tensor, index: Tensor | None = None, is_query: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            z: Embeddings, shape (n, d).
            labels: Their classes, shape (n,).
            index: Place of each sample in its set, shape (n,); in all batches or in none.
            is_query: Whether each sample searches, and the others are what it finds, shape (n,); None in all batches
                where every sample searches all others.
        """
        labels = check_labels("labels", labels, len(check_matrix("z", z))).to(z.device)
        asked = None if is_query is None else torch.as_tensor(is_query).long()
        added = []
        for name, state, value in (("index", self.index, index), ("is_query", self.queries, asked)):
            if len(state) != (0 if value is None else len(self.z)):
                raise argument_error(name, "be in all batches or none", "in some")
            if value is not None:
                added.append((state, check_labels(name, value, len(z)).to(z.device)))
        # Only now: a batch that is refused leaves nothing.
        for state, checked in added:
            state.append(checked)
        self.z.append(z.detach())
        self.labels.append(labels)

    def forward(
        self, z: Tensor, labels: Tensor, index: Tensor | None = None, is_query: Tensor | None = None
    ) -> dict[str, float]:
        """Take in a batch, as :meth:`update` does, and return no values: those of a batch alone tell nothing.

        Samples are searched among a batch then, and a small one may hold no pair at all.
        """
        self.update(z, labels, index, is_query)
        return {}

    def compute(self) -> dict[str, float]:
        """The metrics of everything since the last reset, keyed as :func:`retrieval_metrics` keys them."""
        states = {"z": self.z, "labels": self.labels, "index": self.index, "queries": self.queries}
        found = {name: dim_zero_cat(state) for name, state in states.items() if len(state)}
        if "z" not in found:
            raise argument_error("z", "hold some samples", "none", "Call `update` before `compute`.")
        return protocol_metrics(
            found["z"],
            found["labels"],
            is_query=found.get("queries"),
            index=found.get("index"),
            ks=self.ks,
            extra=self.extra,
            average=self.average,
            similarity=self.similarity,
        )
