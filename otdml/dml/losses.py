"""The losses that :class:`~otdml.dml.ProxyDML` and the benchmarks know by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from otdml._checks import check_known
from otdml.dml.pairs import MultiSimilarity, TripletMargin
from otdml.dml.proxies import PotentialField, ProxyAnchor, ProxyNCA, SoftTriple

__all__ = ["LOSSES", "NamedLoss", "named_loss"]


@dataclass(frozen=True)
class NamedLoss:
    """An entry of :data:`LOSSES`.

    Attributes:
        title: What tables and charts call it.
        kind: Its class. A loss with proxies takes ``(num_classes, dim, **options)``, any other ``(**options)``.
    """

    title: str
    kind: type[nn.Module]

    @property
    def has_proxies(self) -> bool:
        """Whether the loss learns a proxy of every class, which a NIR head needs."""
        return hasattr(self.kind, "class_proxies")


LOSSES: Mapping[str, NamedLoss] = {
    "proxy-anchor": NamedLoss("ProxyAnchor", ProxyAnchor),
    "proxy-nca": NamedLoss("ProxyNCA++", ProxyNCA),
    "soft-triple": NamedLoss("SoftTriple", SoftTriple),
    "potential-field": NamedLoss("PFML", PotentialField),
    "multi-similarity": NamedLoss("MultiSimilarity", MultiSimilarity),
    "triplet-margin": NamedLoss("TripletMargin", TripletMargin),
}


def named_loss(name: str, num_classes: int, dim: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """The loss of that name.

    Args:
        name: A key of :data:`LOSSES`.
        num_classes: Training classes.
        dim: Features of the embedding.
        options: Hyper-parameters of the loss.

    Raises:
        ValueError: There is no such loss; the message lists those there are.

    Example:
        >>> named_loss("proxy-nca", 5, 8, {"temperature": 0.5})
        ProxyNCA(num_classes=5, dim=8, temperature=0.5)
    """
    known = LOSSES[check_known("loss", name, LOSSES)]
    sizes = (num_classes, dim) if known.has_proxies else ()
    return known.kind(*sizes, **dict(options or {}))
