"""Embeddings and retrieval metrics of whole data sets."""

import torch
from torch import Tensor

from otdml.dml.loading import EvaluationBatches, LabelledImages, as_float
from otdml.dml.module import ProxyDML
from otdml.dml.retrieval import retrieval_metrics

__all__ = ["embed", "evaluate"]


def embed(module: ProxyDML, dataset: LabelledImages, *, batch_size: int = 512, workers: int = 0) -> Tensor:
    """Unit embeddings of a data set, computed on the module's device.

    Args:
        module: What embeds.
        dataset: The images.
        batch_size: Images at a time.
        workers: Processes that load images of sets that do not live in memory.

    Returns:
        Shape (n, dim), on the CPU, in the order of the set.

    Example:
        >>> from otdml.data import Digits
        >>> embed(ProxyDML(5, dim=8, seed=0), Digits(split="test")).shape
        torch.Size([896, 8])
    """
    batches = EvaluationBatches(dataset, batch_size=batch_size, workers=workers)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            return torch.cat([module(as_float(images.to(module.device))).cpu() for images, _ in batches])
    finally:
        for part, mode in modes.items():
            part.training = mode


def evaluate(
    module: ProxyDML,
    dataset: LabelledImages,
    *,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    batch_size: int = 512,
    workers: int = 0,
) -> dict[str, float]:
    """Retrieval metrics of a data set's embeddings, each image searched among all others.

    A data set with ``is_query`` is searched as its protocol has it: its queries among the rest.

    Args:
        module: What embeds.
        dataset: The images, of classes that were not trained on.
        ks: The K of Recall@K.
        batch_size: Images embedded at a time.
        workers: Processes that load images of sets that do not live in memory.

    Returns:
        Values keyed as :func:`otdml.dml.retrieval_metrics` keys them.

    Example:
        >>> from otdml.data import Digits
        >>> sorted(evaluate(ProxyDML(5, dim=8, seed=0), Digits(split="test"), ks=(1,)))
        ['left_out', 'map@r', 'r_precision', 'recall@1']
    """
    z = embed(module, dataset, batch_size=batch_size, workers=workers)
    queries = getattr(dataset, "is_query", None)
    if queries is None:
        return retrieval_metrics(z, dataset.labels, ks=ks)
    labels, gallery = dataset.labels[queries], dataset.labels[~queries]
    return retrieval_metrics(z[queries], labels, gallery=z[~queries], gallery_labels=gallery, ks=ks)
