"""Proxy-based metric learning: losses, the NIR head, sampling, retrieval metrics, and the training module.

Names are imported on first use, so that names need no torch, and the losses neither zuko nor Lightning.
"""

from otdml._exports import exports
from otdml.dml.losses import LOSSES

# The module that holds each public name.
_HOMES = {
    **{name: loss.home for loss in LOSSES.values() for name in (loss.name, loss.function)},
    "Dispersion": "dispersion",
    "EmbeddingHead": "head",
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
__getattr__, __dir__ = exports(__name__, _HOMES, extra="train")
