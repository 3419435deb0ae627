"""Proxy-based metric learning: losses, the NIR head, sampling, retrieval metrics, and the training module.

Names are imported on first use, so that names need no torch, and the losses neither zuko nor Lightning.
"""

from importlib import import_module
from typing import Any

from otdml.dml.losses import LOSSES

# The module that holds each public name.
_HOMES = {
    **{name: loss.home for loss in LOSSES.values() for name in (loss.name, loss.function)},
    "Dispersion": "dispersion",
    "EmbeddingHead": "module",
    "FitResult": "training",
    "NIR": "nir",
    "ProxyDML": "module",
    "REFERENCE_PROXY_WEIGHTS": "nir",
    "flow_nll": "nir",
    "reference_flow": "glow",
    "CrossBatchMemory": "pairs.memory",
    "RecallAtK": "pairs.recall",
    "hard_triplets": "pairs.miners",
    "multi_similarity_pairs": "pairs.miners",
    "recall_at_k": "pairs.recall",
    "semi_hard_triplets": "pairs.miners",
    "EmbeddingIndex": "index",
    "cluster_agreement": "clustering",
    "GradCache": "grad_cache",
    "export_onnx": "export",
    "export_safetensors": "export",
    "RetrievalMetrics": "metric",
    "retrieval_by_class": "retrieval",
    "retrieval_metrics": "retrieval",
    "ClassBalancedBatchSampler": "sampling",
    "TrainingConfig": "config",
    "embed": "evaluation",
    "evaluate": "evaluation",
    "fit": "training",
    "param_groups": "optim",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "otdml":
            raise
        raise ModuleNotFoundError(f"{name} needs {missing}: pip install 'otdml[train]'", name=missing) from error


def __dir__() -> list[str]:
    return [*globals(), *__all__]
