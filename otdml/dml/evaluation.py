"""Embeddings and retrieval metrics of whole data sets."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from otdml._checks import argument_error, check_boolean, check_integer, check_several
from otdml._training import evaluating, inputs_of
from otdml.distributed import from_first, gather
from otdml.dml.loading import EvaluationBatches, portions
from otdml.dml.protocols import LabelledImages, queries
from otdml.dml.retrieval import retrieval_metrics

if TYPE_CHECKING:
    from otdml.dml.module import ProxyDML

__all__ = ["check_pairs", "embed", "embeddings", "evaluate", "metrics_of", "protocol_metrics"]


def embed(
    module: "ProxyDML", dataset: LabelledImages, *, batch_size: int = 512, workers: int = 0, share: bool = False
) -> Tensor:
    """Unit embeddings of a data set, computed on the module's device.

    Args:
        module: What embeds.
        dataset: The images.
        batch_size: Images at a time.
        workers: Processes that load images of sets that do not live in memory.
        share: Whether the processes of ``torch.distributed`` embed a part each; all of them must call this then.

    Returns:
        Shape (n, dim), on the CPU, in the order of the set.

    Example:
        >>> from otdml.data import Digits
        >>> from otdml.dml import ProxyDML
        >>> embed(ProxyDML(5, dim=8, seed=0), Digits(split="test")).shape
        torch.Size([896, 8])
    """
    rows = _rows(len(dataset)) if check_boolean("share", share) else None
    z = torch.cat(list(embeddings(module, dataset, batch_size=batch_size, workers=workers, rows=rows)))
    return z if rows is None else gather(z.to(module.device)).cpu()


def embeddings(
    module: "ProxyDML", dataset: LabelledImages, *, batch_size: int = 512, workers: int = 0, rows: range | None = None
) -> Iterator[Tensor]:
    """The embeddings of :func:`embed` batch by batch, for sets whose embeddings do not fit into memory.

    Args:
        module: The model; it is in evaluation mode during the iteration.
        dataset: The images.
        batch_size: Images at a time.
        workers: Processes that load images of sets that do not live in memory.
        rows: Which images; all if None.

    Yields:
        Unit embeddings, shape (batch_size, dim) or less, on the CPU.
    """
    with evaluating(module):
        for images, _ in EvaluationBatches(dataset, batch_size=batch_size, workers=workers, rows=rows):
            # Around this step alone: the caller runs code of its own between two batches, perhaps with gradients.
            with torch.no_grad():
                z = torch.cat(
                    [module(inputs_of(module, part)) for part in portions(_moved(images, module.device))]
                ).cpu()
            yield z


def _rows(n: int) -> range | None:
    """This process's part of n images; None where they are too few to share, or there is one process."""
    count = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if count == 1 or n < count:
        return None
    return range(n * dist.get_rank() // count, n * (dist.get_rank() + 1) // count)


def _moved(images: Tensor, device: torch.device) -> Tensor:
    # An asynchronous copy is safe to a GPU only, where copies and kernels run in order.
    return images.to(device, non_blocking=device.type == "cuda")


def evaluate(
    module: "ProxyDML",
    dataset: LabelledImages,
    *,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    batch_size: int = 512,
    workers: int = 0,
    share: bool = False,
) -> dict[str, float]:
    """Retrieval metrics of a data set's embeddings, each image searched among all others.

    A data set with ``is_query`` is searched as its protocol has it: its queries among the rest.

    Args:
        module: What embeds.
        dataset: The images, of classes that were not trained on.
        ks: The K of Recall@K.
        batch_size: Images embedded at a time.
        workers: Processes that load images of sets that do not live in memory.
        share: As in :func:`embed`; the first process computes the metrics, and all return them.

    Returns:
        Values keyed as :func:`otdml.dml.retrieval_metrics` keys them.

    Raises:
        ValueError: If no image has another one of its class to find; before any is embedded.

    Example:
        >>> from otdml.data import Digits
        >>> from otdml.dml import ProxyDML
        >>> sorted(evaluate(ProxyDML(5, dim=8, seed=0), Digits(split="test"), ks=(1,)))
        ['left_out', 'map@r', 'r_precision', 'recall@1']
    """
    ks = check_several("ks", ks, check_integer)
    check_pairs("dataset", dataset)
    z = embed(module, dataset, batch_size=batch_size, workers=workers, share=share)
    return metrics_of(z, dataset, ks, share=share)


def check_pairs(name: str, dataset: LabelledImages) -> None:
    """Raise unless some image of a set has another one of its class to find, before anything is embedded."""
    labels, asked = dataset.labels, queries(dataset)
    if asked is None:
        some = bool((labels.unique(return_counts=True)[1] > 1).any())
    else:
        some = bool(torch.isin(labels[asked], labels[~asked]).any())
    if not some:
        raise argument_error(name, "hold some class with another item to find", f"{len(dataset)} images without one")


def metrics_of(z: Tensor, dataset: LabelledImages, ks: tuple[int, ...], *, share: bool = False) -> dict[str, float]:
    """The metrics of :func:`evaluate` for given embeddings of the set."""
    return protocol_metrics(z, dataset.labels, is_query=queries(dataset), ks=ks, share=share)


def protocol_metrics(
    z: Tensor,
    labels: Tensor,
    *,
    is_query: Tensor | None = None,
    index: Tensor | None = None,
    share: bool = False,
    ks: Sequence[int] = (1, 2, 4, 8),
    extra: Collection[str] = (),
    average: str = "queries",
    similarity: str = "cosine",
) -> dict[str, float]:
    """Retrieval metrics of one set: of its queries among the rest, or of each sample among all others.

    Training, any trainer's validation, and :class:`~otdml.dml.RetrievalMetrics` have their values from here.

    Args:
        z: Embeddings, shape (n, d).
        labels: Their classes, shape (n,).
        is_query: Which samples search, and the others are what they find, shape (n,). None: all, each among the others.
        index: Place of each sample in its set, shape (n,). Samples are taken in this order, and repeated ones once.
        share: Whether the first process computes, and all return what it found; all of them must call this then.
        ks: The K of Recall@K.
        extra: More metrics, as for :func:`~otdml.dml.retrieval_metrics`.
        average: Likewise.
        similarity: Likewise.

    Example:
        >>> z, labels = torch.tensor([[0.0], [1.0], [0.0], [3.0], [5.5]]), torch.tensor([0, 0, 0, 1, 1])
        >>> protocol_metrics(z, labels, index=torch.tensor([0, 1, 0, 2, 3]), ks=(1,), similarity="l2")["recall@1"]
        0.75
    """

    def found() -> dict[str, float]:
        parts = [z, labels] if is_query is None else [z, labels, is_query.to(z.device).bool()]
        for name, values in {"is_query": is_query, "index": index}.items():
            if values is not None and values.shape != (len(z),):
                raise argument_error(name, f"have shape ({len(z)},)", tuple(values.shape))
        points, classes, *query = parts if index is None else [part[_first(index).to(part.device)] for part in parts]
        options: dict[str, Any] = {"ks": ks, "extra": extra, "average": average, "similarity": similarity}
        if not query:
            return retrieval_metrics(points, classes, **options)
        rest = ~query[0]
        asked, gallery = (points[query[0]], classes[query[0]]), (points[rest], classes[rest])
        # The gallery holds no query, but may hold their copies.
        own = torch.full((len(asked[0]),), -1, device=points.device)
        return retrieval_metrics(*asked, gallery=gallery[0], gallery_labels=gallery[1], own=own, **options)

    return from_first(found) if share else found()


def _first(index: Tensor) -> Tensor:
    """Where each of the different values is first, in order of the values."""
    values, which = index.unique(return_inverse=True)
    places = torch.arange(len(index), device=index.device)
    return torch.full_like(values, len(index)).scatter_reduce_(0, which, places, "amin")
