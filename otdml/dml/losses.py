"""The losses that :class:`~otdml.dml.ProxyDML` and the benchmarks know by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from otdml._arguments import check_known

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LOSSES", "NamedLoss", "named_loss"]


@dataclass(frozen=True)
class NamedLoss:
    """An entry of :data:`LOSSES`.

    Attributes:
        title: What tables and charts call it.
        home: The module below :mod:`otdml.dml` that defines it, imported on first use: names are known without torch.
        name: The name of its class, exported by :mod:`otdml.dml`.
        function: The name of the function of the same value, likewise.
        has_proxies: Whether the loss learns a proxy of every class, which a NIR head needs.
    """

    title: str
    home: str
    name: str
    function: str
    has_proxies: bool = True

    @property
    def kind(self) -> "type[nn.Module]":
        """Its class. A loss with proxies takes ``(num_classes, dim, **options)``, any other ``(**options)``."""
        return getattr(import_module(f"otdml.dml.{self.home}"), self.name)


LOSSES: Mapping[str, NamedLoss] = {
    "proxy-anchor": NamedLoss("ProxyAnchor", "proxies.anchor", "ProxyAnchor", "proxy_anchor"),
    "proxy-nca": NamedLoss("ProxyNCA++", "proxies.nca", "ProxyNCA", "proxy_nca"),
    "soft-triple": NamedLoss("SoftTriple", "proxies.soft_triple", "SoftTriple", "soft_triple"),
    "potential-field": NamedLoss("PFML", "proxies.potential_field", "PotentialField", "potential_field"),
    "multi-similarity": NamedLoss(
        "MultiSimilarity", "pairs.multi_similarity", "MultiSimilarity", "multi_similarity", has_proxies=False
    ),
    "triplet-margin": NamedLoss(
        "TripletMargin", "pairs.triplet_margin", "TripletMargin", "triplet_margin", has_proxies=False
    ),
}


def named_loss(name: str, num_classes: int, dim: int, options: Mapping[str, Any] | None = None) -> "nn.Module":
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
